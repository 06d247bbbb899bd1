"""BERTScore with inverse document frequencies, on any encoder in Hugging Face's form.

Each token of a candidate is matched with the nearest token of its reference and the reverse, by
the cosine of their contextual embeddings; idf-weighted means of these are precision and recall.
No rescaling with a baseline. PyTorch and transformers are imported in `_load_encoder` only.

Source: Zhang et al., ICLR 2020, and its reference implementation bert-score 0.3.12.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from huggingface_hub import try_to_load_from_cache
from tqdm import tqdm

# bert-score's choice of layer, the one that agrees best with people on WMT16.
LAYERS = {
    "bert-base-uncased": 9,
    "bert-large-uncased": 18,
    "deberta-base": 9,
    "deberta-base-mnli": 9,
    "deberta-large": 16,
    "deberta-large-mnli": 18,
    "deberta-xlarge": 18,
    "deberta-xlarge-mnli": 40,
    "distilbert-base-uncased": 5,
    "roberta-base": 10,
    "roberta-large": 17,
    "roberta-large-mnli": 19,
}
_BATCH = 32  # pairs encoded at a time
_FREE_GPU_BYTES = 8 * 2**30  # deberta-xlarge in float32 with a batch; JAX may hold the rest


class ScorerMissing(Exception):
    """The encoder cannot be had here; the message says why and what to do."""


class Encoder(NamedTuple):
    """A network that embeds tokens in their context.

    Attributes:
        tokenise: texts → token ids with the special ones.
        embed: token ids → float32 [tokens, width] of each text, rows of length 1.
        layer: whose outputs `embed` gives.
    """

    tokenise: Callable[[Sequence[str]], list[list[int]]]
    embed: Callable[[Sequence[list[int]]], list[np.ndarray]]
    layer: int


def bert_score(
    candidates: Sequence[str], references: Sequence[str], model: str
) -> tuple[np.ndarray, int]:
    """BERTScore's F1 of each candidate against its reference; idf over the references.

    Args:
        candidates: texts that are judged; an empty one scores 0.
        references: what they are compared with, in the same order.
        model: a folder with an encoder and its tokenizer, or the name of one that is in the
            local Hugging Face cache. Nothing is downloaded.

    Returns:
        float64 [sentences], and the layer of the encoder: bert-score's where the folder or
        name ends in that of a model it knows, else the last.

    Raises:
        ScorerMissing: PyTorch, transformers or the model cannot be had.
    """
    encoder = _load_encoder(model)
    candidate_ids, reference_ids = encoder.tokenise(candidates), encoder.tokenise(references)
    idf = inverse_document_frequencies(reference_ids)
    unseen = math.log(len(references) + 1)
    # Texts of one length are encoded together, with little padding.
    order = sorted(
        range(len(candidates)), key=lambda i: len(candidate_ids[i]) + len(reference_ids[i])
    )
    scores_N = np.zeros(len(candidates))
    for start in tqdm(range(0, len(order), _BATCH), desc="BERTScore", disable=None):
        batch = order[start : start + _BATCH]
        ids = [*(candidate_ids[i] for i in batch), *(reference_ids[i] for i in batch)]
        weights = [np.array([idf.get(token, unseen) for token in text]) for text in ids]
        texts = list(zip(encoder.embed(ids), weights, strict=True))
        for i, candidate, reference in zip(
            batch, texts[: len(batch)], texts[len(batch) :], strict=True
        ):
            scores_N[i] = matching_f1(*candidate, *reference)
    return scores_N, encoder.layer


def inverse_document_frequencies(documents: Sequence[Sequence[int]]) -> dict[int, float]:
    """ln((N + 1) / (n + 1)) of each token that is in n of N documents."""
    counts = Counter(token for document in documents for token in set(document))
    return {token: math.log((len(documents) + 1) / (n + 1)) for token, n in counts.items()}


def matching_f1(
    candidate_TD: np.ndarray,
    candidate_weights_T: np.ndarray,
    reference_SD: np.ndarray,
    reference_weights_S: np.ndarray,
) -> float:
    """F1 of greedy matching; 0 where a text has no token of weight above 0, as an empty one.

    precision = Σ_t w_t max_s cos(t, s) / Σ_t w_t, recall the same with the texts exchanged.

    Args:
        candidate_TD: float [tokens, width], rows of length 1.
        candidate_weights_T: float [tokens], 0 or more.
        reference_SD: the same of the reference.
        reference_weights_S: the same of the reference.
    """
    if candidate_weights_T.sum() <= 0.0 or reference_weights_S.sum() <= 0.0:
        return 0.0
    cosines_TS = candidate_TD @ reference_SD.T
    precision = np.average(cosines_TS.max(axis=1), weights=candidate_weights_T)
    recall = np.average(cosines_TS.max(axis=0), weights=reference_weights_S)
    both = precision + recall
    return float(2.0 * precision * recall / both) if both else 0.0


def _known_layer(model: str) -> int | None:
    """Of "microsoft/deberta-xlarge-mnli", ".../deberta-xlarge-mnli/", or a hub cache's snapshot."""
    for part in reversed(model.rstrip("/").split("/")):
        name = part.split("--")[-1]
        if name in LAYERS:
            return LAYERS[name]
    return None


def _require_local(model: str) -> None:
    """Before PyTorch is imported, which takes seconds."""
    if os.path.isdir(model):
        return
    try:
        cached = try_to_load_from_cache(model, "config.json")
    except ValueError:  # no name of a repository, so the path of a folder
        raise ScorerMissing(f"there is no folder {model}.") from None
    if not isinstance(cached, str):
        raise ScorerMissing(
            f"the encoder {model} is not in the local Hugging Face cache. `hf download {model}` "
            "fetches it; --scorer_model=FOLDER names another one."
        )


def _load_encoder(model: str) -> Encoder:
    _require_local(model)
    try:
        import torch
        import transformers
    except ModuleNotFoundError as error:
        raise ScorerMissing(
            f"BERTScore needs {error.name}, which is not installed; `pip install torch "
            "transformers` adds it."
        ) from error
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    local = {"local_files_only": True}
    try:
        config = transformers.AutoConfig.from_pretrained(model, **local)
        # RoBERTa numbers positions from 2.
        longest = config.max_position_embeddings - 2
        layer = _known_layer(model) or config.num_hidden_layers
        config.num_hidden_layers = layer
        # bert-score puts a space before the text for byte-level BPE, where it makes a difference.
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            model, **local, add_prefix_space=True
        )
        # DeBERTa's weights are stored in float16, and bert-score computes in float32.
        network, report = transformers.AutoModel.from_pretrained(
            model, **local, config=config, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, AttributeError, ImportError, RuntimeError) as error:
        first_line = str(error).partition("\n")[0]
        raise ScorerMissing(
            f"{model} holds no encoder that transformers can load with its tokenizer "
            f"({first_line})."
        ) from error
    # transformers draws weights that a checkpoint lacks at random. The pooler is not used.
    lacking = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
    if lacking:
        raise ScorerMissing(
            f"the checkpoint in {model} lacks {len(lacking)} of the tensors that its config.json "
            f"and layer {layer} ask for, such as {lacking[0]}."
        )
    free = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else 0
    device = "cuda" if free > _FREE_GPU_BYTES else "cpu"
    network = network.to(device).eval()
    longest = min(longest, tokenizer.model_max_length)
    padding = tokenizer.pad_token_id or 0

    def tokenise(texts: Sequence[str]) -> list[list[int]]:
        stripped = [text.strip() for text in texts]
        return tokenizer(stripped, truncation=True, max_length=longest)["input_ids"]

    @torch.inference_mode()
    def embed(ids: Sequence[list[int]]) -> list[np.ndarray]:
        lengths = [len(text) for text in ids]
        tokens_BT = torch.full((len(ids), max(lengths)), padding)
        mask_BT = torch.zeros_like(tokens_BT)
        for row, text in enumerate(ids):
            tokens_BT[row, : len(text)] = torch.tensor(text)
            mask_BT[row, : len(text)] = 1
        outputs = network(tokens_BT.to(device), attention_mask=mask_BT.to(device))
        unit_BTD = torch.nn.functional.normalize(outputs.last_hidden_state.float(), dim=-1)
        return [row.numpy()[:length] for row, length in zip(unit_BTD.cpu(), lengths, strict=True)]

    return Encoder(tokenise, embed, layer)
