"""The wheel, installed elsewhere and seen from outside the checkout: `make wheel-test`."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.resources
import os
import subprocess
import sys
from pathlib import Path

import pytest

INSTALLED = Path(sys.prefix).resolve()
METADATA = f"dora_jax-{importlib.metadata.version('dora_jax')}.dist-info"
CONSOLE_SCRIPT = INSTALLED / "bin" / "dora-jax"


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the console script as a user would who has DORA_DATA_DIR unset."""
    environment = {k: v for k, v in os.environ.items() if k != "DORA_DATA_DIR"}
    return subprocess.run(
        [CONSOLE_SCRIPT, *arguments], capture_output=True, text=True, env=environment
    )


@pytest.mark.parametrize("name", ["dora_jax", "dora_jax.tasks.wlp", "dora_jax.launch.run"])
def test_modules_come_from_the_wheel(name):
    file = importlib.import_module(name).__file__
    assert file is not None
    assert INSTALLED in Path(file).resolve().parents


def test_every_file_lies_under_the_package():
    folders = {file.parts[0] for file in importlib.metadata.files("dora_jax") or ()}
    assert folders == {"..", "dora_jax", METADATA}  # "..": the console script


def test_licence_and_gin_files_are_in_the_wheel():
    names = {str(file) for file in importlib.metadata.files("dora_jax") or ()}
    assert f"{METADATA}/licenses/LICENSE" in names
    gin_files = importlib.resources.files("dora_jax.gin_files")
    for name in ("run.gin", "wlp_distill.gin", "scale/rehearsal.gin", "models/t5_1_1_xxl.gin"):
        assert (gin_files / name).is_file(), name


def test_gin_config_is_not_shadowed():
    import gin

    assert callable(gin.parse_config)


def test_run_file_resolves_from_anywhere(tmp_path, monkeypatch):
    from dora_jax.launch import gin_config

    monkeypatch.chdir(tmp_path)
    config = gin_config.build("gin/wlp_distill.gin", "rehearsal", []).config
    assert config.data.task == "wlp"


def test_bundled_sample_is_found(monkeypatch):
    from dora_jax.config import DataConfig
    from dora_jax.tasks.sources import load_splits
    from dora_jax.tasks.task import get_task

    monkeypatch.delenv("DORA_DATA_DIR", raising=False)
    rows = load_splits(get_task("wlp"), DataConfig(num_labels=300)).rows
    assert len(rows["train"]) == 300
    assert min(len(rows[split]) for split in ("unlabeled", "validation", "test")) > 0


def test_prices_are_found():
    from dora_jax.cost.prices import PriceBook

    assert PriceBook.load().label_price("wlp").usd == 0.26


def test_console_script_helps_with_a_run():
    done = call("run", "--help")
    assert done.returncode == 0, done.stderr
    assert "NUM_LABELS" in done.stdout


def test_console_script_refuses_in_words():
    done = call("run", "--gin_file=gin/wlp_distil.gin")
    assert done.returncode == 2
    assert "wlp_distill.gin" in done.stderr
    assert "Traceback" not in done.stderr
