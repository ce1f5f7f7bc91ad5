"""Many pictures decoded into one array, in parallel. It imports Pillow, so import it late."""

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import median_low

import numpy as np
from PIL import UnidentifiedImageError
from tqdm import tqdm

from resnet_jax.cores import cpu_count
from resnet_jax.data import pictures
from resnet_jax.data.cache import Entry
from resnet_jax.errors import DataError, one_line
from resnet_jax.host_memory import memory

LONGEST = 224  # pixels of the longer side, where pictures differ in size and no size is given
Decode = Callable[[str, tuple[int, int], int], np.ndarray]
BAR_DELAY = 0.5  # seconds; a small folder is read before a bar is worth showing
PER_TASK = 32  # pictures that a thread decodes before it reports


class Bar(tqdm):
    """tqdm without its monitor thread: a process was once seen to wait for that thread forever at its end."""

    monitor_interval = 0


def read_pictures(
    paths: Sequence[str],
    size: tuple[int, int] | None,
    channels: int | None,
    *,
    workers: int | None,
    progress: bool,
    log: Callable[[str], object],
    decode: Decode = pictures.decode,
) -> Entry:
    """The pictures as (N, H, W, C) uint8, and the reasons why others are unreadable; those have no row.

    size None: the common size of the pictures. If sizes differ: the median height and width, scaled down
    until the longer is at most LONGEST. channels None: 1 if all pictures are gray, else 3.
    decode: a function of (path, size, channels) that returns (H, W, channels) uint8; threads call it.
    Threads decode, because Pillow releases the GIL and a fork is unsafe after JAX has started.
    """
    workers = workers or min(16, cpu_count())
    headers: dict[int, pictures.Header] = {}
    unreadable: dict[int, str] = {}

    def look(i: int) -> None:
        headers[i] = pictures.read_header(paths[i])

    with pictures.quiet():
        if size is None or channels is None:
            unreadable = _for_each(look, range(len(paths)), workers, "reading headers", progress)
            if not headers:
                return Entry(np.zeros((0, 1, 1, 1), np.uint8), unreadable)
            size = size or _choose_size(list(headers.values()), log)
            channels = channels or (1 if all(header.gray for header in headers.values()) else 3)
        rows = [i for i in range(len(paths)) if i not in unreadable]
        images = _allocate((len(rows), *size, channels))

        def fill(row: int) -> None:
            images[row] = decode(paths[rows[row]], size, channels)

        failed = _for_each(fill, range(len(rows)), workers, "decoding pictures", progress)
    if failed:
        images = np.delete(images, list(failed), axis=0)
        unreadable |= {rows[row]: reason for row, reason in failed.items()}
    return Entry(images, dict(sorted(unreadable.items())))


def _choose_size(headers: list[pictures.Header], log: Callable[[str], object]) -> tuple[int, int]:
    sizes = {(header.height, header.width) for header in headers}
    if len(sizes) == 1:
        return sizes.pop()
    height, width = (median_low([header[axis] for header in headers]) for axis in (0, 1))
    scale = min(1, LONGEST / max(height, width))
    height, width = max(1, round(height * scale)), max(1, round(width * scale))
    log(
        f"the pictures have {len(sizes)} sizes: each is scaled to cover {height}x{width} pixels and cropped around "
        "the centre; image_size sets another size"
    )
    return height, width


def _allocate(shape: tuple[int, ...]) -> np.ndarray:
    """An array to fill. DataError if it is larger than the memory of this machine or container."""
    need = int(np.prod(shape, dtype=np.int64))
    have = memory().total
    if have is not None and need > have:
        count, height, width, channels = shape
        raise DataError(
            f"image_size {height}x{width}: {count} pictures with {channels} channels need {need / 1e9:.0f} GB of "
            f"memory, this machine has {have / 1e9:.0f} GB; give a smaller image_size"
        )
    return np.empty(shape, np.uint8)


def _for_each(
    function: Callable[[int], None], indices: range, workers: int, title: str, progress: bool
) -> dict[int, str]:
    """Calls function(i) for each index in threads. Returns the reasons of the calls that failed."""
    tasks = [indices[i : i + PER_TASK] for i in range(0, len(indices), PER_TASK)]
    failures: dict[int, str] = {}
    interval = 0.5 if sys.stderr.isatty() else 60  # a log file needs no more than a line a minute
    look = {"desc": title, "unit": " pictures", "leave": False, "delay": BAR_DELAY, "mininterval": interval}
    with Bar(total=len(indices), disable=not progress, **look) as bar, ThreadPoolExecutor(workers) as pool:
        for task, failed in zip(tasks, pool.map(lambda task: _attempt(function, task), tasks), strict=True):
            failures |= failed
            bar.update(len(task))
    return failures


def _attempt(function: Callable[[int], None], task: range) -> dict[int, str]:
    failed = {}
    for i in task:
        try:
            function(i)
        except UnidentifiedImageError:
            failed[i] = "not a picture"
        except Exception as error:  # Pillow raises errors of many kinds of a damaged file
            failed[i] = one_line(error)
    return failed
