"""doctor: what this machine has for training, and what to do about each problem."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from resnet_jax.cli.options import notes_apart, print_json
from resnet_jax.runs.argv import parse_as
from resnet_jax.runs.values import PathText

EXAMPLES = (
    "# a page to read",
    "--json > machine.json  # to attach to a report of a fault",
    "--data-dir /data --run-dir /results  # where the data and the runs will be",
)


@dataclasses.dataclass(frozen=True)
class Doctor:
    """Check this machine, and say for each problem what to do. The exit code is 0 if it can train, else 2."""

    data_dir: PathText = ""
    """Folder of prepared data sets, as --data-dir of training."""
    run_dir: PathText = "runs"
    """Folder that will hold the runs."""
    json: bool = False
    """Print the findings as JSON."""


def doctor(argv: Sequence[str], prog: str) -> int:
    """Print the findings; returns the exit code."""
    asked = parse_as(Doctor, argv, prog, EXAMPLES)
    with notes_apart(asked.json):
        from resnet_jax.runs.diagnosis import diagnose  # imports jax, if it works

        findings, problems = diagnose(asked.data_dir, asked.run_dir)
    trains = not any(problem.fatal for problem in problems)
    if asked.json:
        print_json({"can_train": trains, **findings, "problems": [problem._asdict() for problem in problems]})
        return 0 if trains else 2
    for topic, values in findings.items():
        print(f"{topic}:", *(f"  {name}: {text_of(value)}" for name, value in values.items()), sep="\n")
    for problem in problems:
        print(f"{'fault' if problem.fatal else 'note'}: {problem.what}; {problem.do}")
    print("this machine can train" if trains else "this machine cannot train: see the lines that begin with fault")
    return 0 if trains else 2


def text_of(value: Any) -> str:
    """A finding for people."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return "unknown" if value is None else str(value)
