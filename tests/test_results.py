"""The results of the recipes: the pages and the headers of the recipes say what the files in results/ hold."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from made_sweep import record_of, run_of

from benchmarks import results as tables
from resnet_jax.errors import ConfigError
from resnet_jax.runs import results as measured
from resnet_jax.runs.flags import changed, parse, recipes
from resnet_jax.runs.results import Advice, advice, is_chapters, of_recipes, read_results
from resnet_jax.runs.sweep import FREE, config_in
from resnet_jax.runs.sweep_file import accuracy_text, seconds_of, with_run
from resnet_jax.training.display import duration

FIGURE = re.compile(r"\b0\.\d{4}\b|\b\d+ min \d+ s\b")
QUICK = record_of(run_of(0, 0.92), run_of(1, 0.9))
CHAPTER = record_of(run_of(0, 0.88, 2000.0), recipe="resnet18")


def figures_of(record: dict[str, Any]) -> set[str]:
    """What a header may say of a sweep."""
    accuracies = [run["test_accuracy"] for run in record["runs"] if "test_accuracy" in run]
    text = f"{accuracy_text(record['test_accuracy'])} {duration(seconds_of(record))}"
    return set(FIGURE.findall(text)) | {f"{accuracy:.4f}" for accuracy in accuracies}


def faults(header: str, record: dict[str, Any], all_figures: set[str]) -> list[str]:
    """What the header of a recipe does not say of its sweep, and its figures that no sweep has."""
    text = " ".join(header.replace("\n#", " ").split())
    missing = [] if accuracy_text(record["test_accuracy"]) in text else [accuracy_text(record["test_accuracy"])]
    return missing + [figure for figure in FIGURE.findall(text) if figure not in all_figures]


def test_the_headers_of_the_recipes_agree_with_the_results():
    held = of_recipes(read_results())
    figures = {figure for record in read_results().values() if record["test_accuracy"] for figure in figures_of(record)}
    for name, record in held.items():
        header = re.match(r"(#.*\n)*", recipes()[name].read_text(encoding="utf-8"))
        assert header is not None
        assert faults(header[0], record, figures) == [], name


def test_a_header_that_disagrees_is_found():
    figures = figures_of(QUICK)
    assert figures == {"0.9200", "0.9000", "0.9100", "0.1271", "3 min 10 s"}
    assert faults("# Reached: 0.9100 ±\n# 0.1271 (n = 2) in 3 min 10 s.", QUICK, figures) == []
    assert faults("# Reached: 0.9187 (n = 1)", QUICK, figures) == ["0.9100 ± 0.1271 (n = 2)", "0.9187"]


def test_the_results_are_those_of_the_recipes_as_they_are():
    """The statistics follow from the runs, and the recipe has not changed since it was measured."""
    for name, record in read_results().items():
        rebuilt = record | {"runs": []}
        for run in record["runs"]:
            rebuilt = with_run(rebuilt, run)
        assert rebuilt == record, name
        flags = [flag for flag in record["flags"] if flag != "--no-test"]
        now = parse(["--config", record["recipe"], *flags])
        free: dict[str, Any] = dict.fromkeys(("data_dir", "source_dir", "run_dir"), "")
        old = config_in(Path(name), record)
        same = {option: getattr(now.run, option) for option in FREE if hasattr(now.run, option)} | free
        assert changed(old, same | {"seed": now.seed, "config": now.config}) == changed(now, free), name


def test_the_tables_of_the_pages_are_made_from_the_results():
    results = read_results()
    for page, up in tables.PAGES.items():
        assert tables.is_current(page, up, results), "python benchmarks/results.py writes the tables"


def test_the_table():
    longer = record_of(run_of(0, 0.93), {"seed": 1, "failed": "diverged"}, recipe="quick", flags=("--epochs", "6"))
    no_test = record_of() | {"validation_accuracy": {"n": 1, "mean": 0.9, "std": None, "interval": None}}
    text = tables.table({"quick": QUICK, "no_test": no_test, "quick_6": longer}, "../")
    head, rule, first, second = text.splitlines()
    assert head == "| recipe | test accuracy | parameters | epochs | time of a run | machine | command |"
    assert rule == "| --- | --- | --- | --- | --- | --- | --- |"
    machine = "AMD EPYC 9R14: bfloat16, 2 cores, oneDNN kernels"
    assert first == (
        "| [quick](../configs/quick.toml), `--epochs 6` | [0.9300 (n = 1)](../results/quick_6.json), 1 more failed | "
        f"11,178,378 | 5 | 3 min 10 s | {machine} | `resnet-jax sweep quick --seeds 2 --epochs 6` |"
    )
    assert second == (
        "| [quick](../configs/quick.toml) | [0.9100 ± 0.1271 (n = 2)](../results/quick.json) | "
        f"11,178,378 | 5 | 3 min 10 s | {machine} | `resnet-jax sweep quick --seeds 2` |"
    )
    assert tables.table({}) == tables.EMPTY


def test_a_recipe_that_is_not_in_configs_has_no_row():
    with pytest.raises(ConfigError, match=r"results/a\.json: 'my\.toml' is no recipe in configs/"):
        tables.table({"a": record_of(run_of(0, 0.9), recipe="my.toml")})


def test_a_table_replaces_the_one_between_the_marks():
    page = f"before\n\n{tables.START}\n\nold\nlines\n\n{tables.END}\n\nafter\n"
    changed_page = tables.with_table(page, "| new |")
    assert changed_page == f"before\n\n{tables.START}\n\n| new |\n\n{tables.END}\n\nafter\n"
    assert tables.with_table(changed_page, "| new |") == changed_page
    for wrong in ("no marks", page + page):
        with pytest.raises(ValueError, match="once each"):
            tables.with_table(wrong, "| new |")


def test_the_advice_on_a_cpu():
    assert advice("cpu", {}) == (
        "--config quick is quicker on a CPU: a smaller network and images of 28x28 pixels, in minutes"
    )
    quick = "--config quick is quicker on a CPU: measured test accuracy 0.9100 ± 0.1271 (n = 2) in 3 min 10 s"
    assert advice("cpu", {"quick": QUICK}) == quick
    assert advice("cpu", {"quick": QUICK, "resnet18": CHAPTER}) == (
        f"{quick}; this recipe: 0.8800 (n = 1) in 33 min 20 s"
    )


def test_the_advice_elsewhere():
    """The best that was measured on the chapter's data; nothing if it is this recipe."""
    assert advice("gpu", {}) == ""
    better = "--config quick is better: measured test accuracy 0.9100 ± 0.1271 (n = 2) in 3 min 10 s"
    assert advice("gpu", {"quick": QUICK}) == better
    other = QUICK | {"recipe": "cifar", "config": {"data": {"dataset": "cifar10"}}}
    assert advice("tpu", {"resnet18": CHAPTER, "cifar": other}) == ""
    assert advice("tpu", {"quick": QUICK, "resnet18": CHAPTER, "cifar": other}) == (
        f"{better}; this recipe: 0.8800 (n = 1) in 33 min 20 s"
    )


@pytest.mark.parametrize(
    ("words", "same"),
    [
        ("", True),
        ("--arch resnet18", True),
        ("--config resnet18 --seed 3 --run-dir a --no-report", True),
        ("--epochs 1", False),
        ("--config quick", False),
        ("--arch resnet50", False),
        ("--dataset mnist", False),
    ],
)
def test_the_chapters_own_job_is_recognised(words, same):
    assert is_chapters(parse(words.split())) == same


@pytest.mark.parametrize("step", [0, 5])
def test_it_is_printed_as_a_run_starts(step, monkeypatch, capsys):
    """Once, and not when a run is resumed; a damaged file in results/ does not stop a training."""
    loop: Any = SimpleNamespace(step=step, devices=[SimpleNamespace(platform="cpu")])
    for results in ({"quick": QUICK, "other": record_of(run_of(0, 0.99), flags=("--flip",))}, None):
        monkeypatch.setattr(
            measured, "read_results", lambda results=results: results or measured.read_record(Path("/"))
        )
        Advice().on_fit_start(loop)
        line = f"{advice('cpu', {'quick': QUICK} if results else {})}\n"
        assert capsys.readouterr().out == ("" if step else line)
