"""Runs of a sweep that are made up, with a known answer: two strategies over labels and seeds."""

from __future__ import annotations

import json
from pathlib import Path

from synthetic_runs import ANNOTATE_SECONDS, DISTILL_SECONDS, write_run

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
