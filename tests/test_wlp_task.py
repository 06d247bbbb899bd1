"""The WLP task: its facts, and what it says about bad targets."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dora_jax.tasks.task import get_task
from dora_jax.tasks.wlp import ENTITY_TYPES, PAPER_TYPES, WLP


def test_facts() -> None:
    assert get_task("wlp") is WLP
    assert (WLP.prompt_prefix, WLP.folder, WLP.kind) == ("wlp: ", "wlp", "spans")
    assert (WLP.price_usd_per_label, WLP.primary_metric) == (0.26, "micro_f1")
    assert len(set(ENTITY_TYPES)) == 18
    assert len(set(PAPER_TYPES)) == 20
    assert PAPER_TYPES[0] == "AMOUNT"


def test_unknown_task_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"no task 'WPL'. Did you mean 'wlp'\? Tasks: .*wlp"):
        get_task("WPL")


def test_score_is_by_this_tasks_types() -> None:
    target = "Add [Action] 1 mL [Amount] pH 7 [pH]"
    scores = WLP.score([target], [target], ["Add 1 mL at pH 7"], resamples=10)
    assert scores.value == 100.0
    assert scores.strict["f1/pH"] == 100.0
    assert scores.paper["micro_f1"] == 100.0


@pytest.mark.parametrize(
    "target",
    [
        "",
        "Add [Action] 10 µL [Amount]",
        "[viral] fraction [Reagent]",
        "HINDIII [lambda] DNA [Reagent]",
        "wash solution [Reagent] [6.2] [Location]",
        "T-75 [Act [Location] and [Action]",
        "[γ-32P]ATP [Reagent]",
        "poly[A] RNA [Reagent]",
        "[alpha]actin [Reagent]",
    ],
)
def test_good_targets(target: str) -> None:
    assert WLP.check_target(target) is None


@pytest.mark.parametrize(
    ("target", "complaint"),
    [
        ("Add [Acton]", r"\[Acton\] is not known; did you mean \[Action\]"),
        ("Add [action]", r"did you mean \[Action\]"),
        ("DNA [REAGENT]", r"did you mean \[Reagent\]"),
        ("Add [Action] [Foo] [Reagent]", r"\[Foo\] is not known"),
        ("1 h [Tme] tube [Location]", r"\[Tme\].*\[Time\]"),
        ("x [Foo]", r"\[Foo\] is not known; tags are .*\[Action\].*\[pH\]"),
        ("Add [Action] [Reagent]", r"\[Reagent\] has no entity before it"),
        ("[Action]", r"\[Action\] has no entity before it"),
        ("Add [Action] the tube", r"'the tube' at the end has no tag"),
        ("just text", r"'just text' at the end has no tag"),
    ],
)
def test_bad_targets(target: str, complaint: str) -> None:
    assert re.search(complaint, WLP.check_target(target) or "no complaint")


def test_every_real_target_is_good() -> None:
    folder = Path(os.environ.get("DORA_DATA_DIR", "")) / "wlp"
    if not (folder / "wlp_train_all.json").is_file():
        pytest.skip("DORA_DATA_DIR does not name the authors' files: real WLP not checked")
    for split in ("train", "test"):
        text = (folder / f"wlp_{split}_all.json").read_text(encoding="utf-8")
        targets = [json.loads(line)["target"] for line in text.splitlines()]
        assert len(targets) == {"train": 14271, "test": 3562}[split]
        assert [t for t in targets if WLP.check_target(t) is not None] == []


def test_tasks_and_metrics_need_no_framework() -> None:
    heavy = "{'tensorflow', 'torch', 'transformers', 'gin', 'seqio', 'sklearn', 'jax'}"
    code = f"import sys, dora_jax.tasks.wlp; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
