"""How far a student is from its teacher: four divergences, exact or estimated from draws.

Log-probabilities in, nats out, over the last axis. Nothing here knows of vocabularies: the
classes may be all tokens, or the kept ones and the rest.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp


def divergence(name: str, log_p: jax.Array, log_q: jax.Array) -> jax.Array:
    """A divergence of two distributions over the same classes.

    With m = (p + q) / 2:

        forward_kl       sum p log(p / q)
        reverse_kl       sum q log(q / p)
        jensen_shannon   (sum p log(p / m) + sum q log(q / m)) / 2
        total_variation  sum |p - q| / 2

    Args:
      name: one of `config.DIVERGENCES`.
      log_p: the teacher's, [..., classes]; -inf is a probability of 0, which reverse_kl only
        allows where the student's is 0 too.
      log_q: the student's, likewise; finite.

    Returns:
      [...], 0 or more.
    """
    p, q = jnp.exp(log_p), jnp.exp(log_q)
    if name == "forward_kl":
        terms = _expected(p, log_p, log_q)
    elif name == "reverse_kl":
        terms = _expected(q, log_q, log_p)
    elif name == "jensen_shannon":
        log_m = jnp.logaddexp(log_p, log_q) - math.log(2.0)
        terms = (_expected(p, log_p, log_m) + _expected(q, log_q, log_m)) / 2
    elif name == "total_variation":
        terms = jnp.abs(p - q) / 2
    else:
        raise ValueError(f"There is no divergence {name!r}.")
    return jnp.sum(terms, axis=-1)


def _expected(a: jax.Array, log_a: jax.Array, log_b: jax.Array) -> jax.Array:
    """a log(a / b), 0 where a is."""
    return jnp.where(a > 0, a * jnp.where(a > 0, log_a - log_b, 0.0), 0.0)


def drawn_divergence(name: str, log_p: jax.Array, log_q: jax.Array) -> jax.Array:
    """An unbiased estimate of `divergence` from tokens drawn from the teacher.

    Every divergence is a mean over p of a function of u = q / p. Where it is large in u, a
    multiple of u - 1, whose mean is 0, is taken off, so that the variance has a bound:

        forward_kl       -log u
        jensen_shannon   log 2 - (log(1 + u) + u log(1 + 1 / u)) / 2
        total_variation  max(1 - u, 0)

    The gradient is unbiased as well, for the draws do not depend on the student.

    Args:
      name: one of the three; under reverse_kl the variance would have no bound.
      log_p: the teacher's log-probabilities of the tokens drawn, [..., draws].
      log_q: the student's.

    Returns:
      [...], the mean over the draws; it may be below 0.

    Source: for forward_kl random-sampling distillation, arXiv 2503.16870.
    """
    log_u = log_q - log_p
    if name == "forward_kl":
        terms = -log_u
    elif name == "jensen_shannon":
        # u log(1 + 1 / u) tends to 1; exp(log_u) alone would overflow on the way.
        bounded = jnp.minimum(log_u, 15.0)
        terms = (
            math.log(2.0)
            - (jax.nn.softplus(log_u) + jnp.exp(bounded) * jax.nn.softplus(-bounded)) / 2
        )
    elif name == "total_variation":
        terms = -jnp.expm1(jnp.minimum(log_u, 0.0))
    else:
        raise ValueError(f"{name!r} has no estimate from draws.")
    return jnp.mean(terms, axis=-1)
