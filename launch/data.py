"""Shows a task's data as a person would want to see them before spending money."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":  # before a file of this folder could shadow what is imported
    runpy.run_path(str(Path(__file__).resolve().with_name("as_script.py")))

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dora_jax.config import RunConfig
from dora_jax.cost.run_prices import label_price
from dora_jax.launch import gin_config
from dora_jax.launch.command_line import exit_status, parse, require_place
from dora_jax.launch.data_tables import print_overview
from dora_jax.launch.gin_config import Override
from dora_jax.launch.run_files import SCALES
from dora_jax.tasks.classes import require_writable
from dora_jax.tasks.overview import count_words, describe_task
from dora_jax.tasks.own import task_of
from dora_jax.tasks.task import get_task
from dora_jax.whole_files import write_json

if TYPE_CHECKING:  # it imports JAX, which takes a second that only some need to pay
    from dora_jax.data.vocab import Vocabulary

DESCRIPTION = """\
Shows a task's data before money is spent on them: rows of each split, lengths, labels,
repetitions, texts that train and test share, what a model will see, and what labels cost. The
data are those of a run: the authors' files where DORA_DATA_DIR names them, else the bundled
sample; or the files of a task of your own, which a gin file names.

  python launch/data.py --task=wlp
  python launch/data.py --gin_file=gin/my_task_distill.gin
  python launch/data.py --task=fever --gin.NUM_LABELS=2000 --json=fever.json

Lengths are tokens of the run's vocabulary where its file is at hand, else words.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status: 0, or 2 after an error."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    return exit_status(lambda: _show(given), debug="--debug" in given)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python launch/data.py",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--task", metavar="NAME", help="a task of the paper")
    parser.add_argument(
        "--gin_file", metavar="FILE", help="the run (default: gin/NAME_distill.gin of the task)"
    )
    parser.add_argument(
        "--scale",
        choices=SCALES,
        help="of the run (default: paper, but rehearsal on the bundled sample)",
    )
    parser.add_argument(
        "--json", metavar="FILE", help="write the facts as JSON; - prints them and nothing else"
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def _show(arguments: list[str]) -> int:
    flags, overrides = parse(_parser(), arguments)
    if flags.json and flags.json != "-":
        require_place("--json", flags.json)
    config = run_config(flags, overrides)
    task = task_of(config.data, config.cost.price_usd_per_label)
    price = label_price(config.cost, task.name)
    vocabulary, why_words = _vocabulary(config.data.vocabulary, config.data.extra_ids)
    if vocabulary is None:
        facts = describe_task(task, config.data, price.usd, count_words)
    else:
        require_writable(task.labels, vocabulary)
        facts = describe_task(
            task,
            config.data,
            price.usd,
            # Prompt and EOS included, as `prepare` counts them.
            count_lengths=lambda texts: [len(ids) + 1 for ids in vocabulary.encode(texts)],
            cut=lambda text, limit: vocabulary.decode(vocabulary.encode([text])[0][: limit - 1]),
        )
    facts["length_unit"] = "words" if vocabulary is None else "tokens"
    facts["length_note"] = why_words
    facts["price"]["source"] = price.source
    if flags.json == "-":
        print(json.dumps(facts, indent=1, ensure_ascii=False))
        return 0
    print_overview(facts)
    if flags.json:
        write_json(flags.json, facts)
    return 0


def run_config(flags: argparse.Namespace, overrides: list[Override]) -> RunConfig:
    """The run whose data are meant by --task, --gin_file and --scale.

    Raises:
        ValueError: neither is named, or two that do not go together.
    """
    if not flags.task and not flags.gin_file:
        raise ValueError("Which data? Add --task=NAME of a task of the paper, or --gin_file=FILE.")
    run_file = flags.gin_file
    if flags.task:
        name = get_task(flags.task).name
        run_file = run_file or f"gin/{name}_distill.gin"
    scale = flags.scale or gin_config.own_scale(run_file)
    config = gin_config.build(run_file, scale or "paper", overrides).config
    data = config.data
    if not scale and not (data.data_dir or data.own.train_file):
        config = gin_config.build(run_file, "rehearsal", overrides).config
    if flags.task and config.data.task != name:
        raise ValueError(
            f"--task={flags.task}, but {run_file} is a run of the task {config.data.task!r}; leave "
            "one of the two away."
        )
    return config


def _vocabulary(named: str, extra_ids: int) -> tuple[Vocabulary | None, str]:
    """The run's vocabulary, or none and why."""
    if not named:
        return None, "the run trains its vocabulary on the task's own text"
    file = _on_this_machine(named)
    if file is None:
        return None, f"{named} is not on this machine yet; --gin.VOCABULARY can name a file"
    from dora_jax.data.vocab import Vocabulary

    return Vocabulary.load(file, extra_ids), ""


def _on_this_machine(vocabulary: str) -> str | None:
    """The SentencePiece file, if it is here: to look at data shall not wait for a network."""
    if not vocabulary.startswith("hf:"):
        return vocabulary
    folder = Path(vocabulary.removeprefix("hf:")).expanduser()
    if folder.is_dir():
        return str(folder / "spiece.model")
    # Imported here because it takes a quarter of a second that others need not pay.
    import huggingface_hub

    cached = huggingface_hub.try_to_load_from_cache(folder.as_posix(), "spiece.model")
    return cached if isinstance(cached, str) else None


if __name__ == "__main__":
    sys.exit(main())
