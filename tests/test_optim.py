"""Optimizers on scanned parameters against one optimizer a layer, and schedules at key steps."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dora_jax.config import OptimizerConfig
from dora_jax.train.optim import Optimizer, make_optimizer, make_schedule

ENCODER_LAYERS, DECODER_LAYERS = 3, 2
STEPS = 4
RATE = 1e-2


def make_tree(rng: np.random.Generator, layer_factor: float) -> dict:
    """A parameter tree like T5's in miniature; layer i is `layer_factor`^i times layer 0.

    The kernel is large enough to be factored, the others are not.
    """

    def stacked(layers: int, *shape: int) -> np.ndarray:
        factors = layer_factor ** np.arange(layers).reshape(-1, *(1 for _ in shape))
        return (factors * rng.normal(0, 1, (layers, *shape))).astype(np.float32)

    def stack(layers: int) -> dict:
        return {
            "layers": {
                "mlp": {"wi": {"kernel": stacked(layers, 128, 160)}},
                "norm": {"scale": stacked(layers, 128)},
            },
            "final_norm": {"scale": rng.normal(0, 1, 128).astype(np.float32)},
        }

    return {
        "token_embedder": {"embedding": rng.normal(0, 1, (200, 128)).astype(np.float32)},
        "encoder": stack(ENCODER_LAYERS),
        "decoder": stack(DECODER_LAYERS),
    }


@pytest.fixture(scope="module")
def params() -> dict:
    return make_tree(np.random.default_rng(0), layer_factor=10.0)


@pytest.fixture(scope="module")
def gradients() -> list[dict]:
    """Their scales run against those of the parameters, and from step to step."""
    rng = np.random.default_rng(1)
    trees = [make_tree(rng, layer_factor=0.1) for _ in range(STEPS)]
    return [jax.tree.map(lambda g, i=i: g * 3.0**i, tree) for i, tree in enumerate(trees)]


def train(optimizer: Optimizer, params: Any, gradients: list[dict]) -> Any:
    """The gradients are given at half their size, to be scaled by 2."""
    state = optimizer.init(params)
    apply = jax.jit(optimizer.apply)
    for gradient in gradients:
        half = jax.tree.map(lambda g: g / 2, gradient)
        params, state = apply(half, state, params, jnp.float32(2.0), jax.random.key(0))
    return params


def train_with_optax(
    optimizer: optax.GradientTransformation, params: Any, gradients: list[dict]
) -> Any:
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for gradient in gradients:
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params


def layer(tree: dict, stack: str, i: int) -> dict:
    return jax.tree.map(lambda leaf: leaf[i], tree[stack]["layers"])


def largest_relative_difference(a: dict, b: dict) -> float:
    differences = jax.tree.map(lambda x, y: np.max(np.abs(x - y)) / np.max(np.abs(y)), a, b)
    return float(max(jax.tree.leaves(differences)))


def test_adafactor_of_a_stack_is_one_adafactor_a_layer(params: dict, gradients: list[dict]) -> None:
    config = OptimizerConfig("adafactor", RATE, "linear", weight_decay=1e-3)
    schedule = optax.linear_schedule(RATE, 0.0, STEPS)
    ours = train(make_optimizer(config, STEPS), params, gradients)
    adafactor = optax.adafactor(schedule, weight_decay_rate=1e-3)
    plain = train_with_optax(adafactor, params, gradients)
    for stack, layers in (("encoder", ENCODER_LAYERS), ("decoder", DECODER_LAYERS)):
        for i in range(layers):
            own_gradients = [layer(gradient, stack, i) for gradient in gradients]
            want = train_with_optax(adafactor, layer(params, stack, i), own_gradients)
            assert largest_relative_difference(layer(ours, stack, i), want) < 1e-6
            assert largest_relative_difference(layer(params, stack, i), want) > 1e-2
    stacked_as_one = layer(plain, "encoder", 0)
    assert largest_relative_difference(layer(ours, "encoder", 0), stacked_as_one) > 1e-3
    for tree in (ours, plain):
        del tree["encoder"]["layers"], tree["decoder"]["layers"]
    assert largest_relative_difference(ours, plain) < 1e-6


def test_adamw_is_adamw(params: dict, gradients: list[dict]) -> None:
    """Kingma and Ba's formulas with decoupled decay, in float64."""
    config = OptimizerConfig("adamw", RATE, weight_decay=0.1)
    ours = train(make_optimizer(config, STEPS), params, gradients)

    def by_hand(param: np.ndarray, *grads: np.ndarray) -> np.ndarray:
        param, mean, square = param.astype(np.float64), 0.0, 0.0
        for step, grad in enumerate(grads, start=1):
            mean = 0.9 * mean + 0.1 * grad
            square = 0.999 * square + 0.001 * grad.astype(np.float64) ** 2
            direction = mean / (1 - 0.9**step) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
            param = param - RATE * (direction + 0.1 * param)
        return param

    assert largest_relative_difference(ours, jax.tree.map(by_hand, params, *gradients)) < 1e-5


@pytest.mark.parametrize("name", ["adafactor", "adamw"])
def test_clipping_is_by_the_norm_of_the_whole_tree(
    name: str, params: dict, gradients: list[dict]
) -> None:
    norms = [float(optax.tree.norm(gradient)) for gradient in gradients]
    limit = norms[1] * 1.5  # two updates below, the others above
    assert norms == sorted(norms)
    assert norms[1] < limit < norms[2]
    clipped = [
        jax.tree.map(lambda g, norm=norm: g * min(1.0, limit / norm), gradient)
        for gradient, norm in zip(gradients, norms, strict=True)
    ]
    config = OptimizerConfig(name, RATE, gradient_clip_norm=limit)
    ours = train(make_optimizer(config, STEPS), params, gradients)
    without = make_optimizer(OptimizerConfig(name, RATE), STEPS)
    assert largest_relative_difference(ours, train(without, params, clipped)) < 1e-6
    assert largest_relative_difference(ours, train(without, params, gradients)) > 1e-4


@pytest.mark.parametrize(
    ("schedule", "warmup", "rate_at"),
    [
        ("constant", 0, {0: 1.0, 1: 1.0, 1000: 1.0}),
        ("constant", 10, {0: 0.0, 5: 0.5, 10: 1.0, 1000: 1.0}),
        ("linear", 0, {0: 1.0, 50: 0.5, 75: 0.25, 100: 0.0, 120: 0.0}),
        ("linear", 20, {0: 0.0, 10: 0.5, 20: 1.0, 60: 0.5, 100: 0.0}),
        ("cosine", 0, {0: 1.0, 50: 0.5, 75: 0.5 - 0.5**1.5, 100: 0.0}),
        ("cosine", 20, {0: 0.0, 20: 1.0, 60: 0.5, 100: 0.0}),
        ("rsqrt", 20, {0: 0.0, 10: 0.5, 20: 1.0, 80: 0.5, 320: 0.25}),
        ("rsqrt", 0, {0: 1.0, 3: 0.5, 99: 0.1}),
    ],
)
def test_schedule(schedule: str, warmup: int, rate_at: dict[int, float]) -> None:
    config = OptimizerConfig("adamw", 3e-5, schedule, warmup_steps=warmup)
    rate = make_schedule(config, train_steps=100)
    got = [np.asarray(rate(jnp.int32(step))) for step in rate_at]
    np.testing.assert_allclose(got, [3e-5 * share for share in rate_at.values()], atol=1e-11)


def test_adafactor_follows_its_schedule(params: dict, gradients: list[dict]) -> None:
    """With a warm-up, update 0 changes nothing, in stacked parameters and in others."""
    config = OptimizerConfig("adafactor", RATE, warmup_steps=2)
    optimizer = make_optimizer(config, STEPS)
    first = train(optimizer, params, gradients[:1])
    assert largest_relative_difference(first, params) == 0.0
    second = train(optimizer, params, gradients[:2])
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), second, params)
    assert all(jax.tree.leaves(moved))
