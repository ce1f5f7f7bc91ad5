"""Optimizers: SGD as PyTorch defines it, schedules, and a different optimizer for each part of a network."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import optax
import optax.contrib
from flax import traverse_util
from jax import numpy as jnp

from resnet_jax.errors import ConfigError, listed
from resnet_jax.training.state import is_frozen

Optimizer = optax.GradientTransformation
MUON_STEP = (3.4445, -4.7750, 2.0315)  # the coefficients of a step of Newton-Schulz


def warmed_up(main: optax.Schedule, learning_rate: float, warmup: int) -> optax.Schedule:
    """A schedule after `warmup` steps in which the rate rises linearly from 0 to learning_rate."""
    if not warmup:
        return main
    return optax.join_schedules([optax.linear_schedule(0.0, learning_rate, warmup), main], [warmup])


def one_cycle(peak: float, rise: int, total: int) -> optax.Schedule:
    """PyTorch's OneCycleLR (arXiv:1708.07120).

    The rate is peak / 25 at step 0, peak at step `rise` and peak / 250000 at step `total`.
    """
    up = optax.cosine_decay_schedule(peak / 25, rise, alpha=25.0)  # to 25 times its start
    down = optax.cosine_decay_schedule(peak, max(total - rise, 1), alpha=1 / 25e4)
    return optax.join_schedules([up, down], [rise])


def is_kernel(params: Any) -> Any:
    """A tree like params that is True at the kernels of convolutions and dense layers."""
    return jax.tree.map_with_path(lambda path, _: path[-1].key == "kernel", params)


def sgd(
    learning_rate: optax.ScalarOrSchedule, momentum: float = 0.0, nesterov: bool = False, weight_decay: float = 0.0
) -> Optimizer:
    """PyTorch's SGD: weight decay, of kernels only, is added to the gradient before the momentum."""
    decay = [optax.add_decayed_weights(weight_decay, mask=is_kernel)] if weight_decay else []
    return optax.chain(*decay, optax.sgd(learning_rate, momentum=momentum or None, nesterov=nesterov))


def adamw(learning_rate: optax.ScalarOrSchedule, weight_decay: float = 0.0) -> Optimizer:
    """optax.adamw (arXiv:1711.05101), with weight decay of kernels only."""
    return optax.adamw(learning_rate, weight_decay=weight_decay, mask=is_kernel)


def muon(
    learning_rate: optax.ScalarOrSchedule, momentum: float = 0.95, nesterov: bool = True, weight_decay: float = 0.0
) -> Optimizer:
    """Muon for the kernels of convolutions, and AdamW for all other parameters, with one learning rate.

    The momentum of a kernel (H, W, C, K), which is that of optax.contrib.muon, is orthogonalised as one matrix
    (H * W * C, K). Its update is scaled to a root mean square of about 0.2, as that of AdamW, so that both have the
    same learning rate (arXiv:2502.16982, section 2.2). Weight decay is AdamW's, of kernels only.
    """
    decay = optax.add_decayed_weights(weight_decay)
    kernels = optax.chain(orthogonalised(momentum, nesterov), decay, optax.scale_by_learning_rate(learning_rate))

    def labels(params: Any) -> Any:
        return jax.tree.map(
            lambda kernel, leaf: "muon" if kernel and leaf.ndim == 4 else "adamw", is_kernel(params), params
        )

    return optax.multi_transform({"muon": kernels, "adamw": adamw(learning_rate, weight_decay)}, labels)


def orthogonalised(momentum: float, nesterov: bool) -> Optimizer:
    """The direction of muon for kernels of four axes: the momentum is optax's, and near_orthogonal makes the steps."""
    inner = optax.contrib.muon(1.0, beta=momentum, nesterov=nesterov, ns_steps=0)  # minus the momentum, scaled

    def matrices(kernels: Any) -> Any:
        return jax.tree.map(lambda kernel: kernel.reshape(-1, kernel.shape[-1]), kernels)

    def direction(update: jax.Array, kernel: jax.Array) -> jax.Array:
        return (0.2 * max(update.shape) ** 0.5 * near_orthogonal(-update)).reshape(kernel.shape)

    def init(params: Any) -> Any:
        return inner.init(matrices(params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        found, state = inner.update(matrices(updates), state, matrices(params))
        return jax.tree.map(direction, found, updates), state

    return optax.GradientTransformation(init, update)


def near_orthogonal(matrix: jax.Array) -> jax.Array:
    """The matrix (rows, columns) with its singular values moved to about 1, by Muon's five steps of Newton-Schulz.

    A step takes X to X p, with p = a I + b G + c G G and G = X^T X. All these matrices are functions of the first G.
    So only G and the product of all p are updated, and X is multiplied once. For (2304, 256) that takes a quarter of
    the time of five multiplications. The products are those of float32, because each step enlarges their errors.
    Source of a, b and c: https://kellerjordan.github.io/posts/muon
    """
    if matrix.shape[0] < matrix.shape[1]:
        return near_orthogonal(matrix.T).T
    a, b, c = MUON_STEP
    times = partial(jnp.matmul, precision="highest")
    x = matrix.astype(jnp.promote_types(matrix.dtype, jnp.float32))
    x = x / (jnp.linalg.norm(x) + 1e-8)
    gram, identity = times(x.T, x), jnp.eye(x.shape[1], dtype=x.dtype)
    factor = identity
    for step in range(5):
        p = a * identity + b * gram + c * times(gram, gram)
        factor = times(factor, p) if step else p
        gram = times(times(p, gram), p)
    return times(x, factor).astype(matrix.dtype)


def clipped(optimizer: Optimizer, norm: float) -> Optimizer:
    """The optimizer, after gradients with a larger global norm are scaled down to it. Its state has the same form."""
    clip = optax.clip_by_global_norm(norm)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, _ = clip.update(updates, clip.init(updates))
        return optimizer.update(updates, state, params)

    return optax.GradientTransformation(optimizer.init, update)


def with_bias_factor(optimizer: Optimizer, factor: float) -> Optimizer:
    """The optimizer with `factor` times the learning rate for biases, except that of the head.

    It multiplies the updates, which are linear in the learning rate. Its state has the same form.
    """

    def scaled(path: Any, update: jax.Array) -> jax.Array:
        return update * factor if path[-1].key == "bias" and path[0].key != "head" else update

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = optimizer.update(updates, state, params)
        return jax.tree.map_with_path(scaled, updates), state

    return optax.GradientTransformation(optimizer.init, update)


def by_path(optimizers: Mapping[str, Optimizer]) -> Optimizer:
    """A different optimizer for each part of a network, for discriminative learning rates.

    The keys are paths of parts, such as "head", "stage4" or "stage4/block1"; "" is for all params that no other key
    covers. The longest path wins. A part keeps its weights with optax.set_to_zero(); Trainer(freeze=...) also keeps
    its batch norms in evaluation mode, and is faster. ConfigError, when the state is made, for a path that names no
    part, and for params that no key covers.

        optimizer = resnet_jax.by_path({"head": optax.adamw(1e-3), "": optax.adamw(1e-5)})
    """
    paths = sorted(optimizers, key=len, reverse=True)

    def labels(params: Any) -> Any:
        flat = traverse_util.flatten_dict(params, sep="/")
        found = {name: next((path for path in paths if not path or is_frozen(name, [path])), None) for name in flat}
        check_covered(found, paths)
        return traverse_util.unflatten_dict(found, sep="/")

    transforms: dict[Any, Optimizer] = dict(optimizers)
    return optax.multi_transform(transforms, labels)


def check_covered(found: Mapping[str, str | None], paths: Sequence[str]) -> None:
    """Raise ConfigError for params without an optimizer, and for optimizers without params."""
    if missing := [name for name, path in found.items() if path is None]:
        raise ConfigError(f'optimizer: no path covers {listed(missing)}; add one for the rest under the key ""')
    if unused := [path for path in paths if path and path not in found.values()]:
        parts = {name.split("/")[0]: None for name in found}
        raise ConfigError(f"optimizer: {unused[0]!r} names no part of the model; its parts are {listed(parts)}")


def check_optimizer(optimizer: Any) -> Optimizer:
    """The optimizer itself, or ConfigError for an object that is no optax.GradientTransformation."""
    if isinstance(optimizer, Mapping):
        return by_path({path: check_optimizer(part) for path, part in optimizer.items()})
    if isinstance(optimizer, type) or not all(callable(getattr(optimizer, name, None)) for name in ("init", "update")):
        raise ConfigError(
            f"optimizer {optimizer!r} is no optax.GradientTransformation; give one, such as optax.adamw(1e-3)"
        )
    return optimizer
