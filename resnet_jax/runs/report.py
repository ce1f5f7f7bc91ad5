"""The report of a run: report.html, curves.png and confusion.png in its folder; and a page that compares runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from resnet_jax.errors import ConfigError, UserError, one_line
from resnet_jax.reporting import page, plots
from resnet_jax.runs.folders import check_folder
from resnet_jax.runs.gathered import Own, gather, same_data
from resnet_jax.whole_file import whole_file

REPORT_FILE, CURVES_FILE, CONFUSION_FILE = "report.html", "curves.png", "confusion.png"
HEAD = 2048  # bytes of a file that name its maker


class Written(NamedTuple):
    """files: what was written, the page first. reports: what the page shows of each run."""

    files: tuple[Path, ...]
    reports: tuple[page.Report, ...]


def write_report(run_dir: Path, own: Own | None = None, out: Path | None = None) -> Written:
    """Write the report of a run.

    Without `out` the folder of the run gets report.html, curves.png and confusion.png. With `out` that page alone is
    written. own: of a fit that has just ended; otherwise the data is read again. Files that `report` did not make
    are never replaced. Raises ConfigError and CheckpointError.
    """
    page.check_installed()
    check_folder(run_dir)
    paths = [out] if out else [run_dir / name for name in (REPORT_FILE, CURVES_FILE, CONFUSION_FILE)]
    for path in paths:
        check_ours(path)
    report, evaluation = gather(run_dir, own)
    contents = {paths[0]: page.render(report).encode()}
    if out is None:
        if any(page.curves([("", report.history)])):
            contents[paths[1]] = plots.curves_png(report.history)
        if evaluation is not None:
            contents[paths[2]] = plots.confusion_png(evaluation.figures)
        else:  # that of an earlier report would show another checkpoint
            paths[2].unlink(missing_ok=True)
    for path in reversed(contents):  # the page last, so that a page that is there has its pictures
        write(path, contents[path])
    return Written(tuple(contents), (report,))


def write_comparison(run_dirs: Sequence[Path], out: Path) -> Written:
    """Write a page that compares several runs. Raises ConfigError and CheckpointError."""
    page.check_installed()
    for run_dir in run_dirs:
        check_folder(run_dir)
    if len({run_dir.resolve() for run_dir in run_dirs}) < len(run_dirs):
        raise ConfigError("RUN: a run is given twice; give each run once")
    check_ours(out)
    read = same_data({})
    reports = tuple(gather(run_dir, read=read)[0] for run_dir in run_dirs)
    write(out, page.render_comparison(reports).encode())
    return Written((out,), reports)


def report_of_fit(run_dir: Path, own: Own) -> None:
    """Write the report at the end of a fit, and print one line. A failure does not end the run."""
    try:
        tqdm.write(f"report: {write_report(run_dir, own).files[0]}")
    except KeyboardInterrupt:  # the result of the fit must not be lost
        tqdm.write(f"no report: interrupted; `report {run_dir}` makes it")
    except UserError as error:
        tqdm.write(f"no report: {error}")
    except Exception as error:  # the run has ended well, and its checkpoints are good
        tqdm.write(f"no report: {type(error).__name__}: {one_line(error)}; `report {run_dir}` tries again")


def check_ours(path: Path) -> None:
    """Raise ConfigError if the file cannot be written, or exists and `report` did not make it."""
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; give the name of a file, such as {path / REPORT_FILE}")
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: there is no folder {path.parent}; make it, or give another file")
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; give another file") from None
    if page.GENERATOR.encode() not in head:
        raise ConfigError(f"{path} exists, and report did not make it; move it away, or give another file with --out")


def write(path: Path, content: bytes) -> None:
    """Write a file as a whole. ConfigError if the system refuses."""
    try:
        with whole_file(path) as part:
            part.write_bytes(content)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}; give another file with --out") from None
