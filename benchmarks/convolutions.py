"""Compare the 3x3 convolutions of the default CPU kernels, some in Winograd's form, with oneDNN's direct ones.

    python benchmarks/convolutions.py

prints the median milliseconds of each pass over alternating rounds, and the ratio (above 1: the default is faster).
--help lists the flags. Run no other program at the same time. ONEDNN_MAX_CPU_ISA=AVX2 limits both sides to AVX2.
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp
from step import machine

from resnet_jax import ops
from resnet_jax.ops.select import simd_level

# image size, inputs, outputs, strides: the layers of resnet18 at 96x96, then of resnet20 at 28x28
LAYERS = (
    (24, 64, 64, 1),
    (12, 128, 128, 1),
    (6, 256, 256, 1),
    (3, 512, 512, 1),
    (24, 64, 128, 2),
    (12, 128, 256, 2),
    (6, 256, 512, 2),
    (28, 16, 16, 1),
    (14, 32, 32, 1),
    (7, 64, 64, 1),
)
CHOICES = ("onednn", "auto")
PASSES = ("forward", "input gradient", "weight gradient")
Layer = tuple[int, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--layer", type=int, nargs=4, action="append", metavar=("SIZE", "INPUTS", "OUTPUTS", "STRIDES"))
    args = parser.parse_args()
    print(f"{machine()}, x86-64-v{simd_level()}; float32, batch {args.batch_size}, n = {args.rounds}")
    print(f"| layer | {' | '.join(PASSES)} |\n| --- | --- | --- | --- |")
    for layer in args.layer or LAYERS:
        times = measure(tuple(layer), args.batch_size, args.rounds)
        cells = [f"{old:.1f} / {new:.1f} ms = {old / new:.2f}" for old, new in zip(*times, strict=True)]
        size, inputs, outputs, strides = layer
        name = f"{size}x{size}, {inputs} -> {outputs}" + (f", stride {strides}" if strides > 1 else "")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def measure(layer: Layer, batch_size: int, rounds: int) -> list[list[float]]:
    """For each choice of kernels the median milliseconds of each pass."""
    sides = [passes_of(layer, batch_size, choice) for choice in CHOICES]
    times: list[list[list[float]]] = [[[] for _ in PASSES] for _ in CHOICES]
    for _ in range(rounds):
        for run, spent in zip(zip(*sides, strict=True), zip(*times, strict=True), strict=True):
            for call, mine in zip(run, spent, strict=True):
                began = time.perf_counter()
                call()
                mine.append(1e3 * (time.perf_counter() - began))
    return [[statistics.median(spent) for spent in side] for side in times]


def passes_of(layer: Layer, batch_size: int, choice: str) -> list[Callable[[], Any]]:
    """A function for each pass that runs it and waits. Each has run once."""
    size, inputs, outputs, strides = layer
    random = np.random.default_rng(0)
    x = jnp.asarray(random.normal(size=(batch_size, size, size, inputs)), jnp.float32)
    kernel = jnp.asarray(random.normal(size=(3, 3, inputs, outputs)) / 10, jnp.float32)
    convolve = functools.partial(ops.conv, strides=(strides, strides), padding=((1, 1), (1, 1)))
    with ops.cpu_kernels(choice):  # JAX keeps the trace of convolve, which depends on the choice
        dy = jnp.asarray(random.normal(size=jax.eval_shape(convolve, x, kernel).shape), jnp.float32)

    def input_gradient(x, kernel, dy):
        return jax.vjp(lambda x: convolve(x, kernel), x)[1](dy)

    def weight_gradient(x, kernel, dy):
        return jax.vjp(lambda kernel: convolve(x, kernel), kernel)[1](dy)

    with ops.cpu_kernels(choice):
        operands = ((x, kernel), (x, kernel, dy), (x, kernel, dy))
        functions = (convolve, input_gradient, weight_gradient)
        compiled = [jax.jit(f).lower(*a).compile() for f, a in zip(functions, operands, strict=True)]
    runs = [
        functools.partial(lambda f, a: jax.block_until_ready(f(*a)), f, a)
        for f, a in zip(compiled, operands, strict=True)
    ]
    for run in runs:
        run()
    return runs


if __name__ == "__main__":
    main()
