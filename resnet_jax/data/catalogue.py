"""The named data sets: load(name) reads one from the first source that works."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from resnet_jax.data.dataset import ImageDataset
from resnet_jax.data.finding import find_files
from resnet_jax.data.listing import SUFFIXES
from resnet_jax.data.prepared import prepared_dir, read_prepared
from resnet_jax.data.sources import check_server, read_folder
from resnet_jax.data.specs import DATASETS, DatasetSpec, Splits
from resnet_jax.data.split import check_share, cut
from resnet_jax.errors import DataError, unknown
from resnet_jax.paths import check_writable, user_path

PathLike = str | os.PathLike[str]


def load(
    name: str,
    validation: float = 0,
    seed: int = 0,
    *,
    data_dir: PathLike | None = None,
    source_dir: PathLike | None = None,
    log: Callable[[str], object] = print,
) -> ImageDataset:
    """The data set `name` of DATASETS, with its digests checked: uint8 images and int32 labels.

    validation: a share or a count of training images to hold out (see split.stratified, with `seed`). The images
    of each part keep their official order. mean and std are those of the table if it has them.
    Sources, in this order: the official files in `source_dir`, if it is given (see find_files); data prepared earlier
    in `data_dir` (None: $TFDS_DATA_DIR or ~/tensorflow_datasets, as TFDS does); Debian's folder; the download. Files
    and downloads are prepared into `data_dir`. `log` receives one line that names the source. Raises DataError; if
    the download fails, its subclass DownloadError.
    """
    if name not in DATASETS:
        raise DataError(unknown("data set", name, DATASETS))
    spec = DATASETS[name]
    check_share("validation", validation, spec.num_train)  # before minutes of download
    if data_dir is None:
        folder = user_path(default_data_dir(), "TFDS_DATA_DIR", DataError)
    else:
        folder = user_path(data_dir, "data_dir (--data-dir)", DataError)
    source = None if source_dir is None else user_path(source_dir, "source_dir (--source-dir)", DataError)
    splits = obtain(spec, folder, source, log)
    parts = cut(splits.train, spec.class_names, validation=validation, seed=seed)
    held = parts["train"], parts.get("validation"), splits.test
    return ImageDataset(*held, spec.class_names, name, spec.channel_mean_std)


def default_data_dir() -> str:
    """The default of TFDS, without importing TFDS."""
    return os.environ.get("TFDS_DATA_DIR") or str(Path("~", "tensorflow_datasets"))


def obtain(
    spec: DatasetSpec,
    data_dir: Path,
    source_dir: Path | None,
    log: Callable[[str], object],
    seconds: float = 15.0,
) -> Splits:
    """The official splits of any spec. If the server does not answer within `seconds`, raises DownloadError."""
    folder = prepared_dir(spec, data_dir)
    origin = "prepared before"
    if source_dir is not None and os.path.exists(folder):  # the user asked for these files
        splits, origin = _from_source(spec, source_dir)
        log(f"{spec.name}: {spec.num_train} training and {spec.num_test} test images {origin}")
        return splits
    if not os.path.exists(folder):  # also False if the process has no permission to enter a parent folder
        _check_writable(data_dir)
        origin = _prepare(spec, data_dir, source_dir, log, seconds)
    splits = read_prepared(spec, folder)
    log(f"{spec.name}: {spec.num_train} training and {spec.num_test} test images, {origin}, in {folder}")
    return splits


def _prepare(
    spec: DatasetSpec, data_dir: Path, source_dir: Path | None, log: Callable[[str], object], seconds: float
) -> str:
    """Prepares the data from files or from the download. Returns where the data came from, for the log."""
    arrays, origin = _from_files(spec, source_dir, log)
    if arrays is None:
        check_server(spec, seconds)
    from resnet_jax.data import builders  # imports TFDS

    builders.prepare(spec, data_dir, arrays)
    return origin


def _from_files(spec: DatasetSpec, source_dir: Path | None, log: Callable[[str], object]) -> tuple[Splits | None, str]:
    if source_dir is not None:  # the user asked for this folder, so an invalid file is an error
        return _from_source(spec, source_dir)
    if spec.debian_dir is not None and Path(spec.debian_dir).is_dir():
        try:
            return read_folder(spec, Path(spec.debian_dir)), f"from {spec.debian_dir}"
        except DataError as error:
            log(f"{error}; trying the download")
    return None, f"downloaded from {spec.url}"


def _from_source(spec: DatasetSpec, source_dir: Path) -> tuple[Splits, str]:
    """The official splits of the files in a folder of the user, and where they came from, for the log."""
    try:
        return read_folder(spec, source_dir), f"from {find_files(spec, source_dir)}"
    except DataError as error:
        hint = f"; to train on the pictures in it, give --data-folder {source_dir}" if _of_pictures(source_dir) else ""
        raise DataError(f"{error}{hint}") from None


def _of_pictures(folder: Path) -> bool:
    """Whether all folders in it, or in its train/, hold pictures: what --data-folder reads."""
    with contextlib.suppress(OSError):
        for root in (folder, folder / "train"):
            classes = [path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")]
            if classes and all(any(f.suffix.lower() in SUFFIXES for f in path.iterdir()) for path in classes):
                return True
    return False


def _check_writable(data_dir: Path) -> None:
    """Raises DataError before anything is read or downloaded. Creates nothing."""
    if _of_pictures(data_dir):
        raise DataError(
            f"the data folder {data_dir} holds pictures; --data-dir is for prepared data sets: to train on these "
            f"pictures give --data-folder {data_dir}"
        )
    check_writable(data_dir, "the data folder (--data-dir)", DataError)
