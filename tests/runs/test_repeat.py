"""The command that repeats a run: parsing it gives the config again."""

import dataclasses
import shlex
from pathlib import Path

import made
import pytest

from resnet_jax import Config
from resnet_jax.errors import ConfigError
from resnet_jax.runs.flags import load_recipe, parse
from resnet_jax.runs.repeat import command_of, repeated, words_of

FLAGS = {
    "nothing": "",
    "a recipe": "--config quick",
    "augmentations": "--augment crop:padding=4,mode=reflect erasing mixup:alpha=0.2",
    "a recipe with one value changed": "--config quick --momentum 0.9",
    "the recipe of an architecture": "--arch resnet18 --epochs 3",
    "switches": "--flip --normalize --no-sync-batch-norm --no-compile-cache --no-nesterov --no-report",
    "decay epochs": "--arch resnet20 --schedule step --decay-epochs 5 7.5 --decay-factor 0.3",
    "growth": "--arch resnet20 --epochs 12 --grow 5:3,10:2",
    "an integer share": "--validation 6000 --early-stopping 2",
    "a share": "--validation 0.1 --train-images 1000 --test-images 10",
    "pictures": "--data-folder 'my pictures' --skip-unreadable",
    "a useless value of the recipe": "--arch resnet20 --schedule constant --momentum 0",
    "pretrained": "--arch resnet18 --image-size 96 --pretrained runs/x --freeze",
    "a folder": "--run-dir runs/mine --seed 7",
    "data of its own": "--data-dir /data --source-dir /files --dataset mnist --arch resnet20",
    "small numbers": "--weight-decay 1e-7 --learning-rate 0.012345678901234567",
}


@pytest.mark.parametrize("name", FLAGS)
def test_parsing_the_command_gives_the_config(name):
    config = parse(shlex.split(FLAGS[name]))
    words = words_of(config)
    assert parse(words) == repeated(config)
    assert "--run-dir" not in words
    command = command_of(config)
    assert command.startswith("python train.py --arch ")
    assert shlex.split(command.replace("\\\n", " "))[2:] == words


def test_it_spells_out_what_differs_and_nothing_else():
    assert words_of(parse(["--config", "quick", "--momentum", "0.9"])) == [
        *("--arch", "airbench", "--config", "quick", "--momentum", "0.9")
    ]
    assert words_of(load_recipe("quick")) == ["--arch", "airbench", "--config", "quick"]


def test_a_recipe_that_is_gone_is_spelled_out(tmp_path):
    recipe = tmp_path / "mine.toml"
    recipe.write_text("epochs = 3\nschedule = 'step'\ndecay-epochs = [1.0, 2.0]\n")
    config = parse(["--config", str(recipe), "--flip"])
    assert parse(words_of(config)) == repeated(config)
    recipe.unlink()
    words = words_of(config)
    assert str(recipe) not in words
    assert dataclasses.replace(parse(words), config=str(recipe)) == repeated(config)


def test_a_recipe_that_has_changed_is_overridden(tmp_path):
    recipe = tmp_path / "mine.toml"
    recipe.write_text("epochs = 3\nflip = true\n")
    config = parse(["--config", str(recipe)])
    recipe.write_text("epochs = 4\nmomentum = 0.5\nnesterov = true\n")
    words = words_of(config)
    assert parse(words) == repeated(config)
    assert {"--epochs", "--flip", "--momentum"} <= set(words)


def test_a_run_that_was_resumed_is_repeated_from_its_start():
    config = made.change(parse([]), run_dir="runs/x", resume=True, epochs=12)
    assert parse(words_of(config)) == made.change(config, run_dir="", resume=False)


def test_a_config_of_python_that_no_flags_give():
    config = made.change(Config("resnet20"), schedule="constant", nesterov=True, momentum=0.0)
    with pytest.raises(ConfigError, match="no command line gives this config"):
        words_of(config)


def test_the_words_of_a_made_run(tmp_path, monkeypatch):
    made.install(monkeypatch)
    config = made.make_config(tmp_path / "data", Path("run"), epochs=7)
    assert parse(words_of(config)) == repeated(config)
