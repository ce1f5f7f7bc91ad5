"""The figures of a trained network on a part of its data, or on other pictures of the same classes."""

import dataclasses
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from tqdm import tqdm

from resnet_jax import data, ops
from resnet_jax.data import Arrays, ImageDataset, pictures
from resnet_jax.data.listing import scan
from resnet_jax.errors import CheckpointError, ConfigError, DataError, listed
from resnet_jax.ops.precision import without_x64
from resnet_jax.paths import user_path
from resnet_jax.reporting.figures import Figures, figures
from resnet_jax.runs import build, rundir
from resnet_jax.runs.checkpoint import Checkpoints
from resnet_jax.runs.config import Config
from resnet_jax.runs.converted import is_converted
from resnet_jax.runs.photos import as_trained, is_light_on_dark
from resnet_jax.runs.predictor import Predictor, load
from resnet_jax.runs.stored import METRIC, Meta

BATCH = 128  # images at a time, unless the run has a batch size
SMALLEST, LARGEST = 32, 256  # fewer images at a time would be slow, and more need more memory


@dataclasses.dataclass(frozen=True)
class Opened:
    """A run's best checkpoint. meta: what the checkpoint says of itself; empty for converted weights.

    config: of the run, from config.json; None for a run of a Trainer and for converted weights.
    """

    path: Path
    predictor: Predictor
    meta: Meta
    config: Config | None

    @property
    def checkpoint(self) -> str:
        """Which weights these are, in words."""
        return checkpoint_words(self.predictor.step, self.meta) if self.meta else "Converted weights."

    def recorded(self, part: str) -> float | None:
        """The accuracy that the run measured with these weights; None inside an epoch and for converted weights."""
        ended = self.meta.get("history") and not self.meta["sums"]["count"]
        return self.meta["history"][-1].get(f"{part}_accuracy") if ended else None


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A part of a data set as a network sees it.

    name: of the data. probabilities: (N, classes) float32. recorded: the accuracy that the run itself measured there
    with the same weights; None if it measured none. changes: what was done to the pictures of a folder beside resizing
    and cropping, in the words of `predict`, and to how many of them. averaged: the figures of the probabilities that
    are averaged over each image and its mirror image; None without flip averaging.
    """

    name: str
    part: str
    arrays: Arrays
    probabilities: np.ndarray
    figures: Figures
    recorded: float | None = None
    changes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    averaged: Figures | None = None


class FolderData(NamedTuple):
    """The pictures of a folder. whole: its class folders are not in parts. changes: for each part, of an Evaluation."""

    dataset: ImageDataset
    whole: bool
    changes: Mapping[str, Mapping[str, int]]


def checkpoint_words(step: int, meta: Meta) -> str:
    """A checkpoint in one sentence."""
    how = "the best by validation accuracy" if meta.get(METRIC) is not None else "the latest one"
    inside = " and a part of the next one" if meta["sums"]["count"] else ""
    return f"Checkpoint of step {step}, after {_epochs(meta['epoch'])}{inside}: {how}."


def _epochs(count: int) -> str:
    return "1 epoch" if count == 1 else f"{count} epochs"


def open_run(path: Path, model: nn.Module | None = None) -> Opened:
    """Open a run's best checkpoint, or converted weights, as `load` does. model: needed for a run of a Trainer."""
    predictor = load(path, model)
    if is_converted(path):
        return Opened(path, predictor, {}, None)
    with Checkpoints(path, read_only=True) as checkpoints:
        meta = checkpoints.restore_meta(predictor.step)
    return Opened(path, predictor, meta, config_of(path, predictor.config))


def config_of(path: Path, stored: Config | None) -> Config | None:
    """The config in config.json, which names the folder of the data as it is now; without the file, the stored one."""
    if stored is None:
        return None
    try:
        config = rundir.read_config(path)
    except CheckpointError:
        config = stored
    source = config.data.source_dir
    if source and not Path(source).is_dir():  # the data was prepared from it
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, source_dir=""))
    return config


def own_data(opened: Opened) -> ImageDataset:
    """The data that the run was trained on, read again. DataError if it is missing or has changed."""
    config = opened.config
    if config is None:
        raise DataError(f"{opened.path} does not say where its data is; give --dataset NAME or --data-folder PATH")
    return check_digest(opened, build.load_data(config))


def check_digest(opened: Opened, dataset: ImageDataset) -> ImageDataset:
    """The data itself; DataError unless it is what the run was trained on."""
    digest = opened.meta["data"]["digest"] if "data" in opened.meta else ""
    if digest and opened.config and dataset.digest != digest:
        folder = opened.config.data.data_folder
        raise DataError(
            f"the pictures in {folder} are not those that the run was trained on; "
            f"evaluate RUN --data-folder {folder} uses them as they are now"
        )
    return dataset


def named_data(opened: Opened, name: str) -> ImageDataset:
    """A named data set as a whole, with nothing held out."""
    config = opened.config
    data_dir = config.data.data_dir or None if config else None
    return data.load(name, data_dir=data_dir, log=tqdm.write)


def folder_data(opened: Opened, folder: str) -> FolderData:
    """A folder of pictures, in the size of the run's own, prepared as `predict` prepares them for this run.

    Pictures without parts are evaluated as a whole. Nothing is held out of train/.
    """
    path = user_path(folder, "--data-folder", DataError)
    listing, predictor = scan(path), opened.predictor
    height, width, channels = predictor.image_shape
    options: dict[str, Any] = {part: 0 for part in ("validation", "test") if part not in listing.parts}
    changes: dict[str, tuple[str, ...]] = {}

    def decode(file: str, size: tuple[int, int], channels: int) -> np.ndarray:
        photo = as_trained(pictures.decode(file, None, channels), predictor)
        changes[file] = photo.changes
        return photo.pixels

    if is_light_on_dark(predictor):  # for other runs as_trained does what from_folder does
        options["decode"] = decode
    dataset = data.from_folder(
        path, image_size=(height, width), channels=channels, **options, progress=False, log=tqdm.write
    )
    files = {part: [os.path.join(path, file.path) for file in held] for part, held in listing.parts.items()}
    counts = {
        part: Counter(change for file in held for change in changes.get(file, ())) for part, held in files.items()
    }
    return FolderData(dataset, set(files) == {"train"}, counts)


def pick_part(dataset: ImageDataset, asked: str, name: str) -> str:
    """The part to evaluate: the one that is asked for, or else test, or else validation. ConfigError without it."""
    found = [part for part in ("test", "validation", "train") if part in dataset.parts]
    if asked and asked not in found:
        raise ConfigError(f"--part {asked}: {name} has no such part; choose one of {', '.join(found)}")
    if not asked and found[0] == "train":
        raise ConfigError(f"{name} has neither a test nor a validation part; --part train evaluates its training part")
    return asked or found[0]


def evaluate(opened: Opened, dataset: ImageDataset, part: str, name: str = "", *, mirror: bool = False) -> Evaluation:
    """The probabilities and figures of a part of a data set. name: of the data if it is not the run's own.

    mirror: find the figures of flip averaging, too.
    The class names of the data must be among those of the network, in any order; otherwise DataError.
    """
    predictor, recorded = opened.predictor, None if name or part == "train" else opened.recorded(part)
    name = name or dataset.name
    images, labels = getattr(dataset, part)
    arrays = Arrays(images, numbers_of(dataset.class_names, predictor.class_names, name)[labels])
    with ops.cpu_kernels(kernels_of(opened.config)):
        found = probabilities(predictor, images, batch_size(opened.config))
        other = probabilities(predictor, images[:, :, ::-1], batch_size(opened.config)) if mirror else None
    held = figures(found, arrays.labels, predictor.class_names)
    averaged = None if other is None else figures((found + other) / 2, arrays.labels, predictor.class_names)
    return Evaluation(name, part, arrays, found, held, recorded, averaged=averaged)


def numbers_of(names: tuple[str, ...], known: tuple[str, ...], data_name: str) -> np.ndarray:
    """The network's number of each class of the data: (classes,) int32. DataError for a class that it lacks."""
    if strange := [name for name in names if name not in known]:
        raise DataError(
            f"{data_name} has the classes {listed(strange)}, which the network does not have; "
            f"its classes are {', '.join(known)}: rename the folders, or give other data"
        )
    return np.array([known.index(name) for name in names], np.int32)


def batch_size(config: Config | None) -> int:
    """The number of images at a time: a device's share of the run's batch, between SMALLEST and LARGEST.

    A run on many devices may have a batch that is too large for the memory of this machine.
    """
    if config is None:
        return BATCH
    count = len(jax.local_devices())
    share = -(-config.batch_size // min(config.run.devices or count, count))
    return min(max(SMALLEST, share), LARGEST)


def kernels_of(config: Config | None) -> str:
    """The CPU kernels that the run evaluates with; auto if this machine does not have them."""
    chosen = config.run.cpu_kernels if config else "auto"
    return "auto" if chosen == "onednn" and not ops.native_available() else chosen


@without_x64()
def probabilities(predictor: Predictor, images: np.ndarray, batch: int) -> np.ndarray:
    """The probabilities (N, classes) of images (N, H, W, C), computed as a run evaluates them.

    Images of the run's own shape are resized inside the network's program, as in training: in bfloat16, another way
    of resizing would change the order of two nearly equal logits. Images of another shape are fitted first.
    """
    if images.shape[1:] != tuple(predictor.image_shape):
        return predictor(images)
    batch = min(batch, len(images))
    rows = []
    for start in range(0, len(images), batch):
        part = images[start : start + batch]
        padded = np.pad(part, ((0, batch - len(part)), (0, 0), (0, 0), (0, 0)))
        rows.append(np.asarray(predictor.unfolded(padded))[: len(part)])
    return np.concatenate(rows)
