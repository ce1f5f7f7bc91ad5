"""When an option has an effect: a table, so that an option without one is refused and not ignored."""

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from resnet_jax.errors import ConfigError
from resnet_jax.runs.config import PARTS, Config
from resnet_jax.runs.values import flag_text


class Effect(NamedTuple):
    """An option, the condition under which it has an effect, and the message otherwise.

    otherwise: a format string of the option's {value} and of the config {c}. by_flag: only a flag is refused; in a
    recipe or in Python the option does no harm.
    """

    option: str
    where: Callable[[Config], object]
    otherwise: str
    by_flag: bool = False


NAMED_SET = "{flag} is for named data sets; leave it out with --data-folder"
EFFECTS = (
    Effect(
        "dataset",
        lambda c: not c.data.data_folder,
        "--dataset and --data-folder: the run has one data set; leave one of them out",
    ),
    *(
        Effect(option, lambda c: not c.data.data_folder, NAMED_SET.format(flag=flag_text(option)))
        for option in ("source_dir", "data_dir", "train_images", "test_images")
    ),
    Effect(
        "skip_unreadable",
        lambda c: c.data.data_folder,
        "--skip-unreadable is for pictures of your own; add --data-folder FOLDER or leave it out",
    ),
    *(
        Effect(
            option,
            lambda c: not c.model.pretrained,
            f"{flag_text(option)} is for a network that starts untrained; leave it out with --pretrained",
        )
        for option in ("zero_init", "dirac_init", "whiten")
    ),
    Effect(
        "whiten",
        lambda c: c.arch == "airbench",
        "--whiten is for airbench; {c.arch} has no such first convolution, so leave it out",
    ),
    Effect(
        "freeze",
        lambda c: c.model.pretrained,
        "--freeze trains the head alone: the other parts need trained weights; add --pretrained FOLDER",
    ),
    *(
        Effect(
            option,
            lambda c: not c.model.freeze,
            f"{flag_text(option)} has no effect in blocks that --freeze keeps; leave one of the two out",
        )
        for option in ("stochastic_depth", "remat", "batch_norm_momentum")
    ),
    *(
        Effect(
            option,
            lambda c: c.optim.optimizer != "adamw",
            f"{flag_text(option)} is not an option of --optimizer adamw; leave one of them out",
        )
        for option in ("momentum", "nesterov")
    ),
    Effect(
        "bias_lr_factor",
        lambda c: not c.model.freeze,
        "--bias-lr-factor leaves out the head, and --freeze trains it alone; leave one of the two out",
    ),
    Effect(
        "ema",
        lambda c: not c.optim.lookahead,
        "--ema and --lookahead: a run has one average of its weights; leave one of them out",
    ),
    *(
        Effect(option, lambda c: c.optim.lookahead, f"{flag_text(option)} goes with --lookahead; add --lookahead 5")
        for option in ("lookahead_alpha", "lookahead_schedule")
    ),
    Effect(
        "lookahead_alpha",
        lambda c: c.optim.lookahead_schedule == "constant",
        "--lookahead-alpha goes with --lookahead-schedule constant; leave one of them out",
    ),
    Effect("nesterov", lambda c: c.optim.momentum, "--nesterov needs a momentum; add --momentum 0.9"),
    *(
        Effect(
            option,
            lambda c: c.optim.schedule == "step",
            f"{flag_text(option)} goes with --schedule step, not {{c.optim.schedule}}; leave one of them out",
        )
        for option in ("decay_epochs", "decay_factor")
    ),
    Effect(
        "decay_epochs",
        lambda c: all(epoch < c.epochs for epoch in c.optim.decay_epochs),
        "--decay-epochs: the run ends before the last of them; give epochs below --epochs {c.epochs}",
        by_flag=True,
    ),
    Effect(
        "early_stopping",
        lambda c: c.data.data_folder or c.data.validation,
        "--early-stopping {value}: the data has no validation part; add --validation 0.1",
    ),
    Effect("override", lambda c: c.run.resume, "--override changes a run that is resumed; add --resume"),
)


def unused(config: Config, flags: Collection[str] = ()) -> dict[str, str]:
    """The options without an effect in a run of this config, and why. 0, False and empty values count as not given."""
    values = _values(config)
    return {
        option: otherwise.format(value=values[option], c=config)
        for option, where, otherwise, by_flag in reversed(EFFECTS)  # the first reason counts
        if values[option] and not where(config) and (option in flags or not by_flag)
    }


def check_effects(config: Config, flags: Collection[str]) -> None:
    """Raise ConfigError if an option that flags name has no effect."""
    for option, reason in unused(config, flags).items():
        if option in flags:
            raise ConfigError(reason)


def check_made(config: Config) -> None:
    """Raise ConfigError if an option of a Config made in Python has no effect, unless it has the default's value."""
    default = _values(Config())
    for option, reason in unused(config).items():
        if _values(config)[option] != default[option]:
            raise ConfigError(reason)


def _values(config: Config) -> dict[str, Any]:
    """The values of all options, by name."""
    parts = (config, *(getattr(config, part) for part in PARTS))
    return {name: value for part in parts for name, value in vars(part).items()}
