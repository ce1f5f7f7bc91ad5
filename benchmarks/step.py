"""The train step side by side with plain Flax, and what a run costs beside its steps.

python benchmarks/step.py --arch resnet18 --image-size 96 --batch-size 128

Prints, and with --json FILE writes: the median time of a step of each side over alternating rounds, their ratio
(above 1: resnet_jax is faster), what an epoch takes outside its steps, the time to the first step of
`python train.py` with a cold and a warm compile cache, and its peak memory. Run nothing else beside it.
"""

import argparse
import dataclasses
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import plain_flax
from jax import numpy as jnp

from resnet_jax.data import load
from resnet_jax.training import loop
from resnet_jax.training.config import Config, DataConfig, RunConfig
from resnet_jax.training.state import create_state
from resnet_jax.training.step import epoch_rows, replicate, shard

TRAIN = Path(__file__).resolve().parent.parent / "train.py"
EPOCH_STEPS = 24  # of the short epochs that are timed whole


def main() -> None:
    args = read_flags()
    results = {"machine": machine(), "arch": args.arch, "image_size": args.image_size, "batch_size": args.batch_size}
    print(results["machine"])
    if args.arch == "resnet18":
        results |= side_by_side(args)
    results |= outside_the_steps(args)
    results |= command(args)
    if args.json:
        Path(args.json).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def read_flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=7, help="alternating rounds (default: 7)")
    parser.add_argument("--steps", type=int, default=3, help="steps a round (default: 3)")
    parser.add_argument("--json", help="write the figures to this file too")
    return parser.parse_args()


def machine() -> str:
    """One line: device, cores, versions."""
    cpu = next((line.split(":")[1].strip() for line in cpuinfo() if line.startswith("model name")), platform.machine())
    device = jax.devices()[0]
    kind = cpu if device.platform == "cpu" else device.device_kind
    versions = ", ".join(f"{name} {loop.version(name)}" for name in ("jax", "jaxlib", "flax"))
    return f"{len(jax.devices())} x {kind}, {os.cpu_count()} CPU cores, Python {platform.python_version()}, {versions}"


def cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def config_of(args: argparse.Namespace, **run: object) -> Config:
    data = DataConfig(image_size=args.image_size, train_images=EPOCH_STEPS * args.batch_size, test_images=1000)
    return Config(
        arch=args.arch,
        epochs=3,
        batch_size=args.batch_size,
        data=data,
        run=dataclasses.replace(RunConfig(precision=args.precision), **run),
    )


def make_step(args: argparse.Namespace) -> Callable[[], object]:
    """Our own step, data work and all, as a call that makes one update and waits for it."""
    config = config_of(args)
    devices = jax.local_devices()
    trainer = loop.make_trainer(config, devices, load("fashion_mnist", log=lambda _: None))
    size = config.image_size
    state = replicate(create_state(trainer.model, trainer.optimizer, 0, (size, size, 1)), devices)
    rows = shard(epoch_rows(0, 0, loop.num_train(config), config.batch_size, len(devices)), devices)

    def run():
        nonlocal state
        state, metrics = trainer.train_steps(1)(state, trainer.train, rows, np.int32(0))
        return metrics.loss.block_until_ready()

    return run


def side_by_side(args: argparse.Namespace) -> dict[str, object]:
    """Alternating rounds of our step and plain Flax's; medians of a step in milliseconds."""
    sides = {
        "resnet_jax": make_step(args),
        "plain_flax": plain_flax.make_step(args.image_size, args.batch_size, jnp.dtype(args.precision)),
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    for run in sides.values():
        run()  # compiles
    for _ in range(args.rounds):
        for name, run in sides.items():
            began = time.perf_counter()
            for _ in range(args.steps):
                run()
            times[name].append((time.perf_counter() - began) / args.steps * 1e3)
    for name, values in times.items():
        rate = args.batch_size / statistics.median(values) * 1e3
        print(
            f"{name}: {statistics.median(values):.0f} ms a step ({min(values):.0f} to {max(values):.0f}), "
            f"{rate:.0f} images/s, n = {args.rounds} rounds of {args.steps}, {args.precision}"
        )
    ratio = statistics.median(p / o for o, p in zip(times["resnet_jax"], times["plain_flax"], strict=True))
    print(f"speed against plain Flax: {ratio:.3f}x (median of the rounds' ratios)")
    return {"step_ms": times, "ratio": ratio}


def outside_the_steps(args: argparse.Namespace) -> dict[str, float]:
    """What an epoch takes beside its train and evaluation steps: loop, order, metrics, checkpoint."""
    spent, marks = [0.0], []

    def timed(call: Callable) -> Callable:
        def run(*arguments):
            began = time.perf_counter()
            out = jax.block_until_ready(call(*arguments))
            spent[0] += time.perf_counter() - began
            return out

        return run

    make_train, make_eval, end = loop.make_train_steps, loop.make_eval_step, loop.Saver.end_of_epoch

    def timed_steps(*arguments):
        steps = make_train(*arguments)
        return lambda num_steps: timed(steps(num_steps))

    def end_of_epoch(saver, *arguments):
        end(saver, *arguments)
        marks.append((time.perf_counter(), spent[0]))

    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.multiple(
            loop,
            make_train_steps=timed_steps,
            make_eval_step=lambda *a: timed(make_eval(*a)),
        ),
        mock.patch.object(loop.Saver, "end_of_epoch", end_of_epoch),
    ):
        loop.fit(config_of(args, run_dir=f"{folder}/run"))
    (began, before), (ended, after) = marks[0], marks[-1]  # the first epoch compiles
    outside = (ended - began - (after - before)) / (len(marks) - 1)
    share = outside / ((ended - began) / (len(marks) - 1))
    print(f"outside the steps: {outside:.2f} s of an epoch of {EPOCH_STEPS} steps ({share:.1%}; less of a whole epoch)")
    return {"outside_seconds": outside, "outside_share": share}


def command(args: argparse.Namespace) -> dict[str, object]:
    """`python train.py` in a process of its own, twice: seconds to the first step, and peak memory in GB."""
    results: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        for cache in ("cold", "warm"):
            argv = [sys.executable, str(TRAIN), "--arch", args.arch, "--image-size", str(args.image_size)]
            argv += ["--batch-size", str(args.batch_size), "--precision", args.precision, "--epochs", "1"]
            argv += ["--train-images", str(4 * args.batch_size), "--test-images", str(args.batch_size)]
            argv += ["--run-dir", f"{folder}/{cache}"]
            began = time.perf_counter()
            with subprocess.Popen(
                argv,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=os.environ | {"XDG_CACHE_HOME": folder},
            ) as process:
                assert process.stdout is not None
                for line in process.stdout:
                    if line.startswith("first step"):
                        results[f"first_step_{cache}_seconds"] = time.perf_counter() - began
            seconds = results[f"first_step_{cache}_seconds"]
            print(f"from the command to the end of the first step, {cache} cache: {seconds:.1f} s")
    results["peak_gb"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    print(f"peak memory of the command: {results['peak_gb']:.2f} GB")
    return results


if __name__ == "__main__":
    main()
