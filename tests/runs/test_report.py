"""The report of a run: what is written, and what it says when something is missing."""

import dataclasses
import json
import shutil

import made
import numpy as np
import pytest

import resnet_jax
from resnet_jax import fit
from resnet_jax.data import from_arrays
from resnet_jax.errors import CheckpointError, ConfigError, DataError
from resnet_jax.reporting import page
from resnet_jax.runs import gathered, report
from resnet_jax.runs.evaluation import open_run, own_data
from resnet_jax.runs.gathered import AUGMENTED, Own, gather, same_data
from resnet_jax.runs.report import write_comparison, write_report
from resnet_jax.training.step import epoch_rows

FILES = {"report.html", "curves.png", "confusion.png"}


@pytest.fixture
def copy(reported, tmp_path):
    """A copy of the run, without its report."""
    shutil.copytree(reported, tmp_path / "copy")
    for name in FILES:
        (tmp_path / "copy" / name).unlink()
    return tmp_path / "copy"


def test_a_fit_ends_with_a_report(reported):
    assert {path.name for path in reported.iterdir()} >= FILES
    content = (reported / "report.html").read_text()
    for title in ("What was run", "Curves", "Confusion matrix", "Calibration", "The most confident mistakes", "Layers"):
        assert title in content
    assert "What is missing" not in content
    assert content.count('alt="Training picture') == AUGMENTED
    assert len(content) < 2_000_000


def test_the_command_makes_the_same_report_as_the_fit(reported, copy):
    held, evaluation = gather(copy)
    assert evaluation is not None
    assert page.render(held).replace(str(copy), str(reported)) == (reported / "report.html").read_text()
    assert {path.relative_to(copy).name for path in write_report(copy).files} == FILES
    assert {path.name for path in copy.iterdir()} >= FILES


def test_its_mistakes_are_mistakes_and_its_numbers_find_them(reported):
    held, evaluation = gather(reported)
    assert held.evaluated is not None
    assert evaluation is not None
    images, labels = made.make_splits().test
    probabilities = resnet_jax.load(reported)(images)
    assert 0 < len(held.evaluated.mistakes) <= 36
    for mistake in held.evaluated.mistakes:
        row = probabilities[mistake.number]
        assert mistake.true == "abcd"[labels[mistake.number]] != mistake.predicted == "abcd"[row.argmax()]
        assert mistake.confidence == pytest.approx(row.max(), abs=1e-5)
    confidences = [mistake.confidence for mistake in held.evaluated.mistakes]
    assert confidences == sorted(confidences, reverse=True)


def test_its_training_pictures_are_those_of_the_first_step(data_dir, tmp_path, monkeypatch):
    """A callback of one step reads the picture that the network gets: through the loop's own augmentation."""
    seen = []
    monkeypatch.setattr(gathered, "data_uri", lambda picture: seen.append(picture) or "data:,")
    config = made.make_config(data_dir, tmp_path / "run", epochs=1, devices=1, normalize=False)
    fit(config)
    held, _ = gather(tmp_path / "run")
    rows = epoch_rows(0, 0, made.NUM_TRAIN, made.BATCH, 1)[0, 0, :AUGMENTED]
    assert [picture.number for picture in held.augmented] == rows.tolist()
    images, labels = made.make_splits().train
    assert [picture.name for picture in held.augmented] == ["abcd"[label] for label in labels[rows]]
    pictures = [picture for picture in seen if picture.dtype == np.float32][-AUGMENTED:]
    for picture, row in zip(pictures, rows, strict=True):
        assert any(np.allclose(picture, shifted) for shifted in all_crops(images[row] / np.float32(255)))
    originals = [
        np.array_equal(picture, images[row] / np.float32(255)) for picture, row in zip(pictures, rows, strict=True)
    ]
    assert not all(originals)


def all_crops(image):
    """Every mirror image and shift by up to one pixel."""
    for mirrored in (image, image[:, ::-1]):
        padded = np.pad(mirrored, ((1, 1), (1, 1), (0, 0)))
        for i in range(3):
            for j in range(3):
                yield padded[i : i + 8, j : j + 8]


# --- what is missing


def notes_of(run_dir) -> str:
    held, _ = gather(run_dir)
    page.render(held)
    return "\n".join(held.notes)


def test_a_torn_last_line_is_dropped_and_said(copy):
    with (copy / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 5, "train')
    held, _ = gather(copy)
    assert len(held.history) == 4
    assert held.notes == ("metrics.jsonl: line 5 cannot be read and is left out.",)


def test_data_that_is_gone_leaves_the_history(copy, tmp_path):
    config = json.loads((copy / "config.json").read_text())
    (tmp_path / "gone").touch()
    config["data"]["data_dir"] = str(tmp_path / "gone")
    (copy / "config.json").write_text(json.dumps(config))
    held, evaluation = gather(copy)
    assert evaluation is None
    assert len(held.history) == 4
    assert held.layers
    assert held.facts[0].label == "Test accuracy"
    assert "There are no figures and no pictures: the data cannot be read (" in held.notes[0]
    assert [path.name for path in write_report(copy).files] == ["report.html", "curves.png"]
    assert not (copy / "confusion.png").exists()


def test_a_run_without_checkpoints_has_its_history_alone(copy):
    shutil.rmtree(copy / "checkpoints")
    held, _ = gather(copy)
    assert (len(held.history), held.layers, held.evaluated) == (4, (), None)
    assert held.command
    assert "no run is kept there (it has no folder checkpoints/)" in held.notes[0]


def test_without_rows_the_checkpoint_has_the_history(copy):
    (copy / "metrics.jsonl").unlink()
    held, _ = gather(copy)
    assert [row["epoch"] for row in held.history] == [1, 2, 3, 4]
    assert "metrics.jsonl has no rows; the history is that of the checkpoint." in held.notes


def test_a_damaged_config_is_said_and_the_checkpoint_has_another(copy):
    (copy / "config.json").write_text("{")
    held, evaluation = gather(copy)
    assert "The recipe is missing: " in held.notes[0]
    assert held.options
    assert evaluation is not None


def test_nothing_to_report(tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(
        CheckpointError, match=r"there is nothing to report: no row in metrics\.jsonl and no checkpoint"
    ):
        write_report(tmp_path / "run")
    with pytest.raises(ConfigError, match="there is no such folder; give the folder of a run"):
        write_report(tmp_path / "nowhere")
    assert list((tmp_path / "run").iterdir()) == []


def test_overrides_are_shown(copy):
    config = json.loads((copy / "config.json").read_text())
    config["overrides"] = [{"step": 3, "changes": {"learning_rate": [0.05, 0.01]}}]
    (copy / "config.json").write_text(json.dumps(config))
    assert gather(copy)[0].overrides == ("at step 3: --learning-rate from 0.05 to 0.01",)


# --- a run of a Trainer


def own_run(run_dir, sizes=(), **parts):
    images, labels = made.make_splits().train
    data = from_arrays(images, labels, class_names=tuple("abcd"), **parts)
    model = resnet_jax.create_model(made.NETS[0], 4)
    trainer = resnet_jax.Trainer(
        max_epochs=2 if sizes else 1,
        batch_size=16,
        devices=1,
        progress=False,
        augment=[resnet_jax.augment.flip],
        sizes=sizes,
        run_dir=run_dir,
    )
    trainer.fit(model, data)
    return data


def test_a_trainer_writes_the_whole_report_at_its_end(tmp_path, capsys):
    own_run(tmp_path / "run", validation=12)
    assert capsys.readouterr().out.splitlines()[-1] == f"report: {tmp_path / 'run' / 'report.html'}"
    content = (tmp_path / "run" / "report.html").read_text()
    assert "ResNet on arrays" in content
    assert "What is missing" not in content
    assert "On the validation part: 12 images." in content
    assert content.count('alt="Training picture') == AUGMENTED
    held, evaluation = gather(tmp_path / "run")  # later the folder alone does not say how to build the model
    assert evaluation is None
    assert len(held.history) == 1
    assert held.notes[0].startswith("There are no figures, pictures and layers: a Trainer made this run")
    assert {fact.label for fact in held.about} >= {"Data", "Digest of the data", "Hardware", "Versions"}


def test_its_training_pictures_have_the_size_of_the_first_epoch(tmp_path, monkeypatch):
    shapes = []
    monkeypatch.setattr(gathered, "data_uri", lambda picture: shapes.append(picture.shape) or "data:,")
    own_run(tmp_path / "run", sizes=[(1, 6), (2, 8)])  # without another part there are no pictures of mistakes
    assert shapes == [(6, 6, 1)] * AUGMENTED


def test_data_without_a_test_and_a_validation_part(tmp_path):
    own_run(tmp_path / "run")
    content = (tmp_path / "run" / "report.html").read_text()
    assert "There are no figures: the data has neither a test nor a validation part." in content
    assert not (tmp_path / "run" / "confusion.png").exists()
    assert (tmp_path / "run" / "curves.png").exists()


# --- writing


def test_files_of_another_maker_are_kept(copy, tmp_path):
    (copy / "curves.png").write_bytes(b"mine")
    before = made.snapshot(copy)
    with pytest.raises(ConfigError, match=r"curves\.png exists, and report did not make it; move it away, or give"):
        write_report(copy)
    assert made.snapshot(copy) == before
    (written,) = write_report(copy, out=tmp_path / "page.html").files
    assert written.read_text().startswith("<!doctype html>")
    write_report(copy, out=tmp_path / "page.html")  # its own file may be replaced
    assert made.snapshot(copy) == before
    for out, message in ((copy, "is a folder"), (tmp_path / "no" / "page.html", "there is no folder")):
        with pytest.raises(ConfigError, match=message):
            write_report(copy, out=out)


def test_a_report_that_fails_does_not_fail_the_run(data_dir, tmp_path, monkeypatch, capsys):
    def broken(*_):
        raise RuntimeError("a bug\nin two lines")

    monkeypatch.setattr(report, "gather", broken)
    result = fit(made.make_config(data_dir, tmp_path / "run", epochs=1, report=True))
    assert len(result.history) == 1
    line = capsys.readouterr().out.splitlines()[-1]
    assert line == f"no report: RuntimeError: a bug; `report {tmp_path / 'run'}` tries again"
    assert not FILES & {path.name for path in (tmp_path / "run").iterdir()}


def test_a_run_without_the_extra_says_which_one_to_install(copy, reported, monkeypatch, capsys):
    monkeypatch.setattr(page, "NEEDED", ("jinja2", "no_such_package"))
    report.report_of_fit(copy, Own(own_data(open_run(reported))))
    line = 'no report: a report needs no_such_package: pip install "resnet_jax[report]"\n'
    assert capsys.readouterr().out.endswith(line)


def test_a_run_that_a_signal_stops_has_no_report(data_dir, tmp_path):
    made.fit_stopped_at(2, made.make_config(data_dir, tmp_path / "run", report=True))
    assert not FILES & {path.name for path in (tmp_path / "run").iterdir()}


def test_several_runs_in_one_page(reported, copy, tmp_path, capsys):
    config = json.loads((copy / "config.json").read_text())
    config["optim"]["momentum"] = 0.5
    (copy / "config.json").write_text(json.dumps(config))
    capsys.readouterr()
    (written,) = write_comparison([reported, copy], tmp_path / "page.html").files
    content = written.read_text()
    assert capsys.readouterr().out.count("made: 52 training") == 1  # the data is read once
    assert "2 runs compared" in content
    assert "--momentum" in content
    assert "--nesterov" not in content
    with pytest.raises(ConfigError, match="a run is given twice"):
        write_comparison([reported, reported], tmp_path / "other.html")
    assert not (tmp_path / "other.html").exists()


def test_runs_with_the_same_data_share_it(reported):
    reads = {}
    opened = open_run(reported)
    assert same_data(reads)(opened) is same_data(reads)(opened)
    assert len(reads) == 1


def test_shared_data_is_checked_against_the_digest_of_each_run(reported):
    """The pictures of a folder may have changed between two runs."""
    opened = open_run(reported)
    read = same_data({})
    read(opened)
    meta = opened.meta | {"data": opened.meta["data"] | {"digest": "of other pictures"}}
    with pytest.raises(DataError, match="are not those that the run was trained on"):
        read(dataclasses.replace(opened, meta=meta))
