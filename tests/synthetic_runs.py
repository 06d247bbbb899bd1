"""Run directories as runs leave them, written by hand: their rows cost what a test says."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dora_jax.config import DataConfig, RunConfig, to_dict
from dora_jax.cost.ledger import Ledger, RunFacts, labels_row, stage_row
from dora_jax.cost.meter import Charge, Holding
from dora_jax.cost.prices import user_price
from dora_jax.whole_files import write_json

CENT_A_SECOND = Holding("cpu", 2, user_price(18.0))  # two devices at 18 USD an hour
DISTILL_SECONDS = {
    "prepare": 100,
    "pretrain-teacher": 200,
    "teach": 400,
    "evaluate-teacher": 10,
    "label": 300,
    "pretrain-student": 150,
    "distill": 250,
    "evaluate-distill": 20,
}
ANNOTATE_SECONDS = {
    "prepare": 100,
    "pretrain-student": 150,
    "annotate": 50,
    "evaluate-annotate": 20,
}


def write_run(
    directory: Path,
    strategies: tuple[str, ...] = ("distill",),
    *,
    seconds: Mapping[str, float] | None = None,
    labels: int = 100,
    seed: int = 0,
    values: dict[str, float] | None = None,
    shared: Path | None = None,
    shared_stages: tuple[str, ...] = (),
    best_value: float = 1.0,
    status: str = "finished",
    **settings: Any,
) -> Path:
    """A run whose stages took these seconds, at a cent a second.

    `shared_stages` lie in `shared`, where they are billed if `seconds` names them.
    """
    if seconds is None:
        of_distill = DISTILL_SECONDS if "distill" in strategies else {}
        seconds = of_distill | (ANNOTATE_SECONDS if "annotate" in strategies else {})
    directory.mkdir(parents=True)
    config = RunConfig("", "rehearsal", seed, strategies, DataConfig(num_labels=labels), **settings)
    write_json(directory / "config.json", to_dict(config))
    (directory / "config.gin").write_text("# a run\n")
    write_json(directory / "status.json", {"status": status, "reason": "told so"})
    write_json(directory / "meter.json", {"version": 1, "charges": []})
    os.utime(directory / "meter.json", (0, 0))
    facts = RunFacts(directory.name, "rehearsal", "v1")
    ledger = Ledger(directory / "ledger.jsonl")
    ledger.append(labels_row(facts, "wlp", labels, user_price(0.25, "label")))
    for stage in {*seconds, *shared_stages}:
        place = directory / stage
        if stage in shared_stages and shared is not None:
            (shared / stage).mkdir(parents=True, exist_ok=True)
            place.symlink_to(os.path.relpath(shared / stage, directory))
        place.mkdir(exist_ok=True)
        outputs = {"best_step": 5, "best_value": best_value}
        write_json(place / "manifest.json", {"settings": {}, "outputs": outputs})
        if stage in seconds:
            phases = {"step": 0.75 * seconds[stage], "idle": 0.25 * seconds[stage]}
            charge = Charge(stage, CENT_A_SECOND, f"{stage}-{directory.name}", phases, tokens=1000)
            receipt = Ledger(place / "ledger.jsonl") if stage in shared_stages else ledger
            receipt.append(stage_row(facts, "x", charge))
    for result, value in (values or {}).items():
        write_scores(directory, result, value)
    return directory


def write_scores(directory: Path, result: str, value: float) -> None:
    """Scores of one result, with an interval of two points to each side."""
    folder = directory / f"evaluate-{result}"
    folder.mkdir(exist_ok=True)
    (folder / "predictions.jsonl").write_text("")
    scores = {
        "examples": 600,
        "primary": "micro_f1",
        "strict": {"micro_f1": value, "f1/Action": value + 1},
        "paper": {"micro_f1": value},
        "intervals": {"micro_f1": [value - 2, value + 2]},
        "notes": {},
    }
    write_json(folder / "manifest.json", {"settings": {}, "outputs": {"scores": scores}})


def edit_json(path: Path, **changes: Any) -> None:
    """Changes top-level fields of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
