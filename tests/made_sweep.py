"""Runs of a sweep that are made up, with a known answer: two strategies over labels and seeds."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from synthetic_runs import ANNOTATE_SECONDS, DISTILL_SECONDS, write_run, write_scores

from dora_jax.config import LlmConfig
from dora_jax.cost.ledger import Ledger, RunFacts
from dora_jax.cost.ledger_rows import tokens_row
from dora_jax.cost.prices import Price
from dora_jax.whole_files import write_json

PLACES = (100, 200, 400, 800)
HOSTILE = "<script>document.title = 'owned'</script></script>\u2028<img src=x onerror=alert(1)>"


def value(strategy: str, labels: int, seed: int) -> float:
    """Distilling starts higher and flattens earlier; the seeds lie 0.6 points apart."""
    top, drop, exponent = {"annotate": (88, 400, 0.45), "distill": (76, 120, 0.4)}[strategy]
    return round(top - drop * labels**-exponent + (0.3 if seed else -0.3), 3)


def write_sweep(folder: Path, places: tuple[int, ...] = PLACES, seeds: int = 2) -> Path:
    """One run directory for each number of labels, strategy and seed."""
    for labels in places:
        for strategy, seconds in (("annotate", ANNOTATE_SECONDS), ("distill", DISTILL_SECONDS)):
            for seed in range(seeds):
                values = {strategy: value(strategy, labels, seed)}
                if strategy == "distill":
                    values["teacher"] = values[strategy] + 4
                run = write_run(
                    folder / f"{strategy}-{labels}-{seed}",
                    (strategy,),
                    seconds={**seconds},
                    labels=labels,
                    seed=seed,
                    values=values,
                )
                rows = [
                    {
                        "source": f"Add {i} ml of buffer .",
                        "target": "buffer [Reagent]",
                        "prediction": "buffer [Reagent]" if i % 3 else HOSTILE,
                    }
                    for i in range(12)
                ]
                text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
                (run / f"evaluate-{strategy}" / "predictions.jsonl").write_text(text, "utf-8")
    return folder


LLM_USD = 0.002  # a label
AUDIT = {
    "rows": 100,
    "set_aside": 3,
    "metric": "micro_f1",
    "value": 80.0,
    "interval": [75.0, 84.0],
    "usd": 0.2,
}


def llm_value(labels: int, seed: int) -> float:
    """A model's labels are many and wrong: they start high and level out low."""
    return round(60 - 200 * labels**-0.5 + (0.3 if seed else -0.3), 3)


def write_llm_runs(folder: Path, places: tuple[int, ...] = PLACES, audit: object = AUDIT) -> Path:
    """Runs of `llm` over its labels, two seeds each, at `LLM_USD` a label."""
    for labels in places:
        for seed in (0, 1):
            seconds = {"prepare": 100, "pretrain-student": 150, "llm": 50, "evaluate-llm": 20}
            run = write_run(
                folder / f"llm-{labels}-{seed}",
                ("llm",),
                seconds=seconds,
                seed=seed,
                llm=LlmConfig("labels.jsonl", num_labels=labels),
            )
            ledger, facts = Ledger(run / "ledger.jsonl"), RunFacts(run.name, "rehearsal", "v1")
            for unit, usd in (("million input tokens", 1.5), ("million output tokens", 0.5)):
                price = Price("gpt-x", unit, usd, "its maker", "2026-01-01")
                row = tokens_row(facts, "llm-labels", f"llm-{unit}", 1000 * labels, price)
                ledger.append(dataclasses.replace(row, examples=labels))
            (run / "llm-labels").mkdir()
            outputs = {"rows": labels, "model": "gpt-x", "usd_per_label": LLM_USD, "audit": audit}
            manifest = {"settings": {}, "outputs": outputs}
            write_json(run / "llm-labels" / "manifest.json", manifest)
            write_scores(run, "llm", llm_value(labels, seed))
    return folder
