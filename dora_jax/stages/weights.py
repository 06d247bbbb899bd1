"""Where a network's first parameters come from: a checkpoint, or pretraining in this run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from jax.sharding import Mesh

from dora_jax.checkpoints import hub, huggingface, native_folder, t5x
from dora_jax.checkpoints.checks import same_network
from dora_jax.checkpoints.tensor_files import read_json
from dora_jax.config import CHECKPOINTS, LLM_STRATEGIES, ModelSource, T5Config, fingerprint
from dora_jax.data import token_store
from dora_jax.model.t5 import Params
from dora_jax.stages import manifest
from dora_jax.stages.context import RunContext

# Stages that train the run's teacher; all others train its student.
_TEACHERS = ("pretrain-teacher", "teach")
_TRAINED = (*_TEACHERS, "pretrain-student", "annotate", "distill", *LLM_STRATEGIES)


@dataclasses.dataclass(frozen=True)
class Start:
    """A network and how to get its first parameters; nothing is read before `params()`."""

    network: T5Config
    fingerprint: str
    params: Callable[[], Params]


@dataclasses.dataclass(frozen=True)
class DecodingDefaults:
    """How texts are read and predictions made: lengths in tokens."""

    source_length: int = 512
    target_length: int = 128
    no_repeat_ngram_size: int = 0


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was found.

    Attributes:
      where: its folder.
      read: (mesh, expected network or None) → the network and its parameters.
      vocabulary: the SentencePiece file that comes with it, or None.
      extra_ids: how many sentinels follow its pieces.
      decoding: as the run decodes that has trained it; for other checkpoints T5's usual.
    """

    where: str
    read: Callable[[Mesh | None, T5Config | None], tuple[T5Config, Params]]
    vocabulary: Path | None = None
    extra_ids: int = 100
    decoding: DecodingDefaults = DecodingDefaults()


def from_checkpoint(context: RunContext, source: ModelSource) -> Start:
    """Parameters of a published or own checkpoint, `source.weights`.

    Raises:
      ValueError: the checkpoint cannot be found or holds another network.
    """

    def read() -> Params:
        with context.meter.phase("checkpoint"):
            return find(source.weights).read(context.mesh, source.network)[1]

    return Start(source.network, fingerprint([source.network, source.weights]), read)


def find(name: str) -> Checkpoint:
    """The checkpoint of a name such as "hf:google/t5-v1_1-small" or "native:runs/mine/distill".

    No weight is read or downloaded yet.

    Raises:
      ValueError: the name is of no kind we know, or there is no such checkpoint.
    """
    kind, _, place = name.partition(":")
    if kind not in CHECKPOINTS or not place:
        raise ValueError(f"{name!r} names no checkpoint; write {', '.join(CHECKPOINTS.values())}.")
    return {"hf": _find_hf, "t5x": _find_t5x, "native": _find_native}[kind](place)


def _find_hf(place: str) -> Checkpoint:
    folder = hub.resolve(f"hf:{place}", weights=False)
    file, settings = folder / "spiece.model", folder / "tokenizer_config.json"
    extra_ids = read_json(settings).get("extra_ids", 100) if settings.is_file() else 100
    return Checkpoint(
        str(folder),
        lambda mesh, expected: huggingface.load(f"hf:{place}", mesh, expected),
        file if file.is_file() else None,
        extra_ids,
    )


def _find_t5x(place: str) -> Checkpoint:
    folder = t5x.find(place)

    def read(mesh: Mesh | None, expected: T5Config | None) -> tuple[T5Config, Params]:
        return t5x.network(folder, expected), t5x.load(folder, mesh, expected)

    return Checkpoint(str(folder), read)


def _find_native(place: str) -> Checkpoint:
    folder = Path(place).expanduser()
    if (folder / native_folder.NETWORK).is_file():
        file = folder / "spiece.model"
        return Checkpoint(
            str(folder),
            lambda mesh, expected: native_folder.load(folder, mesh, expected),
            file if file.is_file() else None,
            native_folder.extra_ids(folder),
        )
    if folder.name in _TRAINED and (folder.parent / "config.json").is_file():
        return trained(folder.parent, folder.name)
    stages = [stage for stage in _TRAINED if manifest.is_finished(folder / stage)]
    hint = f" Its trained models: {', '.join(f'native:{folder / s}' for s in stages)}."
    raise ValueError(
        f"native:{place} is no checkpoint: expected a folder with {native_folder.NETWORK}, as "
        f"launch/convert.py writes it, or a trained stage of a run.{hint if stages else ''}"
    )


def trained(run: Path, stage: str) -> Checkpoint:
    """The model that a training stage of a run directory chose.

    Raises:
      ValueError: the run has no such stage, or it has not finished.
    """
    if not manifest.is_finished(run / stage):
        finished = [other for other in _TRAINED if manifest.is_finished(run / other)]
        raise ValueError(
            f"{run / stage} holds no finished model. Finished in this run: "
            f"{', '.join(finished) or 'none'}. Carry the run to its end, or name one of these."
        )
    config = manifest.read_json(run / "config.json")
    side = config["teacher" if stage in _TEACHERS else "student"]
    network = native_folder.network(side["network"], str(run / "config.json"))
    step = manifest.read(run / stage)["outputs"]["best_step"]
    tokens = Path(config["data"]["token_store"] or run / "prepare" / "tokens")
    file = tokens / token_store.VOCABULARY

    def read(mesh: Mesh | None, expected: T5Config | None) -> tuple[T5Config, Params]:
        if expected is not None:
            same_network(str(run / stage), network, expected)
        folder = run / stage / "best" / str(step) / "state"
        return network, native_folder.read_params(folder, network, mesh)

    return Checkpoint(
        str(run / stage),
        read,
        file if file.is_file() else None,
        config["data"]["extra_ids"],
        DecodingDefaults(
            config["data"]["source_length"],
            config["data"]["target_length"],
            config["evaluate"].get("no_repeat_ngram_size", 0),
        ),
    )
