"""T5 checkpoints of Hugging Face: read straight into their shardings, and written.

transformers 5 ties the output head to the embedding whatever `tie_word_embeddings` says, and
writes `true` for models whose head differs. So here the tensors decide: a head that is stored
and differs from the embedding is a head. The flags say only whether the decoder's states are
scaled by emb_dim^-0.5 before the head, as in v1.0.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from jax.sharding import Mesh
from safetensors.numpy import save_file

from dora_jax.checkpoints import checks, hub, names, placement, tokenizer_files
from dora_jax.checkpoints.tensor_files import StoredTensor, read_json, stored_tensors
from dora_jax.checkpoints.whole_folder import written_whole
from dora_jax.config import T5Config
from dora_jax.data.vocab import Vocabulary
from dora_jax.model.t5 import Params
from dora_jax.shapes import EOS_ID, PAD_ID

# transformers' `feed_forward_proj`. Its "gelu" alone is the exact form, which T5 never had;
# behind "gated-" it means the tanh form.
_ACTIVATIONS = {
    "relu": ("relu",),
    "gelu_new": ("gelu",),
    "silu": ("silu",),
    "gated-relu": ("relu", "linear"),
    "gated-gelu": ("gelu", "linear"),
    "gated-silu": ("silu", "linear"),
}
_FEED_FORWARD_PROJ = {activations: name for name, activations in _ACTIVATIONS.items()}
# What may be in a folder that `save` replaces, whoever wrote it.
CONTENT = (
    "*.safetensors",
    "*config.json",
    "*.safetensors.index.json",
    "spiece.model",
    "tokenizer*.json",
    "special_tokens_map.json",
    "README.md",
    ".gitattributes",
)
_NORM_EPSILON = 1e-6  # RMSNorm's; a checkpoint trained with another is refused

_ADVICE = (
    "Compare num_layers, d_model, d_ff, d_kv, num_heads, vocab_size and feed_forward_proj in "
    "config.json with the checkpoint, or download it again."
)

# Torch files name the embedding three times.
_EMBEDDING_NAMES = (names.EMBEDDING, "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
# Old checkpoints hold this table; T5 never reads it (`_keys_to_ignore_on_load_unexpected`).
_UNUSED = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"


def load(
    path: str | os.PathLike[str], mesh: Mesh | None = None, expected: T5Config | None = None
) -> tuple[T5Config, Params]:
    """Reads a T5, v1.1, Flan or mT5 checkpoint, tensor by tensor, into its shardings.

    Beyond the parameters themselves, host memory holds a few copies of one stored tensor.

    Args:
      path: a folder with config.json and the weights, as safetensors or torch files; or what
        `hub.resolve` takes, "hf:org/name" or "hf:FOLDER".
      mesh: where the parameters go; default one device.
      expected: the network it has to be (`checks.same_network`), known before a weight is read.

    Returns:
      The network, float32 activations, and its parameters, float32.

    Raises:
      ValueError: files missing or damaged, or not the tensors of such a network.
    """
    name = os.fspath(path)
    folder = hub.resolve(name) if name.startswith("hf:") else Path(name)
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}; names of the hub are written hf:org/name.")
    settings = read_json(folder / "config.json")
    stored = _with_one_embedding(stored_tensors(folder))
    head, scaled = _output_head(settings, stored)
    config = _to_config(settings, folder, tied=head is None)
    head_scale = config.emb_dim**-0.5 if scaled else 1.0
    if expected is not None:
        checks.same_network(name, config, expected)
    if head is None:
        stored.pop(names.HEAD, None)
    else:
        stored[names.HEAD] = head
    made_of = names.sources(placement.shapes(config))
    checks.same_tensors(
        {source.name: source.shape for sources in made_of.values() for source in sources},
        {name: tensor.shape for name, tensor in stored.items()},
        f"{folder} does not hold the T5 network that its config.json describes",
        _ADVICE,
    )

    def read(path: str) -> Iterator[np.ndarray]:
        scale = head_scale if made_of[path][0].name == names.HEAD else 1.0
        for source in made_of[path]:
            yield _as_parameter(stored[source.name], names.is_transposed(path), scale)

    return config, placement.fill(config, mesh, read)


def _with_one_embedding(stored: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Leaves only `shared.weight` of the embedding's names; different contents are refused."""
    kept = {name: tensor for name, tensor in stored.items() if name != _UNUSED}
    copies = {name: kept.pop(name) for name in _EMBEDDING_NAMES if name in kept}
    if not copies:
        return kept  # `checks.same_tensors` says that the embedding is missing
    (first, embedding), *others = copies.items()
    for name, other in others:
        if not _equal(embedding, other):
            raise ValueError(
                f"{name} differs from {first} in {other.file}; expected one embedding for "
                "encoder and decoder. This is not a T5 checkpoint."
            )
    return {**kept, names.EMBEDDING: embedding}


def _equal(a: StoredTensor, b: StoredTensor) -> bool:
    return a.shape == b.shape and np.array_equal(a.read(), b.read())


def _output_head(
    settings: dict[str, Any], stored: Mapping[str, StoredTensor]
) -> tuple[StoredTensor | None, bool]:
    """The head and whether the states are scaled for it; no head where the embedding serves.

    Our networks scale their states exactly when they are tied. The two other combinations
    (transformers makes v1.1 networks that are tied and not scaled) become an untied head.
    """
    scaled = settings.get("scale_decoder_outputs", settings.get("tie_word_embeddings", True))
    scaled = scaled is not False and settings.get("model_type") == "t5"  # mT5 never scales
    embedding, head = stored.get(names.EMBEDDING), stored.get(names.HEAD)
    if embedding is not None and (head is None or _equal(head, embedding)):
        head = None if scaled else embedding
    return head, scaled


def _to_config(settings: dict[str, Any], folder: Path, tied: bool) -> T5Config:
    where = folder / "config.json"

    def setting(name: str, *default: Any) -> Any:
        if name not in settings and not default:
            raise ValueError(f"{where} has no {name!r}, which a T5's must have.")
        return settings.get(name, *default)

    def count(name: str, *default: Any) -> int:
        value = setting(name, *default)
        if type(value) is not int or value < 1:  # true is an int to Python
            raise ValueError(f"{where}: {name} is {value!r}; expected a whole number above 0.")
        return value

    model_type = setting("model_type")
    if model_type not in ("t5", "mt5"):
        raise ValueError(f"{where}: model_type is {model_type!r}; expected 't5' or 'mt5'.")
    activation = setting("feed_forward_proj", "relu" if model_type == "t5" else "gated-gelu")
    if activation not in _ACTIVATIONS:
        raise ValueError(
            f"{where}: feed_forward_proj is {activation!r}; expected one of "
            f"{', '.join(_ACTIVATIONS)}."
        )
    if setting("layer_norm_epsilon", _NORM_EPSILON) != _NORM_EPSILON:
        raise ValueError(
            f"{where}: layer_norm_epsilon is {settings['layer_norm_epsilon']}; expected "
            f"{_NORM_EPSILON}, as in every T5."
        )
    dropout_rate = setting("dropout_rate", 0.1)
    if not isinstance(dropout_rate, int | float) or not 0 <= dropout_rate < 1:
        raise ValueError(f"{where}: dropout_rate is {dropout_rate!r}; expected 0 to below 1.")
    num_layers = count("num_layers")
    their_default = settings.get("num_decoder_layers") is None  # as many as in the encoder
    return T5Config(
        vocab_size=count("vocab_size"),
        emb_dim=count("d_model"),
        num_heads=count("num_heads"),
        num_encoder_layers=num_layers,
        num_decoder_layers=num_layers if their_default else count("num_decoder_layers"),
        head_dim=count("d_kv"),
        mlp_dim=count("d_ff"),
        mlp_activations=_ACTIVATIONS[activation],
        dropout_rate=dropout_rate,
        logits_via_embedding=tied,
        relative_attention_num_buckets=count("relative_attention_num_buckets", 32),
        relative_attention_max_distance=count("relative_attention_max_distance", 128),
    )


def _as_parameter(tensor: StoredTensor, transposed: bool, scale: float) -> np.ndarray:
    array = tensor.read()
    if scale != 1.0:
        array *= np.float32(scale)
    return array.T if transposed else array


def save(
    path: str | os.PathLike[str],
    config: T5Config,
    params: Params,
    tokenizer_file: str | os.PathLike[str],
    *,
    extra_ids: int = 100,
    max_shard_bytes: int = 5_000_000_000,
    documents: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Writes a folder that `transformers` loads as a T5ForConditionalGeneration, tokenizer too.

    The folder appears whole or not at all. One that holds a checkpoint already is replaced.

    Args:
      path: the folder.
      params: float32; one process must be able to read all of them.
      tokenizer_file: the SentencePiece model; it becomes spiece.model, and tokenizer.json
        where transformers' T5Tokenizer could not give its ids.
      extra_ids: how many sentinels follow its pieces.
      max_shard_bytes: larger networks are written in several files with an index.
      documents: texts to put beside the weights, by file name.

    Raises:
      ValueError: the vocabulary does not fit the network, transformers has no such vocabulary
        or network, or something else than a checkpoint is at `path`.
    """
    Vocabulary.load(tokenizer_file, extra_ids).check_size(config.vocab_size)
    settings = _to_settings(config)
    special_ids = {
        "decoder_start_token_id": PAD_ID,
        "eos_token_id": EOS_ID,
        "pad_token_id": PAD_ID,
    }
    with written_whole(path, CONTENT) as folder:
        tokenizer_files.write(folder, Path(tokenizer_file), extra_ids)
        _write_weights(folder, params, max_shard_bytes)
        _write_json(folder / "config.json", {**settings, **special_ids})
        _write_json(folder / "generation_config.json", special_ids)
        for name, text in documents.items():
            (folder / name).write_text(text, encoding="utf-8")


def _to_settings(config: T5Config) -> dict[str, Any]:
    if config.mlp_activations not in _FEED_FORWARD_PROJ:
        raise ValueError(
            f"transformers has no T5 with mlp_activations = {config.mlp_activations}; expected "
            f"one of {', '.join(map(str, _FEED_FORWARD_PROJ))}."
        )
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "is_encoder_decoder": True,
        "vocab_size": config.vocab_size,
        "d_model": config.emb_dim,
        "d_kv": config.head_dim,
        "d_ff": config.mlp_dim,
        "num_layers": config.num_encoder_layers,
        "num_decoder_layers": config.num_decoder_layers,
        "num_heads": config.num_heads,
        "relative_attention_num_buckets": config.relative_attention_num_buckets,
        "relative_attention_max_distance": config.relative_attention_max_distance,
        "dropout_rate": config.dropout_rate,
        "layer_norm_epsilon": _NORM_EPSILON,
        "feed_forward_proj": _FEED_FORWARD_PROJ[config.mlp_activations],
        # False makes transformers 4 keep the head apart and 5 leave the states unscaled.
        "tie_word_embeddings": config.logits_via_embedding,
        "dtype": "float32",
    }


def _write_weights(folder: Path, params: Params, max_shard_bytes: int) -> None:
    leaves = placement.by_path(params)
    shapes = {path: tuple(leaf.shape) for path, leaf in leaves.items()}
    shards: list[list[tuple[str, names.Source]]] = [[]]
    room = max_shard_bytes
    for path, sources in names.sources(shapes).items():
        for source in sources:
            num_bytes = 4 * int(np.prod(source.shape))
            if num_bytes > room and shards[-1]:
                shards.append([])
                room = max_shard_bytes
            shards[-1].append((path, source))
            room -= num_bytes
    weight_map = {}
    for i, shard in enumerate(shards, start=1):
        file = f"model-{i:05}-of-{len(shards):05}.safetensors"
        file = file if len(shards) > 1 else "model.safetensors"
        tensors = {source.name: _as_stored(leaves[path], path, source) for path, source in shard}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        # safetensors lets nobody but the owner read what it writes.
        shutil.copymode(folder / "spiece.model", folder / file)
        weight_map.update(dict.fromkeys(tensors, file))
    if len(shards) > 1:
        total = sum(4 * leaf.size for leaf in leaves.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        _write_json(folder / "model.safetensors.index.json", index)


def _as_stored(leaf: Any, path: str, source: names.Source) -> np.ndarray:
    layer = leaf if source.layer is None else leaf[source.layer]
    array = np.asarray(layer, np.float32)
    # safetensors writes an array's memory as it lies there, so that must be in row order.
    return np.ascontiguousarray(array.T if names.is_transposed(path) else array)


def _write_json(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
