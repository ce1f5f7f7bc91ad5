"""Compare inference with PyTorch and with XLA's own operations: images that have the size of the network, one batch.

    python benchmarks/inference.py --arch resnet50 --batch-size 1 --against torch --torch-python PATH/bin/python

prints the median time of a batch of each side over alternating rounds, and the ratios (above 1: resnet_jax is faster).
resnet_jax is `Predictor.probabilities`, as `resnet_jax.load` gives it: batch norms are folded into convolutions. "XLA
float32" is the same network without folding on XLA's own operations, as plain Flax computes it. The modes of PyTorch
are in torch_inference_peer.py. --json FILE also writes the figures to a file. Run no other program at the same time.

--against torch includes PyTorch. --torch-python PATH/bin/python names the Python of an environment with torch.
"""

import argparse
import contextlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax import numpy as jnp
from step import PEERS, PRECISIONS, machine, peer, print_times

from resnet_jax import create_model, ops
from resnet_jax.data.augment import Preprocess
from resnet_jax.ops.select import CHOICES
from resnet_jax.runs.build import DataInfo
from resnet_jax.runs.predictor import Predictor

TURN_SECONDS = 0.5  # the minimum length of a turn
ARCHS = ("tv_resnet18", "resnet50")
CLASSES = 1000
TORCH_FORMS = ("eager", "folded", "compiled", "frozen")  # see torch_inference_peer.py


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", choices=ARCHS, default="resnet50")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--cpu-kernels", choices=CHOICES, default="auto")
    parser.add_argument("--rounds", type=int, default=9, help="alternating rounds (default: 9)")
    parser.add_argument("--xla", action="store_true", help="also measure XLA's own operations")
    parser.add_argument("--against", choices=("torch",), help="also measure this peer")
    parser.add_argument("--torch-python", default=sys.executable, help="a Python with torch (default: this one)")
    parser.add_argument("--torch-forms", nargs="+", choices=TORCH_FORMS, default=TORCH_FORMS)
    parser.add_argument("--json", help="also write the figures to this file")
    args = parser.parse_args()
    args.pages_for_all = False  # neither side asks for large pages
    print(machine())
    results = {"machine": machine(), "arch": args.arch, "image_size": args.image_size, "batch_size": args.batch_size}
    results |= side_by_side(args)
    if args.json:
        Path(args.json).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def side_by_side(args: argparse.Namespace) -> dict[str, object]:
    """Run alternating rounds of all sides. Return the median time of each turn, in seconds, and the ratios."""
    with contextlib.ExitStack() as stack:
        sides = {f"resnet_jax {p}": make_run(args, p, args.cpu_kernels) for p in args.precision}
        if args.xla:
            sides["XLA float32"] = make_run(args, "float32", "plain", folded=False)
        if args.against == "torch":
            modes = [f"{precision} {form}" for precision in args.precision for form in args.torch_forms]
            command = [args.torch_python, str(PEERS / "torch_inference_peer.py"), *modes]
            sides |= peer(args, stack, "torch", command, modes)
        times: dict[str, list[float]] = {name: [] for name in sides}
        for run in sides.values():  # compiles the program and allocates its memory
            run()
        for _ in range(args.rounds):
            for name, run in sides.items():
                times[name].append(turn(run))
    return {"seconds": times, "ratios": ratios(print_times(args, times, "batch", 1))}


def make_run(args: argparse.Namespace, precision: str, kernels: str, folded: bool = True) -> Callable[[], float]:
    """Return a function that computes the probabilities of one batch and returns its seconds."""
    shape = (args.image_size, args.image_size, 3)
    model = create_model(args.arch, CLASSES, dtype=jnp.dtype(precision))
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, *shape)))
    info = DataInfo("random", tuple(map(str, range(CLASSES))), shape, 0)
    predictor = Predictor(model, variables, info, Preprocess(shape[:2]))
    compute = predictor.probabilities if folded else predictor.unfolded
    images = jax.device_put(np.random.default_rng(0).random((args.batch_size, *shape), np.float32))
    with ops.cpu_kernels(kernels):
        compute(images).block_until_ready()

    def run() -> float:
        began = time.perf_counter()
        compute(images).block_until_ready()
        return time.perf_counter() - began

    return run


def turn(run: Callable[[], float]) -> float:
    """The median seconds of the batches of one turn. The first of short ones follows a pause and is not measured."""
    first = run()
    if first >= TURN_SECONDS:
        return first
    times, began = [], time.perf_counter()
    while not times or time.perf_counter() - began < TURN_SECONDS:
        times.append(run())
    return statistics.median(times)


def ratios(median: dict[str, float]) -> dict[str, float]:
    """Return our speedup over PyTorch's fastest form of the same precision, and over XLA's own operations."""
    found = {}
    for ours in (name for name in median if name.startswith("resnet_jax")):
        precision = ours.split()[1]
        rivals = {name: seconds for name, seconds in median.items() if name.startswith(f"torch {precision}")}
        if rivals:
            best = min(rivals, key=lambda name: rivals[name])
            found[f"{ours} against PyTorch's best, {best}"] = rivals[best] / median[ours]
        if "XLA float32" in median:
            found[f"{ours} against XLA float32"] = median["XLA float32"] / median[ours]
    for what, ratio in found.items():
        print(f"{what}: {ratio:.2f}x")
    return found


if __name__ == "__main__":
    main()
