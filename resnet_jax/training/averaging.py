"""Averages of the weights over the steps of training. Evaluations and predictions use the average.

Batch statistics are averaged like the weights: those of the last step belong to other weights.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax import numpy as jnp

from resnet_jax.arguments import whole
from resnet_jax.errors import ConfigError

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Ema:
    """The exponential moving average: after each step, average = d * average + (1 - d) * weights.

    In step t, counted from 1, d is the smaller of `decay` and (1 + t) / (10 + t). With a constant d, the average of a
    short run would consist mostly of the initial weights. Training itself does not change.
    ConfigError unless 0 <= decay < 1.
    """

    decay: float = 0.999

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ConfigError(f"decay {self.decay} is out of range: it must be at least 0 and below 1")

    def update(self, step: jax.Array, average: PyTree, weights: PyTree) -> tuple[PyTree, PyTree]:
        """The new average after `step` steps, and the weights that training continues with."""
        decay = jnp.minimum(self.decay, (1 + step) / (10 + step))
        return towards(average, weights, 1 - decay), weights


@dataclasses.dataclass(frozen=True)
class Lookahead:
    """Lookahead (arXiv:1907.08610): after every `every` steps, slow += alpha * (weights - slow), and weights = slow.

    The slow weights are the average. alpha: a number, or a function of the steps made so far, such as fading_alpha. The
    optimizer keeps its state. ConfigError for every < 1, and unless 0 < alpha <= 1.
    """

    every: int = 5
    alpha: float | Callable[[Any], Any] = 0.5

    def __post_init__(self) -> None:
        whole("every", self.every, 1)
        if not callable(self.alpha) and not 0 < self.alpha <= 1:
            raise ConfigError(f"alpha {self.alpha} is out of range: it must be above 0 and at most 1")

    def update(self, step: jax.Array, average: PyTree, weights: PyTree) -> tuple[PyTree, PyTree]:
        """The new slow weights after `step` steps, and the weights that training continues with."""
        alpha = self.alpha(step) if callable(self.alpha) else self.alpha
        due = step % self.every == 0
        moved = towards(average, weights, alpha)
        average = jax.tree.map(lambda new, old: jnp.where(due, new, old), moved, average)
        return average, jax.tree.map(lambda slow, fast: jnp.where(due, slow, fast), average, weights)


Averaging = Ema | Lookahead


def fading_alpha(every: int, steps: int) -> Callable[[Any], Any]:
    """The alpha of cifar10-airbench (arXiv:2404.00498): 1 - 0.95^every * (step / steps)^3, for `steps` steps."""
    return lambda step: 1 - 0.95**every * (step / steps) ** 3


def towards(start: PyTree, end: PyTree, share: Any) -> PyTree:
    """start + share * (end - start), leaf by leaf; leaves that are not floating, such as counters, are those of end."""

    def leaf(a: jax.Array, b: jax.Array) -> jax.Array:
        return (a + share * (b - a)).astype(a.dtype) if jnp.issubdtype(b.dtype, jnp.inexact) else b

    return jax.tree.map(leaf, start, end)


def check_averaging(averaging: Any) -> Averaging | None:
    """The averaging itself, or ConfigError for another object."""
    if averaging is None or isinstance(averaging, Averaging):
        return averaging
    raise ConfigError(f"averaging {averaging!r}: give resnet_jax.Ema(0.999), resnet_jax.Lookahead(5, 0.5) or None")


def check_lookahead(averaging: Averaging | None, steps: int) -> None:
    """Raise ConfigError if a fit of so many steps ends before the slow weights move for the first time."""
    if isinstance(averaging, Lookahead) and averaging.every > steps:
        raise ConfigError(
            f"lookahead (--lookahead) {averaging.every}: the slow weights never move, as the run has {steps} steps; "
            f"use at most {steps}"
        )
