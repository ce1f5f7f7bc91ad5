"""Compare the train step with plain Flax and PyTorch, and measure the cost of a run outside its steps.

    python benchmarks/step.py --arch resnet18 --image-size 96 --batch-size 128

prints the median time of a step of each side over alternating rounds, and the ratios (above 1: resnet_jax is faster).
With --run it also measures the time of an epoch outside its steps, and of `python train.py` the peak memory and the
time to the first step, with a cold and a warm compile cache. --json FILE also writes the figures to a file. Run no
other program at the same time.

--against torch includes PyTorch. --torch-python PATH/bin/python names the Python of an environment with torch.
"""

import argparse
import contextlib
import functools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

import jax
import numpy as np

from resnet_jax import Config, fit, ops
from resnet_jax.models import get_arch
from resnet_jax.ops.select import CHOICES
from resnet_jax.runs import DataConfig, RunConfig, build, hardware
from resnet_jax.runs.config import Precision
from resnet_jax.runs.recording import version
from resnet_jax.training import program
from resnet_jax.training.parallel import shard
from resnet_jax.training.step import epoch_rows

TRAIN = Path(__file__).resolve().parent.parent / "train.py"
PEERS = Path(__file__).resolve().parent
TURN_SECONDS, TURN_STEPS = 0.5, 3  # the minimum length of a turn
STARTED_OVER, LARGE_PAGES = "resnet_jax_pages", "glibc.malloc.hugetlb=1"
EPOCH_STEPS = 24  # the short epochs of outside_the_steps
PRECISIONS = ("float32", "bfloat16")
FLAX_MODES = ("float32",)
TORCH_MODES = ("float32", "float32 channels_last", "bfloat16 channels_last", "bfloat16 channels_last compiled")


def main() -> None:
    args = read_flags()
    if "GLIBC_TUNABLES" not in os.environ and STARTED_OVER not in sys._xoptions:  # as train.py does
        again = [sys.executable, "-X", STARTED_OVER, *sys.orig_argv[1:]]
        os.execve(sys.executable, again, os.environ | {"GLIBC_TUNABLES": LARGE_PAGES})
    results = {"machine": machine(), "arch": args.arch, "image_size": args.image_size, "batch_size": args.batch_size}
    print(results["machine"])
    results |= side_by_side(args)
    if args.run:
        results |= outside_the_steps(args)
        results |= command(args)
    if args.json:
        Path(args.json).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def read_flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--cpu-kernels", choices=CHOICES, default="auto")
    parser.add_argument("--rounds", type=int, default=9, help="alternating rounds (default: 9)")
    parser.add_argument("--against", choices=("torch",), help="also measure this peer")
    parser.add_argument("--torch-python", default=sys.executable, help="a Python with torch (default: this one)")
    parser.add_argument("--torch-modes", nargs="+", default=TORCH_MODES, help="modes of torch_peer.py")
    parser.add_argument("--pages-for-all", action="store_true", help="use 2 MiB pages for the peers too")
    parser.add_argument("--run", action="store_true", help="also measure the command train.py")
    parser.add_argument("--json", help="also write the figures to this file")
    return parser.parse_args()


def machine() -> str:
    """Describe device, cores and versions in one line."""
    cpu = next((line.split(":")[1].strip() for line in cpuinfo() if line.startswith("model name")), platform.machine())
    device = jax.devices()[0]
    kind = cpu if device.platform == "cpu" else device.device_kind
    versions = ", ".join(f"{name} {version(name)}" for name in ("jax", "jaxlib", "flax"))
    return f"{len(jax.devices())} x {kind}, {os.cpu_count()} CPU cores, Python {platform.python_version()}, {versions}"


def cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def config_of(args: argparse.Namespace, precision: Precision = "auto", run_dir: str = "") -> Config:
    data = DataConfig(image_size=args.image_size, train_images=EPOCH_STEPS * args.batch_size, test_images=1000)
    return Config(
        arch=args.arch,
        epochs=3,
        batch_size=args.batch_size,
        data=data,
        run=RunConfig(precision=precision, run_dir=run_dir, cpu_kernels=args.cpu_kernels, report=False),
    )


def make_step(args: argparse.Namespace, precision: Precision) -> Callable[[], object]:
    """Return a function that runs one update of resnet_jax, including its data work, and waits for it."""
    config = config_of(args, precision)
    ops.use_cpu_kernels(args.cpu_kernels)
    devices = jax.local_devices()
    data = build.load_data(config)
    info = build.info_of(config.data, data)
    dtype = hardware.pick_dtype(config.run.precision, devices[0])
    model = build.make_model(config, get_arch(config.arch), info, dtype)
    loop = build.make_trainer(config, info, devices).make_loop(model, data)
    state, train, step = loop.state, loop.part("train"), loop.program.train_steps(1)
    rows = shard(epoch_rows(0, 0, len(data.train.labels), config.batch_size, len(devices)), devices)

    def run():
        nonlocal state
        state, metrics = step(state, train, rows, np.int32(0))
        return metrics.loss.block_until_ready()

    return run


def side_by_side(args: argparse.Namespace) -> dict[str, object]:
    """Run alternating rounds of all sides. Return the median step of each turn, in seconds, and the ratios."""
    with contextlib.ExitStack() as stack:
        sides = {f"resnet_jax {p}": make_step(args, p) for p in args.precision}
        if args.arch == "resnet18":
            sides |= peer(args, stack, "plain Flax", [sys.executable, str(PEERS / "plain_flax.py")], FLAX_MODES)
        if args.against == "torch":
            sides |= peer(args, stack, "torch", [args.torch_python, str(PEERS / "torch_peer.py")], args.torch_modes)
        times: dict[str, list[float]] = {name: [] for name in sides}
        for run in sides.values():  # compiles the step and allocates its memory
            run()
            run()
        for _ in range(args.rounds):
            for name, run in sides.items():
                turn(run)  # not measured: the first steps after some idle seconds are slower
                times[name].append(statistics.median(turn(run)))
    return {"seconds": times, "ratios": ratios(print_times(args, times, "step", 0))}


def print_times(args: argparse.Namespace, times: dict[str, list[float]], what: str, digits: int) -> dict[str, float]:
    """Print the seconds of each side's turns as a table. Return the median of each side."""
    median = {name: statistics.median(values) for name, values in times.items()}
    size = args.image_size
    print(f"{args.arch}, {size}x{size}, batch {args.batch_size}, n = {args.rounds} turns of each side")
    print(f"| side | ms a {what}: median | least | most | images/s |\n| --- | --- | --- | --- | --- |")
    for name, values in times.items():
        cells = [f"{value * 1e3:.{digits}f}" for value in (median[name], min(values), max(values))]
        print(f"| {name} | {' | '.join(cells)} | {args.batch_size / median[name]:.{digits}f} |")
    return median


def turn(run: Callable[[], object]) -> list[float]:
    """Run the steps of one turn. Return the seconds of each."""
    times, began = [], time.perf_counter()
    while len(times) < TURN_STEPS or time.perf_counter() - began < TURN_SECONDS:
        before = time.perf_counter()
        run()
        times.append(time.perf_counter() - before)
    return times


def ratios(median: dict[str, float]) -> dict[str, float]:
    """Return our speedup over each peer's fastest mode in the same precision, and over plain Flax in float32."""
    found = {}
    for ours in (name for name in median if name.startswith("resnet_jax")):
        precision = ours.split()[1]
        for peer in ("plain Flax", "torch"):
            rivals = [t for name, t in median.items() if name.startswith(f"{peer} {precision}")]
            if rivals:
                found[f"{ours} against {peer}'s best {precision}"] = min(rivals) / median[ours]
        if "plain Flax float32" in median:
            found[f"{ours} against plain Flax float32"] = median["plain Flax float32"] / median[ours]
        if "torch float32" in median:
            found[f"{ours} against torch's eager float32"] = median["torch float32"] / median[ours]
    for what, ratio in found.items():
        print(f"{what}: {ratio:.2f}x")
    return found


def users_environment() -> dict[str, str]:
    """Return the environment without the variable that main added."""
    ours = STARTED_OVER in sys._xoptions
    return {key: value for key, value in os.environ.items() if not (ours and key == "GLIBC_TUNABLES")}


def peer(
    args: argparse.Namespace, stack: contextlib.ExitStack, name: str, command: list[str], modes: Sequence[str]
) -> dict[str, Callable[[], float]]:
    """Start the process of a peer. Return a function per mode that runs one step there and returns its seconds."""
    argv = [*command, args.arch, str(args.image_size), str(args.batch_size)]
    process = stack.enter_context(
        subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=dict(os.environ) if args.pages_for_all else users_environment(),
        )
    )
    stdin, stdout = process.stdin, process.stdout
    assert stdin is not None
    assert stdout is not None
    stack.callback(stdin.close)
    hello = stdout.readline().strip()
    if not hello:
        hint = "; --torch-python PATH/bin/python names the Python with torch" if name == "torch" else ""
        raise SystemExit(f"the process of {name} did not start; run {' '.join(argv)} to see why{hint}")
    print(f"peer: {hello}{', with 2 MiB pages' if args.pages_for_all else ''}")

    def ask(mode: str) -> float:
        with contextlib.suppress(BrokenPipeError):
            stdin.write(f"{mode}\n")
            stdin.flush()
        if not (seconds := stdout.readline()):
            raise SystemExit(f"the process of {name} ended in mode {mode}; run {' '.join(argv)} to see why")
        return float(seconds)

    return {f"{name} {mode}": functools.partial(ask, mode) for mode in modes}


def outside_the_steps(args: argparse.Namespace) -> dict[str, float]:
    """Measure the time of an epoch outside its train and evaluation steps: loop, order, metrics, checkpoint."""
    spent, marks = [0.0], []

    def timed(call: Callable) -> Callable:
        def run(*arguments):
            began = time.perf_counter()
            out = jax.block_until_ready(call(*arguments))
            spent[0] += time.perf_counter() - began
            return out

        return run

    make_train, make_eval = program.make_train_steps, program.make_eval_step

    def timed_steps(*arguments):
        steps = make_train(*arguments)
        return lambda num_steps: timed(steps(num_steps))

    class Marks:
        def on_epoch_end(self, loop: object) -> None:
            marks.append((time.perf_counter(), spent[0]))

    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.multiple(
            program,
            make_train_steps=timed_steps,
            make_eval_step=lambda *a: timed(make_eval(*a)),
        ),
    ):
        fit(config_of(args, run_dir=f"{folder}/run"), callbacks=[Marks()])
    (began, before), (ended, after) = marks[0], marks[-1]  # the first epoch compiles
    outside = (ended - began - (after - before)) / (len(marks) - 1)
    share = outside / ((ended - began) / (len(marks) - 1))
    print(f"outside the steps: {outside:.2f} s of an epoch of {EPOCH_STEPS} steps ({share:.1%}; less in a full epoch)")
    return {"outside_seconds": outside, "outside_share": share}


def command(args: argparse.Namespace) -> dict[str, float]:
    """Run `python train.py` twice in a new process. Return seconds to the first step and peak memory in GB."""
    results: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for cache in ("cold", "warm"):
            argv = [sys.executable, str(TRAIN), "--arch", args.arch, "--image-size", str(args.image_size)]
            argv += ["--batch-size", str(args.batch_size), "--cpu-kernels", args.cpu_kernels, "--epochs", "1"]
            argv += ["--train-images", str(4 * args.batch_size), "--test-images", str(args.batch_size)]
            argv += ["--run-dir", f"{folder}/{cache}"]
            began = time.perf_counter()
            environment = users_environment() | {"XDG_CACHE_HOME": folder}
            process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=environment)
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("first step"):
                    results[f"first_step_{cache}_seconds"] = time.perf_counter() - began
            _, status, usage = os.wait4(process.pid, 0)  # the usage of only this process
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                raise SystemExit(f"{' '.join(argv)} failed with exit code {process.returncode}")
            results["peak_gb"] = max(results.get("peak_gb", 0), usage.ru_maxrss / 1e6)
            seconds = results[f"first_step_{cache}_seconds"]
            print(f"from the command to the end of the first step, {cache} cache: {seconds:.1f} s")
    print(f"peak memory of the command: {results['peak_gb']:.2f} GB")
    return results


if __name__ == "__main__":
    main()
