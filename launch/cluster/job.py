"""What a scheduler is asked for: one run, or a sweep of them, on so many hosts."""

from __future__ import annotations

import dataclasses
import re

# In an argument of a sweep's command: the number of the run, from 0.
INDEX = "{index}"
PORT = 8476  # where the first host listens; JAX's own choice on clusters it knows

# Google's names of its chips: JAX device kind → the accelerator of a GKE node, chips a host.
TPUS = {
    "v4": ("tpu-v4-podslice", 4),
    "v5e": ("tpu-v5-lite-podslice", 4),
    "v5p": ("tpu-v5p-slice", 4),
    "v6e": ("tpu-v6e-slice", 4),
}


@dataclasses.dataclass(frozen=True)
class Job:
    """A run on many hosts, in words that every scheduler has.

    `command` is the program with its arguments, without those that tell hosts apart; in a sweep
    (`array_size` above 0) one of them holds `{index}`. `accelerator` is what the scheduler calls
    a device ("a100", "H100", "v5e"); "" for none or any. `warning_seconds` is how long before the
    end of its time a run is asked to save. `shared_folder` is where hosts without a common disk
    mount one, and `volume` what is mounted there. `extra` are lines for the scheduler alone.
    """

    name: str
    command: tuple[str, ...]
    hosts: int = 1
    devices_per_host: int = 0
    accelerator: str = ""
    hours: float = 24.0
    array_size: int = 0
    spot: bool = False
    warning_seconds: int = 120
    restarts: int = 20
    image: str = ""
    topology: str = ""
    shared_folder: str = "/runs"
    volume: str = ""
    extra: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?", self.name):
            raise ValueError(
                f"The job name {self.name!r} is not one that every scheduler takes; expected up to "
                "40 small letters, digits and hyphens, no hyphen at an end. Set --job_name."
            )
        if self.hosts < 1 or self.devices_per_host < 0 or self.array_size < 0:
            raise ValueError(
                f"hosts = {self.hosts}, devices_per_host = {self.devices_per_host}, array_size = "
                f"{self.array_size}; expected at least 1, 0 and 0."
            )
        if not self.hours > self.warning_seconds / 3600:
            raise ValueError(
                f"hours = {self.hours:g} is no longer than the {self.warning_seconds} seconds kept "
                "for saving at their end. Raise --hours."
            )
        indexed = any(INDEX in word for word in self.command)
        if indexed != bool(self.array_size):
            raise ValueError(
                f"The command of {self.name} {'holds' if indexed else 'does not hold'} {INDEX}, "
                f"and array_size is {self.array_size}: a sweep needs both, a single run neither."
            )
        for word in (*self.command, *self.extra):
            if "\n" in word:
                raise ValueError(f"A line break cannot be handed to a scheduler: {word!r}.")


def job_name(gin_file: str) -> str:
    """A name for the run of a gin file, of the signs that every scheduler takes."""
    stem = gin_file.rpartition("/")[2].removesuffix(".gin").lower()
    return "dora-" + (re.sub(r"[^a-z0-9]+", "-", stem).strip("-")[:34].strip("-") or "run")


def shell_words(words: tuple[str, ...], index: str) -> str:
    """A command for bash.

    Args:
      words: taken as they are; `{index}` alone has a meaning.
      index: a bash variable, such as `${SLURM_ARRAY_TASK_ID}`, in its place.
    """
    return " ".join(_shell_word(word, index) for word in words)


def _shell_word(word: str, index: str) -> str:
    parts = [_single_quoted(part) for part in word.split(INDEX)]
    return f'"{index}"'.join(parts) if len(parts) > 1 else parts[0] or "''"


def _single_quoted(text: str) -> str:
    if not text or re.fullmatch(r"[\w@%+=:,./-]+", text, re.ASCII):
        return text
    return "'" + text.replace("'", "'\"'\"'") + "'"
