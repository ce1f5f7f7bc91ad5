"""A report as one HTML file that needs no other file: what it holds, and how it is rendered."""

import dataclasses
import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resnet_jax.errors import ConfigError
from resnet_jax.reporting.charts import Chart, Series, curve, line_chart, reliability_chart
from resnet_jax.reporting.figures import Figures, confusions

TEMPLATES = Path(__file__).parent / "templates"
GENERATOR = "resnet_jax report"  # in the head of each page
NEEDED = ("jinja2", "matplotlib")
MOST_CLASSES = 30  # of the confusion matrix in a page
MOST_ROWS = 400  # of the table of epochs
PARTS = ("train", "validation", "test")
LEVELS = (0.005, 0.05, 0.15, 0.4, 0.75)  # of shares, for the shades of the confusion matrix


@dataclasses.dataclass(frozen=True)
class Fact:
    """One line of a list. note: what explains the value."""

    label: str
    value: str
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Option:
    """An option of the run, as a flag is typed, and its default."""

    flag: str
    value: str
    default: str


@dataclasses.dataclass(frozen=True)
class Mistake:
    """A picture that was predicted wrong. picture: a data URI. number: its place in the part, from 0."""

    picture: str
    number: int
    true: str
    predicted: str
    confidence: float


@dataclasses.dataclass(frozen=True)
class Picture:
    """A training picture as the network saw it. picture: a data URI. number: its place in the training part."""

    picture: str
    number: int
    name: str


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """The figures of a part of the data, such as test. checkpoint: which weights, in words."""

    part: str
    checkpoint: str
    figures: Figures
    mistakes: tuple[Mistake, ...] = ()


@dataclasses.dataclass(frozen=True)
class Report:
    """What a report shows of a run. A section without content is left out; notes say why.

    facts: the numbers at the top. about: data, hardware, versions. changed: the options that differ from the
    defaults. overrides: what --override changed, in words. layers: (layer, output shape, parameters).
    """

    title: str
    folder: str
    facts: tuple[Fact, ...] = ()
    about: tuple[Fact, ...] = ()
    notes: tuple[str, ...] = ()
    changed: tuple[Option, ...] = ()
    options: tuple[Option, ...] = ()
    overrides: tuple[str, ...] = ()
    history: tuple[dict[str, Any], ...] = ()
    evaluated: Evaluated | None = None
    augmented: tuple[Picture, ...] = ()
    layers: tuple[tuple[str, str, int], ...] = ()
    command: str = ""


def check_installed() -> None:
    """Raise ConfigError, which names the extra, if a package for reports is missing."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f'a report needs {" and ".join(missing)}: pip install "resnet_jax[report]"')


def render(report: Report) -> str:
    """The page of one run."""
    figures = report.evaluated and report.evaluated.figures
    return (
        _environment()
        .get_template("report.html")
        .render(
            report=report,
            figures=figures,
            charts=curves([("", report.history)]),
            reliability=figures and reliability_chart(figures.bins),
            confusions=figures and confusions(figures),
            shades=shades(figures) if figures and len(figures.classes) <= MOST_CLASSES else None,
            columns=columns(report.history),
            rows=thinned(report.history),
            generator=GENERATOR,
        )
    )


def render_comparison(reports: Sequence[Report]) -> str:
    """The page that compares several runs: numbers side by side, curves in the same axes, options that differ."""
    labels = list(dict.fromkeys(fact.label for report in reports for fact in report.facts))
    facts = [(label, [next((f for f in r.facts if f.label == label), None) for r in reports]) for label in labels]
    flags = list(dict.fromkeys(option.flag for report in reports for option in report.options))
    options = [(flag, [_value(report, flag) for report in reports]) for flag in flags]
    return (
        _environment()
        .get_template("compare.html")
        .render(
            reports=reports,
            facts=facts,
            options=[(flag, values) for flag, values in options if len(set(values)) > 1],
            charts=curves([(report.folder, report.history) for report in reports]),
            classes=f1_by_class(reports),
            generator=GENERATOR,
        )
    )


def curves(runs: Sequence[tuple[str, Sequence[dict[str, Any]]]]) -> list[Chart]:
    """Loss, accuracy and learning rate of one run by part, or of several runs by run."""
    if len(runs) == 1:
        _, rows = runs[0]
        named = [
            (f"{what.capitalize()}", [(f"{part}_{what}", part) for part in PARTS]) for what in ("loss", "accuracy")
        ]
        named.append(("Learning rate", [("learning_rate", "learning rate")]))
        charts = [
            line_chart(title, [curve(rows, key, name) for key, name in keys], zero=len(keys) == 1)
            for title, keys in named
        ]
    else:
        keys = [(f"{part.capitalize()} {what}", f"{part}_{what}") for what in ("loss", "accuracy") for part in PARTS]
        keys.append(("Learning rate", "learning_rate"))
        charts = [line_chart(title, _of_runs(runs, key), zero=key == "learning_rate") for title, key in keys]
    return [chart for chart in charts if chart is not None]


def _of_runs(runs: Sequence[tuple[str, Sequence[dict[str, Any]]]], key: str) -> list[Series]:
    return [curve(rows, key, name) for name, rows in runs]


def shades(figures: Figures) -> list[list[tuple[int, int]]]:
    """For each cell of the confusion matrix its count, and the shade of its share of the row, from 0 to 5."""
    shares = figures.confusion / figures.confusion.sum(1, keepdims=True).clip(1)
    return [
        [(int(count), sum(share >= level for level in LEVELS)) for count, share in zip(*row, strict=True)]
        for row in zip(figures.confusion, shares, strict=True)
    ]


def f1_by_class(reports: Sequence[Report]) -> list[tuple[str, list[float | None]]]:
    """The F1 of each class in each run; nothing unless all runs were evaluated on the same classes."""
    held = [report.evaluated.figures.classes for report in reports if report.evaluated]
    names = {tuple(one.name for one in classes) for classes in held}
    if len(held) < len(reports) or len(names) != 1:
        return []
    return [(row[0].name, [one.f1 for one in row]) for row in zip(*held, strict=True)]


def columns(history: Sequence[dict[str, Any]]) -> list[str]:
    """The keys of the rows, in their order."""
    return list(dict.fromkeys(key for row in history for key in row))


def thinned(history: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of a table: every n-th one of a long history, and the last."""
    every = -(-len(history) // MOST_ROWS) or 1
    return [*history[:-1:every], *history[-1:]]


def percent(share: float | None) -> str:
    """A share as text; a dash without one."""
    return "–" if share is None else f"{100 * share:.2f}\u00a0%"  # noqa: RUF001  (an en dash is meant)


def plain(value: Any) -> str:
    """A value of a row as text."""
    if isinstance(value, float):
        return (
            f"{value:.4f}" if 1e-3 <= abs(value) < 1000 else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
        )
    return (
        f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else "" if value is None else str(value)
    )


def _value(report: Report, flag: str) -> str:
    return next((option.value for option in report.options if option.flag == flag), "not recorded")


@functools.cache
def _environment() -> Any:
    import jinja2

    loader = jinja2.FileSystemLoader(TEMPLATES)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": percent, "plain": plain, "count": lambda number: f"{number:,}"}
    return environment
