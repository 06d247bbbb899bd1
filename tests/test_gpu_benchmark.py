"""benchmarks/gpu.py at tiny size: every part runs and writes its figures, without TensorFlow."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BLOCK = """
import runpy, sys
sys.modules["tensorflow"] = sys.modules["seqio"] = None
sys.argv = ["benchmarks/gpu.py", "--tiny", "--json={file}"]
sys.path.insert(0, ".")
runpy.run_path("benchmarks/gpu.py", run_name="__main__")
"""


@pytest.mark.slow
def test_every_part_runs(tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    command = [sys.executable, "-c", BLOCK.format(file=file)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    figures = json.loads(file.read_text())
    assert figures["tiny"]
    for name in ("student_training", "teacher_training"):
        assert figures[name]["tokens_per_second"] > 0
        assert figures[name]["mfu"] is None  # a CPU has no peak in the table
    assert figures["labelling"]["texts_per_second"] > 0
    assert figures["distillation"]["online_over_cached"] > 1
    assert "error" not in figures["labelling"]
    theirs = figures["transformers_labelling"]
    assert theirs.get("texts_per_second", 0) > 0 or "transformers" in theirs["error"]
