"""What TensorBoard shows of a fit, read back from its files: curves, images, and a resumed fit."""

import json
import sys
from typing import Any

import jax
import made
import numpy as np
import optax
import pytest
from events import read
from flax import linen as nn
from jax import numpy as jnp
from made import STEPS, fit_stopped_at, make_config, read_rows
from thorough import thorough_except

import resnet_jax
from resnet_jax import TensorBoard, fit
from resnet_jax.errors import ConfigError, TrainingError
from resnet_jax.reporting import tensorboard
from resnet_jax.reporting.confusion_picture import confusion_picture
from resnet_jax.training.step import epoch_rows

TAGS = {
    "train_loss": "loss/train",
    "train_accuracy": "accuracy/train",
    "test_loss": "loss/test",
    "test_accuracy": "accuracy/test",
    "images_per_second": "images_per_second",
    "train_seconds": "train_seconds",
    "eval_seconds": "eval_seconds",
    "learning_rate": "learning_rate",
}
LABELS = (np.arange(48) % 3).astype(np.int32)
IMAGES = np.random.default_rng(0).integers(0, 256, (48, 8, 9, 3), dtype=np.uint8)


def own_data(**parts: Any) -> Any:
    return resnet_jax.data.from_arrays(IMAGES, LABELS, ("cat", "dog", "owl"), **parts)


class Cnn(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(3)(nn.relu(nn.Conv(4, (3, 3), 2)(x)).mean((1, 2)))


def train(board: Any, data: Any, **changes: Any) -> Any:
    options = {"max_epochs": 2, "batch_size": 12, "devices": 1, "progress": False, "callbacks": [board], **changes}
    return resnet_jax.Trainer(**options).fit(Cnn(), data)


def same(points: Any, expected: Any) -> None:
    """The same steps, and the same numbers or pictures at them."""
    assert [step for step, _ in points] == [step for step, _ in expected]
    for (_, a), (_, b) in zip(points, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture
def dense(monkeypatch):
    """--tensorboard with a point at each step."""
    monkeypatch.setattr(TensorBoard.__init__, "__kwdefaults__", {"every": 1, "images": 16, "confusion": True})


# --- the flag


def test_a_run_has_the_same_bits_and_its_curves_are_its_rows(data_dir, tmp_path):
    fit(make_config(data_dir, tmp_path / "without"))
    fit(make_config(data_dir, tmp_path / "with", tensorboard=True))
    assert made.final(tmp_path / "with") == made.final(tmp_path / "without")
    assert not (tmp_path / "without" / "tensorboard").exists()
    rows, points = read_rows(tmp_path / "with"), read(tmp_path / "with" / "tensorboard")
    for key, tag in TAGS.items():
        assert points.pop(tag) == [(row["step"], np.float32(row[key])) for row in rows]
    assert set(points) == {"images/augmented", "confusion/test"}


def test_a_resumed_run_continues_its_curves(dense, data_dir, tmp_path):
    """Stopped inside an epoch, killed after the checkpoint of an epoch, and never stopped: the same points."""
    fit(make_config(data_dir, tmp_path / "whole", tensorboard=True))
    fit(make_config(data_dir, tmp_path / "parts", tensorboard=True, epochs=1))
    config = make_config(data_dir, tmp_path / "parts", resume=True, tensorboard=True)
    assert fit_stopped_at(STEPS + 2, config) == STEPS + 2
    fit(config)
    whole, parts = (read(tmp_path / name / "tensorboard") for name in ("whole", "parts"))
    assert len(list((tmp_path / "parts" / "tensorboard").iterdir())) == 3
    assert [step for step, _ in whole["loss/train_so_far"]] == [1, 2, 4, 5]
    timed = {TAGS[name] for name in made.TIMINGS}
    for tag in set(whole) - timed - {"images/augmented"}:
        same(parts[tag], whole[tag])
    assert [step for step, _ in parts["images_per_second"]] == [STEPS, 2 * STEPS]
    assert [step for step, _ in parts["images/augmented"]] == [1, STEPS + 1, STEPS + 3]
    same(parts["images/augmented"][:1], whole["images/augmented"])


@pytest.mark.thorough
def test_points_after_the_checkpoint_are_dropped(dense, data_dir, tmp_path):
    """The last checkpoint is lost, so that the second epoch is trained again."""
    fit(make_config(data_dir, tmp_path / "run", tensorboard=True))
    before = read(tmp_path / "run" / "tensorboard")
    made.damage(tmp_path / "run", 2 * STEPS)
    fit(make_config(data_dir, tmp_path / "run", resume=True, tensorboard=True))
    after = read(tmp_path / "run" / "tensorboard")
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 2
    for tag in ("loss/train", "loss/test", "loss/train_so_far", "learning_rate", "confusion/test"):
        same(after[tag], before[tag])


@pytest.mark.thorough
def test_the_flag_may_change_when_a_run_is_resumed(data_dir, tmp_path):
    fit(make_config(data_dir, tmp_path / "run", epochs=1))
    fit(make_config(data_dir, tmp_path / "run", epochs=2, resume=True, tensorboard=True))
    points = read(tmp_path / "run" / "tensorboard")
    assert [step for step, _ in points["loss/test"]] == [2 * STEPS]


def test_a_config_of_before_the_flag_is_read(data_dir, tmp_path):
    fit(make_config(data_dir, tmp_path / "run", epochs=1))
    path = tmp_path / "run" / "config.json"
    values = json.loads(path.read_text())
    assert values["run"].pop("tensorboard") is False
    path.write_text(json.dumps(values))
    assert len(fit(make_config(data_dir, tmp_path / "run", resume=True)).history) == 2


def test_without_the_package_nothing_is_written(monkeypatch, data_dir, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ConfigError) as caught:
        fit(make_config(data_dir, tmp_path / "run", tensorboard=True))
    assert str(caught.value).startswith("--tensorboard needs tensorboardX (")
    assert str(caught.value).endswith('): pip install "resnet_jax[tensorboard]"')
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match=r"^TensorBoard needs tensorboardX"):
        TensorBoard(tmp_path / "logs")
    assert list(tmp_path.iterdir()) == []


# --- the callback


def test_the_augmented_images_are_those_of_the_first_step(tmp_path):
    """The images of the order of the epoch, each with the key of its place, before they are normalised."""
    seen = []

    def noise(key, image):
        return jnp.clip(image + 0.2 * jax.random.normal(key, image.shape), 0, 1)

    def record(key, image):
        jax.debug.callback(lambda image: seen.append(np.asarray(image)), image)
        return image

    data, augment = own_data(), [resnet_jax.augment.flip, noise, record]
    train(TensorBoard(tmp_path, images=10), data, augment=augment, normalize=(0.5, 0.1), max_epochs=1, batch_size=48)
    jax.effects_barrier()
    (step, shown), *more = read(tmp_path)["images/augmented"]
    assert (step, more, shown.shape) == (1, [], (2 * 9, 8 * 10, 3))
    places = [np.s_[9 * (i // 8) : 9 * (i // 8) + 8, 10 * (i % 8) : 10 * (i % 8) + 9] for i in range(10)]
    steps = [np.rint(image * 255).astype(np.uint8) for image in seen]
    assert len(steps) == 10 + 48  # for the picture, and in the step
    for i, place in enumerate(places):
        assert sum(np.array_equal(shown[place], image) for image in steps) == 2, i
    rows = epoch_rows(0, 0, 48, 48, 1)[0, 0, :10]
    plain = [shown[place].astype(float) - IMAGES[row] for place, row in zip(places, rows, strict=True)]
    flipped = [shown[place].astype(float) - IMAGES[row][:, ::-1] for place, row in zip(places, rows, strict=True)]
    assert all(min(abs(a).mean(), abs(b).mean()) < 51 for a, b in zip(plain, flipped, strict=True))


def test_the_augmented_images_have_the_size_of_the_first_step(tmp_path):
    """10 images of 4x5 pixels with a white line below and beside each, in rows of 8."""
    train(TensorBoard(tmp_path, images=10), own_data(), sizes=[(1, (4, 5)), (2, 6)], max_epochs=1)
    ((_, shown),) = read(tmp_path)["images/augmented"]
    assert shown.shape == (2 * 5, 8 * 6, 3)


@pytest.mark.parametrize(
    ("part", "devices"), thorough_except([("validation", 1), ("validation", 2), ("test", 1)], ("validation", 2))
)
def test_the_confusion_matrix_is_that_of_the_weights(part, devices, tmp_path):
    """By model.apply over the whole part at once; 15 images in batches of 12."""
    data = own_data(**{part: 15})
    result = train(TensorBoard(tmp_path), data, max_epochs=1, devices=devices, optimizer=optax.adam(1e-2))
    images, labels = getattr(data, part)
    logits: Any = Cnn().apply(result.variables, images / np.float32(255))
    matrix = np.zeros((3, 3), int)
    np.add.at(matrix, (labels, np.argmax(logits, -1)), 1)
    ((step, shown),) = read(tmp_path)[f"confusion/{part}"]
    assert step == (48 - 15) // 12
    np.testing.assert_array_equal(shown, confusion_picture(matrix, data.class_names))


def test_keys_of_ones_own_are_curves_and_text_is_not(tmp_path):
    class Own:
        def on_epoch_end(self, loop):
            loop.row["norm"], loop.row["count"], loop.row["note"] = jnp.float32(1.5), 3, "text"

    train(None, own_data(), callbacks=[Own(), TensorBoard(tmp_path, images=0, confusion=False)])
    points = read(tmp_path)
    assert points["norm"] == [(4, 1.5), (8, 1.5)]
    assert points["count"] == [(4, 3.0), (8, 3.0)]
    assert not {"note", "images/augmented", "learning_rate"} & set(points)
    assert not [tag for tag in points if tag.startswith("confusion")]


def test_the_means_so_far_are_those_of_the_first_steps(tmp_path):
    """A learning rate of 0: the mean after all steps is the loss of the same batches by hand."""
    data = own_data()
    board = TensorBoard(tmp_path, every=2)
    result = train(board, data, optimizer=optax.sgd(0.0), max_epochs=1, learning_rate=lambda step: 0.1 * step)
    rows = epoch_rows(0, 0, 48, 12, 1)[0, :2].reshape(-1)
    logits: Any = Cnn().apply(result.variables, IMAGES[rows] / np.float32(255))
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, LABELS[rows])
    ((step, loss),) = read(tmp_path)["loss/train_so_far"]
    assert (step, loss) == (2, pytest.approx(float(losses.mean()), rel=1e-5))
    assert read(tmp_path)["learning_rate"] == [(2, pytest.approx(0.1)), (4, pytest.approx(0.3))]


def test_several_steps_in_a_call(tmp_path):
    train(TensorBoard(tmp_path, every=3), own_data(), batch_size=4, steps_per_call=5, max_epochs=1)
    assert [step for step, _ in read(tmp_path)["loss/train_so_far"]] == [5, 10]


def test_another_fit_replaces_the_first_and_says_so(tmp_path, capsys):
    for epochs in (2, 1):
        train(TensorBoard(tmp_path), own_data(), max_epochs=epochs)
    assert [step for step, _ in read(tmp_path)["loss/train"]] == [4]
    assert f"{tmp_path} holds events of an earlier fit" in capsys.readouterr().out


def test_what_is_read_while_it_is_written(tmp_path):
    """After each epoch the points of the epoch are in the file."""
    found = []

    class Reader:
        def on_epoch_end(self, loop):
            found.append([step for step, _ in read(tmp_path)["loss/train"]])

    train(None, own_data(), callbacks=[TensorBoard(tmp_path), Reader()])
    assert found == [[4], [4, 8]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every": 0}, "TensorBoard: every 0 must be at least 1"),
        ({"every": 2.5}, "TensorBoard: every 2.5: give a whole number"),
        ({"images": -1}, "TensorBoard: images -1 must be at least 0"),
        ({"log_dir": "gs://bucket/logs"}, "log_dir gs://bucket/logs is a URL"),
    ],
)
def test_invalid_arguments_are_named(arguments, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        TensorBoard(**{"log_dir": tmp_path, **arguments})


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        TrainingError, match=r"the events for TensorBoard cannot be written: .*; give another folder"
    ) as caught:
        train(TensorBoard(tmp_path / "file" / "logs"), own_data())
    assert "\n" not in str(caught.value)


def test_a_disk_that_is_full(tmp_path):
    with made.no_large_files(), pytest.raises(TrainingError, match="events for TensorBoard cannot be written: "):
        train(TensorBoard(tmp_path / "logs", images=48), own_data(), batch_size=48)  # noise of 10 kB


def test_a_grid_of_one_image():
    assert tensorboard.grid(np.zeros((1, 2, 3, 1))).shape == (3, 4, 1)
