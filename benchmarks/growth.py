"""A network that grows while it trains, beside networks trained from scratch with the same compute.

python benchmarks/growth.py --json docs/growth_600.json --plot docs/growth_600.svg
python benchmarks/growth.py --cost resnet152     what it takes to make a network deeper by a block; trains nothing

Fashion-MNIST at 28x28, the chapter's blocks at half their width, every arm with SGD and Nesterov momentum over its own
number of steps (warm-up, then a cosine to 0). One arm grows from a block a stage to ResNet-18's two, a block
at a time. Compute is multiply-adds: those of the network's forward pass, three times for a step, summed over the steps.
The arms that share the grown one's compute get as many steps as it pays for, to the nearest.

The JSON file is written after each run, and runs that are in it are not made again: it is of one machine and one
number of steps. --plot needs matplotlib, --cost Linux.
"""

import argparse
import ctypes
import dataclasses
import gc
import importlib.util
import itertools
import json
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from resnet_jax import TrainState, create_model, create_state, multiply_adds, train_step
from resnet_jax.data import Arrays, ImageDataset, load
from resnet_jax.errors import ConfigError
from resnet_jax.models import Arch, Network, get_arch
from resnet_jax.runs import hardware
from resnet_jax.runs.build import make_optimizer, make_schedule
from resnet_jax.runs.config import OptimConfig
from resnet_jax.training.growth import grow_state
from resnet_jax.training.parallel import replicate
from resnet_jax.whole_file import whole_file

LARGE = get_arch("resnet18")
SMALL = dataclasses.replace(LARGE, name="resnet10", stages=tuple((1, channels) for _, channels in LARGE.stages))
WIDTH = 0.5
IMAGE = (28, 28, 1)
GROWS = {1 / 6: 4, 2 / 6: 3, 3 / 6: 2, 4 / 6: 1}  # share of the steps -> the stage that gets a block, the last first
BATCH = 128
WARMUP = 1 / 6  # share of the steps
# make_schedule takes the whole schedule for one epoch, so the warm-up is a share of it
OPTIM = OptimConfig(0.1, schedule="cosine", warmup_epochs=WARMUP, momentum=0.9, nesterov=True, weight_decay=5e-4)
CURVE = 4  # evaluations of a run
Run = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Arm:
    """start: the network at step 0; steps: how many; grows: step -> the stage that gets a block before it."""

    name: str
    start: Arch
    steps: int
    grows: dict[int, int] = dataclasses.field(default_factory=dict)


def main() -> None:
    parser = argparse.ArgumentParser(description="Growing beside training from scratch.")
    parser.add_argument("--steps", type=int, default=600, help="of the arm that grows")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", default="growth.json", help="where results are kept")
    parser.add_argument("--plot", default="", help="the picture to draw of them")
    parser.add_argument("--plot-only", action="store_true", help="train nothing")
    parser.add_argument("--cost", metavar="ARCH", help="measure the growth of one network by one block")
    args = parser.parse_args()
    if args.cost:
        try:
            print(growth_cost(get_arch(args.cost)))
        except ConfigError as error:
            parser.error(f"--cost: {error}")
        return
    if args.plot and importlib.util.find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib: pip install matplotlib")
    path = Path(args.json)
    results = read_results(parser, path, args)
    if not args.plot_only:
        with hardware.compile_cache():
            train_all(results, path, args)
    print(table(results["runs"]))
    if args.plot:
        plot(results["runs"], args.plot)


def train_all(results: Run, path: Path, args: argparse.Namespace) -> None:
    """Train what the results lack, and keep them in the file after each run."""
    data = load("fashion_mnist", log=print)
    for arm, seed in itertools.product(arms(args.steps), range(args.seeds)):
        if not any((run["arm"], run["seed"]) == (arm.name, seed) for run in results["runs"]):
            results["runs"].append(train(arm, seed, data))
            with whole_file(path) as part:
                part.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def read_results(parser: argparse.ArgumentParser, path: Path, args: argparse.Namespace) -> Run:
    """What the file holds, or the start of it; an error where its runs are not to be mixed with those asked for."""
    machine = f"{hardware.describe(jax.local_devices()[:1], dtype())}, jax {jax.__version__}"
    asked = {"machine": machine, "steps": args.steps}
    if not path.exists():
        if args.plot_only:
            parser.error(f"--json {path}: there is no such file; leave --plot-only out to make it")
        return asked | {"runs": []}
    try:
        results: Run = json.loads(path.read_text(encoding="utf-8"))
        held = {key: results[key] for key in asked}
    except (OSError, ValueError, TypeError, KeyError) as error:
        parser.error(f"--json {path} does not hold results of this benchmark ({error!r}); give another file")
    if held != asked and not args.plot_only:
        parser.error(f"--json {path} holds runs of {held}, not {asked}; give another file")
    return results


def growth_cost(arch: Arch) -> str:
    """Seconds and memory that a run's growth by a block in its largest stage takes, its weights and momentum held."""
    devices = jax.local_devices()[:1]
    optimizer = make_optimizer(OPTIM, make_schedule(OPTIM, 1, 1))
    shapes = jax.eval_shape(lambda: create_state(create_model(arch), optimizer, (64, 64, 3)))
    state = replicate(jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes), devices)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(jax.block_until_ready(state))) / 1e6
    stage = 1 + max(range(len(arch.stages)), key=lambda i: arch.stages[i][0])
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # memory that is free but held would be used again and not be seen
    Path("/proc/self/clear_refs").write_text("5")  # what the process has held at most begins anew
    before, began = resident("VmRSS"), time.monotonic()
    grown, state = grow_state(arch, state, stage)
    jax.block_until_ready(replicate(state, devices))
    seconds, more = time.monotonic() - began, resident("VmHWM") - before
    return f"{grown.name}: {seconds:.1f} s, and {more:.0f} MB beside its state of {size:.0f} MB"


def resident(field: str) -> float:
    """A line of Linux's account of this process's memory, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(field))


def cost(arch: Arch, batch_size: int) -> int:
    """Multiply-adds of a step: forward, and twice as many backward."""
    return 3 * batch_size * multiply_adds(create_model(arch, width=WIDTH), (1, *IMAGE))


def arms(steps: int) -> list[Arm]:
    """The arm that grows in so many steps, and those that it is held against."""
    grows = {round(share * steps): stage for share, stage in GROWS.items()}
    grown = Arm("grown", SMALL, steps, grows)
    compute = sum(costs(grown))
    large, small = cost(LARGE, BATCH), cost(SMALL, BATCH)
    return [
        grown,
        Arm("large, same compute", LARGE, round(compute / large)),
        Arm("large, same steps", LARGE, steps),
        Arm("small, same compute", SMALL, round(compute / small)),
    ]


def costs(arm: Arm) -> list[int]:
    """Multiply-adds of each step of an arm."""
    out: list[int] = []
    stages, begins = list(arm.start.stages), [0, *sorted(arm.grows), arm.steps]
    for first, end in itertools.pairwise(begins):
        if first in arm.grows:
            blocks, channels = stages[arm.grows[first] - 1]
            stages[arm.grows[first] - 1] = (blocks + 1, channels)
        arch = dataclasses.replace(arm.start, stages=tuple(stages))
        out += [cost(arch, BATCH)] * (end - first)
    return out


def dtype() -> Any:
    return hardware.pick_dtype("auto", jax.local_devices()[0])


step = jax.jit(train_step, donate_argnums=0)


@jax.jit
def hits(state: TrainState, images: jax.Array, labels: jax.Array) -> jax.Array:
    logits: Any = state.model.apply(state.variables, images / 255, train=False)
    return (logits.argmax(-1) == labels).sum()


def accuracy(state: TrainState, test: Arrays) -> float:
    """The share of the test images whose largest logit is the label's."""
    parts = range(0, len(test.labels), 500)
    return sum(int(hits(state, test.images[i : i + 500], test.labels[i : i + 500])) for i in parts) / len(test.labels)


def network(arch: Arch) -> Network:
    return create_model(arch, width=WIDTH, dtype=dtype())


def train(arm: Arm, seed: int, data: ImageDataset) -> Run:
    """A run, its accuracy on all test images, and a few more of them on the way."""
    train, test = data.train, data.test
    assert test is not None
    optimizer = make_optimizer(OPTIM, make_schedule(OPTIM, 1, arm.steps))
    compute, arch = costs(arm), arm.start
    curve: list[dict[str, Any]] = []
    order = np.array([], int)
    state = create_state(network(arch), optimizer, IMAGE, seed=seed)
    for i in range(arm.steps):
        if i in arm.grows:
            arch, state = grow_state(arch, state, arm.grows[i])
            state = state.replace(model=network(arch))
        if len(order) < BATCH:  # the images that are left over sit out this epoch
            order = np.random.default_rng([seed, i]).permutation(len(train.labels))
        rows, order = order[:BATCH], order[BATCH:]
        state, metrics = step(state, (train.images[rows], train.labels[rows]))
        float(metrics.loss)  # waits, so that the host does not run ahead
        if (i + 1) * CURVE // arm.steps > i * CURVE // arm.steps:
            point = {"step": i + 1, "multiply_adds": sum(compute[: i + 1]), "accuracy": accuracy(state, test)}
            curve.append(point)
            print(f"{arm.name}, seed {seed}, step {i + 1} of {arm.steps}, {arch.name}: {point['accuracy']:.4f}")
    return {
        "arm": arm.name,
        "seed": seed,
        "steps": arm.steps,
        "network": arch.name,
        "multiply_adds": sum(compute),
        "accuracy": curve[-1]["accuracy"],
        "curve": curve,
    }


def by_arm(runs: list[Run]) -> dict[str, list[Run]]:
    return {run["arm"]: [other for other in runs if other["arm"] == run["arm"]] for run in runs}


def table(runs: list[Run]) -> str:
    """An arm a line, in Markdown."""
    lines = ["| arm | ends as | steps | multiply-adds, 10^12 | test accuracy: mean | each seed |", "|" + " --- |" * 6]
    for arm, of_arm in by_arm(runs).items():
        first, found = of_arm[0], [run["accuracy"] for run in of_arm]
        compute, each = first["multiply_adds"] / 1e12, ", ".join(f"{a:.4f}" for a in found)
        mean = statistics.mean(found)
        lines.append(f"| {arm} | {first['network']} | {first['steps']} | {compute:.3f} | {mean:.4f} | {each} |")
    return "\n".join(lines)


def plot(runs: list[Run], path: str) -> None:
    """Accuracy over compute: each arm's mean, and its seeds as points."""
    import matplotlib  # pyright: ignore[reportMissingImports]

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "growth"  # the same file of the same numbers
    from matplotlib import pyplot  # pyright: ignore[reportMissingImports]

    figure, axes = pyplot.subplots(figsize=(7, 4.2))
    styles = zip(by_arm(runs).items(), ("C1", "C0", "C2", "C3"), ("-", "-", "--", ":"), strict=False)
    for (arm, of_arm), colour, line in styles:
        compute = np.array([[point["multiply_adds"] for point in run["curve"]] for run in of_arm]) / 1e12
        accuracy = np.array([[point["accuracy"] for point in run["curve"]] for run in of_arm])
        axes.plot(compute.mean(0), accuracy.mean(0), line, color=colour, label=arm)
        axes.plot(compute.ravel(), accuracy.ravel(), ".", color=colour, markersize=4)
    axes.set(xlabel="multiply-adds spent on training, 10^12", ylabel="test accuracy (dots: single seeds)")
    axes.set(title="Fashion-MNIST: growing, and training from scratch")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None} if path.endswith(".svg") else None)


if __name__ == "__main__":
    main()
