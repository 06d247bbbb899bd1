"""The soft-label store: what a teacher said about every target token, once, for many epochs.

A folder of shards. `shard-00000.records` holds one fixed-size record per target token
(`record_dtype`) and is memory-mapped when read; `shard-00000.json` says which examples it
holds, how many tokens each has, and the checksum. A shard exists once its .json does, so a
killed writer leaves whole shards and nothing else. `manifest.json` says whose labels these
are; reader and writer refuse another's.

Logits are kept in float16 as differences from their row's maximum: those that carry
probability are near 0, where float16 is fine. The normaliser at each temperature T,
logsumexp((logits - maximum) / T) over the whole vocabulary, gives the exact probability
exp(topk_logit / T - logz) of a kept entry and so the exact mass of the rest.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dora_jax.config import to_dict
from dora_jax.shapes import EOS_ID
from dora_jax.whole_files import write_whole

FORMAT_VERSION = 2  # 2: the manifest says whether the entries are the largest, or drawn
_MANIFEST = "manifest.json"
_LOWEST_FLOAT16 = float(np.finfo(np.float16).min)


class SoftRow(NamedTuple):
    """The teacher's labels of one example: its T target tokens, EOS included."""

    tokens_T: np.ndarray  # int32
    topk_ids_TK: np.ndarray  # int32, by descending logit; draws may repeat
    topk_logits_TK: np.ndarray  # float16 (float32 before it is stored), logit - row maximum
    logz_TZ: np.ndarray  # float32, log-normaliser at each temperature - row maximum / temperature
    row_max_T: np.ndarray  # float32, the largest logit itself

    @property
    def has_ended(self) -> bool:
        """Whether the teacher closed its answer, or was cut off at the target length."""
        return len(self.tokens_T) > 0 and int(self.tokens_T[-1]) == EOS_ID


@dataclasses.dataclass(frozen=True)
class SoftLabelHeader:
    """Whose labels a store holds and how they were made; fingerprints are hex strings.

    `drawn_at` is the temperature at which the kept entries were drawn from the teacher's
    distribution, for the `sample` estimator; 0: they are its largest, for the others.
    """

    teacher_fingerprint: str
    data_fingerprint: str
    vocabulary_fingerprint: str
    vocabulary_size: int
    top_k: int
    temperatures: tuple[float, ...]
    decoding: str  # "greedy, at most 128 tokens"
    drawn_at: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "temperatures", tuple(float(t) for t in self.temperatures))
        if not 0 < self.top_k <= self.vocabulary_size:
            raise ValueError(
                f"SoftLabelHeader.top_k = {self.top_k}; it must lie in "
                f"[1, vocabulary_size = {self.vocabulary_size}]."
            )
        if self.drawn_at and self.drawn_at not in self.temperatures:
            raise ValueError(
                f"SoftLabelHeader.drawn_at = {self.drawn_at} is not among temperatures = "
                f"{self.temperatures}; the loss needs the log-normaliser there."
            )


def record_dtype(vocabulary_size: int, top_k: int, num_temperatures: int) -> np.dtype:
    """One target token's record; 270 bytes at 64 entries, 2 temperatures and 16-bit ids."""
    token = np.uint16 if vocabulary_size <= 2**16 else np.uint32
    return np.dtype(
        [
            ("token", token),
            ("topk_ids", token, (top_k,)),
            ("topk_logits", np.float16, (top_k,)),
            ("row_max", np.float32),
            ("logz", np.float32, (num_temperatures,)),
        ]
    ).newbyteorder("<")


class SoftLabelWriter:
    """Writes a store shard by shard, in any order; opened again, it goes on where it was.

    Args:
      directory: created where it is missing.
      header: must equal that of the store already in `directory`, if there is one.
      num_examples: in the whole store.
      shard_examples: in each shard but the last.
    Raises:
      ValueError: `directory` holds a store of another header or size.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        header: SoftLabelHeader,
        num_examples: int,
        shard_examples: int,
    ) -> None:
        self._directory = Path(directory)
        self._header = header
        self._num_examples = num_examples
        self._shard_examples = shard_examples
        self._dtype = record_dtype(header.vocabulary_size, header.top_k, len(header.temperatures))
        self._manifest = _manifest(header, self._dtype, num_examples, shard_examples)
        self._directory.mkdir(parents=True, exist_ok=True)
        if (self._directory / _MANIFEST).exists():
            found = _read_json(self._directory / _MANIFEST)
            _require_equal(self._directory, self._manifest, found)
        else:
            _write_json(self._directory / _MANIFEST, self._manifest | {"status": "writing"})

    def pending(self) -> dict[int, range]:
        """The shards still missing or damaged, by number, each with its examples."""
        shards = _shard_ranges(self._num_examples, self._shard_examples)
        return {
            shard: shards[shard] for shard in _damaged_shards(self._directory, shards, self._dtype)
        }

    def write_shard(self, shard: int, rows: Sequence[SoftRow]) -> None:
        """Writes one shard's rows, one an example, in the examples' order.

        Args:
          shard: its number, a key of `pending()`.
          rows: of the shard's examples.
        Raises:
          ValueError: rows are missing, misshaped, not finite or outside the vocabulary; the
            example is named and nothing is written.
        """
        examples = _shard_ranges(self._num_examples, self._shard_examples)[shard]
        if len(rows) != len(examples):
            raise ValueError(
                f"Shard {shard} of {self._directory} holds {len(examples)} examples "
                f"({examples.start} to {examples.stop - 1}), but got {len(rows)} rows."
            )
        for example, row in zip(examples, rows, strict=True):
            _check_row(row, self._header, f"Soft labels of example {example}")
        records = np.concatenate([self._records(row) for row in rows]).tobytes()
        lengths = [len(row.tokens_T) for row in rows]
        records_file, index_file = _shard_files(self._directory, shard)
        # The index last: until it is there, or while it is an old one, the shard is pending.
        write_whole(records_file, records, durable=True)
        index = {
            "examples": [examples.start, examples.stop],
            "lengths": lengths,
            "sha256": _checksum(records, lengths),
        }
        _write_json(index_file, index)

    def finish(self) -> None:
        """Marks the store complete.

        Raises:
          ValueError: shards are pending.
        """
        pending = self.pending()
        if pending:
            raise ValueError(
                f"Soft-label store {self._directory} is not complete: shards {list(pending)} are "
                "missing or damaged; write them first."
            )
        indexes = [
            _read_json(_shard_files(self._directory, shard)[1])
            for shard in range(len(_shard_ranges(self._num_examples, self._shard_examples)))
        ]
        checksums = "".join(index["sha256"] for index in indexes)
        complete = {
            "status": "complete",
            "tokens": sum(sum(index["lengths"]) for index in indexes),
            "fingerprint": hashlib.sha256(checksums.encode()).hexdigest()[:16],
        }
        _write_json(self._directory / _MANIFEST, self._manifest | complete)

    def _records(self, row: SoftRow) -> np.ndarray:
        records = np.empty(len(row.tokens_T), self._dtype)
        records["token"] = row.tokens_T
        records["topk_ids"] = row.topk_ids_TK
        # Cut off, not overflown to -inf: a probability that far down is 0 either way.
        records["topk_logits"] = np.maximum(row.topk_logits_TK, _LOWEST_FLOAT16)
        records["row_max"] = row.row_max_T
        records["logz"] = row.logz_TZ
        return records


class SoftLabelReader:
    """A complete store, memory-mapped: only the rows asked for are read from disk."""

    def __init__(
        self, header: SoftLabelHeader, manifest: Mapping[str, Any], shards: Sequence[_Shard]
    ) -> None:
        self.header = header
        self.manifest = manifest
        self.fingerprint: str = manifest["fingerprint"]
        self.num_tokens: int = manifest["tokens"]
        self._shards = shards

    @classmethod
    def open(cls, directory: str | os.PathLike[str], expect: Mapping[str, Any]) -> SoftLabelReader:
        """Opens a store after checking whose it is and every shard's checksum.

        Args:
          directory: a store that `SoftLabelWriter.finish` completed.
          expect: manifest fields and the values they must have, such as
            {"teacher_fingerprint": "…", "data_fingerprint": "…"}.
        Raises:
          ValueError: there is no complete store, a field differs, or a shard is damaged.
        """
        directory = Path(directory)
        if not (directory / _MANIFEST).exists():
            raise ValueError(f"{directory} holds no soft labels (no {_MANIFEST}); label first.")
        manifest = _read_json(directory / _MANIFEST)
        _require_equal(directory, {"version": FORMAT_VERSION, **expect}, manifest)
        fields = {f.name: manifest[f.name] for f in dataclasses.fields(SoftLabelHeader)}
        header = SoftLabelHeader(**fields)
        dtype = record_dtype(header.vocabulary_size, header.top_k, len(header.temperatures))
        ranges = _shard_ranges(manifest["examples"], manifest["shard_examples"])
        damaged = _damaged_shards(directory, ranges, dtype)
        if damaged or manifest["status"] != "complete":
            raise ValueError(
                f"Soft-label store {directory} has status {manifest['status']!r} and shards "
                f"{damaged} missing or damaged; run the label stage again: it keeps the other "
                f"{len(ranges) - len(damaged)} shards."
            )
        return cls(
            header, manifest, [_map_shard(directory, shard, dtype) for shard in range(len(ranges))]
        )

    def __len__(self) -> int:
        return self.manifest["examples"]

    def row(self, i: int) -> SoftRow:
        """The labels of example i: int32 ids, float16 logits, float32 normalisers."""
        shard, place = divmod(i, self.manifest["shard_examples"])
        records, offsets = self._shards[shard]
        record_T = records[offsets[place] : offsets[place + 1]]
        return SoftRow(
            tokens_T=record_T["token"].astype(np.int32),
            topk_ids_TK=record_T["topk_ids"].astype(np.int32),
            topk_logits_TK=record_T["topk_logits"],
            logz_TZ=record_T["logz"],
            row_max_T=record_T["row_max"],
        )

    def temperature_index(self, temperature: float) -> int:
        """The place of a temperature's normaliser in `logz_TZ`.

        Raises:
          ValueError: no normaliser was stored at that temperature.
        """
        if temperature not in self.header.temperatures:
            raise ValueError(
                f"No normaliser is stored at temperature {temperature}; this store has "
                f"{list(self.header.temperatures)}. Distill at one of these, or label again "
                "with it among LabelConfig.temperatures."
            )
        return self.header.temperatures.index(temperature)


class _Shard(NamedTuple):
    records: np.ndarray  # record_dtype [tokens], memory-mapped
    offsets: list[int]  # examples + 1, tokens


def _manifest(
    header: SoftLabelHeader, dtype: np.dtype, num_examples: int, shard_examples: int
) -> dict[str, Any]:
    return {
        "version": FORMAT_VERSION,
        **to_dict(header),
        "bytes_per_token": dtype.itemsize,
        "examples": num_examples,
        "shard_examples": shard_examples,
    }


def _require_equal(directory: Path, expected: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    different = {
        name: (value, found.get(name))
        for name, value in expected.items()
        if to_dict(value) != found.get(name)
    }
    if different:
        lines = [
            f"  {name}: expected {value!r}, found {there!r}"
            for name, (value, there) in different.items()
        ]
        raise ValueError(
            f"Soft-label store {directory} is not the one asked for:\n"
            + "\n".join(lines)
            + "\nLabel into another directory, or remove this one to label again."
        )


def _check_row(row: SoftRow, header: SoftLabelHeader, name: str) -> None:
    length = len(row.tokens_T)
    wanted_shapes = {
        "topk_ids_TK": (length, header.top_k),
        "topk_logits_TK": (length, header.top_k),
        "logz_TZ": (length, len(header.temperatures)),
        "row_max_T": (length,),
    }
    for field, wanted in wanted_shapes.items():
        found = np.shape(getattr(row, field))
        if found != wanted:
            raise ValueError(f"{name}: {field} has shape {found}, expected {wanted}.")
    for field in ("topk_logits_TK", "logz_TZ", "row_max_T"):
        if not np.isfinite(getattr(row, field)).all():
            raise ValueError(
                f"{name}: {field} holds NaN or infinity; the teacher's logits are broken "
                "(a diverged checkpoint, or overflow in its activations)."
            )
    if np.max(row.topk_logits_TK, initial=0.0) > 0.0:
        raise ValueError(f"{name}: topk_logits_TK must be at most 0: subtract the row maximum.")
    for field in ("tokens_T", "topk_ids_TK"):
        ids = np.asarray(getattr(row, field))
        if ids.size and not 0 <= ids.min() <= ids.max() < header.vocabulary_size:
            raise ValueError(
                f"{name}: {field} holds ids from {ids.min()} to {ids.max()}, outside the "
                f"vocabulary of {header.vocabulary_size} pieces."
            )


def _shard_ranges(num_examples: int, shard_examples: int) -> list[range]:
    return [
        range(start, min(start + shard_examples, num_examples))
        for start in range(0, num_examples, shard_examples)
    ]


def _shard_files(directory: Path, shard: int) -> tuple[Path, Path]:
    stem = f"shard-{shard:05d}"
    return directory / f"{stem}.records", directory / f"{stem}.json"


def _checksum(records: bytes, lengths: Sequence[int]) -> str:
    return hashlib.sha256(np.asarray(lengths, "<i8").tobytes() + records).hexdigest()


def _damaged_shards(directory: Path, shards: Sequence[range], dtype: np.dtype) -> list[int]:
    return [i for i, examples in enumerate(shards) if not _is_whole(directory, i, examples, dtype)]


def _is_whole(directory: Path, shard: int, examples: range, dtype: np.dtype) -> bool:
    records_file, index_file = _shard_files(directory, shard)
    if not (index_file.exists() and records_file.exists()):
        return False
    try:
        index = _read_json(index_file)
        lengths, sha256, held = index["lengths"], index["sha256"], index["examples"]
    except (ValueError, KeyError, TypeError):  # a damaged index is a damaged shard
        return False
    is_right_size = records_file.stat().st_size == sum(lengths) * dtype.itemsize
    if held != [examples.start, examples.stop] or len(lengths) != len(examples):
        return False
    return is_right_size and _checksum(records_file.read_bytes(), lengths) == sha256


def _map_shard(directory: Path, shard: int, dtype: np.dtype) -> _Shard:
    records_file, index_file = _shard_files(directory, shard)
    offsets = np.concatenate(([0], np.cumsum(_read_json(index_file)["lengths"])))
    # An empty file cannot be mapped; a shard of empty rows is legal.
    mapped = np.memmap(records_file, dtype, mode="r") if offsets[-1] else np.empty(0, dtype)
    # The plain view is the same memory; np.memmap's own slicing costs microseconds a row.
    return _Shard(mapped.view(np.ndarray), offsets.tolist())


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{file} is not JSON ({error}); remove its directory to label again."
        ) from error


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    write_whole(file, json.dumps(content) + "\n", durable=True)
