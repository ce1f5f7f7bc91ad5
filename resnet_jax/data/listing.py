"""The pictures of a folder by part and class, found without opening a picture."""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from resnet_jax.errors import DataError, listed, one_line
from resnet_jax.paths import check_readable

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
PART_NAMES = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}
LAYOUT = "put the pictures in PATH/CLASS/*.png (or jpg, webp, bmp, gif, tiff), or in PATH/train/CLASS/ and so on"


class Picture(NamedTuple):
    """One file. path: relative to the folder; size in bytes and time of change in ns, -1 if they are unknown."""

    path: str
    label: int
    size: int
    mtime_ns: int


@dataclasses.dataclass(frozen=True)
class Listing:
    """parts: pictures of "train" and, where the folder has them, "validation" and "test", by class and path.

    others: the number of files that are no pictures. strays: pictures beside the class folders.
    """

    root: Path
    parts: dict[str, list[Picture]]
    class_names: tuple[str, ...]
    others: int
    strays: int

    @property
    def files(self) -> list[Picture]:
        """The pictures of all parts, one part after the other."""
        return [picture for part in self.parts.values() for picture in part]


def scan(root: Path) -> Listing:
    """The pictures under `root`, which holds class folders, or train/ and perhaps val/ and test/ with class folders.

    Classes are sorted by name; pictures may lie in folders below their class. Names that start with a dot and
    __MACOSX are ignored. Raises DataError if the layout is invalid.
    """
    check_readable(root, "the folder of pictures (--data-folder)", DataError)
    if not root.is_dir():
        found = "is a file, not a folder" if root.exists() else "does not exist"
        raise DataError(f"the folder of pictures {root} {found}; {LAYOUT.replace('PATH', str(root))}")
    try:
        folders, files = _content(root)
        part_folders = _part_folders(root, folders)
        trees = part_folders or {"train": root}
        classes = {part: _content(folder)[0] for part, folder in trees.items()}
        strays = sum(map(_is_picture, files)) + sum(
            _is_picture(file) for folder in part_folders.values() for file in _content(folder)[1]
        )
        names = _class_names(root, trees, classes, strays)
        counter = [0]
        parts = {
            part: [
                picture
                for label, folder in enumerate(classes[part])
                for picture in _class_pictures(root, Path(folder.path), label, counter)
            ]
            for part in trees
        }
    except OSError as error:
        raise DataError(f"the folder of pictures {root} cannot be read: {one_line(error)}") from None
    return Listing(root, parts, names, counter[0], strays)


def pictures_below(folder: Path) -> tuple[list[str], int]:
    """The paths of the pictures in `folder`, at any depth, sorted; and the number of files that are no pictures.

    Names that start with a dot and __MACOSX are ignored. Raises OSError for a folder that cannot be read.
    """
    files = list(_files(folder, frozenset()))
    return sorted(file.path for file in files if _is_picture(file)), sum(not _is_picture(file) for file in files)


def shown(path: str) -> str:
    """A file's name for a message; bytes that are not UTF-8 are escaped, so that the message can be printed."""
    return path.encode("utf-8", "backslashreplace").decode()


def _content(folder: str | os.PathLike[str]) -> tuple[list[os.DirEntry[str]], list[os.DirEntry[str]]]:
    """The folders and the files in `folder`, sorted by name, without hidden ones."""
    with os.scandir(folder) as entries:
        seen = sorted((e for e in entries if not e.name.startswith((".", "__MACOSX"))), key=lambda e: e.name)
    return [e for e in seen if e.is_dir()], [e for e in seen if not e.is_dir()]


def _is_picture(file: os.DirEntry[str]) -> bool:
    """Whether the name is a picture's. A symbolic link may be broken, which decoding then reports."""
    return os.path.splitext(file.name)[1].lower() in SUFFIXES and (file.is_file() or file.is_symlink())


def _part_folders(root: Path, folders: list[os.DirEntry[str]]) -> dict[str, Path]:
    """The folders of the parts, train first; empty if `root` holds classes."""
    named = [folder for folder in folders if folder.name.lower() in PART_NAMES]
    parts = {}
    for folder in named:
        part = PART_NAMES[folder.name.lower()]
        if part in parts:
            raise DataError(f"{root} has {parts[part].name}/ and {folder.name}/, two folders for {part}; remove one")
        parts[part] = Path(folder.path)
    if not parts or (len(named) < len(folders) and not {"train", "test"} <= parts.keys()):
        return {}  # a class may be called "train"
    if "train" not in parts:
        found = " and ".join(f"{folder.name}/" for folder in named)
        raise DataError(f"{root} has {found} but no train/; add train/CLASS/ with the training pictures")
    if len(named) < len(folders):
        extra = listed(f"{shown(f.name)}/" for f in folders if f not in named)
        raise DataError(f"{root} has train/ and test/ and also {extra}; move what is no part out of the folder")
    return {part: parts[part] for part in ("train", "validation", "test") if part in parts}


def _class_names(
    root: Path, trees: dict[str, Path], classes: dict[str, list[os.DirEntry[str]]], strays: int
) -> tuple[str, ...]:
    """The names of the class folders, at least two and the same in every part."""
    names = {part: tuple(shown(folder.name) for folder in folders) for part, folders in classes.items()}
    for part, found in names.items():
        if not found:
            what = f"{strays} pictures but no class folders" if strays else "no class folders"
            raise DataError(f"the folder of pictures {trees[part]} holds {what}; {LAYOUT.replace('PATH', str(root))}")
        if different := sorted(set(found) ^ set(names["train"])):
            name = different[0]
            here, missing = (part, "train") if name in found else ("train", part)
            raise DataError(
                f"class {name!r} is in {trees[here]} but not in {trees[missing]}; "
                "every part needs the same class folders"
            )
    if len(names["train"]) == 1:
        raise DataError(
            f"{trees['train']} holds one class only, {names['train'][0]!r}; training needs at least two class folders"
        )
    return names["train"]


def _class_pictures(root: Path, folder: Path, label: int, others: list[int]) -> list[Picture]:
    """The pictures of one class, sorted by path. others[0] is raised by the number of other files."""
    found = []
    for file in _files(folder, frozenset({_identity(root), _identity(folder.parent)})):
        if not _is_picture(file):
            others[0] += 1
            continue
        try:
            stat = file.stat()
            size, mtime = stat.st_size, stat.st_mtime_ns
        except OSError:
            size, mtime = -1, -1
        found.append(Picture(os.path.relpath(file.path, root), label, size, mtime))
    if not found:
        raise DataError(f"the class folder {shown(str(folder))} holds no pictures; add some, or remove the folder")
    return sorted(found)


def _identity(folder: str | os.PathLike[str]) -> tuple[int, int]:
    stat = os.stat(folder)
    return stat.st_dev, stat.st_ino


def _files(folder: str | os.PathLike[str], above: frozenset[tuple[int, int]]) -> Iterator[os.DirEntry[str]]:
    """The files at any depth. above: the folders that contain this one; a link to one of them is not followed."""
    here = _identity(folder)
    if here in above:
        return
    folders, files = _content(folder)
    yield from files
    for inner in folders:
        yield from _files(inner.path, above | {here})
