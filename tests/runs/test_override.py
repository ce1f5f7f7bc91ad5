"""--override: what may change in a run that is resumed."""

import json

import made
import numpy as np
import pytest
from made import make_config

import resnet_jax
from resnet_jax import fit
from resnet_jax.errors import ConfigError
from resnet_jax.runs.config import PARTS, Config
from resnet_jax.runs.override import FREE, OVERRIDABLE, check_same
from resnet_jax.runs.rundir import read_config

# another value of every option that a resumed run may not change freely
CHANGES = {
    "arch": "tiny_wide",
    "stem": "small",
    "batch_size": 8,
    "seed": 1,
    "dataset": "mnist",
    "validation": 0.5,
    "image_size": 16,
    "sizes": "1:6,2:8",
    "normalize": False,
    "flip": False,
    "crop_padding": 2,
    "augment": ("cutout:size=2",),
    "train_images": 48,
    "test_images": 8,
    "num_classes": 4,
    "width": 0.5,
    "zero_init": True,
    "dirac_init": True,
    "whiten": True,
    "batch_norm_momentum": 0.6,
    "squeeze_excitation": True,
    "stochastic_depth": 0.1,
    "remat": True,
    "pretrained": "w",
    "freeze": True,
    "grow": "2:2",
    "learning_rate": 0.1,
    "schedule": "cosine",
    "warmup_epochs": 0.0,
    "decay_epochs": (1.0,),
    "decay_factor": 0.5,
    "momentum": 0.5,
    "nesterov": False,
    "weight_decay": 0.1,
    "optimizer": "adamw",
    "bias_lr_factor": 64.0,
    "clip_norm": 1.0,
    "label_smoothing": 0.1,
    "sam": 0.05,
    "accumulate": 2,
    "ema": 0.9,
    "lookahead": 5,
    "lookahead_alpha": 0.25,
    "lookahead_schedule": "fading",
    "precision": "bfloat16",
    "sync_batch_norm": False,
}


def test_every_option_is_free_or_can_be_overridden_or_is_kept():
    """A new option of Config must be added to one of the tables."""
    parts = (Config(), *(getattr(Config(), part) for part in PARTS))
    assert {name for part in parts for name in vars(part)} - set(PARTS) == set(CHANGES) | FREE
    assert OVERRIDABLE - {"epochs"} <= set(CHANGES)


@pytest.mark.parametrize("name", CHANGES)
def test_another_value_on_resume(name, data_dir):
    """Refused; the line names --override if that can change it. With --override it is accepted or refused."""
    old = make_config(data_dir, "run", schedule="constant")  # pyright: ignore[reportArgumentType]
    new = made.change(old, **{name: CHANGES[name]})
    flag = "--" + name.replace("_", "-")
    with pytest.raises(ConfigError) as caught:
        check_same("the run in run", old, new)
    assert str(caught.value).startswith(f"--resume: the run in run has {flag} ")
    assert ("add --override to change it" in str(caught.value)) == (name in OVERRIDABLE)
    override = made.change(new, override=True)
    if name in OVERRIDABLE:
        check_same("the run in run", old, override)
        return
    with pytest.raises(ConfigError, match=f"has {flag} .*, which --override cannot change; leave {flag} out"):
        check_same("the run in run", old, override)


@pytest.mark.parametrize("name", ["momentum", "weight_decay"])
@pytest.mark.parametrize("override", [False, True])
def test_what_changes_the_form_of_the_optimizers_state_is_refused(name, override, data_dir):
    old = make_config(data_dir, "run")  # pyright: ignore[reportArgumentType]
    new = made.change(old, override=override, **{name: 0.0})
    for before, after in ((old, new), (new, made.change(old, override=override))):
        with pytest.raises(ConfigError, match=f"state has another form with --{name.replace('_', '-')} 0"):
            check_same("the run", before, after)


def test_the_state_of_adamw_has_one_form(data_dir):
    old = make_config(data_dir, "run", optimizer="adamw", momentum=0.0, nesterov=False)  # pyright: ignore[reportArgumentType]
    check_same("the run", old, made.change(old, override=True, weight_decay=0.0))


def test_fading_lookahead_ends_with_the_run(data_dir):
    old = make_config(data_dir, "run", lookahead=5, lookahead_schedule="fading")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="where its fading schedule of --lookahead ends"):
        check_same("the run", old, made.change(old, epochs=3))


@pytest.mark.parametrize("schedule", ["linear", "one_cycle"])
def test_other_schedules_that_end_with_the_run(schedule, data_dir):
    old = make_config(data_dir, "run", schedule=schedule)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match=f"where its {schedule} schedule ends"):
        check_same("the run", old, made.change(old, epochs=3))


def test_a_cosine_schedule_is_stretched_only_if_it_is_asked_for(data_dir):
    old = make_config(data_dir, "run", schedule="cosine")  # pyright: ignore[reportArgumentType]
    with pytest.raises(
        ConfigError, match=r"--epochs 2, not 3, where its cosine schedule ends; leave .* add --override"
    ):
        check_same("the run", old, made.change(old, epochs=3))
    check_same("the run", old, made.change(old, epochs=3, override=True))


def test_a_run_that_goes_on_with_another_schedule(data_dir, tmp_path, capsys):
    """Weights and momentum are those of the checkpoint; the rates are those of the new schedule, from its step on."""
    run_dir = tmp_path / "run"
    fit(make_config(data_dir, run_dir, epochs=1))
    new = make_config(
        data_dir,
        run_dir,
        epochs=2,
        resume=True,
        override=True,
        learning_rate=0.03,
        schedule="cosine",
        warmup_epochs=0.0,
    )
    before = made.final(run_dir)
    with pytest.raises(ConfigError, match="add --override to change it"):
        fit(made.change(new, override=False))
    assert made.final(run_dir) == before
    result = fit(new)
    line = (
        "--override changes --epochs from 1 to 2, --learning-rate from 0.05 to 0.03, --schedule from constant to cosine"
    )
    assert line in capsys.readouterr().out
    assert [row["learning_rate"] for row in result.history] == pytest.approx(
        [0.05, 0.03 * (1 + np.cos(np.pi * 5 / 6)) / 2]
    )
    held = json.loads((run_dir / "config.json").read_text())
    changes = {
        "epochs": [1, 2],
        "learning_rate": [0.05, 0.03],
        "schedule": ["constant", "cosine"],
        "warmup_epochs": [0.5, 0.0],
    }
    assert held["overrides"] == [{"step": 3, "changes": changes}]
    assert read_config(run_dir) == made.change(new, override=False)
    assert resnet_jax.load(run_dir).config.optim.learning_rate == 0.03
    fit(made.change(new, epochs=3))  # a second time, and then without
    fit(made.change(new, epochs=3))
    assert "--override: no option differs from the run's" in capsys.readouterr().out
    fit(made.change(new, epochs=3, override=False))
    held = json.loads((run_dir / "config.json").read_text())
    assert [entry["changes"] for entry in held["overrides"]] == [changes, {"epochs": [2, 3]}]
    assert [row["epoch"] for row in made.read_rows(run_dir)] == [1, 2, 3]
