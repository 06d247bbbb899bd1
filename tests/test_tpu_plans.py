"""launch/tpu_plans.py: what it asks for, and what libtpu makes of the smallest slice."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dora_jax.cost import hardware
from dora_jax.launch import tpu_plans

ROOT = Path(__file__).resolve().parents[1]
LIBTPU = ROOT / "build" / "libtpu"  # where `make tpu-plans` puts it


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--slice=v5e-3"], "there is no 'v5e-3'"),
        (["--stage=evaluate"], "there is no 'evaluate'"),
        (["--json=/nowhere/at/all.json"], "cannot be written"),
    ],
)
def test_mistakes_are_told(
    capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    assert tpu_plans.main(arguments) == 2
    assert expected in capsys.readouterr().err


def test_without_libtpu_the_way_to_it_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "libtpu", None)
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "")
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "")
    assert tpu_plans.main(["--stage=distill"]) == 2
    assert "make tpu-plans" in capsys.readouterr().err


def test_every_slice_is_of_the_hardware_table() -> None:
    assert {kind for kind, _ in tpu_plans.SLICES.values()} <= set(hardware.table())


@pytest.mark.slow
def test_the_paper_run_compiles_for_a_slice(tmp_path: Path) -> None:
    if not LIBTPU.exists() and importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed: make tpu-plans")
    file = tmp_path / "plans.json"
    arguments = ["--slice=v5e-16", f"--json={file}"]
    path = os.pathsep.join(filter(None, [str(LIBTPU), os.environ.get("PYTHONPATH", "")]))
    subprocess.run(
        [sys.executable, "launch/tpu_plans.py", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        check=True,
    )
    plans = {plan["stage"]: plan for plan in json.loads(file.read_text())["plans"]}
    assert set(plans) == {"teach", "label", "distill"}
    for plan in plans.values():
        assert plan["fits"]
        assert plan["compile_seconds"] < 180
    teach = plans["teach"]
    # float32 parameters and their gradients over 16 chips; Adafactor keeps next to nothing.
    assert teach["argument_bytes"] == pytest.approx(44.5e9 / 16, rel=0.05)
    assert 2 * 44.5e9 / 16 < teach["bytes_per_chip"] < 1.1 * teach["analytic_bytes"]
