"""SentencePiece vocabularies as T5 uses them, without TensorFlow.

Ids: 0 pads, 1 ends a sequence, 2 is unknown; T5's sentinels `<extra_id_0>`, `<extra_id_1>`, …
come after the pieces, the first with the highest id. They are added to the model in memory
exactly as `seqio.SentencePieceVocabulary` adds them, so that both tokenise every text alike.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from dora_jax.config import fingerprint
from dora_jax.shapes import EOS_ID, PAD_ID, UNK_ID
from dora_jax.whole_files import write_whole


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """A SentencePiece model and its sentinels; `Vocabulary.load` makes one.

    Attributes:
        path: the model file.
        pieces: how many pieces the file holds, pad, EOS and unknown included.
        extra_ids: how many sentinels follow them.
        fingerprint: 16 hex digits over the file's bytes and `extra_ids`.
    """

    path: str
    pieces: int
    extra_ids: int
    fingerprint: str
    _processor: sentencepiece.SentencePieceProcessor = dataclasses.field(repr=False, compare=False)

    @classmethod
    def load(cls, path: str | os.PathLike[str], extra_ids: int) -> Vocabulary:
        """Reads a SentencePiece model file and adds `extra_ids` sentinels.

        Raises:
            ValueError: no such file, not a SentencePiece model, or other special ids than T5's.
        """
        if extra_ids < 0:
            raise ValueError(f"extra_ids = {extra_ids}; it must be 0 or more (T5 has 100).")
        try:
            stored = Path(path).read_bytes()
        except OSError as error:
            raise ValueError(
                f"The vocabulary file {path} cannot be read ({error.strerror}); name a "
                "SentencePiece model, such as T5's spiece.model."
            ) from error
        processor, pieces = _processor_with_sentinels(stored, extra_ids, str(path))
        _check_special_ids(processor, str(path))
        identity = {"sha256": hashlib.sha256(stored).hexdigest(), "extra_ids": extra_ids}
        return cls(str(path), pieces, extra_ids, fingerprint(identity), processor)

    @property
    def size(self) -> int:
        """Number of ids: pieces and sentinels."""
        return self.pieces + self.extra_ids

    def padded_size(self, multiple: int = 128) -> int:
        """`size` rounded up, as T5 rounds 32,100 to 32,128, so that it divides over devices."""
        return -(-self.size // multiple) * multiple

    @property
    def sentinel_ids(self) -> tuple[int, ...]:
        """Ids of `<extra_id_0>`, `<extra_id_1>`, …: the highest first."""
        return tuple(range(self.size - 1, self.pieces - 1, -1))

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without EOS."""
        return self._processor.encode(list(texts), out_type=int)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of one sequence up to its EOS; padding, sentinels and ids beyond are dropped."""
        kept: list[int] = []
        for token in map(int, ids):
            if token == EOS_ID:
                break
            if token != PAD_ID and 0 <= token < self.pieces:
                kept.append(token)
        return self._processor.decode(kept)

    def check_size(self, vocab_size_of_model: int) -> None:
        """Refuses a network with fewer embeddings than this vocabulary has ids."""
        if vocab_size_of_model < self.size:
            raise ValueError(
                f"The network has vocab_size = {vocab_size_of_model}, but the vocabulary "
                f"{self.path} has {self.size} ids ({self.pieces} pieces and {self.extra_ids} "
                f"sentinels); set vocab_size to at least that, for instance {self.padded_size()}."
            )


def _processor_with_sentinels(
    stored: bytes, extra_ids: int, path: str
) -> tuple[sentencepiece.SentencePieceProcessor, int]:
    processor = sentencepiece.SentencePieceProcessor()
    try:
        # protobuf makes its classes at import, where type checkers do not see them.
        proto = sentencepiece_model_pb2.ModelProto  # pyright: ignore[reportAttributeAccessIssue]
        model = proto.FromString(stored)
        pieces = len(model.pieces)
        for sentinel in reversed(range(extra_ids)):
            model.pieces.add(
                piece=f"▁<extra_id_{sentinel}>",
                score=0.0,
                type=proto.SentencePiece.USER_DEFINED,
            )
        processor.LoadFromSerializedProto(model.SerializeToString())
    except Exception as error:  # protobuf and sentencepiece raise classes of their own
        raise ValueError(f"{path} is not a SentencePiece model: {error}") from error
    return processor, pieces


def _check_special_ids(processor: sentencepiece.SentencePieceProcessor, path: str) -> None:
    found = (processor.pad_id(), processor.eos_id(), processor.unk_id())
    if found != (PAD_ID, EOS_ID, UNK_ID):
        raise ValueError(
            f"{path} has pad, eos, unk = {found}, but a T5 vocabulary has "
            f"{(PAD_ID, EOS_ID, UNK_ID)}; train it with --pad_id=0 --eos_id=1 --unk_id=2 "
            "--bos_id=-1."
        )


def train_sentencepiece(
    texts: Iterable[str],
    path: str | os.PathLike[str],
    pieces: int,
    symbols: Sequence[str] = (),
) -> None:
    """Trains a byte-pair model with byte fallback and writes it to `path`.

    The same texts in the same order make the same bytes: nothing is sampled, one thread works.

    Not a unigram model as T5's: SentencePiece considers for those only strings that occur in
    two *different* words, so that in a small corpus "and" falls to pieces (5 % more tokens on
    WLP at 2,000 and 4,000 pieces) and 3,000 sentences yield hardly 2,000 pieces.

    Text is not normalised. T5's own nmt_nfkc would turn "µ" into "μ", "²" into "2" and "™"
    into "TM", and an entity copied from the text would no longer be the entity in the gold
    labels. With byte fallback `decode(encode(text)) == text` for every text, save that
    SentencePiece's own space mark U+2581 comes back as a space.

    Args:
        texts: the text to learn from.
        path: the file to write.
        pieces: how many pieces, the 3 special and 256 byte pieces included.
        symbols: whole words that become one piece each, without their leading space.

    Raises:
        ValueError: no text, or more or fewer pieces than the text allows.
    """
    sentences = [text for text in texts if text]
    if not sentences:
        raise ValueError(f"There is no text to train the vocabulary {path} on.")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type="bpe",
            vocab_size=pieces,
            pad_id=PAD_ID,
            eos_id=EOS_ID,
            unk_id=UNK_ID,
            bos_id=-1,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            user_defined_symbols=[f"▁{symbol}" for symbol in symbols],
            # Longer sentences would be left out without a word.
            max_sentence_length=max(len(text.encode()) for text in sentences) + 1,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(_training_message(str(error), pieces, len(sentences))) from error
    write_whole(path, model.getvalue())


def _training_message(error: str, pieces: int, sentences: int) -> str:
    asked = f"A vocabulary of {pieces} pieces cannot be trained on these {sentences} texts: "
    if too_many := re.search(r"value <= (\d+)", error):
        return f"{asked}they hold {too_many[1]} at most; ask for so many or fewer, or add text."
    if too_few := re.search(r"required_chars\. \d+ vs (\d+)", error):
        return (
            f"{asked}{too_few[1]} are needed for the bytes, single characters and symbols "
            "alone; ask for more."
        )
    return f"{asked}{error}"
