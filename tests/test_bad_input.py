"""What a run says to a directory, a disk, a token store or a network that does not fit.

Broken rows are in test_sources.py, misspelled names in test_gin_config.py, another run's
directory in test_run.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import shutil
import subprocess
import threading
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from tiny_run import (
    DATA,
    NETWORK,
    ROWS,
    assert_same_bits,
    compiling_cheaply,
    final_params,
    manifest_of,
    open_run,
    read_rows,
    snapshot,
    tiny_config,
    write_tiny_store,
)

from dora_jax import strategies
from dora_jax.config import DataConfig, ModelSource
from dora_jax.cost import ledger
from dora_jax.data.token_store import TokenStore
from dora_jax.metrics.scores import Scores
from dora_jax.stages.prepare import prepare
from dora_jax.tasks.task import get_task

# --- The disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, which a test can fill."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a file system of its own takes more rights than this test has")
    yield disk
    # Lazily: the traceback of the failed run may still hold one of its memory-mapped files.
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


@dataclasses.dataclass
class FillingTask:
    """WLP, but its first scoring fills the disk: in the middle of a stage, before a save."""

    ballast: Path
    name: str = "wlp"

    def score(self, *arguments: Any, **options: Any) -> Scores:
        with contextlib.suppress(OSError), open(self.ballast, "wb", buffering=0) as file:
            while file.write(bytes(4096)) == 4096:
                pass
        return get_task("wlp").score(*arguments, **options)


def test_a_full_disk_loses_nothing_and_the_same_command_goes_on(
    small_disk: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory, ballast = small_disk / "run", small_disk / "ballast"
    config = tiny_config(directory, strategies=("annotate",))
    with compiling_cheaply(tmp_path_factory.mktemp("compiled")):
        with (
            pytest.raises(OSError) as failure,
            open_run(config, task=FillingTask(ballast)) as context,
        ):
            strategies.run(context)
        assert failure.value.errno == errno.ENOSPC
        assert ballast.stat().st_size > 2**20
        assert "outputs" not in manifest_of(directory, "annotate")
        whole = (directory / "pretrain-student", directory / "annotate" / "checkpoints" / "2")
        before = [snapshot(folder) for folder in whole]
        assert all(before)
        ballast.unlink()
        with open_run(config) as context:
            strategies.run(context)
        assert snapshot(whole[0]) == before[0]
        with open_run(dataclasses.replace(config, model_dir=str(tmp_path / "run"))) as context:
            strategies.run(context)
    one, other = final_params(directory, "annotate"), final_params(tmp_path / "run", "annotate")
    assert_same_bits(one, other)
    stages = [row["stage"] for row in read_rows(directory / "ledger.jsonl")]
    assert stages.count("pretrain-student") == stages.count("annotate") == 1


# --- The run directory


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match=r"file/run cannot be written: .*another MODEL_DIR"):
        open_run(tiny_config(tmp_path / "file" / "run"))


def test_a_directory_in_use_is_refused(tmp_path: Path) -> None:
    with open_run(tiny_config(tmp_path)):
        before = snapshot(tmp_path)
        with pytest.raises(ValueError, match="Another process works in"):
            open_run(tiny_config(tmp_path))
        assert snapshot(tmp_path).keys() == before.keys()
    with open_run(tiny_config(tmp_path)):
        pass


@pytest.mark.parametrize("name", ["config.json", "prepare/manifest.json"])
def test_a_broken_record_is_named(tmp_path: Path, name: str) -> None:
    with open_run(tiny_config(tmp_path)) as context:
        prepare(context)
    record = tmp_path / name
    record.write_text(record.read_text()[:-20])
    before = snapshot(tmp_path)
    with (
        pytest.raises(ValueError, match=rf"{name} cannot be read: .* to do this part anew"),
        open_run(tiny_config(tmp_path)) as context,
    ):
        prepare(context)
    after = snapshot(tmp_path)
    assert {n: after[n] for n in before if "prepare" in n or "config" in n} == {
        n: before[n] for n in before if "prepare" in n or "config" in n
    }


def test_a_run_that_fails_to_open_holds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_installed() -> str:
        raise metadata.PackageNotFoundError("dora_jax")

    with monkeypatch.context() as patched:
        patched.setattr(ledger, "code_version", not_installed)
        with pytest.raises(metadata.PackageNotFoundError) as failure:
            open_run(tiny_config(tmp_path))
        # The traceback is kept, and with it every local variable of the call that failed.
        assert failure.traceback
        assert "meter" not in [thread.name for thread in threading.enumerate()]
        patched.undo()
        with open_run(tiny_config(tmp_path)):
            pass


# --- The token store and the networks


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return write_tiny_store(DATA, tmp_path_factory.mktemp("named") / "tokens")


def prepared(directory: Path, **changes: Any) -> TokenStore:
    """What the run's prepare stage returns, with changes to its configuration."""
    with open_run(tiny_config(directory, **changes)) as context:
        return prepare(context)


def named(store: TokenStore, **changes: Any) -> DataConfig:
    settings = {"token_store": str(store.directory), **changes}
    return dataclasses.replace(DATA, **settings)


def test_a_named_store_is_taken(store: TokenStore, tmp_path: Path) -> None:
    data = named(store, data_dir="elsewhere", on_bad_row="skip")
    assert prepared(tmp_path, data=data).fingerprint == store.fingerprint
    assert not (tmp_path / "prepare").exists()


def test_a_store_of_another_task_is_refused(tmp_path: Path) -> None:
    other = write_tiny_store(DATA, tmp_path / "tokens", task="fever")
    with pytest.raises(ValueError, match="holds the task 'fever'; this run is for 'wlp'"):
        prepared(tmp_path / "run", data=named(other))


def test_a_store_of_other_rows_is_refused_with_the_difference(
    store: TokenStore, tmp_path: Path
) -> None:
    with pytest.raises(ValueError) as refusal:
        prepared(tmp_path, data=named(store, num_labels=500, source_length=32))
    message = str(refusal.value)
    assert "  num_labels: 24 in the store, 500 now\n" in message
    assert "  source_length: 24 in the store, 32 now\n" in message
    assert message.count(" in the store, ") == 2


@pytest.mark.parametrize("model", ["student", "teacher"])
def test_a_network_too_small_for_the_vocabulary_is_refused_at_the_start(
    store: TokenStore, tmp_path: Path, model: str
) -> None:
    small = ModelSource(dataclasses.replace(NETWORK, vocab_size=319))
    with pytest.raises(ValueError, match=r"vocab_size = 319, .* has 320 ids.*for instance 384"):
        prepared(tmp_path, data=named(store), **{model: small})
    only_the_student: dict[str, Any] = {"strategies": ("annotate",), "teacher": small}
    prepared(tmp_path / "annotate", data=named(store), **only_the_student)


def test_without_unlabelled_text_distilling_is_refused_before_anything_is_paid(
    tmp_path: Path,
) -> None:
    bare = write_tiny_store(DATA, tmp_path / "tokens", rows=ROWS | {"unlabeled": 0})
    run = tmp_path / "run"
    with (
        pytest.raises(ValueError, match="no unlabelled text to distil on. Lower NUM_LABELS"),
        open_run(tiny_config(run, data=named(bare))) as context,
    ):
        strategies.run(context)
    assert [row["stage"] for row in read_rows(run / "ledger.jsonl")] == ["launch"]
    prepared(tmp_path / "annotate", data=named(bare), strategies=("annotate",))
