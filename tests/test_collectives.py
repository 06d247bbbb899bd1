"""What devices send, read from compiled programs, against the same counted by hand."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from dora_jax.parallel.collectives import bytes_sent
from dora_jax.parallel.mesh import make_mesh

LAYERS, WIDTH, ROWS = 3, 16, 8
TREE = LAYERS * WIDTH * WIDTH * 4


@functools.cache
def program(fsdp: int) -> str:
    """A loop over layers whose weights and rows four devices share, or whose rows alone."""
    mesh = make_mesh(fsdp=fsdp, devices=jax.devices()[:4])

    def split(*axes: object) -> NamedSharding:
        return NamedSharding(mesh, PartitionSpec(*axes))

    rows = split(("data", "fsdp"))

    def loss(weights_LEE: jax.Array, x_BE: jax.Array) -> jax.Array:
        def layer(x_BE: jax.Array, weights_EE: jax.Array) -> tuple[jax.Array, None]:
            x_BE = jax.lax.with_sharding_constraint(x_BE, rows)
            return jax.lax.with_sharding_constraint(jnp.tanh(x_BE @ weights_EE), rows), None

        return jax.lax.scan(layer, x_BE, weights_LEE)[0].sum()

    weights = split(None, "fsdp", None)
    gradient = jax.jit(jax.grad(loss), in_shardings=(weights, rows), out_shardings=weights)
    shapes = jnp.zeros((LAYERS, WIDTH, WIDTH)), jnp.zeros((ROWS, WIDTH))
    return gradient.lower(*shapes).compile().as_text() or ""


def test_copies_sum_their_gradients() -> None:
    """Once for each layer of the loop, whose body stands in the program once."""
    sent = bytes_sent(program(fsdp=1), unknown_trips=1)
    assert set(sent) == {"all-reduce"}
    assert sent["all-reduce"] == pytest.approx(2 * TREE * 3 / 4, rel=0.05)


def test_shared_weights_are_gathered_in_each_pass() -> None:
    sent = bytes_sent(program(fsdp=4), unknown_trips=1)
    assert sent["all-gather"] == pytest.approx(2 * TREE * 3 / 4, rel=0.05)


TPU = """
%body (x: (s32[], f32[10])) -> (s32[], f32[10]) {
  %a = f32[10]{0:T(128)} all-gather(%x), channel_id=1, replica_groups=mesh['a'=4,'b'=2] {'a'}
  %b = f32[10]{0} all-reduce(%x), channel_id=2, replica_groups=[2,4]<=[8], to_apply=%sum
  %f = f32[10]{0} fusion(%x), kind=kLoop, calls=%piece
}
%piece (x: f32[10]) -> f32[10] {
  %c = bf16[10]{0} all-gather(%x), channel_id=3, replica_groups={{0,1},{2,3}}
}
%condition (x: (s32[], f32[10])) -> pred[] {
  %limit = s32[]{:T(128)} constant(24)
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}
%whole (x: (s32[], f32[10])) -> pred[] {
  ROOT %done = pred[] custom-call(%x)
}
%search (x: (s32[], f32[10])) -> (s32[], f32[10]) {
  %e = f32[4]{0} reduce-scatter(%x), channel_id=5, replica_groups={{0,1,2,3}}, to_apply=%sum
}
%ring_condition (x: (u32[], f32[10], s32[])) -> pred[] {
  %eight = u32[]{:T(128)} constant(8), metadata={op_name="dot_general"}
  %n = u32[]{:T(128)} get-tuple-element(%x), index=0
  ROOT %less = pred[]{:T(512)} compare(%n, %eight), direction=LT
}
%ring (x: (u32[], f32[10], s32[])) -> (u32[], f32[10], s32[]) {
  %one = s32[]{:T(128)} constant(1)
  %two = u32[]{:T(128)} constant(2)
  %eight = u32[]{:T(128)} constant(8)
  %other = s32[]{:T(128)} get-tuple-element(%x), index=2
  %m = u32[]{:T(128)} get-tuple-element(%x), index=0, metadata={op_name="dot_general"}
  %q = s32[]{:T(128)} add(%other, %one)
  %wrapped = u32[]{:T(128)} add(%m, %eight)
  %r = u32[]{:T(128)} add(%m, %two), metadata={op_name="dot_general"}
  %g = f32[10]{0} collective-permute(%x), channel_id=6, source_target_pairs={{0,1},{1,0}}
  ROOT %t = (u32[]{:T(128)}, f32[10], /*index=2*/s32[]) tuple(%r, %g, /*index=2*/%q)
}
ENTRY %main (x: f32[10]) -> f32[10] {
  %w = (s32[], f32[10]) while(%x), condition=%condition, body=%body
  %p = f32[10]{0} fusion(%x), kind=kLoop, calls=%piece
  %v = (s32[], f32[10]) while(%x), condition=%whole, body=%search
  %u = (u32[], f32[10], s32[]) while(%x), condition=%ring_condition, body=%ring
  %s = (f32[5], f32[20]) all-gather-start(%x), channel_id=4, replica_groups=[1,4]<=[4]
  %d = f32[20] all-gather-done(%s)
}
"""


def test_what_tpu_programs_write_is_read() -> None:
    """Trips from a constant, in steps; groups by mesh axes; pieces of one operation count once."""
    sent = bytes_sent(TPU, unknown_trips=7)
    assert sent["all-reduce"] == pytest.approx(24 * 2 * 40 * 3 / 4)
    piece = 24 * 20 / 2  # its channel is used outside the loop too
    assert sent["all-gather"] == pytest.approx(24 * 40 * 3 / 4 + piece + 80 * 3 / 4)
    assert sent["reduce-scatter"] == pytest.approx(7 * 16 * 3)
    assert sent["collective-permute"] == pytest.approx(8 / 2 * 40)


def test_a_program_of_one_device_sends_nothing() -> None:
    text = jax.jit(lambda x: x + 1).lower(jnp.zeros(3)).compile().as_text()
    assert bytes_sent(text or "", 1) == {}
