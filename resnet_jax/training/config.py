"""What a run is told: frozen dataclasses, filled from a recipe in configs/ and then from flags."""

import contextlib
import dataclasses
import difflib
import io
import math
import re
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import tyro

from resnet_jax.data import DATASETS
from resnet_jax.errors import ConfigError, unknown
from resnet_jax.models import get_arch
from resnet_jax.models.registry import check_options
from resnet_jax.models.resnet import check_image_size

Stem = Literal["auto", "standard", "small"]
Schedule = Literal["constant", "step", "cosine"]
Precision = Literal["auto", "float32", "bfloat16"]
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The images: where they come from and what is done to them."""

    dataset: str = "fashion_mnist"
    """fashion_mnist, mnist, kmnist or cifar10."""
    data_dir: str = ""
    """Folder of prepared data sets. Empty: that of tensorflow-datasets, ~/tensorflow_datasets."""
    source_dir: str = ""
    """Folder with the data set's own files, to prepare it from instead of the download."""
    image_size: int = 0
    """Height and width in pixels that images are resized to, bilinearly. 0: as they are."""
    normalize: bool = False
    """Subtract the training set's mean and divide by its standard deviation, after scaling to [0, 1]."""
    flip: bool = False
    """Mirror every other training image, left to right, at random."""
    crop_padding: int = 0
    """Shift training images by up to so many pixels of their original size, padding with zeros."""
    train_images: int = 0
    """Train on the first so many images. 0: on all."""
    test_images: int = 0
    """Evaluate on the first so many test images. 0: on all."""


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The network's options, and the weights that it starts from."""

    num_classes: int = 0
    """Classes of the head: those of the data set. 0: the same."""
    width: float = 1.0
    """Times as many channels, rounded to multiples of 8."""
    zero_init: bool = False
    """Start the last gamma of every block at 0, so that the block begins as its shortcut."""
    squeeze_excitation: bool = False
    """Squeeze-and-excitation in every block."""
    stochastic_depth: float = 0.0
    """Share of images for which training leaves the last block out; less for the blocks before it."""
    remat: bool = False
    """Compute blocks twice instead of keeping what is inside them: less memory, a third more time."""
    pretrained: str = ""
    """Folder of converted weights to start from (python -m resnet_jax convert)."""
    freeze: bool = False
    """Train the head alone: the rest keeps its weights, and its batch norms their statistics."""
    grow: str = ""
    """EPOCH:STAGE for each block to add, such as 5:3,10:4: one at the end of stage 3 as epoch 5 begins, then one in
    stage 4. It starts as the identity, so that the network goes on computing the same."""


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """Stochastic gradient descent and its schedule."""

    learning_rate: float = 0.01
    """The rate, or the peak of its schedule."""
    schedule: Schedule = "constant"
    """constant; step (times --decay-factor at each of --decay-epochs); cosine (to 0 at the last step)."""
    warmup_epochs: float = 0.0
    """Epochs in which the rate rises from 0, linearly; any schedule."""
    decay_epochs: tuple[float, ...] = ()
    """Where the step schedule decays."""
    decay_factor: float = 0.1
    """What the step schedule multiplies the rate by."""
    momentum: float = 0.0
    """Momentum of the gradients."""
    nesterov: bool = False
    """Nesterov's form of it."""
    weight_decay: float = 0.0
    """L2 penalty on kernels: not on biases, nor on batch norm's scale."""


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Where the run is kept and what it runs on."""

    run_dir: str = ""
    """The run's folder. Empty: runs/ARCH-DATASET-DATE-TIME."""
    resume: bool = False
    """Go on from the latest checkpoint of --run-dir, or of the newest such run."""
    checkpoint_minutes: float = 10.0
    """Minutes between checkpoints inside an epoch; one more is kept at the end of each. 0: only those."""
    devices: int = 0
    """How many devices to split each batch over. 0: all."""
    precision: Precision = "auto"
    """Of activations. auto: bfloat16 where device and kernels compute in it (TPUs, GPUs since A100, CPUs with AMX or
    AVX512-BF16 and oneDNN), float32 elsewhere. Of float32, TPUs and GPUs multiply fewer bits by JAX's default."""
    cpu_kernels: Literal["auto", "xla", "onednn"] = "auto"
    """Convolution and batch norm on a CPU. auto: oneDNN's where they are installed, XLA's elsewhere."""
    sync_batch_norm: bool = True
    """Take batch statistics over all devices, not over each one's share."""
    steps_per_dispatch: int = 0
    """Train steps in one call of the device. 0: 1 on the CPU, 32 elsewhere."""
    compile_cache: bool = True
    """Keep compiled programs in ~/.cache/resnet_jax (or $XDG_CACHE_HOME), so that the next run starts at once."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Train a ResNet or a ResNeXt; configs/NAME.toml gives a recipe's values and flags override them."""

    arch: str = "resnet18"
    """Architecture; its recipe is configs/ARCH.toml, or default.toml where there is none."""
    config: str = ""
    """Another recipe: a name in configs/ or the path of a .toml file."""
    stem: Stem = "auto"
    """standard (7x7 and max-pool), small (3x3), or auto: the architecture's own."""
    epochs: int = 10
    """Passes over the training images."""
    batch_size: int = 128
    """Images a step, over all devices."""
    seed: int = 0
    """Of initialisation, the order of images and augmentation."""
    data: tyro.conf.OmitArgPrefixes[DataConfig] = DataConfig()
    model: tyro.conf.OmitArgPrefixes[ModelConfig] = ModelConfig()
    optim: tyro.conf.OmitArgPrefixes[OptimConfig] = OptimConfig()
    run: tyro.conf.OmitArgPrefixes[RunConfig] = RunConfig()

    @property
    def image_size(self) -> int:
        """Height and width in pixels of what the network sees."""
        return self.data.image_size or DATASETS[self.data.dataset].image_shape[0]

    @property
    def stem_form(self) -> str:
        """ "standard" or "small"."""
        return get_arch(self.arch).stem if self.stem == "auto" else self.stem


PARTS = {"data": DataConfig, "model": ModelConfig, "optim": OptimConfig, "run": RunConfig}


def from_dict(values: dict[str, Any]) -> Config:
    """The Config that dataclasses.asdict made these values of, perhaps by way of JSON."""
    optim = values["optim"] | {"decay_epochs": tuple(values["optim"]["decay_epochs"])}
    parts = {
        "data": DataConfig(**values["data"]),
        "model": ModelConfig(**values.get("model", {})),  # runs of before there were any have none
        "optim": OptimConfig(**optim),
        "run": RunConfig(**values["run"]),
    }
    return Config(**(values | parts))


def parse(argv: Sequence[str], prog: str = "train.py", default: Config | None = None) -> Config:
    """What read gives, checked."""
    return check(read(argv, prog, default))


def read(argv: Sequence[str], prog: str = "train.py", default: Config | None = None) -> Config:
    """The Config that flags ask for over a recipe's values; ConfigError, of one line, if they cannot be.

    The recipe is --config's, else --arch's own where there is one, else finetune with --pretrained and default without.
    A default, the config of a run that goes on, takes the place of all but --config's.
    """
    asked = _parse(argv, prog)
    recipe = find_recipe(asked.config) if asked.config else None
    if recipe is None and default is None:
        known = recipes()
        recipe = known.get(asked.arch) or known.get("finetune" if asked.model.pretrained else "default")
    flags = recipe_flags(recipe) if recipe else []
    try:  # alone first, so that an error names the file
        _parse(flags, prog)
    except ConfigError as error:
        raise ConfigError(f"{recipe}: {error}") from None
    return _parse([*flags, *argv], prog, default)


def load_recipe(name: str) -> Config:
    """The Config of configs/NAME.toml, or of a .toml file; ConfigError with the nearest name if there is none."""
    return parse(["--config", name])


def recipes() -> dict[str, Path]:
    """Every recipe that comes with the package, by name."""
    package = Path(__file__).resolve().parent.parent
    folder = next((f for f in (package / "configs", package.parent / "configs") if f.is_dir()), package)
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def find_recipe(name: str) -> Path:
    """The file of a recipe, given by name or by path."""
    if name.endswith(".toml"):
        if not Path(name).is_file():
            raise ConfigError(f"--config {name}: there is no such file; give a .toml file or a name of configs/")
        return Path(name)
    known = recipes()
    if name not in known:
        raise ConfigError(unknown("recipe", name, known) + ", or give a .toml file")
    return known[name]


def recipe_flags(path: Path) -> list[str]:
    """A recipe's values as flags, so that a wrong key or type in it is found as one on the command line is."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path}: not a TOML file that can be read: {error}") from None
    flags = list(_flags(values))
    if "--help" in flags:
        raise ConfigError(f"{path}: help is no key of a recipe; leave it out")
    return flags


def _flags(values: dict[str, Any]) -> Iterator[str]:
    for key, value in values.items():
        flag = key.replace("_", "-")
        if isinstance(value, dict):  # a table groups keys, as --help does; flags have no prefix
            yield from _flags(value)
        elif isinstance(value, bool):
            yield f"--{flag}" if value else f"--no-{flag}"
        elif isinstance(value, list):
            yield from (f"--{flag}", *map(str, value))
        else:
            yield f"--{flag}={value}"  # one word: a value may begin with a dash


def _parse(argv: Sequence[str], prog: str, default: Config | None = None) -> Config:
    return parse_as(Config, argv, prog, default or Config())


def parse_as(kind: type[T], argv: Sequence[str], prog: str, default: T | None = None) -> T:
    """A dataclass from flags by tyro, its box of an error made one line."""
    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr):
            if default is None:
                return tyro.cli(kind, prog=prog, args=list(argv))
            return tyro.cli(kind, prog=prog, args=list(argv), default=default)
    except SystemExit as stop:
        if not stop.code:  # --help
            raise
        raise ConfigError(one_line(stderr.getvalue(), kind)) from None


def one_line(box: str, kind: type = Config) -> str:
    """What tyro's box says is wrong, and the flag of kind or the choice that may have been meant.

    A title, then parts between horizontal rules: the message first. Its frame is there where stdout is UTF-8.
    """
    parts: list[list[str]] = [[]]
    for line in box.splitlines():
        text = line.strip("│ ")
        if text.startswith("╭") or re.fullmatch("[-─╰╯]{3,}", text):
            parts.append([])
        else:
            parts[-1].append(text)
    message = " ".join(parts[1]).strip()
    if choice := re.fullmatch(r"invalid choice '(.*)' for argument '--(\S+)'\. Expected one of \((.*)\)\.", message):
        return unknown(choice[2], choice[1], re.findall(r"'([^']*)'", choice[3]))
    bad = re.match(r"Unrecognized options:.*?--([\w-]+)", message)
    nearest = difflib.get_close_matches(bad[1], _all_flags(kind), n=1) if bad else []
    return message + (f": did you mean --{nearest[0]}?" if nearest else "; --help lists every flag")


def _all_flags(kind: type) -> list[str]:
    parts = (Config, *PARTS.values()) if kind is Config else (kind,)
    names = [field.name for part in parts for field in dataclasses.fields(part)]
    return [name.replace("_", "-") for name in names if name not in PARTS]


def check(config: Config) -> Config:
    """The config itself, or ConfigError where no data set and no machine could make it right."""
    if config.data.dataset not in DATASETS:
        raise ConfigError(unknown("data set", config.data.dataset, DATASETS))
    for flag, value, least in _bounds(config):
        if not least <= value < math.inf:  # false for nan too
            raise ConfigError(f"--{flag} {value} is out of range: it must be finite and at least {least}")
    for flag, name, names in _choices(config):
        if name not in names:
            raise ConfigError(unknown(flag, name, names))
    if config.seed >= 2**32:  # jax.random.key takes the low 32 bits
        raise ConfigError(f"--seed {config.seed} is out of range: it must be below 2**32")
    _check_data(config.data)
    _check_optim(config.optim, config.epochs)
    _check_model(config)
    _check_grow(config)
    num_stages = len(get_arch(config.arch).stages)
    check_image_size((config.image_size, config.image_size), config.stem_form, num_stages)
    return config


def _bounds(config: Config) -> Iterator[tuple[str, float, float]]:
    """Flags, their values and the least that each may be."""
    data, optim, run = config.data, config.optim, config.run
    yield from (("epochs", config.epochs, 1), ("batch-size", config.batch_size, 1), ("seed", config.seed, 0))
    yield from (("image-size", data.image_size, 0), ("crop-padding", data.crop_padding, 0))
    yield from (("train-images", data.train_images, 0), ("test-images", data.test_images, 0))
    yield from (("learning-rate", optim.learning_rate, 0.0), ("warmup-epochs", optim.warmup_epochs, 0.0))
    yield from (("momentum", optim.momentum, 0.0), ("weight-decay", optim.weight_decay, 0.0))
    yield from (("devices", run.devices, 0), ("steps-per-dispatch", run.steps_per_dispatch, 0))
    yield from (("decay-factor", optim.decay_factor, 0.0), ("checkpoint-minutes", run.checkpoint_minutes, 0.0))
    yield from (("decay-epochs", epoch, 0.0) for epoch in optim.decay_epochs)


def _choices(config: Config) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Flags of a few names, their values and the names; for whoever has not come by the command."""
    yield ("stem", config.stem, get_args(Stem))
    yield ("schedule", config.optim.schedule, get_args(Schedule))
    yield ("precision", config.run.precision, get_args(Precision))


def _check_data(data: DataConfig) -> None:
    spec = DATASETS[data.dataset]
    for flag, asked, held in (
        ("train-images", data.train_images, spec.num_train),
        ("test-images", data.test_images, spec.num_test),
    ):
        if asked > held:
            raise ConfigError(f"--{flag} {asked} is more than the {held} that {data.dataset} has; 0 means all")
    if data.normalize and spec.mean_std is None:
        raise ConfigError(f"--normalize: mean and deviation of {data.dataset} are not in the table; leave it out")


def _check_model(config: Config) -> None:
    model, classes = config.model, DATASETS[config.data.dataset].num_classes
    check_options(model.width, model.stochastic_depth)
    if model.num_classes not in (0, classes):
        raise ConfigError(
            f"--num-classes {model.num_classes}: {config.data.dataset} has {classes}; give {classes} or leave it out"
        )
    if model.freeze and not model.pretrained:
        raise ConfigError("--freeze trains the head alone, on weights that must be given: add --pretrained FOLDER")


def growths(grow: str) -> list[tuple[int, int]]:
    """The epoch and the stage of each block that --grow adds, both from 1, in order; ConfigError if it says others."""
    if not grow.strip():
        return []
    pairs = [re.fullmatch(r"\s*(\d{1,9})\s*:\s*(\d{1,9})\s*", item) for item in grow.split(",")]
    if not all(pairs):
        raise ConfigError(f"--grow {grow!r} is not EPOCH:STAGE, or several with commas between; such as 5:3,10:4")
    return [(int(pair[1]), int(pair[2])) for pair in pairs if pair]


def _check_grow(config: Config) -> None:
    """Raise ConfigError where the run cannot grow when and where --grow says."""
    pairs, stages = growths(config.model.grow), len(get_arch(config.arch).stages)
    if pairs and config.model.freeze:
        raise ConfigError("--grow with --freeze: a new block would never be trained; leave one of them out")
    for epoch, stage in pairs:
        if not 2 <= epoch <= config.epochs:
            when = f"as epoch 2 or a later one begins, up to --epochs {config.epochs}"
            raise ConfigError(f"--grow {epoch}:{stage}: a block comes in {when}")
        if not 1 <= stage <= stages:
            raise ConfigError(f"--grow {epoch}:{stage}: {config.arch} has no stage {stage}; use 1 to {stages}")
    if [epoch for epoch, _ in pairs] != sorted(epoch for epoch, _ in pairs):
        raise ConfigError(f"--grow {config.model.grow}: the epochs are out of order; give the earliest first")


def _check_optim(optim: OptimConfig, epochs: int) -> None:
    if optim.nesterov and not optim.momentum:
        raise ConfigError("--nesterov needs a momentum; add --momentum 0.9")
    if optim.momentum >= 1:
        raise ConfigError(f"--momentum {optim.momentum} must be below 1")
    if optim.decay_epochs and optim.schedule != "step":
        raise ConfigError(f"--decay-epochs goes with --schedule step, not {optim.schedule}")
    if optim.schedule == "step" and not optim.decay_epochs:
        raise ConfigError("--schedule step needs --decay-epochs, such as --decay-epochs 5 8")
    if optim.warmup_epochs >= epochs:
        raise ConfigError(f"--warmup-epochs {optim.warmup_epochs} must be less than --epochs {epochs}")
