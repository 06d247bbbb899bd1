"""The console script: which verbs there are, and how it hands over to them."""

from __future__ import annotations

import importlib
import inspect

import pytest

from dora_jax.launch import cli

# What Python does before the first import of a program that is started as a file.
START = """
import runpy
import sys
from pathlib import Path

if __name__ == "__main__":  # before a file of this folder could shadow what is imported
    runpy.run_path(str(Path(__file__).resolve().with_name("as_script.py")))

import argparse
"""
END = """
if __name__ == "__main__":
    sys.exit(main())
"""


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_is_a_program(verb):
    program = importlib.import_module(f"dora_jax.launch.{verb}")
    assert len(inspect.signature(program.main).parameters) == 1
    code = inspect.getsource(program)
    assert code.partition("from __future__ import annotations\n")[2].startswith(START)
    assert code.endswith(END)


def test_a_verb_gets_its_arguments_and_gives_its_status(monkeypatch):
    run = importlib.import_module("dora_jax.launch.run")
    seen = []
    monkeypatch.setattr(run, "main", lambda arguments: seen.append(arguments) or 75)
    assert cli.main(["run", "--gin_file=gin/x.gin", "--help"]) == 75
    assert seen == [["--gin_file=gin/x.gin", "--help"]]


def test_help_lists_the_verbs(capsys):
    assert cli.main(["--help"]) == 0
    assert "run" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "name a verb"), (["rum"], "Did you mean 'run'?"), (["zzz"], "no verb 'zzz'.")],
)
def test_wrong_verbs_are_refused_in_words(capsys, arguments, message):
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "usage: dora-jax VERB" in captured.err
    assert captured.out == ""
