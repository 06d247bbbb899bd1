"""launch/run.py as real processes: one, or several that find each other over the loopback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from tiny_run import NETWORK, write_tiny_store

from dora_jax.launch import gin_config, run

SCRIPT = Path(run.__file__)
RUN_FILE = "gin/wlp_distill.gin"
# What several hosts do beyond one: each kind of stage once, all updates logged to be compared.
OF_HOSTS = MappingProxyType({"STRATEGIES": "('distill',)", "TrainConfig.log_every_steps": "1"})
SETTINGS = {
    "NUM_LABELS": "24",
    "TASK_FEATURE_LENGTHS": "{'inputs': 24, 'targets': 24}",
    "VOCABULARY_PIECES": "310",
    "DataConfig.extra_ids": "10",
    "VOCAB_SIZE": "320",
    "PRETRAIN_BATCH_SIZE": "8",
    "BATCH_SIZE": "8",
    "DROPOUT_RATE": "0.1",
    "EVAL_STEPS": "4",
    "CHECKPOINT_STEPS": "3",
    "LABEL_BATCH_SIZE": "8",
    "LabelConfig.shard_examples": "8",
    "EVAL_BATCH_SIZE": "8",
    "TOP_K": "8",
    "VALIDATION_EXAMPLES": "8",
    "BOOTSTRAP_RESAMPLES": "20",
} | {
    f"rehearsal_{model}/T5Config.{field}": str(getattr(NETWORK, field))
    for model in ("teacher", "student")
    for field in ("emb_dim", "num_heads", "num_encoder_layers", "num_decoder_layers")
    + ("head_dim", "mlp_dim")
}
PHASES = ("TEACHER_PRETRAIN", "STUDENT_PRETRAIN", "TEACHER_TRAIN", "ANNOTATE_TRAIN", "TRAIN")


class Place(NamedTuple):
    """Where the runs of a file work: the token store and the compiled programs.

    Attributes:
      folder: of all this.
      steps: updates of each phase.
      own: settings that the file's runs have besides.
    """

    folder: Path
    steps: int
    own: Mapping[str, str] = MappingProxyType({})

    def arguments(self, name: str, **settings: str) -> list[str]:
        chosen = SETTINGS | {f"{phase}_STEPS": str(self.steps) for phase in PHASES}
        chosen |= {
            **self.own,
            "TOKEN_STORE": f"'{self.folder / 'tokens'}'",
            "MODEL_DIR": f"'{self.folder / name}'",
        }
        return [
            f"--gin_file={RUN_FILE}",
            "--scale=rehearsal",
            f"--compilation_cache={self.folder / 'compiled'}",
            *(f"--gin.{key}={value}" for key, value in (chosen | settings).items()),
        ]

    def make_store(self) -> None:
        """The token store that all runs read."""
        overrides = [
            gin_config.Override(*argument.removeprefix("--gin.").split("=", 1))
            for argument in self.arguments("any")
            if argument.startswith("--gin.")
        ]
        write_tiny_store(
            gin_config.build(RUN_FILE, "rehearsal", overrides).config.data, self.folder / "tokens"
        )

    def start(
        self,
        name: str,
        processes: int = 1,
        devices: int = 1,
        settings_of: Mapping[int, dict[str, str]] = MappingProxyType({}),
        **settings: str,
    ) -> list[subprocess.Popen[str]]:
        """The processes of a run, each with so many devices; one process takes no other flags."""
        address = f"127.0.0.1:{free_port()}"
        return [
            start(
                [
                    *self.arguments(name, **{**settings, **settings_of.get(i, {})}),
                    *(
                        ()
                        if processes == 1
                        else (
                            f"--coordinator_address={address}",
                            f"--num_processes={processes}",
                            f"--process_id={i}",
                        )
                    ),
                ],
                devices,
            )
            for i in range(processes)
        ]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start(arguments: Sequence[str], devices: int = 1) -> subprocess.Popen[str]:
    # Nothing here is worth optimising; all that are compared have the same flags.
    environment = os.environ | {
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_PLATFORMS": "cpu",
    }
    environment.pop("DORA_DATA_DIR", None)
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def end(processes: Sequence[subprocess.Popen[str]], status: int = 0) -> list[tuple[str, str]]:
    """Waits for processes to end with a status; returns what each wrote to stdout and stderr."""
    told = [process.communicate(timeout=300) for process in processes]
    for process, (_, err) in zip(processes, told, strict=True):
        assert process.returncode == status, err
    return told
