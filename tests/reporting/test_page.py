"""The page: what stands in it, read with the parser of the standard library."""

import dataclasses
import html.parser
import importlib.util
import itertools

import numpy as np
import pytest

from resnet_jax.errors import ConfigError
from resnet_jax.reporting import page
from resnet_jax.reporting.figures import figures
from resnet_jax.reporting.page import Evaluated, Fact, Mistake, Option, Picture, Report

NAMES = ("T-shirt", "<script>alert(1)</script>", "c")
LABELS = np.array([0, 0, 1, 2, 2, 2])
PREDICTED = np.array([0, 1, 1, 2, 2, 0])
PROBABILITIES = np.full((6, 3), 0.05, np.float32)
PROBABILITIES[np.arange(6), PREDICTED] = 0.9
FIGURES = figures(PROBABILITIES, LABELS, NAMES)
ROWS = tuple(
    {"epoch": i, "train_loss": 2.0 / i, "train_accuracy": 0.3 * i, "test_accuracy": 0.2 * i, "learning_rate": 0.1}
    for i in (1, 2, 3)
)
REPORT = Report(
    title="tiny on <made>",
    folder="runs/a&b",
    facts=(Fact("Test accuracy", "66.67 %", "4 of 6 images"),),
    about=(Fact("Data", "made"),),
    notes=("The recipe is missing.",),
    changed=(Option("--epochs", "3", "10"),),
    options=(Option("--epochs", "3", "10"), Option("--seed", "0", "0")),
    history=ROWS,
    evaluated=Evaluated("test", "Checkpoint.", FIGURES, (Mistake("data:,", 1, NAMES[0], NAMES[1], 0.9),)),
    augmented=(Picture("data:,", 17, "c"),),
    layers=(("stem", "(1, 8, 8, 64)", 640), ("head", "(1, 3)", 195)),
    command="python train.py --arch tiny",
)


class Reader(html.parser.HTMLParser):
    """Tags with their attributes, the text, and the rows of tables by the id of their caption."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.rows, self.caption, self.open = "", {}, "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "caption":
            self.caption = dict(attrs)["id"]
        if tag == "tr":
            self.rows.setdefault(self.caption, []).append([])
        if tag in ("td", "th"):
            self.rows[self.caption][-1].append("")
        self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in self.open:
            while self.open.pop() != tag:
                pass

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.text += data
        if ("td" in self.open or "th" in self.open) and "table" in self.open:
            self.rows[self.caption][-1][-1] += data.strip()

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


def test_the_tables_hold_the_figures():
    read = Reader(page.render(REPORT))
    assert read.rows["matrix"][1:] == [
        [NAMES[0], "1", "1", "0"],
        [NAMES[1], "0", "1", "0"],
        [NAMES[2], "1", "0", "2"],
    ]
    assert read.rows["by-class"][3] == ["c", "3", "100.00\u00a0%", "66.67\u00a0%", "80.00\u00a0%"]
    assert read.rows["layer-table"][-1] == ["total", "", "835"]
    assert [row[0] for row in read.rows["epochs"]] == ["epoch", "1", "2", "3"]
    assert read.rows["changed"][1:] == [["--epochs", "3", "10"]]
    assert read.rows["pairs"][1] == [NAMES[0], NAMES[1], "1", "50.00\u00a0%"]
    assert read.rows["bins"][1] == ["0.87 to 0.93", "6", "90.00\u00a0%", "66.67\u00a0%"]


def test_what_users_wrote_is_text_and_never_markup():
    content = page.render(REPORT)
    assert "<script" not in content
    assert "tiny on &lt;made&gt;" in content
    assert "runs/a&amp;b" in content


def test_it_needs_no_other_file():
    read = Reader(page.render(REPORT))
    addresses = [value for _, held in read.tags for name, value in held.items() if name in ("src", "href")]
    assert addresses
    assert all(address and address.startswith(("data:", "#")) for address in addresses)
    assert "url(" not in page.render(REPORT)
    assert "@import" not in page.render(REPORT)


@pytest.mark.parametrize("render", [page.render, lambda report: page.render_comparison([report, report])])
def test_its_structure_is_accessible(render):
    read = Reader(render(REPORT))
    assert read.all("html") == [{"lang": "en"}]
    assert "title" in [tag for tag, _ in read.tags]
    assert all(image["alt"] for image in read.all("img"))
    levels = [int(tag[1]) for tag, _ in read.tags if tag in ("h1", "h2", "h3")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert all("scope" in cell for cell in read.all("th"))
    names = [held["id"] for _, held in read.tags if "id" in held]
    assert len(names) == len(set(names))
    labels = [held["aria-labelledby"] for _, held in read.tags if "aria-labelledby" in held]
    assert {name for label in labels if label for name in label.split()} <= set(names)
    assert {held["href"][1:] for held in read.all("a") if held["href"]} <= set(names)


def test_sections_without_content_are_left_out():
    read = Reader(page.render(Report("tiny", "run", history=ROWS[:1])))
    assert [held["id"] for held in read.all("section")] == ["run", "curves"]
    read = Reader(page.render(Report("tiny", "run", notes=("nothing",))))
    assert [held["id"] for held in read.all("section")] == ["run"]
    assert "nothing" in read.text


def test_many_classes_and_many_epochs_stay_below_2_mb():
    names = tuple(f"class {i}" for i in range(1000))
    held = figures(np.eye(1000, dtype=np.float32), np.roll(np.arange(1000), 1), names)
    history = tuple({**ROWS[0], "epoch": i} for i in range(1, 10_001))
    report = dataclasses.replace(REPORT, evaluated=Evaluated("test", "x", held), history=history)
    content = page.render(report)
    assert len(content) < 1_000_000
    rows = Reader(content).rows
    assert "matrix" not in rows
    assert len(rows["by-class"]) == 1001
    assert rows["epochs"][-1][0] == "10,000"


def test_a_comparison_shows_what_differs():
    other = dataclasses.replace(
        REPORT, folder="runs/c", options=(Option("--epochs", "5", "10"), Option("--seed", "0", "0")), facts=()
    )
    read = Reader(page.render_comparison([REPORT, other]))
    assert read.rows["different"] == [["Flag", "runs/a&b", "runs/c"], ["--epochs", "3", "5"]]
    assert read.rows["results"][2] == ["Test accuracy", "66.67 %4 of 6 images", "\u2013"]
    assert [row[0] for row in read.rows["f1"][1:]] == list(NAMES)
    assert "f1" not in Reader(page.render_comparison([REPORT, dataclasses.replace(REPORT, evaluated=None)])).rows
    titles = [chart.title for chart in page.curves([("a", ROWS), ("b", ROWS)])]
    assert titles == ["Train loss", "Train accuracy", "Test accuracy", "Learning rate"]


@pytest.mark.parametrize("name", page.NEEDED)
def test_a_missing_package_names_the_extra(name, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda wanted: None if wanted == name else found(wanted))
    with pytest.raises(ConfigError, match=rf'a report needs {name}: pip install "resnet_jax\[report\]"'):
        page.check_installed()


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.12345, "0.1235"), (1e-5, "1e-05"), (0.0, "0"), (1660.4, "1,660"), (12345, "12,345"), (None, ""), ("x", "x")],
)
def test_numbers_of_a_table(value, text):
    assert page.plain(value) == text
