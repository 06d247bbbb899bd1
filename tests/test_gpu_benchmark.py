"""benchmarks/gpu.py at tiny size: every part runs and writes its figures, without TensorFlow."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dora_jax.config import TrainConfig
from dora_jax.cost import flops, hardware

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The program as a module."""
    spec = importlib.util.spec_from_file_location("gpu_benchmark", ROOT / "benchmarks" / "gpu.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_what_bounds_an_update_of_a_known_gpu(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The part that a CPU never comes to, since no table has it."""
    monkeypatch.setattr(hardware, "find", lambda kind: hardware.table()["h200"])
    sizes = gpu.setting(tiny=False)
    rows = sizes.teacher_rows
    counts = flops.TokenCounts.from_lengths(np.full(rows, 512), np.full(rows, 128))
    found = gpu.roofline(sizes.teacher, TrainConfig(), rows, sizes, counts)
    # 8,192 + 2,048 tokens, 11 B parameters, each in its half of the network; again to recompute.
    assert found["bound_by"] == "arithmetic"
    assert 0.3 < found["arithmetic"] < 0.6
    assert found["passes"] == 4


def test_without_a_gpu_nothing_is_measured_but_tiny_networks(gpu: Any) -> None:
    sizes = gpu.setting(tiny=False)
    for name in ("teacher_training", "labelling"):
        assert "JAX sees no GPU" in gpu.measured(name, sizes)["error"]


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
