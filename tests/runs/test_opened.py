"""Everything that holds weights: runs, converted folders and files, as --pretrained, load and convert take them."""

import dataclasses
import json
from typing import Any

import jax
import made
import numpy as np
import pytest
import safetensors.numpy
from jax import numpy as jnp
from made import make_config, make_splits

from resnet_jax import create_model, fit, from_torch, load, to_torch
from resnet_jax.data import imagenet
from resnet_jax.errors import ConfigError, InteropError, UserError
from resnet_jax.interop import Weights, load_weights, save_weights
from resnet_jax.models import ARCHS
from resnet_jax.runs.build import make_model, named_info
from resnet_jax.runs.checks import check
from resnet_jax.runs.opened import open_weights
from resnet_jax.runs.pretrained import read_pretrained


def variables(arch="tiny", classes=4, channels=1, **options) -> dict[str, Any]:
    model = create_model(arch, classes, **options)
    return jax.device_get(model.init(jax.random.key(3), jnp.zeros((1, 16, 16, channels))))


def write(path, held, arch="tiny", **options):
    """A .safetensors file."""
    safetensors.numpy.save_file(to_torch(held, arch, **options), path)
    return path


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def run_dir(data_dir, tmp_path_factory):
    """A run of one epoch with its images normalised; not to be changed."""
    folder = tmp_path_factory.mktemp("opened")
    with pytest.MonkeyPatch.context() as patch:
        made.install(patch)
        fit(made.change(make_config(data_dir, folder / "run", epochs=1), normalize=True, width=0.5, image_size=12))
    return folder / "run"


def test_all_kinds_are_opened(run_dir, tmp_path):
    weights, predictor = open_weights(run_dir), load(run_dir)
    assert (weights.arch, weights.options) == ("tiny", {"width": 0.5})
    assert_same(weights.variables, jax.device_get(predictor.variables))
    assert weights.class_names == tuple("abcd")
    assert weights.preprocess["image_size"] == [12, 12]
    np.testing.assert_allclose(weights.preprocess["mean"], np.ravel(predictor.preprocess.mean_std or ())[:1])
    save_weights(tmp_path / "w", weights)
    again = open_weights(tmp_path / "w")
    assert_same(again.variables, weights.variables)
    assert dataclasses.replace(again, variables={}) == dataclasses.replace(weights, variables={})
    file = write(tmp_path / "a.safetensors", weights.variables, width=0.5)
    assert_same(open_weights(file, "tiny", options={"width": 0.5}).variables, weights.variables)


def test_a_folder_of_a_download_is_opened(tmp_path):
    """It has a config.json of another kind."""
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub/config.json").write_text('{"model_type": "resnet"}')
    write(tmp_path / "hub/model.safetensors", variables())
    lines = []
    assert_same(open_weights(tmp_path / "hub", "tiny", report=lines.append).variables, variables())
    assert lines == [f"weights read from {tmp_path}/hub/model.safetensors"]
    write(tmp_path / "hub/pytorch_model.bin", variables())
    with pytest.raises(InteropError, match=r"several files of weights: model\.safetensors, pytorch_model\.bin"):
        open_weights(tmp_path / "hub", "tiny")


def test_what_is_not_opened(run_dir, tmp_path):
    (tmp_path / "empty").mkdir()
    file = write(tmp_path / "a.safetensors", variables())
    for call, says in (
        (lambda: open_weights(tmp_path / "none"), "there is no such file or folder"),
        (lambda: open_weights(tmp_path / "empty"), "there are no weights in this folder"),
        (lambda: open_weights(file), "--arch NAME is needed"),
        (lambda: open_weights(run_dir, "tiny_wide"), "holds tiny; leave --arch out"),
        (lambda: open_weights(run_dir, options={"stem": "small"}), "--stem: .* the folder .* names its architecture"),
        (lambda: open_weights(run_dir, entry="ema"), "--entry: only for a file"),
        (lambda: open_weights(run_dir, allow_nan=True), "--allow-nan: only for a file"),
        (lambda: load(file), "is a file; .* convert makes a folder of it"),
        (lambda: open_weights(run_dir, num_classes=9), "num_classes 9: the file has 4 classes"),
    ):
        with pytest.raises(UserError, match=says):
            call()


def test_nan_in_a_folder_that_another_one_is_made_of(tmp_path):
    held = jax.tree.map(np.array, variables())
    held["params"]["stage1"]["block1"]["conv1"]["kernel"][0] = np.nan
    save_weights(tmp_path / "w", Weights("tiny", {}, held))
    with pytest.raises(InteropError, match="NaN"):
        open_weights(tmp_path / "w", head="reset", num_classes=7)
    new = open_weights(tmp_path / "w", head="reset", num_classes=7, allow_nan=True)
    assert_same(new.variables["params"]["stage1"], held["params"]["stage1"])


def test_a_folder_named_checkpoints_makes_no_run(tmp_path):
    """As in the cache of torch.hub."""
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    file = write(tmp_path / "hub/checkpoints/a.safetensors", variables())
    with pytest.raises(InteropError, match="there are no weights in this folder"):
        open_weights(tmp_path / "hub", "tiny")
    file.rename(tmp_path / "hub/a.safetensors")
    assert_same(open_weights(tmp_path / "hub", "tiny").variables, variables())


def test_grey_images_keep_the_image_size(tmp_path):
    preprocess = {"mean": [0.5], "std": [0.25], "image_size": [48, 40]}
    save_weights(tmp_path / "w", Weights("tiny", {}, variables(channels=3), preprocess))
    assert open_weights(tmp_path / "w", in_channels=3).preprocess == preprocess
    assert open_weights(tmp_path / "w", in_channels=1).preprocess == {"image_size": [48, 40]}


def test_a_converted_run_predicts_as_the_run(run_dir, tmp_path):
    save_weights(tmp_path / "w", open_weights(run_dir))
    predictor, images = load(tmp_path / "w"), make_splits().test.images
    np.testing.assert_allclose(predictor(images), load(run_dir)(images), rtol=0, atol=1e-6)
    assert predictor.class_names == tuple("abcd")
    assert (predictor.config, predictor.arch.name) == (None, "tiny")
    with pytest.raises(ConfigError, match="call load without a model"):
        load(tmp_path / "w", predictor.model)


def test_a_folder_of_before_predicts_from_unit_images(tmp_path, capsys):
    """Its classes have numbers, and its images the size that the stem was made for."""
    save_weights(tmp_path / "w", Weights("tiny", {"stem": "small"}, variables(stem="small")))
    predictor = load(tmp_path / "w")
    assert predictor.class_names == tuple(f"class {number}" for number in range(4))
    assert (predictor.image_shape, predictor.preprocess.mean_std) == ((32, 32, 1), None)
    (line,) = capsys.readouterr().out.splitlines()
    assert "images in [0, 1]; if it was trained on normalised images, convert it again with --mean and --std" in line
    save_weights(tmp_path / "v", Weights("tiny", {}, variables(), {"mean": None, "std": None}))
    load(tmp_path / "v")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "change",
    [
        {"arch": "tiny_wide"},
        {"options": {"width": 3.0}},
        {"options": {"no_such": 1}},
        {"class_names": ["a"]},
        {"preprocess": {"mean": [1, 2], "std": [1, 2]}},
    ],
)
def test_a_folder_whose_parts_do_not_fit(change, tmp_path):
    save_weights(tmp_path / "w", Weights("tiny", {}, variables()))
    about = json.loads((tmp_path / "w/weights.json").read_text())
    del about["entries_sha256"]
    (tmp_path / "w/weights.json").write_text(json.dumps(about | change))
    with pytest.raises(InteropError, match=r"w: weights\.json does not fit the arrays \(.*\); convert again"):
        load(tmp_path / "w")


# --- ImageNet

NET = dataclasses.replace(ARCHS["tv_resnet18"], name="net", stages=((1, 64), (1, 8)))


def test_imagenets_preprocessing_travels(tmp_path, monkeypatch):
    """load(W)(picture) is the network on the normalised picture; the names are in the order of the classes."""
    monkeypatch.setitem(ARCHS, "net", NET)
    held = variables("net", 1000, 3)
    weights = open_weights(write(tmp_path / "a.safetensors", held, "net"), "net")
    save_weights(tmp_path / "w", weights)
    predictor = load(tmp_path / "w")
    picture = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3)).astype(np.uint8)
    mean, std = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], np.float32)
    logits = create_model("net", 1000).apply(held, (picture / np.float32(255) - mean) / std)
    expected = jax.nn.softmax(np.asarray(logits))
    np.testing.assert_allclose(predictor.probabilities(picture), expected, rtol=1e-4)
    names = predictor.class_names
    assert (names[0], names[1], names[207], names[999]) == ("tench", "goldfish", "golden retriever", "toilet tissue")
    assert len(set(names)) == 1000


@pytest.mark.parametrize(
    ("arch", "classes", "channels", "rules", "expected"),
    [
        ("net", 1000, 3, {}, (True, 1000)),
        ("net", 1000, 3, {"head": "reset", "num_classes": 5}, (True, 0)),
        ("net", 1000, 3, {"in_channels": 1}, (False, 1000)),
        ("net", 10, 3, {}, (False, 0)),
        ("net", 1000, 1, {}, (False, 0)),
        ("tiny", 1000, 3, {}, (False, 0)),
    ],
)
def test_which_weights_are_taken_for_imagenets(arch, classes, channels, rules, expected, tmp_path, monkeypatch):
    monkeypatch.setitem(ARCHS, "net", NET)
    file = write(tmp_path / "a.safetensors", variables(arch, classes, channels), arch)
    weights = open_weights(file, arch, **rules)
    assert (weights.preprocess == imagenet.PREPROCESS, len(weights.class_names)) == expected


# --- --pretrained


def pretrained(config, path, **changes) -> dict[str, Any]:
    """What a run starts from."""
    config = check(made.change(config, pretrained=str(path), **changes))
    info = named_info(config.data)
    return read_pretrained(config, make_model(config, ARCHS[config.arch], info, "float32"), info) or {}


def test_a_run_starts_from_another_run_or_a_file(run_dir, data_dir, tmp_path):
    config, held = make_config(data_dir, tmp_path / "run"), load(run_dir).variables
    assert_same(pretrained(config, run_dir, width=0.5), jax.device_get(held))
    plain = variables()
    assert_same(pretrained(config, write(tmp_path / "a.safetensors", plain)), plain)
    headless = {key: value for key, value in to_torch(plain, "tiny").items() if not key.startswith("net.last")}
    safetensors.numpy.save_file({f"module.{key}": value for key, value in headless.items()}, tmp_path / "b.safetensors")
    start = pretrained(config, tmp_path / "b.safetensors")
    assert "head" not in start["params"]
    assert_same(start["params"]["stage1"], plain["params"]["stage1"])


def test_a_frozen_network_with_other_preprocessing_is_warned_of(run_dir, data_dir, tmp_path, capsys):
    config = make_config(data_dir, tmp_path / "run")
    warnings = {}
    for normalize in (False, True):
        for freeze in (False, True):
            pretrained(config, run_dir, width=0.5, normalize=normalize, freeze=freeze)
            warnings[normalize, freeze] = capsys.readouterr().out
    assert [key for key, text in warnings.items() if text] == [(False, True)]
    assert warnings[False, True].startswith(f"warning: the weights in {run_dir} expect images with mean (")
    assert "values in [0, 1]" in warnings[False, True]
    for unknown in ({}, {"image_size": [16, 16]}):  # nothing to compare
        folder = tmp_path / f"w{len(unknown)}"
        save_weights(folder, Weights("tiny", {}, variables(), unknown))
        pretrained(config, folder, freeze=True, normalize=True)
    assert capsys.readouterr().out == ""


def test_from_torch_of_a_run(run_dir):
    weights = open_weights(run_dir)
    assert_same(from_torch(to_torch(weights.variables, "tiny", width=0.5), "tiny", width=0.5), weights.variables)


def test_a_folder_that_another_one_is_made_of(run_dir, tmp_path):
    new = open_weights(run_dir, head="reset", num_classes=7)
    assert new.variables["params"]["head"]["kernel"].shape[-1] == 7
    assert new.class_names == ()
    assert_same(new.variables["params"]["stage1"], open_weights(run_dir).variables["params"]["stage1"])
    save_weights(tmp_path / "w", new)
    assert load_weights(tmp_path / "w").options == {"width": 0.5}
