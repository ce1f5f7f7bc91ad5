"""Losses: functions of (logits, labels) that return one number for each image, or their mean."""

import dataclasses
from collections.abc import Callable

import jax
import optax
from jax import numpy as jnp

from resnet_jax.errors import ConfigError, one_line

Loss = Callable[[jax.Array, jax.Array], jax.Array]


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Each image's cross-entropy in nats. logits: (N, K); labels: (N,) integers, or (N, K) distributions -> (N,)."""
    if labels.ndim == 2:
        return optax.softmax_cross_entropy(logits, labels)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


@dataclasses.dataclass(frozen=True)
class SmoothedCrossEntropy:
    """Label smoothing (arXiv:1512.00567, section 7): the cross-entropy of smoothed targets.

    The target of each class is smoothing / K; that of the label is larger by 1 - smoothing. This is the loss of
    training. An evaluation computes the plain cross-entropy. ConfigError unless 0 <= smoothing < 1.
    """

    smoothing: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing < 1:
            raise ConfigError(f"smoothing {self.smoothing} is out of range: it must be at least 0 and below 1")

    def __call__(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        """As cross_entropy."""
        uniform = -jax.nn.log_softmax(logits).mean(-1)
        return (1 - self.smoothing) * cross_entropy(logits, labels) + self.smoothing * uniform


def in_evaluation(loss: Loss) -> Loss:
    """The loss that an evaluation computes for this loss of training."""
    return cross_entropy if isinstance(loss, SmoothedCrossEntropy) else loss


def losses_of(loss: Loss, logits: jax.Array, labels: jax.Array) -> jax.Array:
    """What a loss returns, as one number for each image: (N,). ConfigError for another shape."""
    value = jnp.asarray(loss(logits, labels))
    if value.shape not in ((), (logits.shape[0],)):
        raise ConfigError(
            f"loss returns shape {value.shape} for logits {logits.shape}; "
            f"return ({logits.shape[0]},), a number for each image, or () for their mean"
        )
    return jnp.broadcast_to(value, (logits.shape[0],))


def each_loss(loss: Loss, logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The loss of each image by itself: (N,). A loss that returns a mean is computed for one image at a time."""
    if jax.eval_shape(loss, logits, labels).shape:
        return losses_of(loss, logits, labels)
    return jax.vmap(lambda row, label: losses_of(loss, row[None], label[None])[0])(logits, labels)


def check_distributions(loss: Loss, num_classes: int) -> None:
    """Raise ConfigError for a loss that does not take label distributions (N, K), which mixup and cutmix make."""
    logits = jax.ShapeDtypeStruct((num_classes + 1, num_classes), jnp.float32)
    try:
        jax.eval_shape(lambda logits, labels: losses_of(loss, logits, labels), logits, logits)
    except Exception as error:
        raise ConfigError(
            "loss: mixup and cutmix make labels (N, K) of floats, one share for each class, which it does not take "
            f"({one_line(error)})"
        ) from error


def hits(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Whether the largest logit is the label's, or the class with the largest share of a distribution.

    logits: (N, K); labels: (N,) integers, or (N, K) distributions -> (N,) bool.
    """
    return logits.argmax(-1) == (labels.argmax(-1) if labels.ndim == 2 else labels)
