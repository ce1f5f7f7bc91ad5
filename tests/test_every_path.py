"""Issue 11, cases 14 and 15: every flag, recipe and function that takes a path reads it through user_path."""

from pathlib import Path
from typing import Any

import made
import numpy as np
import pytest

import resnet_jax
from resnet_jax import Config, cli, interop
from resnet_jax.data import from_arrays, from_folder, load
from resnet_jax.errors import ConfigError, UserError
from resnet_jax.interop import Weights
from resnet_jax.interop.export import export_program
from resnet_jax.runs import grow_run
from resnet_jax.runs.argv import flags_of
from resnet_jax.runs.flags import ask
from resnet_jax.runs.values import PATH, metadata_of

FIELDS = [flag.name for flag in flags_of(Config).values() if PATH in metadata_of(flag.kind)]
BAD = ["gs://bucket/x", "s3://bucket/x", "hdfs://host/x", "https://host/x", "file://host/x", "~nobody-at-all/x"]


@pytest.fixture(autouse=True)
def _home(monkeypatch, tmp_path):
    made.install(monkeypatch)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def parse(words: list[str]) -> Config:
    """The config of these flags."""
    return ask(words).new()


def test_the_fields_that_hold_a_path():
    assert FIELDS == ["data_folder", "data_dir", "source_dir", "pretrained", "run_dir"]


@pytest.mark.parametrize("name", FIELDS)
def test_the_home_folder_in_a_field(name, tmp_path):
    """As a flag, after an equals sign, in a recipe, and in Python: the path that is used is below HOME."""
    path = str(tmp_path / "home" / "x")
    flag = "--" + name.replace("_", "-")
    Path("mine.toml").write_text(f'{name} = "~/x"')
    for config in (parse([flag, "~/x"]), parse([f"{flag}=~/x"]), parse(["--config", "mine.toml"])):
        assert made.change(config, **{name: path}) == config
    for given in ("~/x", Path("~/x"), f"file://{path}"):
        assert made.change(Config(), **{name: given}) == made.change(Config(), **{name: path})


def test_a_recipe_in_the_home_folder(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "mine.toml").write_text("epochs = 7")
    assert parse(["--config", "~/mine.toml"]).epochs == resnet_jax.load_recipe("~/mine.toml").epochs == 7


COMMANDS = [
    *(f"train --{name.replace('_', '-')} {{}}" for name in FIELDS),
    "train --config {}.toml",
    "train --resume --run-dir {}",
    "train --resume auto --run-dir {}",
    "convert {} --arch resnet20 --out w",
    "convert a.safetensors --arch resnet20 --out {}",
    "convert {} --to-torch --out a.safetensors",
    "convert w --to-torch --out {}",
    "export {}",
    "export run --out {}",
    "grow {} --stage 1 --out w",
    "grow run --stage 1 --out {}",
    "predict {} picture.png",
    "predict run {}",
    "predict run picture.png {}/folder",
    "sweep {}.toml",
    "sweep quick --dir {}",
    "doctor --data-dir {}",
    "doctor --run-dir {}",
]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("line", COMMANDS)
def test_a_flag_that_is_given_a_url(line, bad, capsys):
    assert cli.command(line.format(bad).split(), "resnet-jax") == 2
    (message,) = capsys.readouterr().err.splitlines()
    assert bad in message
    assert "is a URL: only paths of this machine" in message or "there is no user nobody-at-all" in message
    assert not list(Path().iterdir())


def data() -> Any:
    return from_arrays(np.zeros((40, 8, 8, 1), np.uint8), np.arange(40) % 2)


CALLS = {
    "fit": lambda path: resnet_jax.fit(made.change(Config(), run_dir=path)),
    "load": resnet_jax.load,
    "load_recipe": lambda path: resnet_jax.load_recipe(f"{path}.toml"),
    "Trainer": lambda path: resnet_jax.Trainer(max_epochs=1, run_dir=path).fit(
        resnet_jax.ResNet18(num_classes=2), data()
    ),
    "from_folder": from_folder,
    "data_dir": lambda path: load("fashion_mnist", data_dir=path),
    "source_dir": lambda path: load("fashion_mnist", source_dir=path),
    "grow_run": lambda path: grow_run(path, "out", 1),
    "grow_run out": lambda path: grow_run("run", path, 1),
    "export_program": lambda path: export_program(lambda x: x, (8, 8, 1), path),
    "load_weights": interop.load_weights,
    "save_weights": lambda path: interop.save_weights(path, Weights("resnet20", {}, {"params": {}})),
    "read_state_dict": interop.read_state_dict,
    "write_state_dict": lambda path: interop.write_state_dict(f"{path}.safetensors", {"a": np.zeros(1, np.float32)}),
}


@pytest.mark.parametrize("bad", [*BAD, Path("gs://bucket/x")])
@pytest.mark.parametrize("name", CALLS)
def test_a_function_that_is_given_a_url(name, bad):
    with pytest.raises(
        UserError, match=r"is a URL: only paths of this machine|there is no user nobody-at-all"
    ) as caught:
        CALLS[name](bad)
    assert "\n" not in str(caught.value)
    assert not list(Path().iterdir())


@pytest.mark.parametrize("variable", ["XDG_CACHE_HOME", "TFDS_DATA_DIR"])
def test_a_variable_that_holds_a_url(variable, monkeypatch, tmp_path):
    from PIL import Image

    for name in "ab":
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(4):
            Image.new("L", (8, 8), i).save(tmp_path / "pictures" / name / f"{i}.png")
    monkeypatch.setenv(variable, "gs://bucket/x")
    pictures = tmp_path / "pictures"
    read = {
        "TFDS_DATA_DIR": lambda: load("fashion_mnist"),
        "XDG_CACHE_HOME": lambda: from_folder(pictures, validation=0),
    }
    with pytest.raises(UserError, match=f"{variable} gs://bucket/x.* is a URL"):
        read[variable]()
    assert not list(Path().iterdir())


def test_the_home_folder_in_functions(tmp_path):
    """What is written lies below HOME, and is found there again."""
    weights = Weights("resnet20", {}, {"params": {"a": np.ones(2, np.float32)}})
    interop.save_weights("~/w", weights)
    assert sorted(path.name for path in (tmp_path / "home").iterdir()) == ["w"]
    assert interop.load_weights("~/w").variables["params"]["a"].tolist() == [1, 1]
    interop.write_state_dict("~/a.safetensors", {"a": np.ones(2, np.float32)})
    assert interop.read_state_dict(f"file://{tmp_path}/home/a.safetensors")["a"].tolist() == [1, 1]
    assert export_program(lambda x: x, (8, 8, 1), "~/a.jax_export") == (tmp_path / "home/a.jax_export").stat().st_size
    with pytest.raises(ConfigError, match="RUN_DIR") as caught:
        grow_run("", "out", 1)
    assert "is empty; give a path" in str(caught.value)
    assert not list(Path().iterdir())
