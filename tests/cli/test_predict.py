"""predict, as a person types it: the rows of `load`, for good pictures and beside bad ones."""

import json
import os
from pathlib import Path

import made
import numpy as np
import pytest
from PIL import Image

from resnet_jax import cli, load
from resnet_jax.data import listing
from resnet_jax.runs import photos, predictor

IMAGES = made.make_splits().test.images[:7]


@pytest.fixture
def pictures(tmp_path) -> Path:
    """Seven pictures of the test part, two of them in a folder below, with files that are no pictures."""
    folder = tmp_path / "pictures"
    (folder / "below").mkdir(parents=True)
    for i, image in enumerate(IMAGES):
        Image.fromarray(image[..., 0]).save(folder / ("below" if i > 4 else ".") / f"{i}.png")
    (folder / "notes.txt").write_text("none")
    (folder / ".hidden.png").write_text("none")
    return folder


def predict(capsys, *words) -> tuple[int, str, str]:
    capsys.readouterr()
    code = cli.command(["predict", *map(str, words)], "resnet-jax")
    out, err = capsys.readouterr()
    return code, out, err


def test_a_folder_gives_the_rows_of_load(run_dir, pictures, capsys):
    code, out, err = predict(capsys, run_dir, pictures, "--top", 9, "--json")
    rows = json.loads(out)
    assert code == 0
    assert "skipped 1 files that are no pictures" in err
    names = [*(f"{i}.png" for i in range(5)), "below/5.png", "below/6.png"]
    assert [row["path"] for row in rows] == [str(pictures / name) for name in names]
    expected = load(run_dir)(IMAGES)
    for row, probabilities in zip(rows, expected, strict=True):
        found = dict(zip(row["classes"], row["probabilities"], strict=True))
        np.testing.assert_allclose([found[name] for name in "abcd"], probabilities, atol=1e-6)
        assert row["probabilities"] == sorted(row["probabilities"], reverse=True)
        assert (row["inverted"], row["changes"]) == (False, [])


def test_one_picture_is_one_line_for_people(run_dir, pictures, capsys):
    path = pictures / "0.png"
    probabilities = load(run_dir)(IMAGES[:1])[0]
    best = np.argsort(-probabilities)[:2]
    words = ", ".join(f"{'abcd'[k]} {probabilities[k]:.1%}" for k in best)
    assert predict(capsys, run_dir, path, "--top", 2) == (0, f"{path}: {words}\n", "")
    assert predict(capsys, "--top", "2", run_dir, path) == (0, f"{path}: {words}\n", "")


def test_an_inverted_picture_is_reported(run_dir, pictures, monkeypatch, capsys):
    """The made set is not light on dark. --invert always works for every set."""
    Image.fromarray(255 - IMAGES[0, ..., 0]).save("negative.png")
    (row,) = json.loads(predict(capsys, run_dir, "negative.png", "--invert", "always", "--json")[1])
    (plain,) = json.loads(predict(capsys, run_dir, pictures / "0.png", "--json")[1])
    assert (row["classes"], row["probabilities"]) == (plain["classes"], plain["probabilities"])
    assert (row["inverted"], row["changes"]) == (True, ["inverted"])
    monkeypatch.setattr(photos, "is_light_on_dark", lambda predictor: True)
    Image.new("L", (8, 8), 255).save("white.png")
    code, out, _ = predict(capsys, run_dir, "white.png")
    assert code == 0
    assert out.endswith(" (inverted (light background))\n")


def test_an_unreadable_picture_does_not_stop_the_others(run_dir, pictures, capsys):
    (pictures / "1.png").write_text("a text file")
    code, out, err = predict(capsys, run_dir, pictures)
    assert code == 2
    assert [line.split(":")[0] for line in out.splitlines()[1:]] == [
        str(pictures / f"{i}.png") for i in (0, 2, 3, 4)
    ] + [str(pictures / "below" / f"{i}.png") for i in (5, 6)]
    (line,) = err.splitlines()
    assert line.startswith(f"resnet-jax predict: {pictures / '1.png'} cannot be read as a picture")
    code, out, _ = predict(capsys, run_dir, pictures, "--json")
    rows = json.loads(out)
    assert (code, len(rows)) == (2, 7)
    assert [set(row) for row in rows if "error" in row] == [{"path", "error"}]
    assert rows[1]["path"] == str(pictures / "1.png")


BAD = {
    "predict run": "PICTURE is needed: ",
    "predict run nowhere.png": "nowhere.png: there is no such file or folder",
    "predict run empty": "the folder empty holds no pictures; give PNG",
    "predict run good.png --top 0": "--top 0 must be at least 1",
    "predict run good.png --top many": "--top many: give a whole number",
    "predict run good.png --invert maybe": "unknown invert 'maybe'",
    "predict nowhere good.png": "nowhere: no run is kept there",
    "predict good.png good.png": "good.png is a file; python -m resnet_jax convert makes a folder",
    "predict run good.png --tpo 3": "did you mean --top?",
}


@pytest.mark.parametrize("as_json", ["", " --json"])
@pytest.mark.parametrize("words", BAD)
def test_bad_input_is_one_line(words, as_json, run_dir, capsys):
    Path("empty").mkdir()
    Path("run").symlink_to(run_dir)
    Image.new("L", (8, 8)).save("good.png")
    assert cli.command([*words.split(), *as_json.split()], "resnet-jax") == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert BAD[words] in line


def test_many_pictures_are_read_batch_by_batch(run_dir, monkeypatch, capsys):
    """Never more than a batch of decoded pictures exists."""
    monkeypatch.setattr(predictor, "BATCHES", (1, 4))
    read, seen = [], []
    open_picture, call = photos.open_picture, predictor.Predictor.__call__

    def opened(path, channels):
        read.append(path)
        return open_picture(path, channels)

    def called(self, images):
        seen.append((len(images), len(read)))
        return call(self, images)

    monkeypatch.setattr(photos, "open_picture", opened)
    monkeypatch.setattr(predictor.Predictor, "__call__", called)
    for i in range(11):
        Image.new("L", (30, 20), 10 * i).save(f"{i}.png")
    code, out, _ = predict(capsys, run_dir, ".")
    assert (code, len(out.splitlines())) == (0, 11)
    assert seen == [(4, 4), (4, 8), (3, 11)]


def test_a_name_that_the_terminal_cannot_show(run_dir, capsys):
    Image.new("L", (8, 8)).save("good.png")
    name = os.fsdecode(b"\xff.png")  # no UTF-8
    os.rename("good.png", name)
    code, out, _ = predict(capsys, run_dir, name)
    assert (code, out.split(":")[0]) == (0, listing.shown(name))
    (row,) = json.loads(predict(capsys, run_dir, name, "--json")[1])
    assert row["path"] == listing.shown(name) != name
