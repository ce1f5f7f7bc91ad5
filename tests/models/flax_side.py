"""Flax's half of a comparison: the same weights by name, the same loss, the answers named as the frozen."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import seeded
from flax import linen as nn
from jax import numpy as jnp

RUN_ONCE = {"xla_backend_optimization_level": 0}  # LLVM's effort costs more than the one run gains by it


def _slack() -> int:
    """How much further than usual float32 numbers may be from PyTorch's: 1, or 300 with jaxlib 0.7.

    XLA adds the numbers of a batch one after the other there: these sums are off by 7e-6, those of jaxlib 0.10 by
    1e-7. Some ReLUs flip in training, and gradients jump by up to 1 %.
    """
    x = np.random.default_rng(0).standard_normal((64, 32, 32, 64), dtype=np.float32) + 3
    exact = x.sum((0, 1, 2), dtype=np.float64)
    sums = np.asarray(jax.jit(jnp.sum, static_argnums=1)(x, (0, 1, 2)))
    return 1 if np.abs(sums / exact - 1).max() < 1e-6 else 300


SLACK = _slack()


def variables(module: nn.Module, input_shape: tuple[int, ...]) -> dict[str, Any]:
    """The module's variables, every leaf filled by its path, as make_torch_fixtures.py fills PyTorch's."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros(input_shape))
    return {collection: seeded.filled(tree) for collection, tree in shapes.items()}


def apply(module: nn.Module, *arguments: Any, **options: Any) -> Any:
    """module.apply, whose declared type is a union that depends on `mutable`."""
    return module.apply(*arguments, **options)


def answer_function(module: nn.Module, mode: str) -> Callable[..., Any]:
    """(variables, x, noise) -> output, new batch_stats, gradients of sum(output * noise) to params and x."""

    def loss(params, x, batch_stats, noise):
        held = {"params": params, "batch_stats": batch_stats}
        output, new = apply(module, held, x, train=mode == "train", mutable=["batch_stats"])
        return jnp.sum(output * noise), (output, new.get("batch_stats", {}))

    def run(held, x, noise):
        grad = jax.grad(loss, argnums=(0, 1), has_aux=True)
        (params, dx), (output, stats) = grad(held["params"], x, held.get("batch_stats", {}), noise)
        return output, stats, params, dx

    return run


def answer(
    module: nn.Module, name: str, input_shape: tuple[int, ...], output_shape: tuple[int, ...], mode: str
) -> dict[str, np.ndarray]:
    """Output, gradients and, in either mode, the running statistics, named as the frozen ones are."""
    x, noise = seeded.normal(f"{name} x", input_shape), seeded.loss_weights(name, output_shape)
    run = jax.jit(answer_function(module, mode), compiler_options=RUN_ONCE)
    output, stats, params, dx = jax.device_get(run(variables(module, input_shape), x, noise))
    return (
        {"output": output, "gradient/x": dx}
        | {f"gradient/{path}": leaf for path, leaf in seeded.leaves(params)}
        | {f"batch_stats/{path}": leaf for path, leaf in seeded.leaves(stats)}
    )


def compare_statistics(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray], atol: float) -> None:
    """Running statistics after one step: the means are equal, the variances related by n / (n - 1).

    With momentum 0.1, PyTorch adds 0.1 * the unbiased variance of the n numbers of a channel, and Flax 0.1 * the
    biased one: torch - 0.9 * before = n / (n - 1) * (flax - 0.9 * before).
    """
    paths = [key for key in theirs if key.startswith("batch_stats/")]
    assert sorted(paths) == sorted(key for key in ours if key.startswith("batch_stats/"))
    for key in paths:
        path, leaf = key.removeprefix("batch_stats/").rsplit("/", 1)
        kept = 0.9 * seeded.parameter(f"{path}/{leaf}", ours[key].shape)
        n = int(theirs[f"count/{path}"])
        factor = n / (n - 1) if leaf == "var" else 1
        np.testing.assert_allclose(factor * (ours[key] - kept), theirs[key] - kept, rtol=0, atol=atol, err_msg=key)
