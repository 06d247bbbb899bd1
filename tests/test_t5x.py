"""T5X checkpoints: every form read alike, transformers agrees, written back."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
import t5x_fixtures as fixtures
import tensorstore as ts
from flax import serialization, traverse_util

import dora_jax
from dora_jax.checkpoints import huggingface, placement, t5x
from dora_jax.config import T5Config
from dora_jax.parallel.mesh import make_mesh

GATED = T5Config(
    vocab_size=fixtures.V,
    emb_dim=fixtures.E,
    num_heads=fixtures.H,
    num_encoder_layers=fixtures.ENCODER_LAYERS,
    num_decoder_layers=fixtures.DECODER_LAYERS,
    head_dim=fixtures.D,
    mlp_dim=fixtures.M,
)
V1_0 = dataclasses.replace(GATED, mlp_activations=("relu",), logits_via_embedding=True)
FLAT = fixtures.unscanned(gated=True, tied=False)


def expected_params(flat: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Our tree by path, put together by hand from T5X's."""
    ours = {name: array for name, array in flat.items() if "layers_" not in name}
    if "decoder.logits_dense.kernel" in ours:
        ours["logits_dense.kernel"] = ours.pop("decoder.logits_dense.kernel")
    for stack, layers in (("encoder", 2), ("decoder", 3)):
        for name in [n for n in flat if n.startswith(f"{stack}.layers_0.")]:
            rest = name.removeprefix(f"{stack}.layers_0.")
            ours[f"{stack}.layers.{rest}"] = np.stack(
                [flat[f"{stack}.layers_{i}.{rest}"] for i in range(layers)]
            )
    return ours


def assert_is(params: Any, flat: dict[str, np.ndarray]) -> None:
    found, wanted = placement.by_path(params), expected_params(flat)
    assert set(found) == set(wanted)
    for path, array in wanted.items():
        np.testing.assert_array_equal(np.asarray(found[path]), array, err_msg=path)


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same network in every form; not to be written to."""
    folder = tmp_path_factory.mktemp("t5x")
    scanned = fixtures.scanned(FLAT)
    fixtures.write_msgpack(folder / "msgpack" / "checkpoint_1000", FLAT)
    fixtures.write_msgpack(folder / "gcs" / "checkpoint_1000", FLAT, driver="gcs", inline=())
    fixtures.write_msgpack(folder / "old" / "checkpoint_1000", FLAT, old_spec=True)
    fixtures.write_msgpack(folder / "msgpack-scanned" / "checkpoint_1000", scanned)
    fixtures.write_orbax(folder / "orbax" / "checkpoint_1000", FLAT)
    fixtures.write_orbax(folder / "orbax-scanned" / "checkpoint_1000", scanned)
    fixtures.write_orbax(
        folder / "orbax-axis-0" / "checkpoint_1000", fixtures.scanned(FLAT, 0, "layers")
    )
    fixtures.write_orbax(folder / "orbax-zarr" / "checkpoint_1000", FLAT, ocdbt=False)
    fixtures.write_aggregate(folder / "orbax-2023" / "checkpoint_1000", FLAT)
    return folder


FORMS = [
    "msgpack",
    "gcs",
    "old",
    "msgpack-scanned",
    "orbax",
    "orbax-scanned",
    "orbax-axis-0",
    "orbax-zarr",
    "orbax-2023",
]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_reads_alike(originals: Path, form: str) -> None:
    folder = originals / form / "checkpoint_1000"
    assert t5x.network(folder) == GATED
    assert_is(t5x.load(folder, expected=GATED), FLAT)


@pytest.mark.parametrize(
    ("form", "place"),
    [
        ("orbax", "checkpoint_1000/state"),
        ("orbax", "."),
        ("msgpack", "."),
    ],
)
def test_a_path_may_be_the_state_or_the_model_directory(
    originals: Path, form: str, place: str
) -> None:
    assert_is(t5x.load(originals / form / place), FLAT)


def test_the_newest_of_a_model_directory(tmp_path: Path) -> None:
    newer = fixtures.unscanned(gated=True, tied=False, seed=1)
    fixtures.write_msgpack(tmp_path / "checkpoint_900", FLAT)
    fixtures.write_orbax(tmp_path / "checkpoint_1000", newer)
    assert_is(t5x.load(tmp_path), newer)


def test_v1_0_is_tied_and_has_one_branch(tmp_path: Path) -> None:
    flat = fixtures.unscanned(gated=False, tied=True)
    folder = fixtures.write_msgpack(tmp_path / "checkpoint_5", flat)
    assert t5x.network(folder) == V1_0
    assert_is(t5x.load(folder), flat)


def test_bfloat16_is_widened_exactly(tmp_path: Path) -> None:
    folder = fixtures.write_msgpack(tmp_path / "checkpoint_5", FLAT, dtype="bfloat16", inline=())
    wide = {name: a.astype(ml_dtypes.bfloat16).astype(np.float32) for name, a in FLAT.items()}
    assert_is(t5x.load(folder), wide)


def test_parameters_arrive_in_their_shardings(originals: Path) -> None:
    mesh = make_mesh(fsdp=2, tensor=2)
    for form in ("msgpack", "orbax-scanned"):
        params = t5x.load(originals / form, mesh)
        assert_is(params, FLAT)
        wi = params["encoder"]["layers"]["mlp"]["wi_0"]["kernel"]
        assert {part.data.shape for part in wi.addressable_shards} == {(2, 8, 10)}


@pytest.mark.parametrize(("config", "gated", "tied"), [(GATED, True, False), (V1_0, False, True)])
def test_transformers_has_the_same_logits(
    tmp_path: Path, config: T5Config, gated: bool, tied: bool
) -> None:
    """Built by names into transformers' own model: no code of ours between."""
    reference = pytest.importorskip("t5_reference")
    torch = reference.torch
    flat = fixtures.unscanned(gated, tied)
    model = reference.make_model("v1.1" if gated else "v1.0")
    names = {
        "SelfAttention.q": "{}attention.query",
        "SelfAttention.k": "{}attention.key",
        "SelfAttention.v": "{}attention.value",
        "SelfAttention.o": "{}attention.out",
    }
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            array = flat[_t5x_name(name, names)]
            tensor.copy_(torch.from_numpy(array if name == "shared.weight" else array.T))
    rows = reference.random_rows(3, 2, 9, 6)
    params = t5x.load(fixtures.write_orbax(tmp_path / "checkpoint_1", flat))
    error = reference.relative_error(
        dora_jax.forward(config, params, *rows), reference.logits_of(model, *rows).detach()
    )
    assert error < 1e-5


def _t5x_name(name: str, attention: dict[str, str]) -> str:
    """T5X's name of a parameter of transformers' T5, for this test's network."""
    fixed = {
        "shared.weight": "token_embedder.embedding",
        "lm_head.weight": "decoder.logits_dense.kernel",
    }
    if name in fixed:
        return fixed[name]
    stack, *parts = name.removesuffix(".weight").split(".")
    if parts == ["final_layer_norm"]:
        return f"{stack}.{stack}_norm.scale"
    if parts[-1] == "relative_attention_bias":
        return f"{stack}.relpos_bias.rel_embedding"
    _, layer, _, sublayer, module, *leaf = parts
    prefix = f"{stack}.layers_{layer}"
    if module == "layer_norm":
        kinds = {
            "encoder": ("attention", "mlp"),
            "decoder": ("self_attention", "cross_attention", "mlp"),
        }
        return f"{prefix}.pre_{kinds[stack][int(sublayer)]}_layer_norm.scale"
    if module == "DenseReluDense":
        return f"{prefix}.mlp.{leaf[0]}.kernel"
    kind = attention[f"SelfAttention.{leaf[0]}"]
    if module == "EncDecAttention":
        return f"{prefix}.{kind.format('encoder_decoder_')}.kernel"
    return f"{prefix}.{kind.format('self_' if stack == 'decoder' else '')}.kernel"


# --- writing -----------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["orbax", "msgpack"])
@pytest.mark.parametrize("layout", [t5x.UNSCANNED, t5x.SCANNED])
def test_what_is_written_is_t5xs_tree(
    tmp_path: Path, originals: Path, form: str, layout: t5x.Layout
) -> None:
    params = t5x.load(originals / "orbax")
    target = tmp_path / "checkpoint_12"
    t5x.save(target, params, layout=layout, form=form)
    assert_is(t5x.load(target, expected=GATED), FLAT)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint_12"]
    wanted = FLAT if layout == t5x.UNSCANNED else fixtures.scanned(FLAT)
    found = read_as_t5x(target, form)
    assert int(found.pop("state.step")) == 12
    assert set(found) == {f"target.{name}" for name in wanted}
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[f"target.{name}"], array, err_msg=name)


def read_as_t5x(folder: Path, form: str) -> dict[str, Any]:
    """Every array by name: with Orbax alone, or as `load_t5x_checkpoint` goes about it."""
    if form == "orbax":
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            return flat(checkpointer.restore(folder / "state"))
    content = serialization.msgpack_restore((folder / "checkpoint").read_bytes())
    assert content["version"] == 3
    found = {"state.step": content["optimizer"]["state"]["step"]}
    specs = flat(content["optimizer"]["target"])
    for name, spec in specs.items():
        del spec["metadata"]["chunks"], spec["metadata"]["compressor"]
        spec["kvstore"]["path"] = str(folder / spec["kvstore"]["path"])
        found[f"target.{name}"] = ts.open(spec, open=True).result().read().result()
    return found


def flat(tree: Any) -> dict[str, Any]:
    """By names with dots; a TensorStore spec is a leaf."""

    def is_spec(_: Any, value: Any) -> bool:
        return set(value) >= {"driver", "kvstore", "metadata"}

    return dict(traverse_util.flatten_dict(tree, is_leaf=is_spec, sep="."))


def test_zeros_are_written_and_read(tmp_path: Path, originals: Path) -> None:
    params = jax.tree.map(lambda array: 0 * array, t5x.load(originals / "orbax"))
    for form in ("orbax", "msgpack"):
        t5x.save(tmp_path / form / "checkpoint_1", params, form=form)
        again = t5x.load(tmp_path / form)
        assert not any(np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(again))


@pytest.mark.parametrize("form", ["orbax", "msgpack"])
def test_a_failed_write_leaves_nothing_and_what_was_there(
    tmp_path: Path, originals: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = t5x.load(originals / "orbax")
    target = tmp_path / "checkpoint_1"

    def full_disk(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(t5x.native, "write_tree", full_disk)
        broken.setattr(t5x, "write_arrays", full_disk)
        with pytest.raises(OSError, match="No space"):
            t5x.save(target, params, form=form)
        assert not list(tmp_path.iterdir())
    t5x.save(target, params, form=form)
    with monkeypatch.context() as broken:
        broken.setattr(t5x.native, "write_tree", full_disk)
        broken.setattr(t5x, "write_arrays", full_disk)
        with pytest.raises(OSError, match="No space"):
            t5x.save(target, jax.tree.map(lambda a: 2 * a, params), form=form)
    assert_is(t5x.load(target), FLAT)
    (target / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"it has thesis\.tex"):
        t5x.save(target, params, form=form)


def test_targets_that_t5x_would_not_find(tmp_path: Path, originals: Path) -> None:
    params = t5x.load(originals / "orbax")
    with pytest.raises(ValueError, match="expected checkpoint_N"):
        t5x.save(tmp_path / "model", params)
    with pytest.raises(ValueError, match="written to a local disk.*gcloud storage cp"):
        t5x.save("gs://bucket/checkpoint_1", params)


def test_folders_that_are_links(originals: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoint_1").mkdir()
    (tmp_path / "checkpoint_1" / "state").symlink_to(originals / "orbax/checkpoint_1000/state")
    (tmp_path / "checkpoint_2").symlink_to(originals / "msgpack" / "checkpoint_1000")
    for place in (tmp_path, tmp_path / "checkpoint_1"):
        assert_is(t5x.load(place), FLAT)


def test_hugging_face_to_t5x_and_back(tmp_path: Path) -> None:
    reference = pytest.importorskip("t5_reference")
    for version in ("v1.0", "v1.1"):
        model = reference.make_model(version)
        config, params = huggingface.load(reference.save_model(model, tmp_path / version))
        t5x.save(tmp_path / version / "t5x" / "checkpoint_0", params, layout=t5x.SCANNED)
        again = t5x.load(tmp_path / version / "t5x", expected=config)
        jax.tree.map(np.testing.assert_array_equal, again, params)
