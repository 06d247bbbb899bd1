"""Which SentencePiece vocabulary belongs to a checkpoint, and one as `transformers` reads it.

Unigram models, as T5's own, are what its T5Tokenizer is made for: it reads spiece.model. Byte-pair
models with byte fallback, as a rehearsal trains them, it would load without a word and give
other ids. Those get a tokenizer.json of the `tokenizers` library that gives the same ids.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sentencepiece import sentencepiece_model_pb2

from dora_jax.checkpoints import hub
from dora_jax.data.vocab import Vocabulary
from dora_jax.shapes import EOS_ID, PAD_ID, UNK_ID

SPACE = "▁"  # SentencePiece's mark of a space


def chosen(named: str | None, own: Path | None, extra_ids: int) -> Vocabulary | None:
    """The vocabulary that is named for a checkpoint, or the one that comes with it.

    Args:
      named: a SentencePiece file, or "hf:org/name" or "hf:FOLDER"; or None.
      own: the file that comes with the checkpoint; None: it has none.
      extra_ids: how many sentinels follow the pieces.

    Raises:
      ValueError: no such vocabulary, or another one than the checkpoint's own.
    """
    theirs = None if own is None else Vocabulary.load(own, extra_ids)
    if not named:
        return theirs
    file = (
        hub.resolve(named, weights=False) / "spiece.model"
        if named.startswith("hf:")
        else Path(named)
    )
    vocabulary = Vocabulary.load(file, extra_ids)
    if theirs is not None and vocabulary.fingerprint != theirs.fingerprint:
        raise ValueError(
            f"{file} is another vocabulary ({vocabulary.pieces} pieces) than {own} "
            f"({theirs.pieces} pieces), which comes with the checkpoint and which its embeddings "
            "stand for. Leave it out."
        )
    return vocabulary


def write(folder: Path, file: Path, extra_ids: int) -> None:
    """Writes spiece.model and what AutoTokenizer needs beside it.

    Args:
      folder: where to.
      file: the SentencePiece model.
      extra_ids: how many sentinels follow its pieces.

    Raises:
      ValueError: transformers can give the model's ids in neither way.
    """
    # protobuf makes its classes at import, where type checkers do not see them.
    proto = sentencepiece_model_pb2.ModelProto  # pyright: ignore[reportAttributeAccessIssue]
    model = proto.FromString(file.read_bytes())
    shutil.copyfile(file, folder / "spiece.model")
    settings: dict[str, Any] = {"extra_ids": extra_ids}
    if model.trainer_spec.model_type == model.trainer_spec.UNIGRAM:
        _require(not model.trainer_spec.byte_fallback, file, "is unigram with byte fallback")
        settings["tokenizer_class"] = "T5Tokenizer"
    else:
        text = json.dumps(byte_pair_tokenizer(model, extra_ids, file), ensure_ascii=False)
        (folder / "tokenizer.json").write_text(text + "\n", encoding="utf-8")
        names = {name: model.pieces[i].piece for name, i in _SPECIAL.items()}
        settings |= {"tokenizer_class": "PreTrainedTokenizerFast", **names}
        settings["clean_up_tokenization_spaces"] = False
    text = json.dumps(settings, indent=2)
    (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")


_SPECIAL = {"pad_token": PAD_ID, "eos_token": EOS_ID, "unk_token": UNK_ID}


def _require(condition: bool, file: Path, what: str) -> None:
    if not condition:
        raise ValueError(
            f"{file} {what}, which no tokenizer of transformers does; expected a unigram model "
            "such as T5's spiece.model, or a byte-pair model with byte fallback and identity "
            "normalisation."
        )


def byte_pair_tokenizer(model: Any, extra_ids: int, file: Path) -> dict[str, Any]:
    """The content of tokenizer.json for a byte-pair model with byte fallback.

    SentencePiece first cuts out its user-defined pieces, the longest first, then joins the two
    neighbours whose joined piece scores highest until none is left. `tokenizers` joins by a
    list of pairs instead, and cuts out with a regular expression.

    Args:
      model: SentencePiece's ModelProto.
      extra_ids: how many sentinels follow its pieces; the first has the highest id.
      file: for messages.
    """
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    _require(trainer.model_type == trainer.BPE, file, "is neither unigram nor byte-pair")
    _require(trainer.byte_fallback, file, "is byte-pair without byte fallback")
    plain = normalizer.name == "identity" and not normalizer.remove_extra_whitespaces
    _require(plain, file, f"normalises text ({normalizer.name or 'by a table of its own'})")
    marked = normalizer.add_dummy_prefix and normalizer.escape_whitespaces
    _require(marked and not trainer.treat_whitespace_as_suffix, file, "marks spaces in another way")
    kinds = model.SentencePiece
    vocabulary = {piece.piece: i for i, piece in enumerate(model.pieces)}
    symbols = [p.piece for p in model.pieces if p.type == kinds.USER_DEFINED]
    scores = {p.piece: p.score for p in model.pieces if p.type == kinds.NORMAL}
    first, end = len(model.pieces), model.pieces[EOS_ID].piece
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            *(_added(i, model.pieces[i].piece, spaces=False) for i in (PAD_ID, EOS_ID, UNK_ID)),
            # Our sentinel's piece has the space before it, and the text behind gets a new one.
            # In the order of their ids: `tokenizers` counts, whatever "id" says.
            *(
                _added(first + i, f"<extra_id_{extra_ids - 1 - i}>", spaces=True)
                for i in range(extra_ids)
            ),
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": SPACE},
                {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
            ],
        },
        "pre_tokenizer": _cut_out(symbols),
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [_sequence("A"), _end(end)],
            "pair": [_sequence("A"), _end(end), _sequence("B"), _end(end)],
            "special_tokens": {end: {"id": end, "ids": [EOS_ID], "tokens": [end]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": model.pieces[UNK_ID].piece,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": True,
            # A symbol that was cut out is one piece, though no pair joins to it.
            "ignore_merges": bool(symbols),
            "vocab": vocabulary,
            "merges": [list(pair) for pair in _pairs(scores)],
        },
    }


def _pairs(scores: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    """Every pair of pieces that joins to a piece, the best-scored result first."""
    for piece in sorted(scores, key=lambda piece: -scores[piece]):
        for i in range(1, len(piece)):
            if piece[:i] in scores and piece[i:] in scores:
                yield piece[:i], piece[i:]


def _cut_out(symbols: list[str]) -> dict[str, Any] | None:
    if not symbols:
        return None
    longest_first = sorted(symbols, key=len, reverse=True)
    return {
        "type": "Split",
        "pattern": {"Regex": "|".join(map(re.escape, longest_first))},
        "behavior": "Isolated",
        "invert": False,
    }


def _added(token_id: int, content: str, *, spaces: bool) -> dict[str, Any]:
    """A token that is cut out of the text, with the spaces around it or without."""
    return {
        "id": token_id,
        "content": content,
        "single_word": False,
        "lstrip": spaces,
        "rstrip": spaces,
        "normalized": False,
        "special": True,
    }


def _sequence(name: str) -> dict[str, Any]:
    return {"Sequence": {"id": name, "type_id": 0}}


def _end(piece: str) -> dict[str, Any]:
    return {"SpecialToken": {"id": piece, "type_id": 0}}
