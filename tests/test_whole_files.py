"""Files under their names are whole, whatever stops the writing."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from dora_jax.whole_files import write_json, write_whole


def test_text_and_bytes_replace_what_was_there(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    write_whole(file, "µ\r\nb")
    assert file.read_bytes() == b"\xc2\xb5\r\nb"
    write_whole(str(file), b"\xff")
    assert file.read_bytes() == b"\xff"
    assert os.listdir(tmp_path) == ["notes.txt"]


def test_json_is_readable(tmp_path: Path) -> None:
    write_json(tmp_path / "facts.json", {"unit": "µl", "counts": [1]})
    text = (tmp_path / "facts.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"unit": "µl", "counts": [1]}
    assert '"µl"' in text
    assert text.endswith("}\n")


def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "facts.json"
    write_whole(file, "old")

    def crash(descriptor: int) -> None:
        raise OSError("the machine went down")

    monkeypatch.setattr(os, "fsync", crash)
    with pytest.raises(OSError, match="went down"):
        write_whole(file, "new", durable=True)
    assert file.read_text() == "old"
    write_whole(file, "new")  # which does not wait for the disk
    assert file.read_text() == "new"


def test_what_is_durable_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, seen = tmp_path / "facts.json", []

    def fsync(descriptor: int) -> None:
        seen.append((os.fstat(descriptor).st_size, file.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    write_whole(file, b"1234", durable=True)
    assert seen == [(4, False)]
