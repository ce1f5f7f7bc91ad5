"""Recipes, flags over them, and what is said of those that cannot be."""

import contextlib
import dataclasses
import io
import itertools
import json
import math
from pathlib import Path

import pytest
import tyro
from made import change

import resnet_jax
from resnet_jax import Config, list_models, load_recipe
from resnet_jax.errors import ConfigError
from resnet_jax.runs import DataConfig, OptimConfig, RunConfig
from resnet_jax.runs import config as config_module
from resnet_jax.runs.checks import check
from resnet_jax.runs.config import from_dict
from resnet_jax.runs.flags import one_line, parse, recipes

PARTS = (Config, DataConfig, OptimConfig, RunConfig)
FIELDS = [
    field for part in PARTS for field in dataclasses.fields(part) if field.name not in ("data", "model", "optim", "run")
]


def refused(*argv: str) -> str:
    """The one line that these flags get."""
    with pytest.raises(ConfigError) as caught:
        parse(argv)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- recipes


def test_the_recipes_are_the_files_of_configs():
    root = Path(resnet_jax.__file__).parents[1]
    assert recipes() == {path.stem: path for path in (root / "configs").glob("*.toml")}
    assert {"default", "finetune", "quick", "resnet18"} <= set(recipes())


@pytest.mark.parametrize("name", sorted(recipes()))
def test_a_recipe_is_one_that_can_be_run(name):
    config = load_recipe(name)
    assert check(config) == config
    assert recipes()[name].read_text().startswith("# ")


def test_the_chapters_recipe():
    config = load_recipe("resnet18")
    assert (config.arch, config.epochs, config.batch_size, config.data.image_size) == ("resnet18", 10, 128, 96)
    assert config.optim == OptimConfig(learning_rate=0.01)  # no momentum, no decay, no schedule
    assert config.data == DataConfig(image_size=96)  # neither normalised nor augmented
    assert parse([]) == parse(["--arch", "resnet18"]) == dataclasses.replace(config, config="")


@pytest.mark.parametrize("arch", sorted(set(list_models()) - set(recipes())))
def test_an_architecture_without_a_recipe_has_that_of_all(arch):
    """SGD with momentum and a cosine; at half the rate from weights that have been trained."""
    config = parse(["--arch", arch])
    assert config == dataclasses.replace(load_recipe("default"), arch=arch, config="")
    assert config.optim == OptimConfig(0.02, "cosine", 0.5, momentum=0.9, nesterov=True, weight_decay=5e-4)
    tuned = parse(["--arch", arch, "--pretrained", "weights"])
    finetune = dataclasses.replace(load_recipe("finetune"), arch=arch, config="")
    assert tuned == change(finetune, pretrained="weights")
    assert tuned.optim == OptimConfig(0.01, "cosine", 0.5, momentum=0.9, nesterov=True, weight_decay=1e-4)
    assert parse(["--arch", arch, "--pretrained", "weights", "--config", "default"]).optim == config.optim


def test_flags_override_a_recipe(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        'arch = "resnet34"\nepochs = 7\nseed = 3\n[data]\nflip = true\nimage_size = 64\n'
        '[optim]\nschedule = "step"\ndecay_epochs = [2, 4.5]\nlearning_rate = 1e-3\n[run]\nsync_batch_norm = false\n'
    )
    recipe = parse(["--config", str(path)])
    assert recipe == Config(
        "resnet34",
        str(path),
        epochs=7,
        seed=3,
        data=DataConfig(flip=True, image_size=64),
        optim=OptimConfig(1e-3, "step", decay_epochs=(2.0, 4.5)),
        run=RunConfig(sync_batch_norm=False),
    )
    flags = ["--epochs", "8", "--no-flip", "--arch", "resnet18", "--decay-epochs", "1", "--sync-batch-norm"]
    for argv in (["--config", str(path), *flags], [*flags, "--config", str(path)]):
        expected = change(recipe, epochs=8, flip=False, arch="resnet18", decay_epochs=(1.0,), sync_batch_norm=True)
        assert parse(argv) == expected


def test_a_config_comes_back_from_json():
    config = parse(["--schedule", "step", "--decay-epochs", "1", "2.5", "--flip"])
    assert from_dict(json.loads(json.dumps(dataclasses.asdict(config)))) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bad =", "not a valid TOML file"),
        ("\xff", "not a valid TOML file"),
        ("epohs = 3", "did you mean --epochs?"),
        ("[optim]\nmomentun = 0.9", "did you mean --momentum?"),
        ("epochs = 'three'", "--epochs: invalid literal for int() with base 10: 'three'"),
        ("epochs = 2.5", "--epochs: invalid literal"),
        ("epochs = true", "'--epochs'"),
        ("epochs = 1979-05-27", "--epochs"),
        ("epochs = [1, 2]", "Unrecognized options: 2"),
        ("[optim]\ndecay_epochs = 'x'", "--decay-epochs"),
        ("flip = 1", "Unrecognized options: 1"),
        ("flip = 'yes'", "Unrecognized options: yes"),
        ("[data]\nstem = 'smal'", "unknown stem 'smal': did you mean small?"),
        ("[[data]]\nflip = true", "Unrecognized"),
        ("help = true", "a recipe has no key help"),
    ],
)
def test_a_recipe_that_cannot_be(tmp_path, text, message):
    """The line names the file, even where flags would override what is wrong in it."""
    path = tmp_path / "mine.toml"
    path.write_bytes(text.encode("latin-1"))
    for flags in ([], ["--epochs", "3", "--stem", "small"]):
        line = refused("--config", str(path), *flags)
        assert line.startswith(f"{path}: ")
        assert message in line


def test_a_value_that_looks_like_a_flag(tmp_path):
    (tmp_path / "mine.toml").write_text('arch = "--help"')
    assert "unknown architecture '--help'" in refused("--config", str(tmp_path / "mine.toml"))


# --- flags


def test_every_flag_has_a_help_and_every_help_its_default(capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(["--help"])
    assert stopped.value.code == 0
    lines = [line.strip("│ ") for line in capsys.readouterr().out.splitlines()]
    flags = {"--" + field.name.replace("_", "-") for field in FIELDS}
    words = [(line.split() or [""])[0].strip(",") for line in lines]
    starts = [i for i, word in enumerate(words) if word in flags and word not in words[:i]]  # helps name flags too
    blocks = {
        lines[i].split()[0].strip(",")[2:]: " ".join(lines[i:j]) for i, j in itertools.pairwise([*starts, len(lines)])
    }
    for field in FIELDS:
        block = blocks[field.name.replace("_", "-")]
        shown = " ".join(map(str, field.default)) if isinstance(field.default, tuple) else str(field.default)
        assert f"(default: {shown})" in block.replace("''", ""), block
        assert len(block.split("(default")[0].split()) > 4, block
    for group in ("data options", "optim options", "run options"):
        assert any(line.startswith(f"╭─ {group}") or line == group for line in lines)


@pytest.mark.parametrize("part", PARTS)
def test_every_field_has_a_docstring(part):
    """Not a comment nor the class's own, which tyro would take instead."""
    source = Path(config_module.__file__).read_text()
    body = source.split(f"class {part.__name__}:")[1].split("@dataclasses")[0].split("@property")[0].splitlines()
    for name in (f.name for f in dataclasses.fields(part) if f.name not in ("data", "model", "optim", "run")):
        (at,) = (i for i, line in enumerate(body) if line.startswith(f"    {name}: "))
        assert body[at + 1].startswith('    """'), name


def box(frame: bool, argv: list[str]) -> str:
    """tyro's own, in UTF-8 with a frame, or in ASCII."""
    stderr, stdout = io.StringIO(), io.TextIOWrapper(io.BytesIO(), encoding="utf-8" if frame else "ascii")
    with contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(stdout), pytest.raises(SystemExit):
        tyro.cli(Config, args=argv)
    assert ("╭" in stderr.getvalue()) == frame
    return stderr.getvalue()


LONG = "very-long-" * 12


@pytest.mark.parametrize("frame", [True, False], ids=["UTF-8", "ASCII"])
@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["--lerning-rate", "1"], "Unrecognized options: --lerning-rate, 1: did you mean --learning-rate?"),
        (["--epoch", "1"], "Unrecognized options: --epoch, 1: did you mean --epochs?"),
        (["--lr", "1"], "Unrecognized options: --lr, 1; --help lists every flag"),
        (["extra"], "Unrecognized options: extra; --help lists every flag"),
        (["--precision", "float23"], "unknown precision 'float23': did you mean float32?"),
        (["--stem", "a │ ─ b"], "unknown stem 'a │ ─ b': choose one of auto, small, standard"),
        (["--precision", "word " * 40], f"unknown precision '{'word ' * 40}': choose one of"),
        (["--epochs", "abc"], "Error parsing --epochs: invalid literal for int() with base 10: 'abc'"),
        (["--epochs", LONG], "Error parsing --epochs: invalid literal for int()"),
        ([f"--{LONG}flag", "1"], "Unrecognized options: --very-long-"),
        (["--arch"], "Missing value for argument '--arch'"),
    ],
)
def test_a_box_of_tyros_becomes_one_line(frame, argv, line):
    found = one_line(box(frame, argv))
    assert found.startswith(line)
    assert "\n" not in found
    assert not {"╭", "╮", "╰", "╯"} & set(found)
    spaceless = found.replace(" ", "")  # what is too long for the box is broken where it can be
    assert all(word.replace(" ", "").strip("-") in spaceless for word in argv)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--arch resnet81", "unknown architecture 'resnet81': did you mean resnet18?"),
        ("--config quik", "unknown recipe 'quik': did you mean quick?"),
        ("--config nowhere.toml", "--config nowhere.toml: there is no such file"),
        ("--config .toml", "there is no such file"),
        ("--dataset fashion-mnist", "unknown data set 'fashion-mnist': did you mean fashion_mnist?"),
        ("--precision float64", "unknown precision 'float64': did you mean bfloat16?"),
        ("--schedule cosin", "unknown schedule 'cosin': did you mean cosine?"),
        ("--batch-size 0", "--batch-size 0 is out of range: it must be finite and at least 1"),
        ("--batch-size=-8", "--batch-size -8"),
        ("--epochs 0", "--epochs 0"),
        ("--epochs -1", "--epochs -1"),
        ("--seed -1", "--seed -1"),
        (f"--seed {2**32}", "--seed 4294967296 is out of range: it must be below 2**32"),
        ("--image-size -1", "--image-size -1"),
        ("--image-size 16", "image size 16x16 is too small"),
        ("--image-size 4 --stem small", "image size 4x4 is too small"),
        ("--crop-padding -1", "--crop-padding -1"),
        ("--train-images 60001", "--train-images 60001 is more than the 60000 that fashion_mnist has"),
        ("--test-images 10001", "--test-images 10001 is more than the 10000"),
        ("--learning-rate nan", "--learning-rate nan"),
        ("--learning-rate inf", "--learning-rate inf"),
        ("--learning-rate 1e999", "--learning-rate inf"),
        ("--learning-rate -0.1", "--learning-rate -0.1"),
        ("--momentum 1.5", "--momentum 1.5 must be below 1"),
        ("--momentum 1", "--momentum 1.0 must be below 1"),
        ("--momentum nan", "--momentum nan"),
        ("--weight-decay -1", "--weight-decay -1"),
        ("--weight-decay nan", "--weight-decay nan"),
        ("--warmup-epochs nan", "--warmup-epochs nan"),
        ("--warmup-epochs 10", "--warmup-epochs 10.0 must be less than --epochs 10"),
        ("--nesterov", "--nesterov needs a momentum; add --momentum 0.9"),
        ("--decay-epochs 1", "--decay-epochs goes with --schedule step, not constant"),
        ("--schedule step", "--schedule step needs --decay-epochs"),
        ("--schedule step --decay-epochs -1", "--decay-epochs -1.0"),
        ("--schedule step --decay-epochs 1 nan", "--decay-epochs nan"),
        ("--schedule step --decay-epochs 1 --decay-factor -1", "--decay-factor -1.0"),
        ("--devices -1", "--devices -1"),
        ("--steps-per-dispatch -1", "--steps-per-dispatch -1"),
        ("--checkpoint-minutes nan", "--checkpoint-minutes nan"),
        ("--data-folder mine --source-dir x", "--source-dir is for named data sets; leave it out with --data-folder"),
        ("--data-folder mine --data-dir x", "--data-dir is for named data sets; leave it out with --data-folder"),
        ("--skip-unreadable", "--skip-unreadable is for pictures of your own; add --data-folder FOLDER"),
        ("--validation -1", "--validation -1.0 is out of range"),
        ("--validation 1.5", "--validation 1.5: give a share below 1, or a whole number of images"),
        ("--validation nan", "--validation nan"),
        ("--early-stopping -1", "--early-stopping -1 is out of range"),
    ],
)
def test_a_flag_that_cannot_be(flags, message):
    assert message in refused(*flags.split())


@pytest.mark.parametrize(
    "changes",
    [{"precision": "float64"}, {"schedule": "cosin"}, {"stem": "smal"}, {"learning_rate": math.nan}, {"epochs": 0}],
)
def test_a_config_made_in_python_is_checked_too(changes, tmp_path):
    with pytest.raises(ConfigError):
        resnet_jax.fit(change(Config(run=RunConfig(str(tmp_path / "run"))), **changes))
    assert not (tmp_path / "run").exists()
