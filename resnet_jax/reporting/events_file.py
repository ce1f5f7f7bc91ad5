"""The files that TensorBoard reads. The extra `tensorboard` (tensorboardX) has their format.

tensorboardX.SummaryWriter is not used: it writes in a thread, and on a full disk that thread ends without a word and
the next events wait for it forever.
"""

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from resnet_jax.errors import ConfigError, TrainingError

FLUSH_SECONDS = 10.0


def check_installed(name: str) -> None:
    """Raise ConfigError if tensorboardX is missing. name: the flag or the class that needs it."""
    try:
        import tensorboardX  # noqa: F401
    except ImportError as error:
        raise ConfigError(f'{name} needs tensorboardX ({error}): pip install "resnet_jax[tensorboard]"') from None


@contextlib.contextmanager
def kept_in(folder: Path) -> Iterator[None]:
    """Turn an OSError of writing into a TrainingError of one line."""
    try:
        yield
    except OSError as error:
        raise TrainingError(
            f"{folder}: the events for TensorBoard cannot be written: {error.strerror or error}; give another folder, "
            "make room, or train without TensorBoard"
        ) from error


class EventsFile:
    """A new events file in the folder. TrainingError if it cannot be written.

    purge_step: TensorBoard drops the events of the folder's earlier files from this step on. An event reaches the file
    at once, and the disk within FLUSH_SECONDS or with `flush`.
    """

    def __init__(self, folder: Path, purge_step: int):
        from tensorboardX import RecordWriter
        from tensorboardX.proto import event_pb2

        self.folder = folder
        self._proto: Any = event_pb2
        with kept_in(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._writer: Any = RecordWriter(str(_new_path(folder)))
        self._flushed_at = time.monotonic()
        self._write(self._proto.Event(file_version="brain.Event:2"))
        start = self._proto.SessionLog(status=self._proto.SessionLog.START)
        self._write(self._proto.Event(step=purge_step, session_log=start))
        self.flush()

    def scalar(self, tag: str, value: float, step: int) -> None:
        """Write a number, which the file holds in float32."""
        from tensorboardX import summary

        self._add(summary.scalar(tag, value), step)

    def image(self, tag: str, image: np.ndarray, step: int) -> None:
        """Write a picture: (H, W, C) uint8, with 1 or 3 channels."""
        from tensorboardX import summary

        colour = np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3)))
        self._add(summary.image(tag, colour, dataformats="HWC"), step)

    def flush(self) -> None:
        """Wait until all events are on the disk."""
        with kept_in(self.folder):
            self._writer.flush()
        self._flushed_at = time.monotonic()

    def close(self) -> None:
        """Write what is left."""
        with kept_in(self.folder):
            self._writer.close()

    def _add(self, summary: Any, step: int) -> None:
        self._write(self._proto.Event(step=step, summary=summary))
        if time.monotonic() - self._flushed_at >= FLUSH_SECONDS:
            self.flush()

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        with kept_in(self.folder):
            self._writer.write(event.SerializeToString())


def events_files(folder: Path) -> list[Path]:
    """The events files in a folder, in the order in which TensorBoard reads them."""
    return sorted(folder.glob("*tfevents*"))


def _new_path(folder: Path) -> Path:
    """A name that sorts after those of earlier files: TensorBoard reads the files in the order of their names."""
    second, rest = divmod(time.time_ns(), 10**9)
    return folder / f"events.out.tfevents.{second:010d}.{rest:09d}.{socket.gethostname()}.{os.getpid()}"
