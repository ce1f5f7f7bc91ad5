"""A network that grows while it trains, beside networks trained from scratch with the same compute.

python benchmarks/growth.py --json docs/growth.json --plot docs/growth.svg

Fashion-MNIST at 28x28, the chapter's blocks at half their width, every arm with configs/quick.toml's optimizer over
its own number of steps (warm-up, then a cosine to 0). One arm grows from a block a stage to ResNet-18's two, a block
at a time. Compute is multiply-adds: those of the network's forward pass, three times for a step, summed over the steps.
The arms that share the grown one's compute get as many steps as it pays for, to the nearest.

The JSON file is written after each run, and runs that are in it are not made again; --plot needs matplotlib.
"""

import argparse
import dataclasses
import itertools
import json
import statistics
from pathlib import Path
from typing import Any

import jax
import numpy as np

from resnet_jax import create_model, load_recipe, multiply_adds
from resnet_jax.data import Splits, load
from resnet_jax.data.augment import Preprocess
from resnet_jax.models import Arch, get_arch
from resnet_jax.training import Config, hardware
from resnet_jax.training.growth import grow_state
from resnet_jax.training.optim import make_optimizer, make_schedule
from resnet_jax.training.state import TrainState, create_state
from resnet_jax.training.step import (
    Dataset,
    epoch_rows,
    eval_rows,
    make_eval_step,
    make_train_steps,
    replicate,
    shard,
)

LARGE = get_arch("resnet18")
SMALL = dataclasses.replace(LARGE, name="resnet10", stages=tuple((1, channels) for _, channels in LARGE.stages))
WIDTH = 0.5
IMAGE = (28, 28, 1)
GROWS = {1 / 6: 4, 2 / 6: 3, 3 / 6: 2, 4 / 6: 1}  # share of the steps -> the stage that gets a block, the last first
WARMUP = 1 / 6  # share of the steps
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
    args = parser.parse_args()
    path = Path(args.json)
    results: Run = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"runs": []}
    done: list[Run] = results["runs"]
    if not args.plot_only:
        results["machine"] = f"{hardware.describe(jax.local_devices()[:1], dtype())}, jax {jax.__version__}"
        hardware.use_compile_cache()
        splits = load("fashion_mnist", log=print)
        for seed in range(args.seeds):
            for arm in arms(args.steps):
                if not any((run["arm"], run["seed"], run["steps"]) == (arm.name, seed, arm.steps) for run in done):
                    done.append(train(arm, seed, splits))
                    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(table(done))
    if args.plot:
        plot(done, args.plot)


def cost(arch: Arch, batch_size: int) -> int:
    """Multiply-adds of a step: forward, and twice as many backward."""
    return 3 * batch_size * multiply_adds(create_model(arch, width=WIDTH), (1, *IMAGE))


def arms(steps: int) -> list[Arm]:
    """The arm that grows in so many steps, and those that it is held against."""
    grows = {round(share * steps): stage for share, stage in GROWS.items()}
    grown = Arm("grown", SMALL, steps, grows)
    compute = sum(costs(grown))
    large, small = cost(LARGE, recipe().batch_size), cost(SMALL, recipe().batch_size)
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
        out += [cost(arch, recipe().batch_size)] * (end - first)
    return out


def recipe() -> Config:
    return load_recipe("quick")


def dtype() -> Any:
    return hardware.pick_dtype("auto", jax.local_devices()[0])


def train(arm: Arm, seed: int, splits: Splits) -> Run:
    """A run, its accuracy on all test images, and a few more of them on the way."""
    config, devices = recipe(), jax.local_devices()[:1]
    per_epoch = len(splits.train.labels) // config.batch_size
    optim = dataclasses.replace(config.optim, warmup_epochs=WARMUP)  # of the one epoch that the schedule takes it for
    optimizer = make_optimizer(optim, make_schedule(optim, 1, arm.steps))
    preprocess = Preprocess(IMAGE[0])
    data = replicate(Dataset(*splits.train), devices)
    test = replicate(Dataset(*splits.test), devices)
    compute, arch = costs(arm), arm.start
    curve: list[dict[str, Any]] = []

    def programs(arch: Arch):
        model = create_model(arch, width=WIDTH, dtype=dtype())
        step = make_train_steps(model, optimizer, preprocess, 0, devices)(1)  # nothing in it is drawn: one program
        return model, step, make_eval_step(model, preprocess, devices)

    def accuracy(state: TrainState) -> float:
        parts = (shard(rows, devices) for rows in eval_rows(len(splits.test.labels), 500, 1))
        correct = sum(int(evaluate(state.params, state.batch_stats, test, rows).correct) for rows in parts)
        return correct / len(splits.test.labels)

    model, step, evaluate = programs(arch)
    state, rows = replicate(create_state(model, optimizer, seed, IMAGE), devices), None
    for i in range(arm.steps):
        if i in arm.grows:
            arch, state = grow_state(arch, state, optimizer, seed, arm.grows[i])
            model, step, evaluate = programs(arch)
            state = replicate(state, devices)
        if i % per_epoch == 0:
            rows = shard(epoch_rows(seed, i // per_epoch, len(splits.train.labels), config.batch_size, 1), devices)
        state, metrics = step(state, data, rows, np.int32(i % per_epoch))
        float(metrics.loss)  # waits, so that the host does not run ahead
        if (i + 1) * CURVE // arm.steps > i * CURVE // arm.steps:
            curve.append({"step": i + 1, "multiply_adds": sum(compute[: i + 1]), "accuracy": accuracy(state)})
            print(f"{arm.name}, seed {seed}, step {i + 1} of {arm.steps}, {arch.name}: {curve[-1]['accuracy']:.4f}")
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
