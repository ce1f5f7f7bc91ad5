"""The peer in plain Flax: the chapter's ResNet-18 and its train step, written by hand, without data work.

    python plain_flax.py resnet18 IMAGE_SIZE BATCH_SIZE

reads the name of a mode per line, runs one step and prints its seconds. It runs in its own process, so the settings of
train.py and resnet_jax do not affect it.
"""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import optax
from flax import linen as nn
from jax import numpy as jnp
from serve import serve

OPTIMIZER = optax.sgd(0.01)


class PlainResNet18(nn.Module):
    """x: (N, H, W, C) -> (N, 10). It uses only flax.linen, and no code of resnet_jax."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = partial(nn.Conv, dtype=self.dtype)
        norm = partial(nn.BatchNorm, use_running_average=False, momentum=0.9, dtype=self.dtype)
        x = conv(64, (7, 7), 2, padding=3)(x)
        x = nn.max_pool(nn.relu(norm()(x)), (3, 3), (2, 2), ((1, 1), (1, 1)))  # pyright: ignore[reportArgumentType]
        for stage, channels in enumerate((64, 128, 256, 512)):
            for block in range(2):
                strides = 2 if stage and not block else 1
                y = nn.relu(norm()(conv(channels, (3, 3), strides, padding=1)(x)))
                y = norm()(conv(channels, (3, 3), padding=1)(y))
                x = nn.relu(y + (conv(channels, (1, 1), strides)(x) if strides == 2 else x))
        return nn.Dense(10)(x.mean((1, 2)).astype(jnp.float32))


def init(image_size: int, dtype: Any) -> Any:
    """Return the state of a new network: parameters, batch statistics, and the optimizer's state."""
    variables = PlainResNet18(dtype).init(jax.random.key(0), jnp.zeros((1, image_size, image_size, 1)))
    return variables["params"], variables["batch_stats"], OPTIMIZER.init(variables["params"])


def train_step(state: Any, images: jax.Array, labels: jax.Array, *, dtype: Any, axis_name: str | None = None) -> Any:
    """One update: (state, loss). Over a mapped axis the gradients, the loss and the statistics are averaged."""
    params, batch_stats, opt_state = state

    def loss(params):
        variables = {"params": params, "batch_stats": batch_stats}
        logits, changed = PlainResNet18(dtype).apply(variables, images, mutable=["batch_stats"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), changed["batch_stats"]

    (value, batch_stats), grads = jax.value_and_grad(loss, has_aux=True)(params)
    if axis_name is not None:
        value, batch_stats, grads = jax.lax.pmean((value, batch_stats, grads), axis_name)
    updates, opt_state = OPTIMIZER.update(grads, opt_state, params)
    return (optax.apply_updates(params, updates), batch_stats, opt_state), value


def make_step(image_size: int, batch_size: int, dtype: Any) -> Callable[[], Any]:
    """Return a function that runs one update and waits for it. All updates use the same images and labels."""
    images = jax.random.uniform(jax.random.key(1), (batch_size, image_size, image_size, 1))
    labels = jax.random.randint(jax.random.key(2), (batch_size,), 0, 10)
    step = jax.jit(partial(train_step, dtype=dtype), donate_argnums=0)
    state = jax.jit(partial(init, image_size, dtype))()

    def run():
        nonlocal state
        state, value = step(state, images, labels)
        return value.block_until_ready()

    return run


def main() -> None:
    image_size, batch_size = (int(argument) for argument in sys.argv[2:])
    steps = {"float32": make_step(image_size, batch_size, jnp.float32)}  # bfloat16 is slower than float32 here on a CPU
    serve(f"plain Flax, jax {jax.__version__}", steps)


if __name__ == "__main__":
    main()
