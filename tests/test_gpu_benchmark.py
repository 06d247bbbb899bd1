"""benchmarks/gpu.py at tiny size: every part runs and writes its figures, without TensorFlow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_every_part_runs(tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    for name in ("tensorflow", "seqio"):  # found before the installed ones, by every process
        (tmp_path / f"{name}.py").write_text("raise ImportError('a GPU host has none')")
    ended = subprocess.run(
        [sys.executable, "benchmarks/gpu.py", "--tiny", "--minutes=60", f"--json={file}"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    figures = json.loads(file.read_text())
    assert figures["tiny"]
    trained = [name for name in figures if "training" in name]
    assert len(trained) == 5
    for name in trained:
        assert figures[name]["tokens_per_second"] > 0
        assert figures[name]["mfu"] is None  # a CPU has no peak in the table
    assert figures["labelling"]["texts_per_second"] > 0
    assert figures["distillation"]["online_over_cached"] > 1
    assert "error" not in figures["labelling"]
    theirs = figures["transformers_labelling"]
    assert theirs.get("texts_per_second", 0) > 0 or "ModuleNotFoundError" in theirs["error"]
