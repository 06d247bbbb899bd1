"""The soft-label store: size, precision, damage found and repaired, strangers refused."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest

from dora_jax.data import soft_labels
from dora_jax.data.loader import PackedLoader, SoftLabelledSource
from dora_jax.data.soft_labels import (
    SoftLabelHeader,
    SoftLabelReader,
    SoftLabelWriter,
    SoftRow,
    record_dtype,
)
from dora_jax.shapes import EOS_ID, Examples

HEADER = SoftLabelHeader(
    teacher_fingerprint="a" * 16,
    data_fingerprint="b" * 16,
    vocabulary_fingerprint="c" * 16,
    vocabulary_size=500,
    top_k=8,
    temperatures=(1.0, 2.0),
    decoding="greedy, at most 12 tokens",
)
EXAMPLES, SHARD_EXAMPLES = 10, 4


def make_row(seed: int, length: int | None = None) -> SoftRow:
    rng = np.random.default_rng(seed)
    length = int(rng.integers(1, 12)) if length is None else length
    return from_logits(rng.normal(-30.0, 3.0, (length, 500)))


def from_logits(logits_TV: np.ndarray, top_k: int = 8) -> SoftRow:
    """What a teacher writes down of its logits, in float32 as on the device."""
    logits_TV = logits_TV.astype(np.float32)
    row_max_T = logits_TV.max(-1)
    centred_TV = logits_TV - row_max_T[:, None]
    topk_ids_TK = np.argsort(-centred_TV, axis=-1, kind="stable")[:, :top_k]
    logz_TZ = np.stack([np.log(np.exp(centred_TV / t).sum(-1)) for t in (1.0, 2.0)], axis=-1)
    return SoftRow(
        tokens_T=topk_ids_TK[:, 0].astype(np.int32),
        topk_ids_TK=topk_ids_TK.astype(np.int32),
        topk_logits_TK=np.take_along_axis(centred_TV, topk_ids_TK, axis=-1),
        logz_TZ=logz_TZ,
        row_max_T=row_max_T,
    )


def open_writer(directory: Path, header: SoftLabelHeader = HEADER) -> SoftLabelWriter:
    return SoftLabelWriter(directory, header, EXAMPLES, SHARD_EXAMPLES)


def write_store(directory: Path) -> Path:
    writer = open_writer(directory)
    for shard, examples in writer.pending().items():
        writer.write_shard(shard, [make_row(i) for i in examples])
    writer.finish()
    return directory


def test_bytes_per_token_stay_in_the_budget() -> None:
    assert record_dtype(32128, 64, 2).itemsize == 270
    assert record_dtype(250112, 64, 2)["topk_ids"].base == np.uint32
    assert record_dtype(65536, 64, 2)["token"] == np.uint16
    assert record_dtype(65537, 64, 2)["token"] == np.uint32


def test_files_hold_the_records_and_nothing_else(tmp_path: Path) -> None:
    write_store(tmp_path)
    tokens = sum(len(make_row(i).tokens_T) for i in range(EXAMPLES))
    sizes = sum(file.stat().st_size for file in tmp_path.glob("*.records"))
    assert sizes == tokens * record_dtype(500, 8, 2).itemsize
    assert SoftLabelReader.open(tmp_path, {}).num_tokens == tokens


def test_rows_come_back(tmp_path: Path) -> None:
    reader = SoftLabelReader.open(write_store(tmp_path), {})
    assert len(reader) == EXAMPLES and reader.header == HEADER
    for i in range(EXAMPLES):
        written, read = make_row(i), reader.row(i)
        for field in ("tokens_T", "topk_ids_TK", "logz_TZ", "row_max_T"):
            np.testing.assert_array_equal(getattr(read, field), getattr(written, field))
        assert read.tokens_T.dtype == read.topk_ids_TK.dtype == np.int32
        assert read.topk_logits_TK.dtype == np.float16
        np.testing.assert_allclose(read.topk_logits_TK, written.topk_logits_TK, rtol=5e-4)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("spread", [0.1, 1.0, 5.0])
def test_probabilities_near_logit_minus_30_are_kept(
    tmp_path: Path, spread: float, temperature: float
) -> None:
    logits_TV = np.random.default_rng(0).normal(-30.0, spread, (50, 500)).astype(np.float32)
    writer = SoftLabelWriter(tmp_path, HEADER, 1, 1)
    writer.write_shard(0, [from_logits(logits_TV)])
    writer.finish()
    reader = SoftLabelReader.open(tmp_path, {})
    row, z = reader.row(0), reader.temperature_index(temperature)
    kept_TK = np.exp(row.topk_logits_TK.astype(np.float32) / temperature - row.logz_TZ[:, z, None])
    exact_TV = np.exp(logits_TV.astype(np.float64) / temperature)
    exact_TV /= exact_TV.sum(-1, keepdims=True)
    exact_TK = np.take_along_axis(exact_TV, row.topk_ids_TK, axis=-1)
    np.testing.assert_allclose(kept_TK, exact_TK, atol=1e-4)
    np.testing.assert_allclose(1 - kept_TK.sum(-1), 1 - exact_TK.sum(-1), atol=3e-4)


def test_a_logit_below_float16_is_cut_off_not_infinite(tmp_path: Path) -> None:
    row = make_row(0, length=1)
    row.topk_logits_TK[0, -1] = -1e9  # what a masked piece looks like
    writer = SoftLabelWriter(tmp_path, HEADER, 1, 1)
    writer.write_shard(0, [row])
    writer.finish()
    assert SoftLabelReader.open(tmp_path, {}).row(0).topk_logits_TK[0, -1] == -65504.0


def test_rows_are_read_from_the_mapped_file(tmp_path: Path) -> None:
    reader = SoftLabelReader.open(write_store(tmp_path), {})
    base = reader.row(5).topk_logits_TK
    while isinstance(base.base, np.ndarray):
        base = base.base
    assert isinstance(base, np.memmap) and not base.flags.writeable


def damage_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


DAMAGE = {
    "flipped bit": ("shard-00001.records", damage_byte),
    "truncated records": ("shard-00001.records", truncate),
    "missing records": ("shard-00001.records", Path.unlink),
    "truncated index": ("shard-00001.json", truncate),
    "missing index": ("shard-00001.json", Path.unlink),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_and_only_that_shard_is_labelled_again(tmp_path: Path, damage: str) -> None:
    write_store(tmp_path)
    whole = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    kept = {file: file.stat().st_mtime_ns for file in tmp_path.glob("shard-0000[02].*")}
    name, hurt = DAMAGE[damage]
    hurt(tmp_path / name)
    with pytest.raises(ValueError, match=r"shards \[1\] missing or damaged"):
        SoftLabelReader.open(tmp_path, {})
    writer = open_writer(tmp_path)
    assert writer.pending() == {1: range(4, 8)}
    writer.write_shard(1, [make_row(i) for i in range(4, 8)])
    writer.finish()
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == whole
    assert {file: file.stat().st_mtime_ns for file in kept} == kept


def test_lengths_that_disagree_with_the_records_are_damage(tmp_path: Path) -> None:
    write_store(tmp_path)
    index = json.loads((tmp_path / "shard-00001.json").read_text())
    index["lengths"] = index["lengths"][::-1]  # the same sum, so the file's size still fits
    assert index["lengths"] != index["lengths"][::-1]
    (tmp_path / "shard-00001.json").write_text(json.dumps(index))
    assert list(open_writer(tmp_path).pending()) == [1]


@pytest.mark.parametrize("writes_survived", range(2))
def test_killed_before_the_rename_leaves_no_half_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes_survived: int
) -> None:
    class Killed(BaseException):
        pass

    writer = open_writer(tmp_path)
    writer.write_shard(0, [make_row(i) for i in range(4)])
    renames = iter(range(10))

    def replace(source: Path, target: Path) -> None:
        if next(renames) == writes_survived:
            raise Killed
        os.rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(soft_labels.os, "replace", replace)
        with pytest.raises(Killed):
            writer.write_shard(1, [make_row(i) for i in range(4, 8)])
    assert list(open_writer(tmp_path).pending()) == [1, 2]
    write_store(tmp_path)  # goes on from there
    assert not list(tmp_path.glob("*.tmp"))
    assert len(SoftLabelReader.open(tmp_path, {})) == EXAMPLES


def test_an_unfinished_store_is_not_read_and_cannot_be_finished(tmp_path: Path) -> None:
    writer = open_writer(tmp_path)
    writer.write_shard(1, [make_row(i) for i in range(4, 8)])
    with pytest.raises(ValueError, match=r"not complete: shards \[0, 2\]"):
        writer.finish()
    with pytest.raises(ValueError, match=r"'writing' and shards \[0, 2\]"):
        SoftLabelReader.open(tmp_path, {})
    for shard, examples in writer.pending().items():
        writer.write_shard(shard, [make_row(i) for i in examples])
    with pytest.raises(ValueError, match=r"'writing' and shards \[\]"):
        SoftLabelReader.open(tmp_path, {})
    with pytest.raises(ValueError, match="holds no soft labels"):
        SoftLabelReader.open(tmp_path / "elsewhere", {})


def test_another_stores_labels_are_refused_with_both_values(tmp_path: Path) -> None:
    write_store(tmp_path)
    SoftLabelReader.open(tmp_path, {"teacher_fingerprint": "a" * 16, "temperatures": (1.0, 2.0)})
    with pytest.raises(ValueError, match="data_fingerprint: expected 'other', found 'bbbb"):
        SoftLabelReader.open(tmp_path, {"data_fingerprint": "other"})
    with pytest.raises(ValueError, match="top_k: expected 9, found 8"):
        open_writer(tmp_path, dataclasses.replace(HEADER, top_k=9))
    with pytest.raises(ValueError, match="examples: expected 11, found 10"):
        SoftLabelWriter(tmp_path, HEADER, 11, SHARD_EXAMPLES)


def test_unknown_temperature_lists_the_stored_ones(tmp_path: Path) -> None:
    reader = SoftLabelReader.open(write_store(tmp_path), {})
    assert reader.temperature_index(2) == 1
    with pytest.raises(ValueError, match=r"temperature 4.0; this store has \[1.0, 2.0\]"):
        reader.temperature_index(4.0)


BAD_ROWS = {
    "NaN": (dict(logz_TZ=np.full((3, 2), np.nan)), "logz_TZ holds NaN"),
    "infinity": (dict(row_max_T=np.full(3, np.inf)), "row_max_T holds NaN or infinity"),
    "not centred": (dict(topk_logits_TK=np.full((3, 8), 5.0)), "subtract the row maximum"),
    "misshaped": (dict(topk_ids_TK=np.zeros((3, 7), int)), r"shape \(3, 7\), expected \(3, 8\)"),
    "outside": (dict(tokens_T=np.array([1, 2, 500])), "from 1 to 500.*vocabulary of 500"),
    "negative": (dict(topk_ids_TK=np.full((3, 8), -1)), "from -1 to -1"),
}


@pytest.mark.parametrize("kind", BAD_ROWS)
def test_bad_rows_are_named_and_nothing_is_written(tmp_path: Path, kind: str) -> None:
    change, message = BAD_ROWS[kind]
    rows = [make_row(i, length=3) for i in range(4, 8)]
    rows[2] = rows[2]._replace(**change)
    with pytest.raises(ValueError, match=f"example 6: .*{message}"):
        open_writer(tmp_path).write_shard(1, rows)
    assert [file.name for file in tmp_path.iterdir()] == ["manifest.json"]


def test_a_shard_takes_exactly_its_examples(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds 2 examples \(8 to 9\), but got 4 rows"):
        open_writer(tmp_path).write_shard(2, [make_row(i) for i in range(4)])


def test_more_entries_than_pieces_are_refused() -> None:
    with pytest.raises(ValueError, match="top_k = 501"):
        dataclasses.replace(HEADER, top_k=501)


def test_fingerprint_follows_the_content(tmp_path: Path) -> None:
    first = SoftLabelReader.open(write_store(tmp_path / "a"), {}).fingerprint
    assert SoftLabelReader.open(write_store(tmp_path / "b"), {}).fingerprint == first
    writer = open_writer(tmp_path / "a")
    writer.write_shard(0, [make_row(i + 50) for i in range(4)])
    writer.finish()
    assert SoftLabelReader.open(tmp_path / "a", {}).fingerprint != first


def test_the_loader_trains_on_the_teachers_tokens(tmp_path: Path) -> None:
    reader = SoftLabelReader.open(write_store(tmp_path), {})
    offsets = np.arange(EXAMPLES + 1) * 3
    sources = np.arange(3 * EXAMPLES, dtype=np.int32) + 10
    split = Examples(sources, offsets, np.zeros(0, np.int32), np.zeros_like(offsets))
    source = SoftLabelledSource(split, reader)
    packed = PackedLoader(source, batch_size=10, source_length=16, target_length=16, seed=0)
    batch = packed.batch(0).batch
    assert batch.topk_ids_BTK is not None and batch.logz_BTZ is not None
    is_taught_BT = np.isfinite(np.asarray(batch.logz_BTZ)).all(-1)
    assert is_taught_BT.sum() == reader.num_tokens
    np.testing.assert_array_equal(is_taught_BT, batch.weights_BT > 0)
    np.testing.assert_array_equal(
        batch.topk_ids_BTK[is_taught_BT][:, 0], batch.targets_BT[is_taught_BT]
    )
    with pytest.raises(ValueError, match="split has 9 examples, the soft-label store 10"):
        SoftLabelledSource(
            Examples(split[0], offsets[:-1], split[2], split[3][:-1]),
            reader,
        )


def test_labels_the_teacher_did_not_end_can_be_left_out(tmp_path: Path) -> None:
    ended = {1, 4, 9}
    writer = open_writer(tmp_path)
    for shard, examples in writer.pending().items():
        rows = [make_row(i, length=3) for i in examples]
        for i, row in zip(examples, rows, strict=True):
            row.tokens_T[:] = [EOS_ID, 7, EOS_ID if i in ended else 7]
        writer.write_shard(shard, rows)
    writer.finish()
    reader = SoftLabelReader.open(tmp_path, {})
    offsets = np.arange(EXAMPLES + 1)
    split = Examples(
        np.arange(EXAMPLES, dtype=np.int32), offsets, np.zeros(0, np.int32), 0 * offsets
    )
    every, kept = SoftLabelledSource(split, reader), SoftLabelledSource(split, reader, True)
    assert (len(every), len(kept)) == (EXAMPLES, 3)
    assert every.unended == kept.unended == EXAMPLES - 3
    for place, i in enumerate(sorted(ended)):
        example = kept.example(place, 0)
        assert example.source.tolist() == [i]
        np.testing.assert_array_equal(example.target, reader.row(i).tokens_T)
        assert example.soft is not None
        np.testing.assert_array_equal(example.soft.logz_TZ, reader.row(i).logz_TZ)


def test_where_the_teacher_ended_nothing_all_is_kept(tmp_path: Path) -> None:
    reader = SoftLabelReader.open(write_store(tmp_path), {})
    offsets = np.arange(EXAMPLES + 1)
    split = Examples(np.zeros(EXAMPLES, np.int32), offsets, np.zeros(0, np.int32), 0 * offsets)
    source = SoftLabelledSource(split, reader, drop_unended=True)
    assert len(source) == source.unended == EXAMPLES
