"""A data set as arrays, from the first source that works."""

import os
from collections.abc import Callable
from pathlib import Path

from resnet_jax.data.prepared import prepared_dir, read_prepared
from resnet_jax.data.sources import check_server, read_folder
from resnet_jax.data.specs import DATASETS, DatasetSpec, Splits
from resnet_jax.errors import DataError, unknown

PathLike = str | os.PathLike[str]


def load(
    name: str,
    data_dir: PathLike | None = None,
    source_dir: PathLike | None = None,
    log: Callable[[str], object] = print,
) -> Splits:
    """Data set `name` of DATASETS: images (N, H, W, C) uint8 and labels (N,) int32, digests checked.

    Sources in order: prepared in `data_dir` (None: $TFDS_DATA_DIR or ~/tensorflow_datasets, as TFDS has it);
    the official files in `source_dir`, or in Debian's folder; the download. The last two are prepared into
    `data_dir`. `log` gets one line that names the source. Raises DataError, of which DownloadError.
    """
    if name not in DATASETS:
        raise DataError(unknown("data set", name, DATASETS))
    folder = Path(data_dir or default_data_dir()).expanduser()
    return obtain(DATASETS[name], folder, Path(source_dir).expanduser() if source_dir else None, log)


def default_data_dir() -> str:
    """TFDS's own rule, without importing it."""
    return os.environ.get("TFDS_DATA_DIR") or str(Path("~", "tensorflow_datasets"))


def obtain(
    spec: DatasetSpec,
    data_dir: Path,
    source_dir: Path | None,
    log: Callable[[str], object],
    seconds: float = 15.0,
) -> Splits:
    """What load does, for any spec; a server that does not answer is given up after `seconds`."""
    folder = prepared_dir(spec, data_dir)
    origin = "prepared before"
    if not os.path.exists(folder):  # False too where a parent may not be entered
        _check_writable(data_dir)
        origin = _prepare(spec, data_dir, source_dir, log, seconds)
    splits = read_prepared(spec, folder)
    log(f"{spec.name}: {spec.num_train} training and {spec.num_test} test images, {origin}, in {folder}")
    return splits


def _prepare(
    spec: DatasetSpec, data_dir: Path, source_dir: Path | None, log: Callable[[str], object], seconds: float
) -> str:
    """Prepares from the files or the download, and tells which."""
    arrays, origin = _from_files(spec, source_dir, log)
    if arrays is None:
        check_server(spec, seconds)
    from resnet_jax.data import builders  # imports TFDS

    builders.prepare(spec, data_dir, arrays)
    return origin


def _from_files(spec: DatasetSpec, source_dir: Path | None, log: Callable[[str], object]) -> tuple[Splits | None, str]:
    if source_dir is not None:  # the user's wish: what is wrong there is an error, never passed over
        return read_folder(spec, source_dir), f"from {source_dir}"
    if spec.debian_dir is not None and Path(spec.debian_dir).is_dir():
        try:
            return read_folder(spec, Path(spec.debian_dir)), f"from {spec.debian_dir}"
        except DataError as error:
            log(f"{error}; trying the download")
    return None, f"downloaded from {spec.url}"


def _check_writable(data_dir: Path) -> None:
    """DataError before anything is read or fetched; nothing is created here."""
    existing = next(path for path in (data_dir, *data_dir.absolute().parents) if os.path.exists(path))
    if not existing.is_dir():
        raise DataError(f"the data folder {data_dir} cannot be: {existing} is a file; pass --data-dir FOLDER")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise DataError(f"the data folder {data_dir}: {existing} is not writable; pass --data-dir FOLDER")
