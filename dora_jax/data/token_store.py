"""The token store: every split of a task as plain arrays, written once and read for ever.

    manifest.json                 what this is, and the size and SHA-256 of every other file
    vocabulary.model              the SentencePiece model the tokens were made with
    <split>.source_tokens.npy     int32, all sources end to end      (targets alike)
    <split>.source_offsets.npy    int64, where each begins and ends  (targets alike)
    <split>.jsonl                 {"source", "target"} as text, without prompt

A store appears as a whole or not at all: it is written into a sibling folder that is renamed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dora_jax.config import fingerprint, to_dict
from dora_jax.data.vocab import Vocabulary
from dora_jax.shapes import Examples

FORMAT_VERSION = 1
SPLITS = ("train", "unlabeled", "validation", "test")
MANIFEST = "manifest.json"
VOCABULARY = "vocabulary.model"


class Split(NamedTuple):
    """The rows of one split, as text and as tokens.

    Unlabelled rows have the target "" and no target tokens; a labelled row whose target is
    empty has the one token EOS.
    """

    sources: Sequence[str]
    targets: Sequence[str]
    examples: Examples


def concatenate(sequences: Iterable[Sequence[int] | np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Token sequences end to end, and the offsets that part them again.

    Returns:
        tokens: int32 [total].
        offsets: int64 [sequences + 1]; sequence i is `tokens[offsets[i]:offsets[i + 1]]`.
    """
    arrays = [np.asarray(sequence, np.int32) for sequence in sequences]
    offsets = np.zeros(len(arrays) + 1, np.int64)
    np.cumsum([len(array) for array in arrays], out=offsets[1:])
    return np.concatenate([np.zeros(0, np.int32), *arrays]), offsets


@dataclasses.dataclass(frozen=True)
class TokenStore:
    """A prepared task on disk; `TokenStore.open` reads one.

    Attributes:
        directory: the folder.
        manifest: task, prompt, lengths, counts, prices and fingerprints, as *prepare* wrote them.
        fingerprint: 16 hex digits over the content of every file: tokens, texts, vocabulary.
        vocabulary: the vocabulary of the tokens.
    """

    directory: Path
    manifest: dict[str, Any]
    fingerprint: str
    vocabulary: Vocabulary

    @classmethod
    def open(cls, directory: str | os.PathLike[str]) -> TokenStore:
        """Opens a store after checking the size and SHA-256 of all its files.

        Raises:
            ValueError: no store there, one of another format version, or a damaged file.
        """
        folder = Path(directory)
        manifest = _read_manifest(folder)
        for name, expected in manifest["files"].items():
            _check_file(folder / name, expected)
        return cls(
            directory=folder,
            manifest=manifest,
            fingerprint=_content_fingerprint(manifest),
            vocabulary=Vocabulary.load(folder / VOCABULARY, manifest["extra_ids"]),
        )

    def examples(self, split: str) -> Examples:
        """The tokens of a split, memory-mapped."""
        self._check_split(split)
        return Examples(
            *(
                np.load(self.directory / f"{split}.{field}.npy", mmap_mode="r")
                for field in Examples._fields
            )
        )

    def sources(self, split: str) -> list[str]:
        """The source texts of a split, without prompt."""
        return self._texts(split, "source")

    def targets(self, split: str) -> list[str]:
        """The target texts of a split, in full even where their tokens were truncated."""
        return self._texts(split, "target")

    def _texts(self, split: str, side: str) -> list[str]:
        self._check_split(split)
        with open(self.directory / f"{split}.jsonl", encoding="utf-8", newline="\n") as lines:
            return [json.loads(line)[side] for line in lines]

    def _check_split(self, split: str) -> None:
        if split not in SPLITS:
            raise ValueError(f"There is no split {split!r}; there are {', '.join(SPLITS)}.")


def write_token_store(
    directory: str | os.PathLike[str],
    splits: Mapping[str, Split],
    vocabulary_file: str | os.PathLike[str],
    extra_ids: int,
    manifest: Mapping[str, Any],
) -> TokenStore:
    """Writes a token store, whole or not at all, and opens it.

    Args:
        directory: where it shall be; it must not exist yet.
        splits: all four of `SPLITS`.
        vocabulary_file: the SentencePiece model, which is copied into the store.
        extra_ids: number of sentinels after its pieces.
        manifest: what else to record, JSON-able.

    Raises:
        ValueError: `directory` exists, a split is missing, or texts and tokens differ in number.
    """
    folder = Path(directory)
    if folder.exists():
        raise ValueError(f"{folder} exists already; remove it or name another token store.")
    if set(splits) != set(SPLITS):
        raise ValueError(f"A token store has the splits {SPLITS}; found {tuple(splits)}.")
    aside = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(aside, ignore_errors=True)  # what a killed run left behind
    aside.mkdir(parents=True)
    try:
        for name, split in splits.items():
            _write_split(aside, name, split)
        shutil.copyfile(vocabulary_file, aside / VOCABULARY)
        recorded = to_dict(manifest) | {
            "version": FORMAT_VERSION,
            "extra_ids": extra_ids,
            "files": {file.name: _describe_file(file) for file in sorted(aside.iterdir())},
        }
        text = json.dumps(recorded, indent=2, ensure_ascii=False)
        (aside / MANIFEST).write_text(text + "\n", encoding="utf-8")
        aside.rename(folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return TokenStore.open(folder)


def _write_split(folder: Path, name: str, split: Split) -> None:
    rows = len(split.examples)
    if not len(split.sources) == len(split.targets) == rows:
        raise ValueError(
            f"Split {name!r} has {len(split.sources)} sources, {len(split.targets)} targets and "
            f"{rows} tokenised rows; they must be as many."
        )
    for field, array in zip(Examples._fields, split.examples, strict=True):
        np.save(folder / f"{name}.{field}.npy", array)
    with open(folder / f"{name}.jsonl", "w", encoding="utf-8", newline="\n") as lines:
        for source, target in zip(split.sources, split.targets, strict=True):
            row = {"source": source, "target": target}
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")


def _read_manifest(folder: Path) -> dict[str, Any]:
    prepare_hint = "name a folder that *prepare* has written, or none to have one prepared"
    if not folder.is_dir():
        raise ValueError(f"The token store {folder} is not a folder; {prepare_hint}.")
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(
            f"{folder} has no {MANIFEST}, so it is no token store; {prepare_hint}."
        ) from error
    except ValueError as error:
        raise ValueError(f"{folder / MANIFEST} is damaged ({error}); prepare again.") from error
    version = manifest.get("version") if isinstance(manifest, dict) else None
    if version != FORMAT_VERSION:
        raise ValueError(
            f"The token store {folder} has format version {version}, this program reads "
            f"{FORMAT_VERSION}; prepare it again."
        )
    return manifest


def _describe_file(file: Path) -> dict[str, Any]:
    with open(file, "rb") as stream:
        return {
            "bytes": file.stat().st_size,
            "sha256": hashlib.file_digest(stream, "sha256").hexdigest(),
        }


def _check_file(file: Path, expected: dict[str, Any]) -> None:
    if not file.is_file():
        raise ValueError(f"The token store lacks {file}; prepare it again.")
    found = _describe_file(file)
    for what in ("bytes", "sha256"):
        if found[what] != expected[what]:
            raise ValueError(
                f"{file} is damaged: its manifest says {what} = {expected[what]}, found "
                f"{found[what]}; prepare the token store again."
            )


def _content_fingerprint(manifest: Mapping[str, Any]) -> str:
    # Not the whole manifest: where the source files lay does not change what is in the store.
    return fingerprint({key: manifest[key] for key in ("version", "extra_ids", "files")})
