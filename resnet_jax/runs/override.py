"""What may differ between a run and the config that resumes it: freely, or with --override."""

import dataclasses
from typing import Any

from resnet_jax.errors import ConfigError
from resnet_jax.runs.augmentations import augmentations, words_of
from resnet_jax.runs.checks import growths, resizings
from resnet_jax.runs.config import PARTS, TO_THE_END, Config
from resnet_jax.runs.values import flag_text

# the options that may change when a run is resumed. The digest of the pictures protects those of a --data-folder
FREE = {"epochs", "config", "data_dir", "source_dir", "run_dir", "resume", "checkpoint_minutes", "early_stopping"}
FREE |= {"data_folder", "skip_unreadable", "override"}
FREE |= {"devices", "steps_per_dispatch", "compile_cache", "cpu_kernels", "report", "tensorboard", "flip_averaging"}

# the options that --override may change: the weights and the optimizer's state keep their form
OVERRIDABLE = {"learning_rate", "schedule", "warmup_epochs", "decay_epochs", "decay_factor", "epochs"}
OVERRIDABLE |= {"momentum", "nesterov", "weight_decay", "flip", "crop_padding", "augment", "stochastic_depth"}
OVERRIDABLE |= {
    "sam",
    "accumulate",
    "bias_lr_factor",
    "clip_norm",
    "label_smoothing",
    "lookahead_alpha",
    "lookahead_schedule",
}
OVERRIDABLE |= {"remat", "precision", "sync_batch_norm", "batch_norm_momentum", "sizes"}
HAVE_STATE = ("momentum", "weight_decay")  # of sgd: 0 and other values give the optimizer's state another form


def differences(old: Config, new: Config) -> dict[str, list[Any]]:
    """The options that make another training of a run: name -> [old value, new value]."""
    before, after = _flat(old), _flat(new)
    names = [name for name in before if name not in FREE or (name == "epochs" and (what_ends(old) or what_ends(new)))]
    return {name: [before[name], after[name]] for name in names if before[name] != after[name]}


def what_ends(config: Config) -> str:
    """What depends on the number of steps of a run of this config, because it ends at the last one; "" for nothing."""
    if config.optim.schedule in TO_THE_END:
        return f"{config.optim.schedule} schedule"
    return "fading schedule of --lookahead" if config.optim.lookahead_schedule == "fading" else ""


def check_same(run: str, old: Config, new: Config) -> None:
    """Raise ConfigError if the config is not that of the run, or of what --override can change in it."""
    check_fixed(run, old, new)
    for name, (before, after) in differences(old, new).items():
        flag = flag_text(name)
        change = f"{run} has {flag} {_shown(before)}, not {_shown(after)}"
        if name in HAVE_STATE and old.optim.optimizer == "sgd" and bool(before) != bool(after):
            raise ConfigError(
                f"--resume: {change}, and its optimizer's state has another form with {flag} 0; leave {flag} out, or "
                "start another run without --resume"
            )
        if not new.run.override:
            why = f", where its {what_ends(old) or what_ends(new)} ends" if name == "epochs" else ""
            raise ConfigError(
                f"--resume: {change}{why}; leave {flag} out, add --override to change it, or start another run "
                "without --resume"
            )


def check_fixed(run: str, old: Config, new: Config) -> None:
    """Raise ConfigError if the config differs from that of the run in an option that --override cannot change."""
    for name, (before, after) in differences(old, new).items():
        if name not in OVERRIDABLE:
            flag = flag_text(name)
            also = ", which --override cannot change" if new.run.override else ""
            raise ConfigError(
                f"--resume: {run} has {flag} {_shown(before)}, not {_shown(after)}{also}; leave {flag} out, or start "
                "another run without --resume"
            )


def describe(old: Config, new: Config) -> str:
    """What --override changes in a run, in one line."""
    changes = [
        f"{flag_text(name)} from {_shown(before)} to {_shown(after)}"
        for name, (before, after) in differences(old, new).items()
    ]
    return f"--override changes {', '.join(changes)}" if changes else "--override: no option differs from the run's"


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "()"
    return str(value) or "''"


def _flat(config: Config) -> dict[str, Any]:
    values = dataclasses.asdict(config)
    # without spaces
    values["model"]["grow"] = ",".join(f"{epoch}:{stage}" for epoch, stage in growths(config.model.grow))
    values["data"]["sizes"] = ",".join(f"{epoch}:{size}" for epoch, size in resizings(config.data.sizes))
    values["data"]["augment"] = tuple(map(words_of, augmentations(config.data.augment)))  # without defaults
    parts = [values.pop(name) for name in PARTS]
    return values | {key: value for part in parts for key, value in part.items()}
