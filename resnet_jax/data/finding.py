"""Finds the official files of a data set in a folder of the user: packed, unpacked, or in torchvision's layout."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from resnet_jax.data.specs import DATASETS, DatasetSpec
from resnet_jax.errors import DataError
from resnet_jax.paths import check_readable


class Found(NamedTuple):
    """The folder that holds the files, and the files in the order of spec.files."""

    folder: Path
    paths: tuple[Path, ...]

    def __str__(self) -> str:
        """The folder, and whether its files are unpacked; for the log."""
        unpacked = any(is_unpacked(path) for path in self.paths)
        return f"{self.folder}{' (unpacked idx files)' if unpacked else ''}"


def is_unpacked(path: Path) -> bool:
    """Whether the name is that of an unpacked idx file."""
    return path.name.endswith("-ubyte")


def find_files(spec: DatasetSpec, folder: Path) -> Found:
    """The official files in `folder`, or in a folder of the data set below it, such as FashionMNIST/raw.

    An idx file may be unpacked (train-images-idx3-ubyte, train-images.idx3-ubyte); a .gz file beside it comes first.
    Raises DataError with the first missing file.
    """
    check_readable(folder, "the data folder (--source-dir)", DataError)
    if not folder.is_dir():
        raise DataError(f"the data folder {folder} is not a folder; put {file_names(spec)} from {spec.url} in one")
    nearest = folder
    for place in _places(spec, folder):
        paths = [_file_in(place, file.name) for file in spec.files]
        if all(paths):
            return Found(place, tuple(path for path in paths if path))
        if any(paths) and nearest == folder:
            nearest = place
    missing = next(nearest / file.name for file in spec.files if _file_in(nearest, file.name) is None)
    raise DataError(
        f"{missing} is missing{_what_is_there(spec, folder)}; {file_names(spec)} are needed, get them from {spec.url}"
    )


def file_names(spec: DatasetSpec) -> str:
    """The names of the official files, separated by commas."""
    return ", ".join(file.name for file in spec.files)


def _places(spec: DatasetSpec, folder: Path) -> Iterator[Path]:
    """The folder, its folder raw, and those of the data set's own folder, whose name may be spelled FashionMNIST."""
    own = [path for path in _entries(folder) if _letters(path.name) == _letters(spec.name) and path.is_dir()]
    for place in (folder, *own):
        yield from (place, place / "raw")


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"the data folder {folder} cannot be read ({error.strerror}); make it readable") from None


def _letters(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower())


def _file_in(folder: Path, name: str) -> Path | None:
    """The file of that official name in one of its spellings, or None."""
    names = [name]
    if (plain := name.removesuffix(".gz")).endswith("-ubyte"):
        dotted = plain.replace("-idx", ".idx")
        # Kaggle's archives unpack to a folder for each file
        names += [f"{dotted}.gz", plain, dotted, os.path.join(plain, plain), os.path.join(dotted, dotted)]
    return next((folder / spelling for spelling in names if (folder / spelling).is_file()), None)


def _what_is_there(spec: DatasetSpec, folder: Path) -> str:
    """What the folder holds instead, for the message: another form of the data set, or another data set."""
    if unread := [name for name in spec.unread if (folder / name).exists()]:
        return f" (the folder holds {unread[0]}, which is not read)"
    for other in DATASETS.values():
        for place in list(_places(other, folder))[2:]:  # without the folder itself and its folder raw
            if other.name != spec.name and any(_file_in(place, file.name) for file in other.files):
                return f" (the folder holds {place.relative_to(folder)}, which is {other.name}: --dataset {other.name})"
    return ""
