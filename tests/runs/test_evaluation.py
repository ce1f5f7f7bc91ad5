"""Evaluation of a run: against the run's own accuracies, and of other data with the same classes."""

import dataclasses

import made
import numpy as np
import pytest
from PIL import Image

from resnet_jax import load
from resnet_jax.data import ImageDataset, from_arrays
from resnet_jax.errors import ConfigError, DataError
from resnet_jax.runs import evaluation
from resnet_jax.runs.evaluation import batch_size, evaluate, folder_data, numbers_of, open_run, own_data, pick_part
from resnet_jax.runs.rundir import CONFIG_FILE


@pytest.fixture(scope="module")
def opened(reported):
    with pytest.MonkeyPatch.context() as patch:
        made.install(patch)
        return open_run(reported)


@pytest.mark.parametrize("part", ["test", "validation"])
def test_it_agrees_with_the_run_to_the_last_image(opened, reported, part):
    """The row of the checkpoint's epoch, not the last row: `load` takes the best checkpoint."""
    rows = {row["step"]: row for row in made.read_rows(reported)}
    row = rows[opened.predictor.step]
    found = evaluate(opened, own_data(opened), part)
    assert found.figures.accuracy == row[f"{part}_accuracy"] == found.recorded
    assert found.figures.loss == pytest.approx(row[f"{part}_loss"], rel=1e-5)
    assert row["validation_accuracy"] == max(row["validation_accuracy"] for row in rows.values())


@pytest.mark.thorough
def test_images_that_the_network_resizes_agree_too(data_dir, tmp_path):
    from resnet_jax import fit

    config = made.make_config(data_dir, tmp_path / "run", image_size=12, epochs=2, devices=1, precision="bfloat16")
    rows = fit(config).history
    opened = open_run(tmp_path / "run")
    found = evaluate(opened, own_data(opened), "test")
    assert found.figures.accuracy == found.recorded == rows[-1]["test_accuracy"]
    assert opened.checkpoint == "Checkpoint of step 6, after 2 epochs: the latest one."


def test_the_probabilities_are_those_of_the_predictor(opened, reported):
    images = made.make_splits().test.images
    found = evaluation.probabilities(opened.predictor, images, 16)
    np.testing.assert_allclose(found, load(reported)(images), rtol=0, atol=1e-5)
    other = np.repeat(np.repeat(images, 2, 1), 2, 2)  # 16x16: fitted to the network's input first
    np.testing.assert_allclose(
        evaluation.probabilities(opened.predictor, other, 16), load(reported)(other), rtol=0, atol=1e-6
    )


def test_the_training_part_has_no_recorded_accuracy(opened):
    found = evaluate(opened, own_data(opened), "train")
    assert found.figures.count == made.NUM_TRAIN - 8
    assert found.recorded is None


def reordered(names=tuple("dcba")) -> ImageDataset:
    """The test images under other numbers of the same classes."""
    images, labels = made.make_splits().test
    return from_arrays(images, 3 - labels, class_names=names)


def test_classes_in_another_order_are_matched_by_name(opened):
    expected = evaluate(opened, own_data(opened), "test").figures
    found = evaluate(opened, reordered(), "train", "mine").figures
    np.testing.assert_array_equal(found.confusion, expected.confusion)
    assert [one.name for one in found.classes] == list("abcd")


def test_a_subset_of_the_classes():
    assert numbers_of(("c", "a"), tuple("abcd"), "x").tolist() == [2, 0]


def test_a_class_that_the_network_does_not_have(opened):
    with pytest.raises(DataError, match="mine has the classes e, which the network does not have; its classes are a, "):
        evaluate(opened, reordered(tuple("dcbe")), "train", "mine")


def test_parts_of_the_data():
    images, labels = made.make_splits().train
    bare = from_arrays(images, labels)
    held = from_arrays(images, labels, validation=8)
    assert pick_part(held, "", "x") == "validation"
    assert pick_part(held, "train", "x") == "train"
    with pytest.raises(ConfigError, match="--part test: x has no such part; choose one of validation, train"):
        pick_part(held, "test", "x")
    with pytest.raises(ConfigError, match="x has neither a test nor a validation part; --part train evaluates"):
        pick_part(bare, "", "x")


def write_pictures(folder, names="abcd", count=3):
    images, labels = made.make_splits().test
    for label, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for i in np.flatnonzero(labels == label)[:count]:
            Image.fromarray(images[i, ..., 0]).resize((16, 16)).save(folder / name / f"{i}.png")


def test_a_folder_without_parts_is_evaluated_as_a_whole(opened, tmp_path):
    write_pictures(tmp_path / "pictures", "ab")
    dataset, whole, _ = folder_data(opened, str(tmp_path / "pictures"))
    assert whole
    assert dataset.image_shape == opened.predictor.image_shape
    assert list(dataset.parts) == ["train"]
    assert evaluate(opened, dataset, "train", "x").figures.count == 6


def test_a_folder_with_parts(opened, tmp_path):
    for part, count in (("train", 3), ("test", 2)):
        write_pictures(tmp_path / "pictures" / part, count=count)
    dataset, whole, _ = folder_data(opened, str(tmp_path / "pictures"))
    assert not whole
    assert evaluate(opened, dataset, pick_part(dataset, "", "x"), "x").figures.count == 8


def test_the_data_of_the_config_file_counts(opened, reported, tmp_path):
    """A folder that has moved is named in config.json by the next resumption; the checkpoint may be older."""
    (tmp_path / "run").mkdir()
    text = (reported / CONFIG_FILE).read_text().replace('"batch_size": 16', '"batch_size": 8')
    (tmp_path / "run" / CONFIG_FILE).write_text(text)
    config = evaluation.config_of(tmp_path / "run", opened.config)
    assert config is not None
    assert config.batch_size == 8
    (tmp_path / "run" / CONFIG_FILE).write_text("{")
    assert evaluation.config_of(tmp_path / "run", opened.config) == opened.config
    gone = made.change(opened.config, source_dir=str(tmp_path / "gone"))
    assert evaluation.config_of(tmp_path / "run", gone) == opened.config


def test_other_pictures_than_those_of_the_run_are_refused(opened):
    other = dataclasses.replace(opened, meta=opened.meta | {"data": opened.meta["data"] | {"digest": "0"}})
    with pytest.raises(DataError, match="are not those that the run was trained on"):
        own_data(other)


@pytest.mark.parametrize(("batch", "devices", "expected"), [(128, 2, 64), (128, 0, 32), (512, 0, 64), (16, 1, 32)])
def test_the_batch_is_a_devices_share(batch, devices, expected):
    """Of 8 devices here."""
    config = made.change(made.make_config("x", "y"), batch_size=batch, devices=devices)  # pyright: ignore[reportArgumentType]
    assert batch_size(config) == expected
    assert batch_size(None) == evaluation.BATCH
