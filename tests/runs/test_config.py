"""Recipes, flags over them, and what is said of those that cannot be."""

import contextlib
import dataclasses
import io
import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import numpy as jnp
from made import change

import resnet_jax
from resnet_jax import Config, list_models, load_recipe
from resnet_jax.errors import ConfigError
from resnet_jax.runs import DataConfig, OptimConfig, RunConfig
from resnet_jax.runs import config as config_module
from resnet_jax.runs.argv import read_words
from resnet_jax.runs.checks import check
from resnet_jax.runs.config import from_dict
from resnet_jax.runs.flags import ask, recipes

PARTS = (Config, DataConfig, OptimConfig, RunConfig)
FIELDS = [
    field for part in PARTS for field in dataclasses.fields(part) if field.name not in ("data", "model", "optim", "run")
]


def parse(argv: Sequence[str]) -> Config:
    """The config of these flags."""
    return ask(argv).new()


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
        ("epohs = 3", "unknown key epohs: did you mean --epochs?"),
        ("[optim]\nmomentun = 0.9", "unknown key momentun: did you mean --momentum?"),
        ("epochs = 'three'", "epochs (--epochs) three: give a whole number"),
        ("epochs = 2.5", "epochs (--epochs) 2.5: give a whole number"),
        ("epochs = 2.0", "epochs (--epochs) 2.0: give a whole number, such as 2"),
        ("epochs = true", "epochs (--epochs) True: give a whole number"),
        ("epochs = 1979-05-27", "epochs (--epochs) datetime.date(1979, 5, 27): give a whole number"),
        ("epochs = [1, 2]", "epochs (--epochs) [1, 2]: give a whole number"),
        ("[a]\nepochs = 1\n[b]\nepochs = 2", "epochs is given twice"),
        ("[optim]\ndecay_epochs = 'x'", "decay_epochs (--decay-epochs) x: give numbers, such as (5, 8)"),
        ("[optim]\ndecay_epochs = [1, '2']", "decay_epochs (--decay-epochs) [1, '2']: give numbers, such as (5, 8)"),
        ("flip = 1", "flip (--flip) 1: give True or False"),
        ("flip = 'yes'", "flip (--flip) yes: give True or False"),
        ("arch = 18", "arch (--arch) 18: give text"),
        ("[data]\nstem = 'smal'", "unknown stem 'smal': did you mean small?"),
        ("[[data]]\nflip = true", "unknown key data"),
        ("help = true", "unknown key help"),
        ("config = 'quick'", "a recipe cannot take its values from another one"),
        ("run_dir = 'gs://bucket/run'", "run_dir (--run-dir) gs://bucket/run is a URL"),
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
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
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
        assert f"{group}:" in lines


@pytest.mark.parametrize("part", PARTS)
def test_every_field_has_a_docstring(part):
    """It is what --help prints."""
    source = Path(config_module.__file__).read_text()
    body = source.split(f"class {part.__name__}:")[1].split("@dataclasses")[0].split("@property")[0].splitlines()
    for name in (f.name for f in dataclasses.fields(part) if f.name not in ("data", "model", "optim", "run")):
        (at,) = (i for i, line in enumerate(body) if line.startswith(f"    {name}: "))
        assert body[at + 1].startswith('    """'), name


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        ("--lerning-rate 1", "unknown flag --lerning-rate: did you mean --learning-rate?"),
        ("--epoch 3", "unknown flag --epoch: did you mean --epochs?"),
        ("--lr 0.1", "unknown flag --lr: did you mean --learning-rate?"),
        ("--lr=0.1", "unknown flag --lr: did you mean --learning-rate?"),
        ("-lr 0.1", "unknown flag -lr: did you mean --learning-rate?"),
        ("-epochs 3", "unknown flag -epochs: did you mean --epochs?"),
        ("\u2013epochs 3", "unknown flag \u2013epochs: did you mean --epochs?"),
        ("--LEARNING_RATE 1", "unknown flag --LEARNING_RATE: did you mean --learning-rate?"),
        ("--Batch-Size 1", "unknown flag --Batch-Size: did you mean --batch-size?"),
        ("--batch 1", "unknown flag --batch: did you mean --batch-size?"),
        ("--warmup 1", "unknown flag --warmup: did you mean --warmup-epochs?"),
        ("--no-flp", "unknown flag --no-flp: did you mean --no-flip?"),
        ("--no-epochs", "unknown flag --no-epochs: did you mean --epochs?"),
        ("--wings 2", "unknown flag --wings; --help lists every flag"),
        ("--", "unknown flag --; --help lists every flag"),
        ("extra", "unexpected word extra; --help lists every flag"),
        ("epochs=3", "unexpected word epochs=3: did you mean --epochs?"),
        ("--flip True", "--flip True: it takes no value; write --flip or --no-flip alone"),
        ("--flip=true", "--flip true: it takes no value; write --flip or --no-flip alone"),
        ("--flip=", "--flip '': it takes no value; write --flip or --no-flip alone"),
        ("--normalize=true", "--normalize true: it takes no value; write --normalize or --no-normalize alone"),
        ("--no-flip 1", "--no-flip 1: it takes no value; write --flip or --no-flip alone"),
        ("--zero_init=1", "--zero_init 1: it takes no value; write --zero-init or --no-zero-init alone"),
        ("--flip \u2013epochs 3", "unknown flag \u2013epochs: did you mean --epochs?"),
        ("--no-resume=auto", "--no-resume: "),
        ("--resume yes", "--resume: invalid choice: 'yes' (choose from "),
        ("--precision float23", "unknown precision 'float23': did you mean float32?"),
        ("--epochs abc", "--epochs abc: give a whole number"),
        ("--epochs 1.0", "--epochs 1.0: give a whole number, such as 1"),
        ("--epochs 1.5", "--epochs 1.5: give a whole number"),
        ("--batch-size 1e2", "--batch-size 1e2: give a whole number, such as 100"),
        ("--batch-size inf", "--batch-size inf: give a whole number"),
        ("--learning-rate 0,1", "--learning-rate 0,1: give a number, such as 0.1"),
        ("--learning-rate x", "--learning-rate x: give a number, such as 0.1"),
        ("--decay-epochs 5,8", "--decay-epochs 5,8: give numbers with spaces between them"),
        ("--arch", "--arch needs a value: --arch STR"),
        ("--epochs --flip", "--epochs needs a value: --epochs INT"),
        (f"--{'very-long-' * 12}flag 1", "unknown flag --very-long-"),
    ],
)
def test_a_flag_that_is_misspelt(argv, line):
    assert refused(*argv.split()).startswith(line)


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=12), max_size=3), st.sampled_from(FIELDS))
def test_any_words_are_a_config_or_one_line(words, field):
    """With the name of a flag before them, as text that a person may type."""
    found = ""
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            parse(["--" + field.name.replace("_", "-"), *words])
        except (ConfigError, SystemExit) as error:
            found = str(error)
    assert len(found.splitlines()) <= 1


def test_underscores_and_a_value_after_an_equals_sign():
    expected = change(parse([]), learning_rate=0.25, flip=True, batch_size=64)
    assert parse(["--learning_rate", "0.25", "--flip", "--batch_size=64"]) == expected


def test_a_flag_that_is_given_twice_is_reported(capsys):
    assert parse(["--epochs", "3", "--epochs", "4", "--flip", "--no-flip", "--seed", "1", "--seed=1"]).epochs == 4
    assert capsys.readouterr().err.splitlines() == [
        "--epochs is given twice: the last value counts",
        "--flip is given twice: the last value counts",
    ]


# --- options without an effect

WITHOUT_EFFECT = {
    "--data-folder mine --dataset mnist": "--dataset and --data-folder: the run has one data set",
    "--data-folder mine --source-dir x": "--source-dir is for named data sets; leave it out with --data-folder",
    "--data-folder mine --data-dir x": "--data-dir is for named data sets; leave it out with --data-folder",
    "--data-folder mine --train-images 9": "--train-images is for named data sets",
    "--data-folder mine --test-images 9": "--test-images is for named data sets",
    "--skip-unreadable": "--skip-unreadable is for pictures of your own; add --data-folder FOLDER",
    "--pretrained w --zero-init": "--zero-init is for a network that starts untrained; leave it out with --pretrained",
    "--freeze": "add --pretrained FOLDER",
    "--pretrained w --freeze --stochastic-depth 0.1": "--stochastic-depth has no effect in blocks that --freeze keeps",
    "--pretrained w --freeze --remat": "--remat has no effect in blocks that --freeze keeps",
    "--pretrained w --freeze --batch-norm-momentum 0.6": "--batch-norm-momentum has no effect in blocks that",
    "--pretrained w --dirac-init": "--dirac-init is for a network that starts untrained; leave it out with",
    "--arch airbench --pretrained w --whiten": "--whiten is for a network that starts untrained",
    "--whiten": "--whiten is for airbench; resnet18 has no such first convolution",
    "--nesterov": "--nesterov needs a momentum; add --momentum 0.9",
    "--optimizer adamw --momentum 0.9": "--momentum is not an option of --optimizer adamw; leave one of them out",
    "--optimizer adamw --nesterov": "--nesterov is not an option of --optimizer adamw",
    "--ema 0.9 --lookahead 5": "--ema and --lookahead: a run has one average of its weights",
    "--lookahead-alpha 0.25": "--lookahead-alpha goes with --lookahead; add --lookahead 5",
    "--lookahead-schedule fading": "--lookahead-schedule goes with --lookahead; add --lookahead 5",
    "--lookahead 5 --lookahead-schedule fading --lookahead-alpha 0.25": "goes with --lookahead-schedule constant",
    "--pretrained w --freeze --bias-lr-factor 64": "--bias-lr-factor leaves out the head, and --freeze trains it alone",
    "--decay-epochs 1": "--decay-epochs goes with --schedule step, not constant",
    "--schedule cosine --decay-epochs 1": "--decay-epochs goes with --schedule step",
    "--decay-factor 0.5": "--decay-factor goes with --schedule step",
    "--decay-factor 0.1": "--decay-factor goes with --schedule step",
    "--schedule step --decay-epochs 1 10": "--decay-epochs: the run ends before the last of them",
    "--early-stopping 2": "--early-stopping 2: the data has no validation part; add --validation 0.1",
    "--override": "--override changes a run that is resumed; add --resume",
}


@pytest.mark.parametrize("flags", WITHOUT_EFFECT)
def test_an_option_without_an_effect_is_refused(flags):
    assert WITHOUT_EFFECT[flags] in refused(*flags.split())


@pytest.mark.parametrize("flags", [flags for flags in WITHOUT_EFFECT if flags != "--decay-factor 0.1"])
def test_an_option_without_an_effect_in_a_recipe_or_in_python(flags, tmp_path, monkeypatch):
    """The same options as values of a file, and of a Config. Epochs after the end do no harm there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    asked = {name: value for name, value in read_words(Config, flags.split(), "").items() if value != "fashion_mnist"}
    lines = [f"{name} = {json.dumps(value)}" for name, value in asked.items()]
    (tmp_path / "mine.toml").write_text("\n".join(lines))
    if "1 10" in flags:
        assert parse(["--config", "mine.toml"]).optim.decay_epochs == (1.0, 10.0)
        return
    line = refused("--config", "mine.toml")
    assert line.startswith("mine.toml: ")
    assert WITHOUT_EFFECT[flags] in line
    with pytest.raises(ConfigError) as caught:
        resnet_jax.fit(change(Config(), **asked))
    assert WITHOUT_EFFECT[flags] in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "mine.toml"]


@pytest.mark.parametrize(
    ("flags", "left"),
    [
        ("--arch resnet34 --momentum 0", {"momentum": 0.0, "nesterov": False}),
        ("--config steps.toml --schedule constant", {"schedule": "constant", "decay_epochs": (), "decay_factor": 0.1}),
        ("--config steps.toml --epochs 3", {"epochs": 3, "decay_epochs": (2.0, 4.0), "decay_factor": 0.5}),
        ("--arch resnet34 --optimizer adamw", {"momentum": 0.0, "nesterov": False}),
        ("--config steps.toml --no-nesterov", {"nesterov": False}),
        ("--config mnist.toml --data-folder mine", {"dataset": "fashion_mnist"}),
        ("--config mnist.toml --validation 0 --epochs 2", {"early_stopping": 0}),
        ("--no-skip-unreadable --early-stopping 0 --no-freeze", {}),
    ],
)
def test_a_value_of_a_recipe_that_a_flag_makes_useless_is_left_out(flags, left, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    steps = 'schedule = "step"\ndecay_epochs = [2, 4]\ndecay_factor = 0.5\nmomentum = 0.5\nnesterov = true'
    Path("steps.toml").write_text(steps)
    Path("mnist.toml").write_text('dataset = "mnist"\nvalidation = 0.1\nearly_stopping = 3')
    config = parse(flags.split())
    assert change(config, **left) == config


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
        ("--learning-rate -1e-3", "--learning-rate -0.001 is out of range"),
        ("--learning-rate -inf", "--learning-rate -inf is out of range"),
        ("--schedule step --decay-epochs 1 -INF", "--decay-epochs -inf"),
        ("--momentum 1.5", "--momentum 1.5 must be below 1"),
        ("--momentum 1", "--momentum 1.0 must be below 1"),
        ("--momentum nan", "--momentum nan"),
        ("--weight-decay -1", "--weight-decay -1"),
        ("--optimizer adam", "unknown optimizer 'adam': did you mean adamw?"),
        ("--clip-norm -1", "--clip-norm -1"),
        ("--sam -0.1", "--sam -0.1 is out of range"),
        ("--accumulate 0", "--accumulate 0 is out of range: it must be finite and at least 1"),
        ("--ema 1", "--ema 1.0 must be below 1"),
        ("--lookahead -1", "--lookahead -1"),
        ("--lookahead 5 --lookahead-alpha 0", "--lookahead-alpha 0.0 must be above 0 and at most 1"),
        ("--pretrained w --freeze --optimizer muon", "--freeze trains the head alone; use --optimizer adamw"),
        ("--bias-lr-factor -1", "--bias-lr-factor -1"),
        ("--label-smoothing -0.1", "--label-smoothing -0.1"),
        ("--label-smoothing 1", "--label-smoothing 1.0 must be below 1"),
        ("--weight-decay nan", "--weight-decay nan"),
        ("--warmup-epochs nan", "--warmup-epochs nan"),
        ("--warmup-epochs 10", "--warmup-epochs 10.0 must be less than --epochs 10"),
        ("--schedule step --decay-epochs 2 2", "--decay-epochs 2 2: give each epoch once"),
        (
            "--train-images 59000 --validation 6000",
            "--train-images 59000 is more than the 54000 that --validation leaves",
        ),
        ("--schedule step", "--schedule step needs --decay-epochs"),
        ("--schedule step --decay-epochs -1", "--decay-epochs -1.0"),
        ("--schedule step --decay-epochs 1 nan", "--decay-epochs nan"),
        ("--schedule step --decay-epochs 1 --decay-factor -1", "--decay-factor -1.0"),
        ("--devices -1", "--devices -1"),
        ("--steps-per-dispatch -1", "--steps-per-dispatch -1"),
        ("--checkpoint-minutes nan", "--checkpoint-minutes nan"),
        ("--validation -1", "--validation -1.0 is out of range"),
        ("--validation 1.5", "--validation 1.5: give a share below 1, such as 0.1, or a whole number of images from 2"),
        ("--validation nan", "--validation nan"),
        ("--early-stopping -1", "--early-stopping -1 is out of range"),
    ],
)
def test_a_flag_that_cannot_be(flags, message):
    assert message in refused(*flags.split())


# --- a Config made in Python


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "float64"}, "unknown precision 'float64': did you mean bfloat16?"),
        ({"schedule": "cosin"}, "unknown schedule 'cosin': did you mean cosine?"),
        ({"cpu_kernels": "mkl"}, "unknown cpu kernels 'mkl'"),
        ({"stem": 7}, "stem (--stem) 7: give one of 'auto', 'standard', 'small'"),
        ({"learning_rate": math.nan}, "--learning-rate nan is out of range"),
        ({"learning_rate": "0.1"}, "learning_rate (--learning-rate) 0.1: give a number"),
        ({"epochs": 0}, "--epochs 0 is out of range"),
        ({"epochs": "3"}, "epochs (--epochs) 3: give a whole number"),
        ({"epochs": 3.0}, "epochs (--epochs) 3.0: give a whole number, such as 3"),
        ({"epochs": None}, "epochs (--epochs) None: give a whole number"),
        ({"epochs": True}, "epochs (--epochs) True: give a whole number"),
        ({"epochs": np.float32(3)}, "epochs (--epochs) 3.0: give a whole number, such as 3"),
        ({"resume": np.array([1, 2])}, "resume (--resume) array([1, 2]): give one of"),
        ({"epochs": np.arange(3)}, "epochs (--epochs) array([0, 1, 2]): give a whole number"),
        ({"flip": 1}, "flip (--flip) 1: give True or False"),
        ({"flip": "yes"}, "flip (--flip) yes: give True or False"),
        ({"decay_epochs": 5}, "decay_epochs (--decay-epochs) 5: give numbers"),
        ({"decay_epochs": "5"}, "decay_epochs (--decay-epochs) 5: give numbers"),
        ({"run_dir": None}, "run_dir (--run-dir) None is not a path"),
        ({"run_dir": Path("gs://bucket/run")}, "run_dir (--run-dir) gs:/bucket/run is a URL"),
        ({"arch": 18}, "arch (--arch) 18: give text"),
        ({"data": {}}, "data: give a DataConfig, not a dict"),
        ({"resume": "yes"}, "unknown resume 'yes'"),
    ],
)
def test_a_config_made_in_python_is_checked_too(changes, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        resnet_jax.fit(change(Config(), **changes) if "data" not in changes else Config(**changes))
    assert message in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_something_else_than_a_config():
    with pytest.raises(ConfigError, match=r"config: give a resnet_jax\.Config, not a dict"):
        resnet_jax.fit({"epochs": 3})  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("changes", "plain"),
    [
        ({"epochs": np.int64(3)}, 3),
        ({"seed": np.uint8(3)}, 3),
        ({"batch_size": np.array(64)}, 64),
        ({"epochs": jnp.int32(3)}, 3),
        ({"learning_rate": np.float32(0.25)}, 0.25),
        ({"learning_rate": 1}, 1.0),
        ({"learning_rate": np.float64(0.1)}, 0.1),
        ({"flip": np.bool_(True)}, True),
        ({"arch": np.str_("resnet34")}, "resnet34"),
        ({"stem": np.str_("small")}, "small"),
        ({"decay_epochs": [1, 2]}, (1.0, 2.0)),
        ({"decay_epochs": np.array([1, 2])}, (1.0, 2.0)),
        ({"decay_epochs": [np.float32(0.5)]}, (0.5,)),
        ({"run_dir": Path("runs/x")}, "runs/x"),
        ({"data_folder": Path("~/pictures")}, "/home/me/pictures"),
        ({"pretrained": "~/w"}, "/home/me/w"),
    ],
)
def test_values_of_numpy_and_paths_become_what_json_holds(changes, plain, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    config = change(Config(), **changes)
    (value,) = (
        vars(part)[name]
        for name in changes
        for part in (config, config.data, config.model, config.optim, config.run)
        if name in vars(part)
    )
    assert value == plain
    assert type(value) is type(plain)
    assert from_dict(json.loads(json.dumps(dataclasses.asdict(config)))) == config
