"""From a Config to the parts of a run: data, model, optimizer, augmentation and Trainer."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optax
from jax import numpy as jnp
from tqdm import tqdm

from resnet_jax import data
from resnet_jax.data import DATASETS, Arrays, ImageDataset
from resnet_jax.data.augment import Augmentation, MeanStd, Preprocess, check_augment, crop, flip, unchanged
from resnet_jax.errors import ConfigError, unknown
from resnet_jax.models import Arch, Network, create_model, get_arch
from resnet_jax.models.airbench import WHITENED, WHITENING_IMAGES, whitening
from resnet_jax.models.layers import Dtype
from resnet_jax.models.summary import variable_shapes
from resnet_jax.runs.augmentations import augmentations
from resnet_jax.runs.checks import check_classes, check_crop, check_train_images, growths, resizings
from resnet_jax.runs.config import Config, DataConfig, OptimConfig, from_dict
from resnet_jax.training.averaging import Averaging, Ema, Lookahead, fading_alpha
from resnet_jax.training.callbacks import EarlyStopping, FlipAveraging, Growth
from resnet_jax.training.losses import Loss, SmoothedCrossEntropy, cross_entropy
from resnet_jax.training.optim import adamw, clipped, muon, one_cycle, sgd, warmed_up, with_bias_factor
from resnet_jax.training.parallel import Device
from resnet_jax.training.state import everything_but_head
from resnet_jax.training.trainer import Trainer

WHITENING_BATCH = 256  # images at a time, which bounds the memory


@dataclasses.dataclass(frozen=True)
class DataInfo:
    """What a run and a predictor must know of their data. num_train: training images. digest: of folders alone."""

    name: str
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    num_train: int
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    digest: str = ""

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "DataInfo":
        """The inverse of dataclasses.asdict, also after a round trip through JSON."""
        held: dict[str, Any] = {key: tuple(x) if isinstance(x, list) else x for key, x in values.items()}
        return cls(**held)

    @property
    def mean_std(self) -> MeanStd | None:
        """What Preprocess takes."""
        return None if self.mean is None or self.std is None else (self.mean, self.std)


def named_info(config: DataConfig) -> DataInfo:
    """Of a named data set, from the table: nothing is read. num_train: an upper bound if a share is held out."""
    spec = DATASETS.get(config.dataset)
    if spec is None:
        raise ConfigError(unknown("data set", config.dataset, DATASETS))
    num_train = config.train_images or spec.num_train - (int(config.validation) if config.validation >= 1 else 0)
    mean, std = spec.channel_mean_std or (None, None)
    return DataInfo(spec.name, spec.class_names, spec.image_shape, num_train, mean, std)


def info_of(config: DataConfig, dataset: ImageDataset) -> DataInfo:
    """Of a data set that has been read. Mean and deviation are measured if the run needs them."""
    if config.data_folder:
        shape, digest = dataset.image_shape, dataset.digest
        info = DataInfo(dataset.name, tuple(dataset.class_names), shape, 0, digest=digest)
    else:
        info = named_info(config)
    if config.normalize and info.mean is None:
        info = dataclasses.replace(info, mean=dataset.mean, std=dataset.std)
    return dataclasses.replace(info, num_train=len(dataset.train.labels))


def info_of_meta(meta: dict[str, Any]) -> DataInfo:
    """Of a checkpoint's meta. Old checkpoints only have the name of a data set."""
    return DataInfo.from_dict(meta["data"]) if "data" in meta else named_info(from_dict(meta["config"]).data)


def load_data(config: Config) -> ImageDataset:
    """The data of a run. DataError if it is missing, damaged or too small."""
    held, validation = config.data, whole(config.data.validation)
    if held.data_folder:
        dataset = data.from_folder(
            Path(held.data_folder),
            image_size=held.image_size or None,
            validation=validation or None,  # None: from_folder's own parts, or a tenth of each
            seed=config.seed,
            skip_unreadable=held.skip_unreadable,
            log=tqdm.write,
        )
        check_classes(config.model.num_classes, dataset.num_classes, held.data_folder)
        check_crop(held.crop_padding, dataset.image_shape[:2])
        check_augment(augmentations(held.augment), dataset.image_shape[:2])
    else:
        dataset = data.load(
            held.dataset,
            validation=validation,
            seed=config.seed,
            data_dir=held.data_dir or None,
            source_dir=held.source_dir or None,
            log=tqdm.write,
        )
        check_train_images(held.train_images, len(dataset.train.labels))
    test = dataset.test and first(dataset.test, held.test_images)
    return dataclasses.replace(dataset, train=first(dataset.train, held.train_images), test=test)


def whole(share: float) -> float | int:
    """A count as an int; a share as it is."""
    return int(share) if share >= 1 else share


def first(arrays: Arrays, count: int) -> Arrays:
    """The first `count` images; all for 0."""
    return Arrays(*(x[: count or len(x)] for x in arrays))


def make_model(config: Config, arch: Arch, info: DataInfo, dtype: Dtype, axis_name: str | None = None) -> Network:
    """The network of a run. axis_name: the axis of devices that batch statistics are computed over in training."""
    return create_model(
        arch,
        len(info.class_names),
        stem=config.stem_form,
        width=config.model.width,
        zero_init=config.model.zero_init,
        dirac_init=config.model.dirac_init,
        batch_norm_momentum=config.model.batch_norm_momentum,
        squeeze_excitation=config.model.squeeze_excitation,
        stochastic_depth=config.model.stochastic_depth,
        remat=config.model.remat,
        dtype=dtype,
        axis_name=axis_name,
    )


def make_augment(config: DataConfig) -> tuple[Augmentation, ...]:
    """Flip, crop, and then the list. Flip and crop keep their places, and so their keys, without the other one."""
    mirror = flip if config.flip else unchanged
    shift = crop(config.crop_padding) if config.crop_padding else unchanged
    first = (mirror, shift) if config.flip or config.crop_padding else ()
    return (*first, *augmentations(config.augment))


def make_preprocess(config: DataConfig, info: DataInfo) -> Preprocess:
    """What happens to the images of a run at inference."""
    size = (config.image_size, config.image_size) if config.image_size else info.image_shape[:2]
    return Preprocess(size, info.mean_std if config.normalize else None)


def make_schedule(config: OptimConfig, epochs: int, steps_per_epoch: int) -> optax.Schedule:
    """step -> learning rate, over epochs * steps_per_epoch steps."""
    warmup = round(config.warmup_epochs * steps_per_epoch)
    total = epochs * steps_per_epoch
    if config.schedule == "one_cycle":
        return one_cycle(config.learning_rate, warmup or max(round(0.3 * total), 1), total)
    if config.schedule == "linear":
        main = optax.linear_schedule(config.learning_rate, 0.0, max(total - warmup, 1))
    elif config.schedule == "cosine":
        main = optax.cosine_decay_schedule(config.learning_rate, max(total - warmup, 1))
    elif config.schedule == "step":
        decays: dict[int, float] = {}
        for epoch in config.decay_epochs:  # several epochs may fall on one step
            step = round(epoch * steps_per_epoch) - warmup
            decays[step] = decays.get(step, 1.0) * config.decay_factor
        main = optax.piecewise_constant_schedule(config.learning_rate, decays)
    else:
        main = optax.constant_schedule(config.learning_rate)
    return warmed_up(main, config.learning_rate, warmup)


def make_optimizer(config: OptimConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """The optimizer of a run."""
    if config.optimizer == "adamw":
        optimizer = adamw(schedule, config.weight_decay)
    elif config.optimizer == "muon":
        optimizer = muon(schedule, config.momentum, config.nesterov, config.weight_decay)
    else:
        optimizer = sgd(schedule, config.momentum, config.nesterov, config.weight_decay)
    if config.clip_norm:
        optimizer = clipped(optimizer, config.clip_norm)
    return optimizer if config.bias_lr_factor == 1 else with_bias_factor(optimizer, config.bias_lr_factor)


def make_averaging(config: OptimConfig, steps: int) -> Averaging | None:
    """The averaging of a run of so many steps."""
    if config.lookahead:
        fading = config.lookahead_schedule == "fading"
        return Lookahead(config.lookahead, fading_alpha(config.lookahead, steps) if fading else config.lookahead_alpha)
    return Ema(config.ema) if config.ema else None


def make_loss(config: OptimConfig) -> Loss:
    """The loss of training."""
    return SmoothedCrossEntropy(config.label_smoothing) if config.label_smoothing else cross_entropy


def make_trainer(config: Config, info: DataInfo, devices: list[Device], callbacks: Sequence[Any] = ()) -> Trainer:
    """How a run trains."""
    steps = info.num_train // config.batch_size
    schedule = make_schedule(config.optim, config.epochs, steps)
    frozen: tuple[str, ...] = (WHITENED,) if config.model.whiten else ()
    if config.model.freeze:
        model = make_model(config, get_arch(config.arch), info, "float32")
        frozen = everything_but_head(variable_shapes(model, info.image_shape[-1])["params"])
    return Trainer(
        max_epochs=config.epochs,
        batch_size=config.batch_size,
        optimizer=make_optimizer(config.optim, schedule),
        loss=make_loss(config.optim),
        averaging=make_averaging(config.optim, config.epochs * steps),
        sam=config.optim.sam,
        accumulate=config.optim.accumulate,
        augment=make_augment(config.data),
        callbacks=callbacks,
        seed=config.seed,
        image_size=config.data.image_size,
        sizes=resizings(config.data.sizes),
        normalize=info.mean_std if config.data.normalize else None,
        freeze=frozen,
        devices=devices,
        sync_batch_norm=config.run.sync_batch_norm,
        steps_per_call=config.run.steps_per_dispatch,
        learning_rate=schedule,
        progress=False,
    )


def whitened(config: Config, preprocess: Preprocess, arrays: Arrays) -> dict[str, Any] | None:
    """The variables that a run starts from with --whiten; None without. arrays: the training images."""
    if not config.model.whiten:
        return None
    images = arrays.images[:WHITENING_IMAGES]
    parts = (images[first : first + WHITENING_BATCH] for first in range(0, len(images), WHITENING_BATCH))
    return whitening(preprocess.evaluate(jnp.asarray(part)) for part in parts)


def make_growth(config: Config, arch: Arch, info: DataInfo, dtype: Dtype, axis_name: str | None) -> Growth:
    """The callback of --grow. arch: the network that the run starts with."""

    def grown(arch: Arch) -> Network:
        return make_model(config, arch, info, dtype, axis_name)

    return Growth(arch, growths(config.model.grow), grown)


def flip_averaging(config: Config) -> list[FlipAveraging]:
    """The callback of --flip-averaging."""
    return [FlipAveraging()] if config.run.flip_averaging else []


def stopping(config: Config) -> list[EarlyStopping]:
    """The callback of --early-stopping."""
    return [EarlyStopping(config.optim.early_stopping)] if config.optim.early_stopping else []
