"""report: the page of a run, or one page that compares several."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from resnet_jax.cli.options import RunDirs
from resnet_jax.errors import ConfigError
from resnet_jax.runs.argv import parse_as
from resnet_jax.runs.values import PathText

EXAMPLES = (
    "runs/NAME",
    "runs/A runs/B --out compared.html",
)


@dataclasses.dataclass(frozen=True)
class Report:
    """Write report.html, curves.png and confusion.png of a run, or one page that compares several runs."""

    runs: RunDirs
    """The folder of a run; several folders are compared."""
    out: PathText = ""
    """The page to write. Empty: RUN/report.html with the two pictures beside it, or ./report.html for several runs."""


def report(argv: Sequence[str], prog: str) -> None:
    """Write the page, and print its path."""
    asked = parse_as(Report, argv, prog, EXAMPLES)
    if not asked.runs:
        raise ConfigError("RUN is needed: the folder of a run, such as runs/NAME")
    from resnet_jax.runs.report import REPORT_FILE, write_comparison, write_report

    runs, out = [Path(run) for run in asked.runs], Path(asked.out) if asked.out else None
    path = write_report(runs[0], out=out) if len(runs) == 1 else write_comparison(runs, out or Path(REPORT_FILE))
    print(f"report: {path}")
