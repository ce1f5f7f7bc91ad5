"""Read files of torch.save without torch, and without running code of the file (see resnet_jax.interop.pickled).

Formats: torch/serialization.py, the ZIP archive and the format of before 1.6.
"""

import io
import math
import os
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
from jax import numpy as jnp

from resnet_jax.interop.pickled import Global, Placeholder, read

STORAGES = {  # classes of torch -> types
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "BFloat16Storage": jnp.dtype("bfloat16"),
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
    "ComplexFloatStorage": "<c8",
    "ComplexDoubleStorage": "<c16",
}


class Unsupported(Exception):
    """Valid content that is not read. The message says what it is and what to do."""


class Storage:
    """The numbers that tensors share. They follow the pickle, so they are filled in later."""

    def __init__(self, dtype: Any, count: int):
        self.dtype, self.count = np.dtype(dtype), count
        self.content = b""

    @property
    def size(self) -> int:
        """In bytes."""
        return self.count * self.dtype.itemsize


class Tensor:
    """A view of a storage: offset, size and stride, in elements."""

    def __init__(self, storage: Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...]):
        self.storage, self.offset, self.size, self.stride = storage, offset, size, stride

    def array(self) -> np.ndarray:
        """The numbers, as an array of its own. Raises ValueError if the view is not inside the storage.

        Raises Unsupported for more numbers than the storage has, since a small file could then fill the memory.
        """
        storage, size, stride = self.storage, self.size, self.stride
        last = self.offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if math.prod(size) == 0:
            return np.zeros(size, storage.dtype)
        if min((*size, *stride, self.offset), default=0) < 0 or last + 1 > storage.count:
            raise ValueError("a tensor is larger than its storage")
        if math.prod(size) > storage.count:
            raise Unsupported(f"a tensor of shape {size} is expanded; save it with .contiguous()")
        flat = np.frombuffer(storage.content, storage.dtype)[self.offset :]
        strides = [step * storage.dtype.itemsize for step in stride]
        return np.lib.stride_tricks.as_strided(flat, size, strides).copy()


def build(made_by: Any, arguments: tuple[Any, ...]) -> Any:
    """Return a tensor or a dict for the functions of torch and collections that make one, else a Placeholder."""
    match made_by:
        case Global("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") if isinstance(arguments[0], Storage):
            return Tensor(*arguments[:4])
        case Global("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state"):
            return arguments[0]
        case Global("collections", "OrderedDict"):
            return dict(*arguments)
        case Global("collections", "defaultdict"):
            return {}
    return Placeholder(made_by)


class Storages:
    """The storages that a pickle names, by key."""

    def __init__(self):
        self.held: dict[str, Storage] = {}
        self.others: dict[str, str] = {}  # key -> the name of a class that is not in STORAGES

    def get(self, pid: Any) -> Storage | Placeholder:
        """Return what the file calls ("storage", class, key, device, number of elements, view)."""
        kind, made_by, key, _, count, *view = pid
        if kind != "storage" or not isinstance(made_by, Global):
            return Placeholder(made_by)
        if made_by.name not in STORAGES:
            self.others[str(key)] = made_by.name
            return Placeholder(made_by)
        if view and view[0] is not None:
            raise Unsupported("a storage is a view of another one; save the tensors with .clone()")
        new = Storage(STORAGES[made_by.name], int(count))
        old = self.held.setdefault(str(key), new)
        if (old.dtype, old.count) != (new.dtype, new.count):
            raise ValueError(f"storage {key} has two types or sizes")
        return old


class Bounded(io.BufferedReader):
    """A file that asks for no more memory than it has bytes, also where a damaged length says so."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size and size > io.DEFAULT_BUFFER_SIZE:
            size = min(size, max(os.fstat(self.fileno()).st_size - self.tell(), 0))
        return super().read(size)


def load_torch(path: Path, depth: int) -> Any:
    """Return what torch.save wrote, with numpy arrays as tensors, also in dicts down to a depth.

    Raises Unsupported for valid content that is not read, and ValueError, KeyError or others for damage.
    """
    with Bounded(path.open("rb", buffering=0)) as file:
        zipped = file.read(2) == b"PK"
        file.seek(0)
        return resolved(load_zip(file) if zipped else load_legacy(file), depth)


def load_legacy(file: IO[bytes]) -> Any:
    """Read the format of before 1.6: pickles, and then the bytes of each storage."""
    storages = Storages()
    for _ in range(3):  # a magic number, the version, and sizes of types
        read(file, build, storages.get)
    held = read(file, build, storages.get)
    for key in map(str, read(file, build, storages.get)):
        if name := storages.others.get(key):  # its size in bytes is unknown, and so is the place of the next one
            raise Unsupported(f"a tensor has the type {name}, which is not supported; save the weights as float32")
        storage, count = storages.held[key], file.read(8)
        if count != storage.count.to_bytes(8, "little"):
            raise ValueError("the file ends too early")
        storage.content = file.read(storage.size)
        if len(storage.content) != storage.size:
            raise ValueError("the file ends too early")
    return held


def load_zip(file: IO[bytes]) -> Any:
    """Read the format of since 1.6: an archive of data.pkl and a member for each storage."""
    storages = Storages()
    with zipfile.ZipFile(file) as archive:
        root = next(name for name in archive.namelist() if name.endswith("/data.pkl")).removesuffix("data.pkl")
        if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
            raise Unsupported("the numbers are big-endian; save the weights on a little-endian machine")
        with archive.open(f"{root}data.pkl") as pickled:
            held = read(pickled, build, storages.get)
        for key, storage in storages.held.items():
            info = archive.getinfo(f"{root}data/{key}")
            if info.file_size != storage.size or info.compress_type != zipfile.ZIP_STORED:
                raise ValueError("a storage of another size")
            storage.content = archive.read(info)
    return held


def resolved(held: Any, depth: int) -> Any:
    """Return the object with arrays as tensors, also inside dicts, down to a depth of dicts."""
    if isinstance(held, dict) and depth >= 0:
        return {key: resolved(value, depth - 1) for key, value in held.items()}
    return held.array() if isinstance(held, Tensor) else held
