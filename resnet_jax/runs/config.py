"""The configuration of a run: frozen dataclasses, filled from a recipe in configs/ and then from flags.

Values may be scalars of numpy and paths; each part keeps them as what JSON holds. ConfigError for other types.
"""

import dataclasses
from typing import Any, Literal

from resnet_jax.arguments import shown
from resnet_jax.errors import listed
from resnet_jax.runs.values import PathText, settle

Stem = Literal["auto", "standard", "small"]
MAX_SIDE = 4096  # pixels of an image
Optimizer = Literal["sgd", "adamw", "muon"]
Schedule = Literal["constant", "step", "cosine", "linear", "one_cycle"]
LookaheadSchedule = Literal["constant", "fading"]
TO_THE_END = ("cosine", "linear", "one_cycle")  # the schedules that end at the last step of the run
Precision = Literal["auto", "float32", "bfloat16"]
CpuKernels = Literal["auto", "xla", "onednn", "plain"]


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The images: where they come from and what is done to them."""

    dataset: str = "fashion_mnist"
    """fashion_mnist, mnist, kmnist or cifar10."""
    data_folder: PathText = ""
    """Folder of your own pictures, instead of --dataset: CLASS/*.png (or jpg, webp, bmp, gif, tiff), or train/, val/
    and test/ above the classes."""
    skip_unreadable: bool = False
    """Leave out pictures of --data-folder that cannot be read, and report them."""
    validation: float = 0.0
    """Training images to hold out for validation: a share below 1, or a number of images from 2. 0: none, or a tenth of
    a --data-folder that has no val/ folder."""
    data_dir: PathText = ""
    """Folder of prepared data sets. Default: that of tensorflow-datasets, ~/tensorflow_datasets."""
    source_dir: PathText = ""
    """Folder with the official files of the data set, to read it from instead of prepared data or the download."""
    image_size: int = 0
    """Height and width in pixels that images are resized to, bilinearly. 0: keep their size."""
    sizes: str = ""
    """EPOCH:SIZE for each change of the size of training images. 1:20,4:28 trains at 20x20 pixels, and at 28x28 when
    epoch 4 starts. Small images train faster. Evaluation keeps --image-size."""
    normalize: bool = False
    """Scale images to [0, 1], then subtract the training set's mean and divide by its standard deviation."""
    flip: bool = False
    """Mirror each training image left to right with probability 1/2."""
    crop_padding: int = 0
    """Shift training images by up to this many pixels of their original size, padding with zeros. It must be less than
    the height and the width."""
    augment: tuple[str, ...] = ()
    """Augmentations of training images, in order, after --flip and --crop-padding: NAME or NAME:OPTION=VALUE,... , such
    as erasing:probability=0.25,fill=mean mixup. Names: alternating_flip, brightness, contrast, crop, cutmix, cutout,
    erasing, flip, mixup, rand_augment, resized_crop, rotate, shift. docs/augmentation.md lists the options."""
    train_images: int = 0
    """Train on the first N images. 0: on all."""
    test_images: int = 0
    """Evaluate on the first N test images. 0: on all."""

    def __post_init__(self) -> None:
        settle(self)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The options of the network, and the weights that it starts from."""

    num_classes: int = 0
    """Number of classes, which must be that of the data set. 0: the same."""
    width: float = 1.0
    """Multiply the number of channels by this, rounded to multiples of 8, at least 8."""
    zero_init: bool = False
    """Start the last gamma of every block at 0, so that each block starts as its shortcut."""
    dirac_init: bool = False
    """Start 3x3 convolutions that do not reduce the channels as the identity: each of the first filters passes one
    channel on, and the other filters start at random."""
    whiten: bool = False
    """Compute the first convolution of airbench from the first 5,000 training images, so that its outputs are
    uncorrelated, and keep this kernel. Its bias is trained."""
    batch_norm_momentum: float = 0.9
    """The share of the old value that the running averages of batch norm keep in each step. PyTorch's
    momentum is the share of the new value, so its 0.1 is 0.9 here."""
    squeeze_excitation: bool = False
    """Add squeeze-and-excitation to every block."""
    stochastic_depth: float = 0.0
    """Drop the branch of the last block for this share of training images; the rate falls linearly to 0 towards the
    first block."""
    remat: bool = False
    """Recompute the activations inside blocks in the backward pass: less memory, a third more time."""
    pretrained: PathText = ""
    """Weights to start from: a folder of converted weights (python -m resnet_jax convert), the folder of a run, or a
    file of PyTorch."""
    freeze: bool = False
    """Train the head alone. The other parts keep their weights, and their batch norms keep their statistics."""
    grow: str = ""
    """EPOCH:STAGE for each block to add. 5:3,10:4 adds one at the end of stage 3 when epoch 5 starts, and one in
    stage 4 when epoch 10 starts. A new block starts as the identity, so the network keeps computing the same."""

    def __post_init__(self) -> None:
        settle(self)


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """The optimizer, its schedule and the loss."""

    learning_rate: float = 0.01
    """The learning rate, or the peak of its schedule."""
    schedule: Schedule = "constant"
    """constant; step (times --decay-factor at each of --decay-epochs); cosine or linear (to 0 at the end);
    one_cycle (PyTorch's OneCycleLR: from 1/25 up to the peak, then down to 1/250000, both along a cosine)."""
    warmup_epochs: float = 0.0
    """Epochs in which the learning rate rises linearly from 0; for any schedule. With one_cycle the epochs of its own
    rise; 0 is 0.3 of the run there."""
    decay_epochs: tuple[float, ...] = ()
    """Epochs at which the step schedule decays."""
    decay_factor: float = 0.1
    """The factor of the step schedule."""
    momentum: float = 0.0
    """Momentum of the gradients."""
    nesterov: bool = False
    """Use Nesterov's momentum."""
    weight_decay: float = 0.0
    """Weight decay of kernels, not of biases or of the scales of batch norms. sgd adds it to the gradient (an L2
    penalty); adamw and muon subtract learning rate x weight decay x kernel."""
    early_stopping: int = 0
    """Stop when the validation loss has not improved for this many epochs. 0: never."""
    optimizer: Optimizer = "sgd"
    """sgd; adamw, with betas 0.9 and 0.999; or muon for the kernels of convolutions with adamw for the rest, where a
    momentum of 0.95 is usual."""
    bias_lr_factor: float = 1.0
    """Multiply the learning rate of biases by this, except that of the head."""
    clip_norm: float = 0.0
    """Scale a gradient whose norm over all parameters is larger than this down to it. 0: never."""
    label_smoothing: float = 0.0
    """Train towards 1 - this for the label plus this / classes for each class. Evaluation has the plain loss."""
    sam: float = 0.0
    """Sharpness-aware minimisation with this radius rho, such as 0.05, at twice the time of a step. 0: off."""
    accumulate: int = 1
    """Compute each batch in this many parts, one after the other, which needs less memory. Batch norm normalises each
    part with its own statistics."""
    ema: float = 0.0
    """Evaluate and keep an exponential moving average of weights and batch statistics with this decay, such as 0.999.
    0: none."""
    lookahead: int = 0
    """Lookahead: after every so many steps move slow weights towards the trained ones, and train on from the slow ones,
    which are evaluated. 0: off."""
    lookahead_alpha: float = 0.5
    """The share of the way that --lookahead moves."""
    lookahead_schedule: LookaheadSchedule = "constant"
    """constant: --lookahead-alpha. fading: 1 - 0.95^k (step / steps)^3 for --lookahead k, as in cifar10-airbench."""

    def __post_init__(self) -> None:
        settle(self)


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """The folder of the run, and the devices that it uses."""

    run_dir: PathText = ""
    """The folder of the run. Default: runs/ARCH-DATASET-DATE-TIME."""
    resume: bool | Literal["auto"] = False
    """Continue the run in --run-dir, or the newest run of that arch and data set, from its latest checkpoint. auto:
    start it if there is no run yet."""
    override: bool = False
    """With --resume: change the learning rate, its schedule, --epochs or another option of training of the run."""
    checkpoint_minutes: float = 10.0
    """Minutes between checkpoints inside an epoch; each epoch ends with one too. 0: only at the end of epochs."""
    devices: int = 0
    """How many devices share each batch. 0: all."""
    precision: Precision = "auto"
    """Precision of activations. auto: bfloat16 where device and kernels compute in it (TPUs, GPUs since A100, CPUs with
    AMX or AVX512-BF16 and oneDNN), float32 elsewhere. By default JAX computes float32 products at reduced precision on
    TPUs and GPUs."""
    cpu_kernels: CpuKernels = "auto"
    """Kernels of convolution and batch norm on a CPU. auto: oneDNN's and our own where they are installed, else XLA's.
    onednn: the same, but all convolutions are oneDNN's. plain: XLA's without our rewriting, which is slow."""
    sync_batch_norm: bool = True
    """Compute batch statistics over all devices, not over the share of each device."""
    steps_per_dispatch: int = 0
    """Train steps in one call of the devices. 0: 1 on a CPU, 32 elsewhere."""
    flip_averaging: bool = False
    """Evaluate a second time, with the probabilities of each test image and its mirror image averaged. This accuracy is
    reported beside the plain one. It chooses no checkpoint."""
    tensorboard: bool = False
    """Write curves, augmented images and the confusion matrix for TensorBoard into the folder tensorboard/ of the run.
    Needs the extra tensorboard."""
    compile_cache: bool = True
    """Keep compiled programs in ~/.cache/resnet_jax (or $XDG_CACHE_HOME), so that the next run starts sooner."""
    report: bool = True
    """Write report.html, curves.png and confusion.png into the run's folder at the end."""

    def __post_init__(self) -> None:
        settle(self)


@dataclasses.dataclass(frozen=True)
class Config:
    """Train a ResNet or a ResNeXt; configs/NAME.toml gives a recipe's values and flags override them."""

    arch: str = "resnet18"
    """Architecture. Its recipe is configs/ARCH.toml if that file exists, else default.toml."""
    config: str = ""
    """Another recipe: a name in configs/, or the path of a .toml file."""
    stem: Stem = "auto"
    """standard (7x7 and max-pool), small (3x3), or auto: the architecture's own."""
    epochs: int = 10
    """Passes over the training images."""
    batch_size: int = 128
    """Images of a step, over all devices."""
    seed: int = 0
    """Seed of initialisation, of the order of images and of augmentation."""
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    optim: OptimConfig = OptimConfig()
    run: RunConfig = RunConfig()

    def __post_init__(self) -> None:
        settle(self)

    @property
    def stem_form(self) -> str:
        """ "standard" or "small"."""
        from resnet_jax.models import get_arch  # imports jax

        return get_arch(self.arch).stem if self.stem == "auto" else self.stem


PARTS = {"data": DataConfig, "model": ModelConfig, "optim": OptimConfig, "run": RunConfig}


def from_dict(values: dict[str, Any]) -> Config:
    """The inverse of dataclasses.asdict, also after a round trip through JSON.

    Raises KeyError for a part that is missing, ConfigError for invalid values, ValueError for other invalid content.
    """
    parts = {name: _part(kind, {"model": {}, **_known(Config, values)}[name]) for name, kind in PARTS.items()}
    return Config(**(values | parts))  # old runs have no part "model"


def _part(kind: type[Any], values: Any) -> Any:
    """A part of a Config."""
    return kind(**_known(kind, values))


def _known(kind: type[Any], values: Any) -> dict[str, Any]:
    """The values themselves; ValueError unless they are a dict of fields of this dataclass."""
    if not isinstance(values, dict):
        raise ValueError(f"{shown(values)} is not a JSON object of options")
    if unknown := sorted(values.keys() - {field.name for field in dataclasses.fields(kind)}):
        raise ValueError(f"unknown options: {listed(unknown)}")
    return values
