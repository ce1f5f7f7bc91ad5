"""ImageDataset from a folder of pictures."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from resnet_jax.data import cache
from resnet_jax.data.dataset import Arrays, ImageDataset
from resnet_jax.data.listing import Listing, scan, shown
from resnet_jax.data.split import cut, stratified
from resnet_jax.errors import DataError, listed, one_line
from resnet_jax.paths import user_path

DEFAULT_SHARE = 0.1
Log = Callable[[str], object]


def from_folder(
    path: str | os.PathLike[str],
    *,
    image_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    validation: float | None = None,
    test: float | None = None,
    seed: int = 0,
    skip_unreadable: bool = False,
    cache_dir: str | os.PathLike[str] | None = None,
    workers: int | None = None,
    decode: Callable[[str, tuple[int, int], int], np.ndarray] | None = None,
    progress: bool = True,
    log: Log = print,
) -> ImageDataset:
    """The pictures in path/CLASS/, or in path/train/CLASS/ with val/ (valid/, validation/) and test/ beside train/.

    Files: png, jpg, jpeg, webp, bmp, gif (first frame) and tiff, at any depth below their class. Classes are sorted
    by name. pictures.to_array documents how a picture becomes uint8: transparency, 16 bits, orientation, resizing.

    image_size: height and width, one number for a square. None: the size of the pictures; if their sizes differ,
        the median height and width, at most 224 pixels. channels: 1, 3, or None: 1 if all pictures are gray, else 3.
    validation, test: a share in (0, 1) or a count of training pictures to hold out, stratified by class and
        shuffled by `seed` (see split.stratified); 0: no such part. None: the part that the folder has. If the
        folder has only training pictures, None holds out 0.1 for each.
    skip_unreadable: leave out pictures that cannot be decoded, and log their names; otherwise they are an error.
    cache_dir: where decoded pictures are kept for the next start; None: $XDG_CACHE_HOME or ~/.cache, in
        resnet_jax/pictures. They are decoded again if a file's name, size or time of change differs.
    workers: threads that decode; None: one per CPU core, at most 16. progress: show a bar on stderr.
    decode: a function of (path, size, channels) that reads a file as (H, W, channels) uint8, called in several
        threads; its pictures are not cached. None: pictures.decode.
    Raises DataError if an argument or the folder is invalid.
    """
    began = time.perf_counter()
    size = _check_size(image_size)
    if channels not in (None, 1, 3):
        raise DataError(f"channels {channels!r}: give 1 (gray), 3 (colour) or None")
    if workers is not None and not (isinstance(workers, int) and workers > 0):
        raise DataError(f"workers {workers!r}: give a whole number from 1, or None for one per CPU core")
    listing, shares = _shares(
        scan(user_path(path, "path (--data-folder)", DataError)), {"validation": validation, "test": test}
    )
    _log_ignored(listing, log)
    labels = np.array([picture.label for picture in listing.parts["train"]])
    stratified(labels, listing.class_names, seed=seed, **shares)  # an invalid split is reported before decoding
    how = {"workers": workers, "progress": progress, "log": log}
    if decode is None:
        entry, origin = _cached(listing, size, channels, skip_unreadable, cache_dir, how)
    else:
        entry, origin = _decoded(listing, size, channels, skip_unreadable, how | {"decode": decode}), "decoded"
    data = _assemble(listing, entry, shares, seed)
    log(f"{data.describe()}, {origin} in {time.perf_counter() - began:.1f} s")
    return data


def _check_size(size: Any) -> tuple[int, int] | None:
    if size is None:
        return None
    pair = tuple(size) if isinstance(size, tuple | list) else (size, size)
    if len(pair) != 2 or not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in pair):
        raise DataError(f"image_size {size!r}: give a whole number of pixels, or (height, width)")
    return pair[0], pair[1]


def _shares(listing: Listing, asked: dict[str, float | None]) -> tuple[Listing, dict[str, float]]:
    """What to hold out of the training pictures, and the listing without the parts that nobody wants."""
    parts, shares = dict(listing.parts), {}
    default = DEFAULT_SHARE if set(parts) == {"train"} else 0
    for part, share in asked.items():
        if part not in listing.parts:
            shares[part] = default if share is None else share
        elif share is not None:
            if share != 0:
                flag = " (--validation)" if part == "validation" else ""
                raise DataError(
                    f"{part} {share}: {listing.root} has a {part} folder already; leave out the argument {part}{flag} "
                    "to use that folder, or pass 0 from Python to ignore it"
                )
            del parts[part]
    return Listing(listing.root, parts, listing.class_names, listing.others, listing.strays), shares


def _log_ignored(listing: Listing, log: Log) -> None:
    if listing.others:
        log(f"ignored {listing.others} files in {listing.root} that are not pictures")
    if listing.strays:
        log(f"ignored {listing.strays} pictures in {listing.root} that are in no class folder")


def _cached(
    listing: Listing,
    size: tuple[int, int] | None,
    channels: int | None,
    skip_unreadable: bool,
    cache_dir: str | os.PathLike[str] | None,
    how: dict[str, Any],
) -> tuple[cache.Entry, str]:
    """The decoded pictures from the cache, or else from the files, and words for which of the two."""
    import PIL

    files = listing.files
    state = "\n".join(f"{file.path}\0{file.size}\0{file.mtime_ns}" for file in files)
    place = cache.entry_path(cache_dir, listing.root, state, f"{size} {channels} Pillow {PIL.__version__}")
    entry = _read_cache(place, how["log"])
    if entry is not None and (skip_unreadable or not entry.unreadable):
        _check_unreadable(listing, entry.unreadable, skip_unreadable, how["log"])
        return entry, f"read from the cache {place}"
    entry = _decoded(listing, size, channels, skip_unreadable, how)
    _write_cache(place, entry, how["log"])
    return entry, "decoded"


def _decoded(
    listing: Listing, size: tuple[int, int] | None, channels: int | None, skip_unreadable: bool, how: dict[str, Any]
) -> cache.Entry:
    """The pictures from the files. how: further arguments of read_pictures."""
    from resnet_jax.data.reading import read_pictures  # imports Pillow

    entry = read_pictures([os.path.join(listing.root, file.path) for file in listing.files], size, channels, **how)
    _check_unreadable(listing, entry.unreadable, skip_unreadable, how["log"])
    return entry


def _read_cache(place: Path | None, log: Log) -> cache.Entry | None:
    if place is None:
        return None
    try:
        return cache.read(place)
    except cache.Damaged as error:
        log(f"the cache {place} is damaged ({error}): the pictures are decoded again")
        cache.remove(place)
        return None


def _write_cache(place: Path | None, entry: cache.Entry, log: Log) -> None:
    if place is None:
        log("the decoded pictures are not kept, because the home folder is unknown; cache_dir sets a folder for them")
        return
    try:
        cache.write(place, entry)
    except OSError as error:
        reason = error.strerror or one_line(error)
        log(f"the decoded pictures are not kept, because {place} cannot be written ({reason}); cache_dir sets another")


def _check_unreadable(listing: Listing, unreadable: dict[int, str], skip: bool, log: Log) -> None:
    """Logs the unreadable pictures, or raises DataError; always an error if a class of a part has none left."""
    if not unreadable:
        return
    files = listing.files
    names = listed(f"{shown(files[i].path)} ({reason})" for i, reason in sorted(unreadable.items()))
    text = f"{len(unreadable)} of {len(files)} pictures in {listing.root} cannot be read: {names}"
    if not skip:
        raise DataError(f"{text}; repair or remove them, or pass skip_unreadable=True (--skip-unreadable)")
    log(f"skipped {text}")
    start = 0
    for part, members in listing.parts.items():
        left = {file.label for i, file in enumerate(members, start) if i not in unreadable}
        start += len(members)
        if lost := sorted({file.label for file in members} - left):
            raise DataError(
                f"class {listing.class_names[lost[0]]!r} has no readable picture in the {part} part: {text}"
            )


def _assemble(listing: Listing, entry: cache.Entry, shares: dict[str, float], seed: int) -> ImageDataset:
    """The data set of decoded pictures, which are in the order of the listing without the unreadable ones."""
    parts: dict[str, Arrays] = {}
    index, row = 0, 0
    for part, members in listing.parts.items():
        kept = [file.label for i, file in enumerate(members, index) if i not in entry.unreadable]
        parts[part] = Arrays(entry.images[row : row + len(kept)], np.array(kept, np.int32))
        index, row = index + len(members), row + len(kept)
    parts |= cut(parts["train"], listing.class_names, seed=seed, **shares)
    name = listing.root.resolve().name or "pictures"
    return ImageDataset(parts["train"], parts.get("validation"), parts.get("test"), listing.class_names, name)
