"""Decoded pictures kept on disk, so that the next start need not decode them."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from resnet_jax.errors import DataError, one_line
from resnet_jax.paths import cache_home, user_path

LAYOUT = 1  # part of the key: raise it when decoding changes
STALE_SECONDS = 3600  # a partial entry of this age belongs to a process that was killed


class Entry(NamedTuple):
    """Decoded pictures, and why others could not be decoded: {index of the picture: reason}."""

    images: np.ndarray
    unreadable: dict[int, str]


class Damaged(Exception):
    """The entry is there, but not as it was written."""


def entry_path(cache_dir: str | os.PathLike[str] | None, folder: Path, files: str, options: str) -> Path | None:
    """Where the entry of `folder` is kept, for this state of its files and these options.

    cache_dir: None for $XDG_CACHE_HOME/resnet_jax/pictures, or the same in ~/.cache. Returns None if cache_dir is None
    and the home folder is unknown; DataError for an invalid cache_dir.
    """
    if cache_dir is not None:
        base = user_path(cache_dir, "cache_dir", DataError)
    elif (home := cache_home()) is not None:
        base = home / "pictures"
    else:
        return None
    real = os.path.realpath(folder)
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", os.path.basename(real))[:40]
    keys = [hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest() for text in (real, files, options)]
    place = f"{name}-{keys[0][:16]}"
    return base / place / f"{keys[1][:20]}-{keys[2][:12]}-{LAYOUT}"


def read(path: Path) -> Entry | None:
    """The entry at `path`, memory-mapped, after its digest is checked; None if it does not exist or is unreadable.

    Raises Damaged.
    """
    try:
        info = json.loads((path / "entry.json").read_bytes())
        unreadable = {int(index): str(reason) for index, reason in info["unreadable"].items()}
        if _digest(path / "images.npy", unreadable) != info["sha256"]:
            raise Damaged("its SHA-256 differs from the one recorded")
        return Entry(np.asarray(np.load(path / "images.npy", mmap_mode="r")), unreadable)
    except PermissionError:
        return None  # another user's folder; writing reports it
    except (FileNotFoundError, NotADirectoryError) as error:
        if not path.exists():
            return None
        raise Damaged(one_line(error)) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(one_line(error)) from None


def write(path: Path, entry: Entry) -> None:
    """Keeps `entry` at `path`, whole or not at all, and removes the entries of earlier states of the folder.

    If another process wrote the same entry first, that one stays. Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix="part-", dir=path.parent))
    try:
        np.save(part / "images.npy", entry.images)
        info = {"sha256": _digest(part / "images.npy", entry.unreadable), "unreadable": entry.unreadable}
        (part / "entry.json").write_text(json.dumps(info))
        now = part.stat().st_mtime  # by the clock of the file system, which other hosts share
        try:
            part.rename(path)
        except OSError:
            if not (path / "entry.json").exists():
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    _remove_old(path, now)


def remove(path: Path) -> None:
    """Removes a damaged entry. The rename comes first, so that no process sees half of it."""
    with contextlib.suppress(OSError):
        part = Path(tempfile.mkdtemp(prefix="part-", dir=path.parent))
        path.rename(part / "damaged")
        shutil.rmtree(part, ignore_errors=True)


def _remove_old(path: Path, now: float) -> None:
    """Removes entries of other states of the same folder, and what killed processes left. Other options stay.

    now: the time by the clock that dates the files. A partial entry whose files change is another process's.
    """
    state = path.name.split("-")[0]
    for other in path.parent.iterdir():
        with contextlib.suppress(OSError):
            partial = other.name.startswith("part-")
            if partial and now - max(file.stat().st_mtime for file in (other, *other.iterdir())) < STALE_SECONDS:
                continue
            if partial or other.name.split("-")[0] != state or not other.name.endswith(f"-{LAYOUT}"):
                shutil.rmtree(other, ignore_errors=True)


def _digest(images: Path, unreadable: dict[int, str]) -> str:
    """SHA-256 of the file of images and of the list of unreadable pictures."""
    with images.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256")
    digest.update(repr(sorted(unreadable.items())).encode("utf-8", "backslashreplace"))
    return digest.hexdigest()
