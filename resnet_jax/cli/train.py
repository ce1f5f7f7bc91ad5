"""train: the command of train.py."""

from collections.abc import Sequence

from resnet_jax.errors import ConfigError
from resnet_jax.runs import Config, RunResult, fit
from resnet_jax.runs.checks import check
from resnet_jax.runs.flags import parse, read
from resnet_jax.runs.rundir import old_run_dir, read_config


def train(argv: Sequence[str], prog: str) -> None:
    """Train, and print the accuracy of the run."""
    print(last_line(fit(read_flags(argv, prog))))


def last_line(result: RunResult) -> str:
    """What the command prints in the end."""
    row = result.history[-1] if result.history else {}
    accuracies = [
        f"{part} accuracy {row[f'{part}_accuracy']:.4f}" for part in ("validation", "test") if f"{part}_accuracy" in row
    ]
    early = f"stopped early, {result.stopped}; " if result.stopped else ""
    return f"{early}{', '.join(accuracies)}{'; ' if accuracies else ''}the run is in {result.run_dir}"


def read_flags(argv: Sequence[str], prog: str) -> Config:
    """The config that the flags ask for; with --resume, the config of the run with the values of the flags."""
    config = read(argv, prog)
    words = {word.partition("=")[0].replace("_", "-") for word in argv}
    if {"--dataset", "--data-folder"} <= words:
        raise ConfigError("--dataset and --data-folder: the run has one data set; leave one of them out")
    if not config.run.resume:
        return check(config)
    run_dir = old_run_dir(config)
    return parse([*argv, "--run-dir", str(run_dir)], prog, default=read_config(run_dir))
