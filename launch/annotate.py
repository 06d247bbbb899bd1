"""Labels from people and from language models, with their price."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":  # before a file of this folder could shadow what is imported
    runpy.run_path(str(Path(__file__).resolve().with_name("as_script.py")))

import argparse
from collections.abc import Sequence

from dora_jax.launch import annotate_human, annotate_llm, annotate_settings
from dora_jax.launch.command_line import exit_status, parse
from dora_jax.launch.data import run_config
from dora_jax.launch.run_files import SCALES
from dora_jax.tasks.own import task_of

DESCRIPTION = """\
Labels from a language model: asks an OpenAI-compatible server about each text, keeps every answer
as it comes, and counts the dollars. The same command goes on where it stopped. The key is read
from the environment and written nowhere.

  python launch/annotate.py --task=wlp --model=NAME --output=labels.jsonl --dry_run
  python launch/annotate.py --task=wlp --model=NAME --output=labels.jsonl --shots=8 --audit=100
  python launch/annotate.py --task=wlp --model=NAME --base_url=http://localhost:8000/v1 \\
      --pool=texts.jsonl --output=labels.jsonl --budget_usd=5

A simulated server rehearses that without a key or money, on WLP's bundled sample:

  python -m dora_jax.tasks.samples.annotator --port=8765
  python launch/annotate.py --task=wlp --model=simulated --base_url=http://127.0.0.1:8765/v1 \\
      --usd_per_million_input_tokens=0.5 --usd_per_million_output_tokens=1.5 --audit=100 \\
      --output=simulated.jsonl

Labels from people: chooses texts, writes a sheet for them, and takes it back.

  python launch/annotate.py --task=wlp --human --count=200 --output=sheet.csv
  python launch/annotate.py --task=wlp --import_file=sheet.csv --output=labels.jsonl

A gin file names a task of your own: --gin_file=gin/my_task_distill.gin in place of --task.
docs/annotators.md has the rest.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status: 0, 2 after an error, 75 if texts are missing."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    return exit_status(lambda: _annotate(given), debug="--debug" in given)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python launch/annotate.py",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--task", metavar="NAME", help="a task of the paper")
    add("--gin_file", metavar="FILE", help="the run (default: gin/NAME_distill.gin of the task)")
    add("--scale", choices=SCALES, help="of the run (default: as launch/data.py has it)")
    add("--pool", metavar="FILE", help="texts to label: JSON lines, CSV or TSV with a source each")
    add("--output", metavar="FILE", help="labels (.jsonl); of --human the sheet")
    add("--seed", type=int, default=0, help="of every draw (default: %(default)s)")
    add("--debug", action="store_true", help="show tracebacks")
    annotate_settings.add_flags(parser)
    annotate_human.add_flags(parser)
    return parser


def _annotate(arguments: list[str]) -> int:
    flags, overrides = parse(_parser(), arguments)
    ways = [name for name in ("model", "human", "import_file") if getattr(flags, name)]
    if len(ways) != 1:
        raise ValueError(
            "Who labels? Name one of --model=NAME (a language model), --human (a sheet for "
            "people) and --import_file=FILE (a sheet that comes back)."
        )
    if not flags.output:
        raise ValueError("Where shall the labels go? Add --output=FILE.")
    config = run_config(flags, overrides)
    task = task_of(config.data, config.cost.price_usd_per_label)
    if ways == ["model"]:
        return annotate_llm.annotate(flags, task, config)
    if ways == ["human"]:
        return annotate_human.write_sheet(flags, task, config.data)
    return annotate_human.import_sheets(flags, task, config)


if __name__ == "__main__":
    sys.exit(main())
