"""report: the page of a run, or one page that compares several."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet_jax.cli.options import RunDirs, notes_apart, print_json
from resnet_jax.errors import ConfigError
from resnet_jax.runs.argv import parse_as
from resnet_jax.runs.values import PathText

if TYPE_CHECKING:
    from resnet_jax.reporting.page import Report as Shown

EXAMPLES = (
    "runs/NAME",
    "runs/A runs/B --out compared.html",
    "runs/NAME --json > report.json  # the files that were written, and the figures",
)


@dataclasses.dataclass(frozen=True)
class Report:
    """Write report.html, curves.png and confusion.png of a run, or one page that compares several runs."""

    runs: RunDirs
    """The folder of a run; several folders are compared."""
    out: PathText = ""
    """The page to write. Empty: RUN/report.html with the two pictures beside it, or ./report.html for several runs."""
    json: bool = False
    """Print one JSON object: the files that were written, and the figures of each run."""


def report(argv: Sequence[str], prog: str) -> None:
    """Write the page, and print its path, or with --json also the figures."""
    asked = parse_as(Report, argv, prog, EXAMPLES)
    if not asked.runs:
        raise ConfigError("RUN is needed: the folder of a run, such as runs/NAME")
    from resnet_jax.runs.report import REPORT_FILE, write_comparison, write_report

    runs, out = [Path(run) for run in asked.runs], Path(asked.out) if asked.out else None
    with notes_apart(asked.json):
        made = write_report(runs[0], out=out) if len(runs) == 1 else write_comparison(runs, out or Path(REPORT_FILE))
    if asked.json:
        print_json({"files": [str(file) for file in made.files], "runs": [as_dict(shown) for shown in made.reports]})
    else:
        print(f"report: {made.files[0]}")


def as_dict(shown: "Shown") -> dict[str, Any]:
    """The figures of a run as plain values, with the keys of `evaluate --json`; part: None if there are no figures."""
    held = shown.evaluated
    figures = held.figures.as_dict() if held else {}
    return {"run": shown.folder, "part": held.part if held else None, **figures, "notes": list(shown.notes)}
