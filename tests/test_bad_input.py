"""What a run says to a directory, a disk, a token store or a network that does not fit.

Broken rows are in test_sources.py, misspelled names in test_gin_config.py, another run's
directory in test_run.py.
"""

from __future__ import annotations

import dataclasses
import threading
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from tiny_run import (
    DATA,
    NETWORK,
    ROWS,
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
from dora_jax.stages.prepare import prepare

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
