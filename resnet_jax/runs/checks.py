"""What a Config may hold: checks that need neither data nor devices."""

import math
import re
from collections.abc import Iterator, Sequence

from resnet_jax.data import DATASETS
from resnet_jax.data.augment import check_augment, name_of
from resnet_jax.errors import ConfigError, unknown
from resnet_jax.models import check_input_size, get_arch
from resnet_jax.models.registry import check_blocks_of, check_momentum, check_options
from resnet_jax.runs.augmentations import augmentations
from resnet_jax.runs.config import MAX_SIDE, Config, DataConfig, OptimConfig
from resnet_jax.runs.values import flag_text
from resnet_jax.training.trainer import checked_sizes


def check(config: Config) -> Config:
    """The config itself, or ConfigError if it is invalid on every machine."""
    if not isinstance(config, Config):
        given = type(config).__name__
        raise ConfigError(f"config: give a resnet_jax.Config, not a {given}; load_recipe(NAME) makes one")
    if config.data.dataset not in DATASETS:
        raise ConfigError(unknown("data set", config.data.dataset, DATASETS))
    for flag, value, least in _bounds(config):
        if not least <= value < math.inf:  # false for nan too
            raise ConfigError(f"--{flag} {value} is out of range: it must be finite and at least {least}")
    if config.seed >= 2**32:  # jax.random.key takes the low 32 bits
        raise ConfigError(f"--seed {config.seed} is out of range: it must be below 2**32")
    if config.data.image_size > MAX_SIDE:
        raise ConfigError(f"--image-size {config.data.image_size} must be at most {MAX_SIDE}")
    _check_augment(config.data)
    _check_data(config.data)
    _check_optim(config.optim, config.epochs)
    _check_model(config)
    _check_grow(config)
    _check_sizes(config)
    own_size = config.data.image_size
    if own_size or not config.data.data_folder:  # the size of own pictures is known when they have been read
        size = (own_size, own_size) if own_size else DATASETS[config.data.dataset].image_shape[:2]
        check_input_size(get_arch(config.arch), size, config.stem_form)
    return config


def _bounds(config: Config) -> Iterator[tuple[str, float, float]]:
    """Flags, their values and the smallest valid value of each."""
    data, optim, run = config.data, config.optim, config.run
    yield from (("epochs", config.epochs, 1), ("batch-size", config.batch_size, 1), ("seed", config.seed, 0))
    yield from (("image-size", data.image_size, 0), ("crop-padding", data.crop_padding, 0))
    yield from (("train-images", data.train_images, 0), ("test-images", data.test_images, 0))
    yield from (("learning-rate", optim.learning_rate, 0.0), ("warmup-epochs", optim.warmup_epochs, 0.0))
    yield from (("momentum", optim.momentum, 0.0), ("weight-decay", optim.weight_decay, 0.0))
    yield from (("clip-norm", optim.clip_norm, 0.0), ("bias-lr-factor", optim.bias_lr_factor, 0.0))
    yield from (("label-smoothing", optim.label_smoothing, 0.0), ("ema", optim.ema, 0.0))
    yield from (("sam", optim.sam, 0.0), ("accumulate", optim.accumulate, 1))
    yield from (("lookahead", optim.lookahead, 0), ("lookahead-alpha", optim.lookahead_alpha, 0.0))
    yield from (("validation", data.validation, 0), ("early-stopping", optim.early_stopping, 0))
    yield from (("devices", run.devices, 0), ("steps-per-dispatch", run.steps_per_dispatch, 0))
    yield from (("decay-factor", optim.decay_factor, 0.0), ("checkpoint-minutes", run.checkpoint_minutes, 0.0))
    yield from (("decay-epochs", epoch, 0.0) for epoch in optim.decay_epochs)


def _check_data(data: DataConfig) -> None:
    if data.validation >= 1 and (data.validation != int(data.validation) or data.validation < 2):
        raise ConfigError(
            f"--validation {data.validation:g}: give a share below 1, such as 0.1, or a whole number of images from 2"
        )
    if data.data_folder:
        return
    spec = DATASETS[data.dataset]
    check_crop(data.crop_padding, spec.image_shape[:2])
    check_augment(augmentations(data.augment), spec.image_shape[:2])
    held_out = int(data.validation) if data.validation >= 1 else 0
    for flag, asked, held in (
        ("train-images", data.train_images, spec.num_train),
        ("test-images", data.test_images, spec.num_test),
    ):
        if asked > held:
            raise ConfigError(f"--{flag} {asked} is more than the {held} that {data.dataset} has; 0 means all")
    check_train_images(data.train_images, spec.num_train - held_out)


def _check_augment(data: DataConfig) -> None:
    """Raise ConfigError for an invalid list, or one that does again what --flip and --crop-padding do."""
    names = [name_of(function) for function in augmentations(data.augment)]
    mirrors = [name for name in names if name in ("flip", "alternating_flip")]
    if len(mirrors) + data.flip > 1:
        raise ConfigError(
            f"--augment {' '.join(mirrors)}{' with --flip' if data.flip else ''}: images are mirrored more than once; "
            "leave one of them out" + (" (--no-flip)" if data.flip else "")
        )
    if "crop" in names and data.crop_padding:
        raise ConfigError(
            f"--augment crop with --crop-padding {data.crop_padding}: images are cropped twice; leave one of them out"
        )


def check_crop(padding: int, size: Sequence[int]) -> None:
    """Raise ConfigError if --crop-padding could shift the images of (height, width) pixels out of view."""
    if padding >= min(size):
        raise ConfigError(
            f"--crop-padding {padding}: the images have {size[0]}x{size[1]} pixels; use at most {min(size) - 1}"
        )


def check_train_images(asked: int, left: int) -> None:
    """Raise ConfigError if --train-images is more than --validation leaves."""
    if asked > left > 0:
        raise ConfigError(f"--train-images {asked} is more than the {left} that --validation leaves; 0 means all")


def _check_model(config: Config) -> None:
    model = config.model
    check_options(get_arch(config.arch), model.width, model.stochastic_depth)
    if model.freeze and config.optim.optimizer == "muon":
        raise ConfigError(
            "--optimizer muon is for kernels of convolutions, and --freeze trains the head alone; use --optimizer adamw"
        )
    check_momentum(model.batch_norm_momentum)
    if not config.data.data_folder:
        check_classes(model.num_classes, DATASETS[config.data.dataset].num_classes, config.data.dataset)


def check_classes(asked: int, classes: int, data: str) -> None:
    """Raise ConfigError if --num-classes is neither 0 nor the number of classes of the data."""
    if asked not in (0, classes):
        raise ConfigError(f"--num-classes {asked}: {data} has {classes} classes; give {classes} or leave it out")


def growths(grow: str) -> list[tuple[int, int]]:
    """The epoch and the stage, both from 1, of each block that --grow adds; ConfigError for other text."""
    return _pairs(grow, f"--grow {grow!r} is not EPOCH:STAGE, or several separated by commas, such as 5:3,10:4")


def resizings(sizes: str) -> list[tuple[int, int]]:
    """The epoch, from 1, and the size in pixels of each change of --sizes; ConfigError for other text."""
    return _pairs(sizes, f"--sizes {sizes!r} is not EPOCH:SIZE, or several separated by commas, such as 1:20,4:28")


def _pairs(text: str, invalid: str) -> list[tuple[int, int]]:
    """The numbers of text such as 5:3,10:4; ConfigError with the message `invalid` for other text."""
    if not text.strip():
        return []
    pairs = [re.fullmatch(r"\s*(\d{1,9})\s*:\s*(\d{1,9})\s*", item) for item in text.split(",")]
    if not all(pairs):
        raise ConfigError(invalid)
    return [(int(pair[1]), int(pair[2])) for pair in pairs if pair]


def _check_sizes(config: Config) -> None:
    """Raise ConfigError for an epoch of --sizes that the run does not have, and for invalid sizes."""
    pairs = resizings(config.data.sizes)
    for epoch, size in pairs:
        if not 1 <= epoch <= config.epochs:
            raise ConfigError(f"--sizes {epoch}:{size}: the size changes at epoch 1 to --epochs {config.epochs}")
        if not 1 <= size <= MAX_SIDE:
            raise ConfigError(f"--sizes {epoch}:{size}: use 1 to {MAX_SIDE} pixels")
        try:
            check_input_size(get_arch(config.arch), (size, size), config.stem_form)
        except ConfigError as error:
            raise ConfigError(f"--sizes {epoch}:{size}: {error}") from None
    checked_sizes(pairs)


def _check_grow(config: Config) -> None:
    """Raise ConfigError for an epoch or a stage of --grow that the run does not have."""
    pairs, stages = growths(config.model.grow), len(get_arch(config.arch).stages)
    if pairs:
        check_blocks_of(get_arch(config.arch), f"--grow {config.model.grow}")
    if pairs and config.model.freeze:
        raise ConfigError("--grow with --freeze: a new block would never be trained; leave one of them out")
    for epoch, stage in pairs:
        if not 2 <= epoch <= config.epochs:
            raise ConfigError(f"--grow {epoch}:{stage}: blocks are added at epoch 2 to --epochs {config.epochs}")
        if not 1 <= stage <= stages:
            raise ConfigError(f"--grow {epoch}:{stage}: {config.arch} has no stage {stage}; use 1 to {stages}")
    if [epoch for epoch, _ in pairs] != sorted(epoch for epoch, _ in pairs):
        raise ConfigError(f"--grow {config.model.grow}: the epochs are out of order; give the earliest first")


def _check_optim(optim: OptimConfig, epochs: int) -> None:
    for name in ("momentum", "label_smoothing", "ema"):
        if (value := getattr(optim, name)) >= 1:
            raise ConfigError(f"{flag_text(name)} {value} must be below 1")
    if not 0 < optim.lookahead_alpha <= 1:
        raise ConfigError(f"--lookahead-alpha {optim.lookahead_alpha} must be above 0 and at most 1")
    if len(set(optim.decay_epochs)) < len(optim.decay_epochs):
        raise ConfigError(f"--decay-epochs {' '.join(f'{e:g}' for e in optim.decay_epochs)}: give each epoch once")
    if optim.schedule == "step" and not optim.decay_epochs:
        raise ConfigError("--schedule step needs --decay-epochs, such as --decay-epochs 5 8")
    if optim.warmup_epochs >= epochs:
        raise ConfigError(f"--warmup-epochs {optim.warmup_epochs} must be less than --epochs {epochs}")
