"""train: the command of train.py."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from resnet_jax import runs
from resnet_jax.interrupts import interruptible_import
from resnet_jax.runs.flags import ask

if TYPE_CHECKING:
    from resnet_jax.runs import Config, RunResult

EXAMPLES = (
    "--arch resnet18  # the chapter's own training",
    "--config quick --epochs 6  # a recipe, with one value changed",
    "--data-folder pictures/ --validation 0.1 --early-stopping 3  # your own pictures",
    "--resume auto --run-dir runs/NAME  # continue the run if it exists, else start it",
)


def train(argv: Sequence[str], prog: str) -> None:
    """Train, and print the accuracy of the run."""
    config = read_flags(argv, prog)
    with interruptible_import():
        fit = runs.fit
        from resnet_jax.runs.results import Advice, is_chapters
    print(last_line(fit(config, callbacks=[Advice()] if is_chapters(config) else [])))


def last_line(result: "RunResult") -> str:
    """What the command prints in the end."""
    row = result.history[-1] if result.history else {}
    accuracies = [
        f"{part} accuracy {row[f'{part}_accuracy']:.4f}" for part in ("validation", "test") if f"{part}_accuracy" in row
    ]
    early = f"stopped early, {result.stopped}; " if result.stopped else ""
    return f"{early}{', '.join(accuracies)}{'; ' if accuracies else ''}the run is in {result.run_dir}"


def read_flags(argv: Sequence[str], prog: str) -> "Config":
    """The config that the flags ask for; with --resume, the config of the run with the values of the flags."""
    asked = ask(argv, prog, EXAMPLES)
    from resnet_jax.runs.rundir import find_run, old_run_dir, read_config  # imports jax

    start = asked.start()
    if not start.run.resume:
        return asked.new()
    run_dir = find_run(start) if start.run.resume == "auto" else old_run_dir(start)
    return asked.new() if run_dir is None else asked.resumed(read_config(run_dir), run_dir)
