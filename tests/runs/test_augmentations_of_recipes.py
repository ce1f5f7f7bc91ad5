"""--augment: from the words of a flag or a recipe to augmentations."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
from made import STEPS, change, final, fit_stopped_at, make_config, read_rows
from thorough import thorough_except

from resnet_jax import Config, fit
from resnet_jax.data.augment import (
    AUGMENTATIONS,
    alternating_flip,
    crop,
    cutout,
    erasing,
    flip,
    mixup,
    rand_augment,
    unchanged,
)
from resnet_jax.errors import ConfigError
from resnet_jax.runs.argv import field_docs
from resnet_jax.runs.augmentations import augmentations, options_of, words_of
from resnet_jax.runs.build import make_augment
from resnet_jax.runs.config import from_dict
from resnet_jax.runs.flags import parse
from resnet_jax.runs.gathered import gather
from resnet_jax.runs.override import describe, differences

WORDS = ("alternating_flip", "crop:padding=4,mode=reflect", "erasing:probability=0.25,fill=mean", "mixup")
MADE = (alternating_flip, crop(4, "reflect"), erasing(0.25, fill="mean"), mixup())

PLAIN = {"flip": False, "crop_padding": 0}


def test_words_of_a_flag_and_of_a_recipe(tmp_path):
    """The same words, in the same order, as a list or as one text; a flag replaces the list of the recipe."""
    path = tmp_path / "mine.toml"
    path.write_text(f"[data]\naugment = {json.dumps(WORDS)}")
    text = tmp_path / "text.toml"
    text.write_text(f"[data]\naugment = {json.dumps(' '.join(WORDS))}")
    for argv in (["--augment", *WORDS], ["--config", str(path)], ["--config", str(text)]):
        config = parse(argv)
        assert config.data.augment == WORDS
        assert make_augment(config.data) == MADE
        assert from_dict(json.loads(json.dumps(dataclasses.asdict(config)))) == config
    assert parse(["--config", str(path), "--augment", "erasing"]).data.augment == ("erasing",)
    assert parse(["--config", str(path), "--augment"]).data.augment == ()


def test_the_list_comes_after_flip_and_crop_padding():
    """Which keep their places, and so their keys."""
    assert make_augment(parse(["--augment", "erasing"]).data) == (erasing(),)
    config = parse(["--flip", "--augment", "cutout:size=8", "erasing"])
    assert make_augment(config.data) == (flip, unchanged, cutout(8), erasing())
    assert make_augment(parse(["--crop-padding", "2", "--augment", "erasing"]).data) == (unchanged, crop(2), erasing())


@pytest.mark.parametrize(
    "word", [*WORDS, "rand_augment:num_ops=3,magnitude=12.0", "cutout:size=8", "erasing:fill=zero"]
)
def test_the_shortest_word(word):
    (made,) = augmentations([word])
    assert words_of(made) == word
    assert augmentations([words_of(made)]) == (made,)


def test_defaults_may_be_written_or_left_out():
    assert words_of(augmentations(["rand_augment:magnitude=9,num_ops=2"])[0]) == "rand_augment"
    assert augmentations(["rand_augment"]) == (rand_augment(2, 9.0),)
    old, new = (change(Config(), augment=(word,)) for word in ("mixup", "mixup:alpha=0.2"))
    assert differences(old, new) == {}
    new = change(new, augment=("mixup:alpha=0.4",))
    assert describe(old, new) == "--override changes --augment from mixup to mixup:alpha=0.4"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("eraser", "--augment eraser: unknown augmentation 'eraser': did you mean erasing? choose one of alternating"),
        ("Flip", "--augment Flip: unknown augmentation 'Flip': did you mean flip?"),
        ("erasing:prob=1", "unknown option 'prob' of erasing: choose one of probability, min_area, max_area, aspect"),
        ("erasing:", "--augment erasing:: unknown option '' of erasing"),
        ("erasing:moves_pixels=1", "unknown option 'moves_pixels' of erasing"),
        ("flip:padding=1", "--augment flip:padding=1: unknown option 'padding' of flip: it has none"),
        ("erasing:fill", "--augment erasing:fill: fill needs a value, as in erasing:fill=VALUE"),
        ("erasing:fill=", "fill needs a value"),
        ("erasing:fill=mean,fill=zero", "--augment erasing:fill=mean,fill=zero: fill is given twice"),
        ("crop", "--augment crop: crop needs padding, as in crop:padding=4"),
        ("cutout", "--augment cutout: cutout needs size, as in cutout:size=4"),
        ("crop:padding=x", "--augment crop:padding=x: padding x: give a whole number"),
        ("crop:padding=2.0", "padding 2.0: give a whole number, such as 2"),
        ("crop:padding=-1", "--augment crop:padding=-1: crop: padding -1 must be at least 0"),
        ("crop:padding=4,mode=refect", "unknown crop mode 'refect': did you mean reflect?"),
        ("erasing:probability=two", "probability two: give a number, such as 0.1"),
        ("erasing:probability=1.5", "probability 1.5 is out of range: it must be from 0 to 1"),
        ("mixup:alpha=nan", "--augment mixup:alpha=nan: mixup: alpha nan is out of range"),
        ("crop:padding=28", "augment (--augment): crop by 28 pixels: the images have 28x28; use less than 28"),
        ("cutout:size=99", "augment (--augment): cutout by 99 pixels: the images have 28x28"),
        ("flip alternating_flip", "--augment flip alternating_flip: images are mirrored more than once"),
        ("flip --flip", "--augment flip with --flip: images are mirrored more than once; leave one of them out"),
        ("crop:padding=2 --crop-padding 2", "--augment crop with --crop-padding 2: images are cropped twice"),
    ],
)
def test_a_list_that_is_refused(words, message):
    with pytest.raises(ConfigError) as caught:
        parse(["--augment", *words.split()])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("augment = 1", "augment (--augment) 1: give a list of texts"),
        ('augment = ["erasing", 1]', "augment (--augment) ['erasing', 1]: give a list of texts"),
        ('augment = [{name = "erasing"}]', "augment (--augment) [{'name': 'erasing'}]: give a list of texts"),
        ('augment = "erasing mixup:"', "--augment mixup:: unknown option '' of mixup"),
        ('augment = ["eraser"]', "--augment eraser: unknown augmentation 'eraser': did you mean erasing?"),
    ],
)
def test_a_recipe_that_is_refused(text, message, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        parse(["--config", str(path)])
    assert message in str(caught.value)


@pytest.mark.parametrize("flag", ["--mixup", "--cutmix", "--augmentation"])
def test_what_other_programs_call_the_flag(flag):
    with pytest.raises(ConfigError, match=f"^unknown flag {flag}: did you mean --augment"):
        parse([flag, "0.2"])


def defaults_of(name: str) -> dict[str, object]:
    """The options of an augmentation with their defaults, None for one that must be given."""
    return {option: getattr(AUGMENTATIONS[name], option, None) for option in options_of(name)}


def test_help_and_documentation_name_all_of_them():
    """The table of the page has a row for each, with its options and their defaults."""
    (names,) = re.findall(r"Names: ([\w, ]+)\.", field_docs(Config)["augment"])
    assert names.split(", ") == sorted(AUGMENTATIONS)
    page = (Path(__file__).parents[2] / "docs" / "augmentation.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]*)\|", page, re.MULTILINE))
    assert rows.keys() == AUGMENTATIONS.keys()
    for name, cell in rows.items():
        wanted = [f"`{option}={default}`".replace("=None", "") for option, default in defaults_of(name).items()]
        assert re.findall(r"`[^`]+`", cell) == wanted, name


AUGMENT = ("crop:padding=1,mode=reflect", "alternating_flip", "erasing", "mixup:alpha=1", "cutmix:probability=0.5")


OPTIONS = {**PLAIN, "augment": AUGMENT, "tensorboard": True}  # of the fixture whole


@pytest.mark.parametrize("step", thorough_except((1, STEPS, STEPS + 1), STEPS + 1))
def test_a_run_that_is_resumed_is_augmented_as_the_undisturbed_one(step, whole, data_dir, tmp_path):
    """Bit for bit, inside an epoch and between two."""
    run = make_config(data_dir, tmp_path / "run", **OPTIONS)
    assert fit_stopped_at(step, run) == step
    fit(change(run, resume=True))
    assert final(tmp_path / "run") == final(whole)


@pytest.mark.thorough
def test_a_run_is_resumed_on_another_number_of_devices(whole, data_dir, tmp_path):
    run = make_config(data_dir, tmp_path / "run", **OPTIONS)
    assert fit_stopped_at(1, run) == 1
    other = fit(change(run, resume=True, devices=8))
    for row, old in zip(other.history, read_rows(whole), strict=True):
        assert row["train_loss"] == pytest.approx(old["train_loss"], rel=1e-3)


@pytest.mark.thorough
def test_the_list_may_change_with_override_only(data_dir, tmp_path):
    config = make_config(data_dir, tmp_path / "run", **PLAIN, augment=("erasing",), epochs=1)
    fit(config)
    more = change(config, resume=True, epochs=2, augment=("erasing", "cutout:size=3"))
    message = "has --augment erasing, not erasing cutout:size=3; leave --augment out, add --override to change it"
    with pytest.raises(ConfigError, match=message):
        fit(more)
    assert len(fit(change(more, override=True)).history) == 2


def test_tensorboard_and_the_report_show_mixed_images(whole):
    """The report names the classes of a mixture with their shares."""
    held, _ = gather(whole)
    mixed = [picture.name for picture in held.augmented if "," in picture.name]
    assert mixed
    for name in mixed:
        shares = dict(part.split("% ")[::-1] for part in name.split(", "))
        assert set(shares) <= set("abcd")
        assert 99 <= sum(map(int, shares.values())) <= 101
