"""load: the best checkpoint's predictions, against the network applied by hand."""

import dataclasses
import json
import pickle
import shutil
from functools import partial

import jax
import made
import numpy as np
import pytest
from jax import numpy as jnp
from made import BATCH, NUM_TRAIN, kept, make_config, make_splits
from thorough import thorough_except

from resnet_jax import create_model, fit, load
from resnet_jax.data import DATASETS
from resnet_jax.errors import CheckpointError, ConfigError
from resnet_jax.runs import predictor
from resnet_jax.runs.build import info_of_meta
from resnet_jax.runs.checkpoint import Checkpoints
from resnet_jax.training import loop

IMAGES = make_splits().test.images
VALIDATION = 12
STEPS = (NUM_TRAIN - VALIDATION) // BATCH


@pytest.fixture(scope="module")
def run_dir(data_dir, cache_dir, tmp_path_factory):
    """A run whose first epoch was its best: the validation accuracy is said to fall, and that of the test to rise."""
    folder = tmp_path_factory.mktemp("run") / "run"
    accuracies = {"validation": iter([3, 2, 1]), "test": iter([1, 2, 3])}

    def evaluate(fit_, name, evaluate=loop.evaluate):
        return dataclasses.replace(evaluate(fit_, name), correct=next(accuracies[name]))

    with pytest.MonkeyPatch.context() as patch:
        made.install(patch)
        patch.setenv("XDG_CACHE_HOME", str(cache_dir))
        patch.setattr(loop, "evaluate", evaluate)
        fit(make_config(data_dir, folder, epochs=3, learning_rate=0.01, validation=VALIDATION))
    return folder


@pytest.fixture(scope="module")
def expected(run_dir) -> np.ndarray:
    """The probabilities of all test images, by model.apply at once, in numpy before and after it."""
    model = create_model(made.NETS[0], 4)
    like = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1))))
    with Checkpoints(run_dir, read_only=True) as checkpoints:
        variables = checkpoints.restore_variables(STEPS, like)
    images = (IMAGES.astype(np.float32) / 255 - 0.5) / 0.25
    logits = np.asarray(jax.jit(model.apply)(variables, images), np.float64)
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


def test_the_best_and_not_the_latest(run_dir, expected):
    assert kept(run_dir) == [STEPS, 2 * STEPS, 3 * STEPS]
    predict = load(run_dir)
    assert predict.step == STEPS
    assert predict.class_names == ("a", "b", "c", "d")
    assert predict.config.arch == "tiny"
    found = predict(IMAGES)
    assert (found.shape, found.dtype) == ((len(IMAGES), 4), np.float32)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(found.sum(1), 1, 1e-5)


@pytest.mark.parametrize("batch", thorough_except((1, 5, 37, 256), 5))
def test_every_form_of_images_and_any_number(run_dir, expected, monkeypatch, batch):
    monkeypatch.setattr(predictor, "BATCHES", (1, batch))
    predict = load(str(run_dir))
    forms = {
        "(N, H, W)": IMAGES[..., 0],
        "float32": IMAGES.astype(np.float32) / 255,
        "float64": IMAGES / 255,
        "jax": jnp.asarray(IMAGES),
    }
    for name, images in forms.items():
        np.testing.assert_allclose(predict(images), expected, atol=1e-5, err_msg=name)
    for count in (1, 6):
        np.testing.assert_allclose(predict(IMAGES[:count]), expected[:count], atol=1e-5)


@pytest.mark.parametrize("shape", [(0, 8, 8, 1), (0, 8, 8)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_no_images(run_dir, shape, dtype):
    assert load(run_dir)(np.zeros(shape, dtype)).shape == (0, 4)


def test_another_size_is_resized(run_dir):
    """Each pixel 2x2 times: what bilinear, antialiased resizing to the half gives is a blur of the image."""
    large = IMAGES[:3].repeat(2, 1).repeat(2, 2)
    found = load(run_dir)(large)
    rows = np.zeros((8, 16))
    for i in range(8):
        weights = np.maximum(0, 1 - np.abs(np.arange(16) + 0.5 - (2 * i + 1)) / 2)
        rows[i] = weights / weights.sum()
    small = np.einsum("ij,njkc,lk->nilc", rows, large / 255, rows)
    np.testing.assert_allclose(found, load(run_dir)(small), atol=1e-5)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 8, 8, 2), np.uint8), r"shape \(2, 8, 8, 2\): this network takes \(N, H, W, 1\), or one picture"),
        (np.zeros((2, 1, 8, 8), np.uint8), "move the channels to the last axis"),
        (np.zeros(8, np.uint8), r"shape \(8,\): this network takes"),
        (np.zeros((1, 2, 8, 8, 1), np.uint8), r"shape \(1, 2, 8, 8, 1\): this network takes"),
        (np.zeros((2, 0, 8, 1), np.uint8), "the pictures have no pixels"),
        (np.full((2, 8, 8, 1), 256), "dtype int64, from 256 to 256: use integers from 0 to 255"),
        (np.full((2, 8, 8, 1), -1), "dtype int64, from -1 to -1: use integers"),
        (np.zeros((2, 8, 8, 1), bool), "dtype bool: use uint8"),
        (np.zeros((8, 8), complex), "dtype complex128: use uint8"),
        ("cat.png", r"images cat.png: a path is no picture; open it with PIL.Image.open\(path\)"),
        (["cat.png"], "picture 0 cat.png: a path is no picture"),
        ([[1, 2], [3]], "images: no array"),
        ([np.zeros((5, 8, 8), np.uint8)], r"picture 0 of shape \(5, 8, 8\): this network takes"),
        (
            [np.zeros((8, 8), np.uint8), np.zeros((1, 8, 8, 1), np.uint8)],
            r"picture 1 of shape .* each picture of a",
        ),
        (list(np.zeros((28, 28, 3), np.uint8)), r"picture 0 of shape \(28, 3\): the last axis may be its channels"),
        (np.full((2, 8, 8, 1), 255.0), r"must lie in \[0, 1\]"),
        (np.full((2, 8, 8, 1), -0.1), r"must lie in \[0, 1\]"),
        (np.full((2, 8, 8, 1), np.nan), "floating images have NaN values"),
    ],
)
def test_what_is_no_image(run_dir, images, message):
    with pytest.raises(ConfigError, match=message):
        load(run_dir)(images)


def test_what_is_no_run(tmp_path):
    with pytest.raises(CheckpointError, match="no run is kept there"):
        load(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        load(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"file is a file; .* convert makes a folder of it"):
        load(tmp_path / "file")


@pytest.mark.parametrize("what", ["params", "batch_stats", "meta"])
def test_a_damaged_run(run_dir, tmp_path, what, capsys):
    """The next best checkpoint is used; nothing is renamed, as the folder may be another process's."""
    folder = tmp_path / "run" / "checkpoints"
    shutil.copytree(run_dir, tmp_path / "run")
    shutil.rmtree(folder / str(STEPS) / what)
    predict = load(tmp_path / "run")
    assert predict.step == 2 * STEPS
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{folder / str(STEPS)}: the checkpoint is damaged (")
    assert line.endswith(f"); using the one of step {2 * STEPS}")
    assert kept(tmp_path / "run") == [STEPS, 2 * STEPS, 3 * STEPS]
    for step in (2 * STEPS, 3 * STEPS):
        shutil.rmtree(folder / str(step) / what)
    with pytest.raises(CheckpointError, match=r"damaged .* the run has no good one") as caught:
        load(tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_the_metrics_file_is_not_needed(run_dir, tmp_path):
    shutil.copytree(run_dir, tmp_path / "run")
    for step in (STEPS, 2 * STEPS):
        (tmp_path / "run" / "checkpoints" / str(step) / "metrics" / "metrics").write_bytes(b"\xff")
    assert load(tmp_path / "run").step == STEPS


def test_a_model_for_a_run_that_has_one(run_dir):
    with pytest.raises(CheckpointError, match="call load without a model"):
        load(run_dir, create_model(made.NETS[0], 4))


def test_a_data_set_that_this_session_does_not_know(run_dir, monkeypatch):
    """The checkpoint says all that is needed. Old ones only name the data set: the message names it too."""
    monkeypatch.delitem(DATASETS, "made")
    predict = load(run_dir)
    assert predict.class_names == ("a", "b", "c", "d")
    with pytest.raises(ConfigError, match="unknown data set 'made'"):
        info_of_meta({"config": dataclasses.asdict(predict.config)})


def test_what_only_training_needs_may_be_gone(run_dir, tmp_path, expected):
    """The optimizer's state, and the table's row of the architecture."""
    shutil.copytree(run_dir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / str(STEPS) / "opt_state")
    np.testing.assert_allclose(load(tmp_path / "run")(IMAGES), expected, atol=1e-5)


def test_the_json_item_tells_what_the_run_was(run_dir, data_dir):
    with Checkpoints(run_dir, read_only=True) as checkpoints:
        meta = checkpoints.restore_meta(3 * STEPS)
    assert (meta["step"], meta["epoch"], meta["seed"]) == (3 * STEPS, 3, 0)
    assert meta["arch"] == json.loads(json.dumps(dataclasses.asdict(made.NETS[0])))
    config = make_config(data_dir, run_dir, epochs=3, learning_rate=0.01, validation=VALIDATION)
    assert meta["config"] == json.loads(json.dumps(dataclasses.asdict(config)))
    assert meta["config"] == json.loads((run_dir / "config.json").read_text())
    assert meta["versions"]["jax"] == jax.__version__
    assert [row["validation_accuracy"] for row in meta["history"]] == [3 / 12, 2 / 12, 1 / 12]
    assert [row["test_accuracy"] for row in meta["history"]] == [1 / 37, 2 / 37, 3 / 37]


def test_batch_norms_are_folded(run_dir, expected):
    """The stem's norm and both norms of each block."""
    predict = load(run_dir)
    assert "rsqrt" not in jax.jit(predict.probabilities).lower(IMAGES).as_text()
    assert "rsqrt" in jax.jit(predict.unfolded).lower(IMAGES).as_text()
    np.testing.assert_allclose(predict.probabilities(IMAGES), predict.unfolded(IMAGES), rtol=0, atol=1e-5)
    np.testing.assert_allclose(pickle.loads(pickle.dumps(predict))(IMAGES), expected, atol=1e-5)


def test_a_trace_keeps_nothing_of_its_own(run_dir, expected):
    """The first call is inside jax.jit: the folded kernels are arrays, and serve the next call."""
    predict = load(run_dir)
    np.testing.assert_allclose(jax.jit(predict.probabilities)(IMAGES), expected, atol=1e-5)
    np.testing.assert_allclose(predict.probabilities(IMAGES), expected, atol=1e-5)


def test_other_variables_are_folded_again(run_dir):
    predict = load(run_dir)
    before = predict(IMAGES)
    predict.variables = jax.tree.map(lambda leaf: leaf * 1.25, predict.variables)
    np.testing.assert_allclose(predict(IMAGES), predict.unfolded(IMAGES), atol=1e-5)
    assert np.abs(predict(IMAGES) - before).max() > 1e-3
    predict.variables["params"]["stem"]["bn"]["scale"] *= 0.5  # in place
    np.testing.assert_allclose(predict(IMAGES), predict.unfolded(IMAGES), atol=1e-5)


def test_gradients_of_probabilities(run_dir):
    predict = load(run_dir)
    images = IMAGES[:4].astype(np.float32) / 255

    def score(function, images):
        return function(images)[:, 1].sum()

    found, wanted = (jax.grad(partial(score, f))(images) for f in (predict.probabilities, predict.unfolded))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


def test_gradients_of_the_variables(run_dir):
    """While jax traces the variables, nothing can be folded."""
    predict = load(run_dir)

    def score(variables):
        predict.variables = variables
        return predict.probabilities(IMAGES[:4])[:, 1].sum()

    gradient = jax.grad(score)(load(run_dir).variables)
    assert float(jnp.abs(gradient["params"]["stem"]["bn"]["scale"]).max()) > 0
