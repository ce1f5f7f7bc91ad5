"""evaluate and report as a person types them."""

import json
import shutil
from pathlib import Path

import made
import numpy as np
import pytest
from made_fixtures import _made, cache_dir, data_dir  # noqa: F401
from PIL import Image

from resnet_jax import fit
from resnet_jax.cli import command
from resnet_jax.runs import evaluation, photos

PROG = "python -m resnet_jax"


@pytest.fixture(scope="module")
def run_dir(data_dir: Path, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """A run of two epochs; not to be changed."""
    folder = tmp_path_factory.mktemp("commands") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache_dir))
        made.install(patch)
        fit(made.make_config(data_dir, folder, validation=8, devices=1))
    return folder


def says(argv: str, capsys) -> str:
    assert command(argv.split(), PROG) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def best_row(run_dir: Path) -> dict:
    return max(made.read_rows(run_dir), key=lambda row: (row["validation_accuracy"], row["epoch"]))


def test_evaluate_prints_the_figures(run_dir, capsys):
    row = best_row(run_dir)
    correct = round(row["test_accuracy"] * made.NUM_TEST)
    _, first, second, third, _, head, *rest = says(f"evaluate {run_dir}", capsys).splitlines()
    epochs = f"{row['epoch']} epoch{'s' if row['epoch'] > 1 else ''}"
    assert first == f"{run_dir}: checkpoint of step {row['step']}, after {epochs}: the best by validation accuracy"
    assert second.startswith(f"test of made: accuracy {row['test_accuracy']:.4f} ({correct} of {made.NUM_TEST}), loss ")
    assert third.endswith(f"{row['test_accuracy']:.4f} with these weights ({correct} of {made.NUM_TEST}): the same")
    assert head.split() == ["class", "images", "precision", "recall", "F1"]
    assert [line.split()[0] for line in rest[:4]] == list("abcd")


def test_evaluate_as_json(run_dir, capsys):
    """One object on stdout; the lines about the data go to stderr."""
    assert command(["evaluate", str(run_dir), "--json", "--part", "validation"], PROG) == 0
    captured = capsys.readouterr()
    held = json.loads(captured.out)
    assert held["accuracy"] == held["recorded_accuracy"] == best_row(run_dir)["validation_accuracy"]
    assert (held["part"], held["count"], held["class_names"]) == ("validation", 8, list("abcd"))
    assert np.trace(held["confusion"]) == held["correct"]
    assert "made: 52 training" in captured.err


def test_evaluate_on_a_folder_of_pictures(run_dir, capsys, tmp_path):
    """The test images as files: the same figures. A named data set: the same too."""
    images, labels = made.make_splits().test
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = tmp_path / "pictures" / "abcd"[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(folder / f"{i}.png")
    own = says(f"evaluate {run_dir}", capsys).splitlines()
    found = says(f"evaluate {run_dir} --data-folder pictures", capsys).splitlines()
    (line,) = [line for line in found if line.startswith("all pictures of pictures: ")]
    assert line.partition(": ")[2] == own[2].partition(": ")[2]
    named = says(f"evaluate {run_dir} --dataset made", capsys).splitlines()
    assert own[2] in named


def write_photos(folder: Path) -> None:
    """The test images on a white or a black margin, 12 pixels high and 10 wide."""
    images, labels = made.make_splits().test
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        photo = np.full((12, 10), 255 * (i % 3 > 0), np.uint8)
        photo[2:10, 1:9] = image[..., 0]
        (folder / "abcd"[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo).save(folder / "abcd"[label] / f"{i}.png")


def test_evaluate_prepares_pictures_as_predict_does(run_dir, capsys, tmp_path, monkeypatch):
    """The figures follow from the rows of predict: for a run whose images are light on dark, and for another one."""
    write_photos(tmp_path / "photos")
    for dark in (True, False):
        for module in (photos, evaluation):
            monkeypatch.setattr(module, "is_light_on_dark", lambda predictor, dark=dark: dark)
        assert command(["predict", str(run_dir), "photos", "--json"], PROG) == 0
        rows = json.loads(capsys.readouterr().out)
        assert command(["evaluate", str(run_dir), "--data-folder", "photos", "--json"], PROG) == 0
        held = json.loads(capsys.readouterr().out)
        assert held["inverted"] == sum(row["inverted"] for row in rows) == (made.NUM_TEST * 2 // 3 if dark else 0)
        assert held["correct"] == sum(row["classes"][0] == Path(row["path"]).parent.name for row in rows)
        assert held["changes"].get("made square with black", 0) == (made.NUM_TEST if dark else 0)
        out = says(f"evaluate {run_dir} --data-folder photos", capsys)
        assert (f"of {made.NUM_TEST}: inverted (light background): {held['inverted']}" in out) == dark


def test_pictures_of_a_run_on_a_folder_are_not_inverted(cache_dir, capsys, tmp_path, monkeypatch):  # noqa: F811
    """The rule is that of predict: a folder never counts as light on dark, whatever its name."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache_dir))
    write_photos(tmp_path / "mnist")
    config = made.make_config(Path(), tmp_path / "run", dataset="fashion_mnist", data_folder="mnist", devices=1)
    fit(made.change(config, data_dir="", epochs=1))
    capsys.readouterr()
    assert command(["evaluate", "run", "--data-folder", "mnist", "--json"], PROG) == 0
    held = json.loads(capsys.readouterr().out)
    assert (held["inverted"], held["changes"], held["count"]) == (0, {}, made.NUM_TEST)


def test_report_of_one_run_and_of_two(run_dir, capsys, tmp_path):
    shutil.copytree(run_dir, "a")
    assert says("report a", capsys).splitlines()[-1] == "report: a/report.html"
    assert {"report.html", "curves.png", "confusion.png"} <= {path.name for path in Path("a").iterdir()}
    before = made.snapshot(run_dir)
    assert says(f"report a {run_dir}", capsys).splitlines()[-1] == "report: report.html"
    assert "2 runs compared" in Path("report.html").read_text()
    assert says(f"report {run_dir} --out page.html", capsys).splitlines()[-1] == "report: page.html"
    assert made.snapshot(run_dir) == before


def as_json(argv: str, capsys) -> dict:
    """What a command that succeeds prints on stdout."""
    assert command([*argv.split(), "--json"], PROG) == 0
    return json.loads(capsys.readouterr().out)


def test_report_as_json(run_dir, capsys):
    """The files that are there, and the figures of evaluate."""
    shutil.copytree(run_dir, "a")
    expected = as_json(f"evaluate {run_dir}", capsys)
    held = as_json("report a", capsys)
    assert held["files"] == ["a/report.html", "a/curves.png", "a/confusion.png"]
    assert all(Path(file).is_file() for file in held["files"])
    (run,) = held["runs"]
    assert run.pop("run") == "a"
    assert run.pop("notes") == []
    assert run == {key: expected[key] for key in run}
    compared = as_json(f"report a {run_dir} --out page.html", capsys)
    assert (compared["files"], [run["run"] for run in compared["runs"]]) == (["page.html"], ["a", str(run_dir)])
    shutil.rmtree("a/checkpoints")
    (run,) = as_json("report a", capsys)["runs"]
    assert (set(run), run["part"]) == ({"run", "part", "notes"}, None)


BAD = {
    "evaluate": "RUN is needed: the folder of a run, or a folder that convert made",
    "evaluate nowhere": "RUN nowhere: there is no such folder; give the folder of a run, such as runs/NAME",
    "evaluate full": "full: no run is kept there",
    "evaluate {} --part tset": "unknown part 'tset': did you mean test?",
    "evaluate {} --dataset made --data-folder full": "--dataset and --data-folder: evaluate one of them",
    "evaluate {} --dataset mada": "unknown data set 'mada': did you mean made?",
    "evaluate {} --dataset made --part validation": "--part validation: made has no such part; choose one of test",
    "evaluate {} --data-folder nowhere": "the folder of pictures nowhere does not exist",
    "evaluate {} --data-folder strange": "strange has the classes cat, dog, which the network does not have",
    "evaluate {} --data-folder known --part test": "--part test: known has no test folder; leave --part out for all",
    "evaluate {} more": "unexpected word more",
    "report": "RUN is needed: the folder of a run",
    "report nowhere": "RUN nowhere: there is no such folder",
    "report full": "full: there is nothing to report: no row in metrics.jsonl and no checkpoint",
    "report {} --out mine.html": "mine.html exists, and report did not make it; move it away, or give another file",
    "report {} --out full": "full is a folder; give the name of a file, such as full/report.html",
    "report {} --out nowhere/page.html": "nowhere/page.html: there is no folder nowhere; make it, or give another file",
    "report {} {}": "RUN: a run is given twice",
    "report {} full": "full: there is nothing to report",
    "report gs://bucket/run": "gs://bucket/run is a URL",
}


@pytest.mark.parametrize("argv", BAD)
def test_bad_input_is_one_line_and_writes_nothing(argv, run_dir, capsys):
    Path("full").mkdir()
    Path("full/file").touch()
    Path("mine.html").write_text("mine")
    for name in ("strange/cat", "strange/dog", "known/a", "known/b"):
        Path(name).mkdir(parents=True)
        Image.new("L", (8, 8)).save(Path(name, "1.png"))
    before = made.snapshot(Path()), made.snapshot(run_dir)
    assert command(argv.format(run_dir, run_dir).split(), PROG) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("python -m resnet_jax")
    assert BAD[argv] in line
    assert (made.snapshot(Path()), made.snapshot(run_dir)) == before
