"""sweep: a recipe trained over several seeds, with the mean of its accuracies and how certain that mean is."""

import dataclasses
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from resnet_jax.cli.options import notes_apart, print_json
from resnet_jax.errors import ConfigError
from resnet_jax.interrupts import interruptible_import
from resnet_jax.runs.argv import Positional, needed, read_words
from resnet_jax.runs.config import Config
from resnet_jax.runs.flags import Asked, find_recipe
from resnet_jax.runs.stopped import Stopped
from resnet_jax.runs.sweep_file import PARTS, Record, accuracy_text, failed
from resnet_jax.runs.values import PathText

if TYPE_CHECKING:
    from resnet_jax.runs.sweep import Sweep as Plan

EXAMPLES = (
    "quick  # the recipe quick with the seeds 0 to 4, in sweeps/quick",
    "quick --seeds 10  # five seeds more: the first five are kept",
    "quick --seeds 0,3,7 --epochs 6 --dir sweeps/longer  # other seeds, and one value changed",
    "quick --validation 6000 --no-test --dir sweeps/choice  # to choose by validation accuracy",
)
DEFAULTS = Config()
# what a sweep decides itself -> what to give instead
OWN = {
    "config": "RECIPE names the recipe",
    "seed": "--seeds gives the seeds",
    "run_dir": "--dir names the folder",
    "resume": "a second call continues the sweep",
    "override": "the runs of a sweep have the same options",
}


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Train a recipe once for each seed, one after the other, and print mean, standard deviation and 95 % interval.

    A second call continues: finished runs are kept, and an interrupted one is resumed. The accuracies are those of the
    last epoch, and each run keeps only its latest checkpoint. The exit code is 1 if a run has diverged.
    """

    recipe: Annotated[str, Positional("RECIPE")]
    """A name in configs/, or the path of a .toml file."""
    seeds: str = "5"
    """How many seeds, from 0 on; or the seeds themselves, separated by commas: 0,3,7, or 7, for one."""
    dir: PathText = ""
    """The folder of the runs and of sweep.json. Default: sweeps/RECIPE."""
    json: bool = False
    """Print sweep.json; all other lines go to stderr."""
    test: bool = True
    """Read the test part. Without it the runs have validation accuracies alone, to choose between recipes, and no
    report."""
    training: Config = DEFAULTS
    """The flags of train.py."""


def sweep(argv: Sequence[str], prog: str) -> int:
    """Train what is left, and print the table; 1 if a run has diverged."""
    values = needed(Sweep, read_words(Sweep, argv, prog, EXAMPLES))
    with notes_apart(bool(values.get("json"))):
        plan = plan_of(values)
        from resnet_jax.runs.sweep import run_sweep

        again = shlex.join([*shlex.split(prog), *argv])
        try:
            record = run_sweep(plan)
        except Stopped as stop:
            print(f"{str(stop).partition(';')[0]}; the same command continues the sweep: {again}", file=sys.stderr)
            return 128 + stop.signum
        except KeyboardInterrupt:
            print(f"interrupted; the same command continues the sweep: {again}", file=sys.stderr)
            return 130
    if values.get("json"):
        print_json(record)
    else:
        print(as_text(record, plan.folder))
    return 1 if failed(record) else 0


def plan_of(values: dict[str, Any]) -> "Plan":
    """What to train, from the values of the words. ConfigError for invalid ones, before anything is written."""
    own = {field.name: values[field.name] for field in dataclasses.fields(Sweep) if field.name in values}
    named = {name: value for name, value in values.items() if name not in own}
    for name, instead in OWN.items():
        if name in named:
            raise ConfigError(f"--{name.replace('_', '-')}: {instead}; leave it out")
    recipe = own["recipe"]
    path, seeds = find_recipe(recipe, "RECIPE"), seeds_of(own.get("seeds", Sweep.seeds))
    with interruptible_import():
        from resnet_jax.runs.sweep import Sweep as Plan
    configs = [Asked(named | {"config": recipe, "seed": seed}, path).new() for seed in (max(seeds), seeds[0])]
    folder = Path(own.get("dir") or Path("sweeps", path.stem))
    return Plan(recipe, named, seeds, folder, configs[-1], own.get("test", Sweep.test))


def seeds_of(text: str) -> tuple[int, ...]:
    """The seeds that --seeds names, in order; ConfigError for none, for one that is given twice, and for other text."""
    wanted = "give how many, such as 5, or different seeds with commas between them, such as 0,3,7"
    if not re.fullmatch(r"\s*\d{1,10}\s*(,\s*\d{1,10}\s*)*,?\s*", text, re.ASCII):
        raise ConfigError(f"--seeds {text!r}: {wanted}")
    numbers = [int(word) for word in text.split(",") if word.strip()]
    if "," not in text:
        if not 1 <= numbers[0] <= 1000:
            raise ConfigError(f"--seeds {numbers[0]}: give 1 to 1000 seeds; {numbers[0]}, with a comma is one seed")
        return tuple(range(numbers[0]))
    if twice := [number for number in numbers if numbers.count(number) > 1]:
        raise ConfigError(f"--seeds {text}: {twice[0]} is given twice; {wanted}")
    return tuple(sorted(numbers))


def as_text(record: Record, folder: Path) -> str:
    """A line for each run, then a line for each accuracy."""
    from resnet_jax.training.display import duration  # imports jax

    parts = [part for part in PARTS if record[f"{part}_accuracy"]]
    lines = ["  ".join(["      seed", "epochs", *(f"{part} accuracy" for part in parts), "time"])]
    for run in record["runs"]:
        cells = [f"{run['seed']:>10}"]
        if "failed" in run:
            cells.append(f"failed: {run['failed']}")
        else:
            cells.append(f"{run['epochs']:>6}")
            cells += [f"{run[f'{part}_accuracy']:>{len(part) + 9}.4f}" for part in parts]
            cells.append(duration(run["seconds"]))
        lines.append("  ".join(cells))
    lines += [line_of(part, record[f"{part}_accuracy"]) for part in parts]
    if failed(record):
        lines.append(f"failed runs: {len(failed(record))} of {len(record['runs'])}; the accuracies do not count them")
    return "\n".join([*lines, f"the sweep is in {folder}"])


def line_of(part: str, summary: Record) -> str:
    """The statistics of an accuracy, in words."""
    text = f"{part} accuracy {accuracy_text(summary)}"
    if summary["interval"] is None:
        return f"{text}: one run has no deviation and no interval"
    low, high = summary["interval"]
    return f"{text}: standard deviation {summary['std']:.4f}, 95 % interval of the mean {low:.4f} to {high:.4f}"
