"""The paper's tasks beside WLP: their facts, and what they say about bad targets."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dora_jax.tasks.task import TaskSpec, get_task

CLASSES = {
    "fever": ("REFUTES", "SUPPORTS"),
    "multipit_id": ("NO", "YES"),
    "stanceosaurus": ("Irrelevant", "Supporting", "Refuting", "Discussing", "Querying"),
}


@pytest.mark.parametrize(
    ("name", "kind", "price", "primary", "split"),
    [
        ("fever", "classification", 0.129, "accuracy", "dev"),
        ("stanceosaurus", "classification", 0.364, "macro_f1", "test"),
        ("multipit_id", "classification", 0.2, "accuracy", "test"),
        ("multipit_gen", "text", 0.371, "bert_ibleu", "test"),
        ("nq", "text", 0.129, "f1", "dev"),
        ("wlp", "spans", 0.26, "micro_f1", "test"),
    ],
)
def test_facts(name: str, kind: str, price: float, primary: str, split: str) -> None:
    task = get_task(name)
    assert (task.name, task.kind, task.price_usd_per_label) == (name, kind, price)
    assert (task.primary_metric, task.test_split) == (primary, split)
    # The first class is what the authors' script takes for an answer that names none.
    if name in CLASSES:
        assert task.labels == CLASSES[name]
    folder = "multipit" if name == "multipit_gen" else name
    assert (task.folder, task.prompt_prefix) == (folder, f"{folder}: ")
    assert get_task(folder) is task


def test_a_kind_there_is_not() -> None:
    fields = {name: getattr(get_task("nq"), name) for name in TaskSpec.__dataclass_fields__}
    with pytest.raises(ValueError, match="'texts'; it must be spans or classification or text"):
        TaskSpec(**{**fields, "kind": "texts"})


@pytest.mark.parametrize(
    ("name", "target", "complaint"),
    [
        ("fever", "SUPPORTS", None),
        ("fever", "SUPPORT", "'SUPPORT' is not known; did you mean 'SUPPORTS'"),
        ("fever", "refutes", "did you mean 'REFUTES'"),
        ("fever", "NOT ENOUGH INFO", r"known; labels are 'REFUTES', 'SUPPORTS'"),
        ("multipit_id", "YES", None),
        ("multipit_id", " YES", "did you mean 'YES'"),
        ("stanceosaurus", "Discussing", None),
        ("stanceosaurus", "discusing", "did you mean 'Discussing'"),
        ("stanceosaurus", "", "'' is not known"),
        ("fever", "SUPPORT\uff33", r"label 'SUPPORT\\uff33' is not known; did you mean 'SUPPORTS'"),
        ("nq", "2008", None),
        ("nq", " ", "target is empty"),
        ("multipit_gen", "any text", None),
        ("multipit_gen", "", "target is empty"),
    ],
)
def test_targets(name: str, target: str, complaint: str | None) -> None:
    found = get_task(name).check_target(target)
    assert found is None if complaint is None else re.search(complaint, found or "no complaint")


@pytest.mark.parametrize("name", [*CLASSES, "multipit_gen", "nq"])
def test_every_real_target_is_good_and_scores_itself(name: str) -> None:
    task = get_task(name)
    folder = Path(os.environ.get("DORA_DATA_DIR", "")) / task.folder
    if not folder.is_dir() or "DORA_DATA_DIR" not in os.environ:
        pytest.skip("DORA_DATA_DIR does not name the authors' files: real targets not checked")
    for split in ("train", task.test_split):
        text = (folder / f"{task.folder}_{split}_all.json").read_text(encoding="utf-8")
        rows = [json.loads(line) for line in text.splitlines()]
        targets = [row["target"] for row in rows]
        assert [target for target in targets if task.check_target(target) is not None] == []
        if name != "multipit_gen":  # its score is not against the target
            assert task.selection_value(targets, targets, [r["source"] for r in rows]) == 100.0


def test_tasks_and_metrics_need_no_framework() -> None:
    heavy = "{'tensorflow', 'torch', 'transformers', 'gin', 'seqio', 'sklearn', 'jax'}"
    code = (
        "import sys; from dora_jax.tasks.task import get_task\n"
        "task = get_task('multipit_gen').with_scorer_model('/nowhere')\n"
        "task.score(['a'], ['b'], ['c'], resamples=2)\n"
        f"print(sorted({heavy} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
