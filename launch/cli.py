"""The console script `dora-jax VERB`: the same programs as `python launch/VERB.py`."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence

# Verb = module of this package with `main(argv) -> exit status`, and what it does.
VERBS = {
    "run": "carry out a gin file: prepare, teach, label, distill, evaluate, with a receipt",
    "data": "show a task's data before money is spent on them",
    "quote": "tell hours, dollars and whether it fits, before hardware is rented",
    "tpu_plans": "compile a run for TPU slices that are not here, for what a chip will hold",
    "annotate": "labels from people and from language models, with their price",
    "probe": "measure how many entries of the teacher's distribution soft labels need",
    "predict": "predict a file of texts with a checkpoint",
    "convert": "convert a checkpoint between Hugging Face, T5X and our own format",
    "export": "export a model of a run, with a model card",
    "sweep": "carry out many runs from one file, what they share paid once",
    "ledger": "list runs with their quality and dollars, and price them anew",
    "plan": "the best way to spend a budget, from finished runs, with intervals",
    "report": "write one page about finished runs, with every figure beside it",
    "score": "score a file of predictions, and compare it with another one",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb.

    Args:
      argv: the verb and its arguments; None takes the command line's.

    Returns:
      the exit status: the verb's own, 0 after `--help`, 2 where no such verb is.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    if arguments and arguments[0] in VERBS:
        verb = importlib.import_module(f"dora_jax.launch.{arguments[0]}")
        return verb.main(arguments[1:])
    if arguments and arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0
    print(_error(arguments), file=sys.stderr)
    return 2


def _usage() -> str:
    verbs = "\n".join(f"  {verb:<10}{meaning}" for verb, meaning in VERBS.items())
    return f"usage: dora-jax VERB ...\n\n{verbs}\n\n`dora-jax VERB --help` explains a verb."


def _error(arguments: Sequence[str]) -> str:
    if not arguments:
        return f"error: name a verb.\n\n{_usage()}"
    close = difflib.get_close_matches(arguments[0], VERBS, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"error: there is no verb {arguments[0]!r}.{hint}\n\n{_usage()}"
