"""demo without a browser: the answer for a picture, the examples, and what the command refuses."""

import os
import re
import socket
import sys

import jax
import made
import numpy as np
import pytest
from PIL import Image

from resnet_jax import cli, create_model, data, grad_cam, load
from resnet_jax.cli import demo, demo_examples
from resnet_jax.cli.demo_answer import SIDE, Explainer, enlarged, of_upload
from resnet_jax.data.augment import Preprocess
from resnet_jax.errors import ConfigError
from resnet_jax.models import Arch
from resnet_jax.reporting.heatmap import overlay
from resnet_jax.runs import Config, DataConfig, Predictor
from resnet_jax.runs.build import DataInfo, named_info
from resnet_jax.runs.photos import as_trained, open_picture

PROG = "python -m resnet_jax"
RNG = np.random.default_rng(0)


def explainer_of(info: DataInfo, config: Config | None = None) -> Explainer:
    """An untrained network for that data."""
    model = create_model(Arch("tiny", ((1, 8), (1, 16)), stem="small"), len(info.class_names))
    variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, *info.image_shape), np.float32))
    preprocess = Preprocess(info.image_shape[:2], (0.3, 0.4))
    return Explainer(Predictor(model, variables, info, preprocess, config=config), "some/run")


@pytest.fixture(scope="module")
def fashion() -> Explainer:
    config = Config("resnet18", data=DataConfig("fashion_mnist"))
    return explainer_of(named_info(config.data), config)


@pytest.fixture(scope="module")
def colour() -> Explainer:
    return explainer_of(DataInfo("pets", ("cat", "dog", "owl"), (24, 32, 3), 10, digest="1"))


def photo(light: bool) -> np.ndarray:
    """A rectangle of noise with a margin, on white or on black: (80, 60, 3)."""
    picture = np.full((80, 60, 3), 255 if light else 0, np.uint8)
    picture[10:70, 20:40] = RNG.integers(90, 160, (60, 20, 3))
    return picture


@pytest.mark.parametrize("light", [True, False])
def test_the_answer_is_the_predictors(fashion, light, tmp_path):
    Image.fromarray(photo(light)).save(tmp_path / "photo.png")
    answer = fashion.of_file(tmp_path / "photo.png")
    predictor = fashion.predictor
    pixels = as_trained(open_picture(tmp_path / "photo.png", 1), predictor).pixels
    (expected,) = predictor(pixels[None])
    assert answer.probabilities == dict(zip(predictor.class_names, expected.tolist(), strict=True))
    images = predictor.preprocess.evaluate(pixels[None])
    (values,) = grad_cam(predictor.model, predictor.variables, images, int(expected.argmax()))
    assert answer.seen.shape == answer.overlay.shape == (SIDE, SIDE, 3)
    np.testing.assert_array_equal(answer.seen, np.repeat(pixels.repeat(12, 0).repeat(12, 1), 3, 2))
    np.testing.assert_allclose(answer.overlay, overlay(answer.seen, values), atol=1)
    assert (answer.overlay != answer.seen).any()
    first = "The picture was inverted: " if light else "The picture was not inverted: its background is dark"
    assert answer.note.startswith(first)
    assert answer.note.endswith(" Also: margin removed, made square with black.")


def test_pictures_of_another_run_are_not_inverted(colour):
    answer = colour.of_pixels(photo(light=True))
    assert answer.note == "The picture was not inverted. Also: cropped around its centre."
    assert answer.probabilities is not None
    assert list(answer.probabilities) == ["cat", "dog", "owl"]
    assert sum(answer.probabilities.values()) == pytest.approx(1, abs=1e-5)
    assert answer.seen.shape == answer.overlay.shape == (240, 320, 3)


def test_no_program_is_compiled_after_the_warm_up():
    explainer = explainer_of(DataInfo("pets", ("cat", "dog"), (24, 24, 3), 10, digest="1"))
    explainer.warm_up()
    with made.compilations() as seconds:
        assert explainer.of_pixels(photo(light=True)).probabilities
        assert explainer.of_pixels(photo(light=False)[:50]).probabilities
    assert not seconds


BAD = {
    "text.png": r"text.png cannot be read as a picture \(.*\); give a PNG, JPEG, WebP, BMP, GIF or TIFF file",
    "short.png": "short.png cannot be read as a picture",
    "huge.png": r"huge.png cannot be read as a picture \(.*400000000 pixels",
    "empty.png": "All pixels have the same colour, so there is nothing to classify.",
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_picture_is_a_note(fashion, tmp_path, name):
    (tmp_path / "text.png").write_text("not a picture")
    Image.fromarray(photo(light=True)).save(tmp_path / "good.png")
    (tmp_path / "short.png").write_bytes((tmp_path / "good.png").read_bytes()[:300])
    if name == "huge.png":
        Image.new("1", (20_000, 20_000)).save(tmp_path / name)
    Image.new("L", (420, 420), 255).save(tmp_path / "empty.png")
    answer = fashion.of_file(tmp_path / name)
    assert answer[:3] == (None, None, None)
    assert re.match(BAD[name], answer.note), answer.note
    assert str(tmp_path) not in answer.note
    assert "\n" not in answer.note


def test_only_pictures_that_the_page_received_are_opened(fashion, tmp_path, monkeypatch):
    """A client can name any path on this machine."""
    (tmp_path / "received").mkdir()
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "received"))
    for name in ("private.png", "received/own.png"):
        Image.fromarray(photo(light=True)).save(tmp_path / name)
    (tmp_path / "received" / "link.png").symlink_to(tmp_path / "private.png")
    assert of_upload(fashion, str(tmp_path / "received" / "own.png")).probabilities
    for path in ("private.png", "received/../private.png", "received/link.png", "missing.png"):
        assert of_upload(fashion, str(tmp_path / path))[:3] == (None, None, None)
    monkeypatch.delenv("GRADIO_TEMP_DIR")
    assert of_upload(fashion, str(tmp_path / "received" / "own.png"))[:3] == (None, None, None)


def test_a_network_that_takes_no_pictures():
    with pytest.raises(ConfigError, match="some/run: its images have 2 channels; a picture has 1 or 3"):
        explainer_of(DataInfo("pairs", ("a", "b"), (8, 8, 2), 10))


def test_enlarged_repeats_pixels():
    small = RNG.integers(0, 256, (100, 150, 3), np.uint8)
    large = enlarged(small)
    assert large.shape == (200, 300, 3)
    np.testing.assert_array_equal(large[::2, 1::2], small)
    assert enlarged(RNG.integers(0, 256, (500, 20, 1), np.uint8)).shape == (500, 20, 3)


def row_of(test, label: int) -> int:
    """The first picture of a class."""
    return int(np.flatnonzero(test.labels == label)[0])


def test_the_examples_are_of_the_test_set(run_dir, monkeypatch):
    predictor, test = load(run_dir), made.make_splits().test
    examples = demo_examples.examples_of(predictor)
    assert [example.name for example in examples] == list("abcd")
    for label, example in enumerate(examples):
        np.testing.assert_array_equal(example.pixels, test.images[row_of(test, label)])
    monkeypatch.setattr(demo_examples, "COUNT", 2)
    assert [example.name for example in demo_examples.examples_of(predictor)] == ["a", "b"]
    found = Explainer(predictor, run_dir).of_pixels(examples[0].pixels).probabilities
    assert found is not None
    np.testing.assert_allclose(list(found.values()), predictor(test.images)[row_of(test, 0)], atol=1e-5)


def test_examples_of_a_folder_of_pictures(tmp_path, capsys):
    for number in range(40):
        folder = tmp_path / "pictures" / ("cat", "dog")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(RNG.integers(0, 256, (12, 12, 3), np.uint8)).save(folder / f"{number}.png")
    config = Config("resnet20", data=DataConfig(data_folder=str(tmp_path / "pictures"), image_size=12))
    predictor = explainer_of(DataInfo("pictures", ("cat", "dog"), (12, 12, 3), 32, digest="1"), config).predictor
    examples = demo_examples.examples_or_reason(predictor)
    test = data.from_folder(tmp_path / "pictures", image_size=12).test
    assert test is not None
    assert [example.name for example in examples] == ["cat", "dog"]
    np.testing.assert_array_equal(examples[1].pixels, test.images[row_of(test, 1)])
    (tmp_path / "pictures").rename(tmp_path / "moved")
    capsys.readouterr()
    assert demo_examples.examples_or_reason(predictor) == []
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("the page has no examples: ")
    assert str(tmp_path / "pictures") in line


def test_no_examples_without_the_data(run_dir, monkeypatch, tmp_path, capsys):
    """Nothing is downloaded or prepared for them."""
    predictor = load(run_dir)
    predictor.config = made.change(predictor.config, data_dir=str(tmp_path / "data"))
    assert demo_examples.examples_or_reason(predictor) == []
    line = f"the page has no examples: made is not prepared on this machine ({tmp_path / 'data' / 'made_raw' / '1.0.0'}"
    assert capsys.readouterr().out == f"{line} does not exist)\n"
    assert not (tmp_path / "data").exists()
    predictor.config = None
    assert demo_examples.examples_or_reason(predictor) == []
    assert "a folder that convert made does not name its data set" in capsys.readouterr().out


@pytest.fixture
def taken():
    """A port that is in use."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def refusal(words: list[str], capsys) -> str:
    """The one line that the command prints when it refuses."""
    assert cli.command(["demo", *words], PROG) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert captured.out == ""
    return line


def test_a_port_in_use(taken, capsys):
    line = refusal(["run", "--port", str(taken)], capsys)
    start = f"python -m resnet_jax: --port {taken} is in use; try --port "
    assert line.startswith(start)
    demo.check_address("127.0.0.1", int(line.removeprefix(start)))  # the port that it names is free


def test_what_the_command_refuses(capsys, monkeypatch, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "--port 0 is out of range: give 1 to 65535" in refusal(["run", "--port", "0"], capsys)
    assert "--host 192.0.2.1: this machine has no such IPv4 address" in refusal(["run", "--host", "192.0.2.1"], capsys)
    assert "RUN_DIR is needed" in refusal([], capsys)
    port = str(demo.free_port("127.0.0.1"))
    monkeypatch.setitem(sys.modules, "gradio", None)  # as if it were not installed
    line = refusal(["empty", "--port", port], capsys)
    assert line.endswith('pip install "resnet_jax[demo]" installs it')
    assert line.startswith("python -m resnet_jax: demo needs Gradio (")


def test_a_run_without_a_checkpoint(capsys, monkeypatch, tmp_path):
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(demo, "check_gradio", lambda: None)
    port = str(demo.free_port("127.0.0.1"))
    assert "empty: no run is kept there" in refusal(["empty", "--port", port], capsys)


def test_the_environment_is_as_it_was(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "example.org")
    monkeypatch.delenv("GRADIO_ANALYTICS_ENABLED", raising=False)
    before = dict(os.environ)
    with demo.settings():
        assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
        assert os.environ["NO_PROXY"] == "example.org,127.0.0.1,localhost"
        folder = os.environ["GRADIO_TEMP_DIR"]
        assert os.path.isdir(folder)
    assert dict(os.environ) == before
    assert not os.path.exists(folder)
