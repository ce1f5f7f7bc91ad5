"""Read files of torch.save without torch, and without running code of the file (see resnet_jax.interop.pickled).

Formats: torch/serialization.py, the ZIP archive and the format of before 1.6.
"""

import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from jax import numpy as jnp

from resnet_jax.interop.matching import DEPTH
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
        """The numbers, as an array of its own. Raises ValueError if the view is not inside the storage."""
        storage, size, stride = self.storage, self.size, self.stride
        last = self.offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if math.prod(size) == 0:
            return np.zeros(size, storage.dtype)
        if min((*size, *stride, self.offset), default=0) < 0 or max(last + 1, math.prod(size)) > storage.count:
            raise ValueError("a tensor is larger than its storage")
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

    def get(self, pid: Any) -> Storage | Placeholder:
        """Return what the file calls ("storage", class, key, device, number of elements, view)."""
        kind, made_by, key, _, count, *view = pid
        if kind != "storage" or not isinstance(made_by, Global) or made_by.name not in STORAGES:
            return Placeholder(made_by)
        if view and view[0] is not None:
            raise ValueError("a storage that is a view of another one")
        return self.held.setdefault(str(key), Storage(STORAGES[made_by.name], int(count)))


def load_torch(path: Path) -> Any:
    """Return what torch.save wrote, with numpy arrays as tensors. Raises ValueError, KeyError or others for damage."""
    if zipfile.is_zipfile(path):
        return load_zip(path)
    storages = Storages()
    with path.open("rb") as file:
        for _ in range(3):  # a magic number, the version, and sizes of types
            read(file, build, storages.get)
        held = read(file, build, storages.get)
        for key in read(file, build, storages.get):
            storage, count = storages.held[str(key)], file.read(8)
            storage.content = file.read(storage.size)
            if count != storage.count.to_bytes(8, "little") or len(storage.content) != storage.size:
                raise ValueError("the file ends too early")
    return resolved(held)


def load_zip(path: Path) -> Any:
    """Read the format of since 1.6: an archive of data.pkl and a member for each storage."""
    storages = Storages()
    with zipfile.ZipFile(path) as archive:
        root = next(name for name in archive.namelist() if name.endswith("/data.pkl")).removesuffix("data.pkl")
        if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
            raise ValueError("the numbers are big-endian")
        with archive.open(f"{root}data.pkl") as file:
            held = read(file, build, storages.get)
        for key, storage in storages.held.items():
            info = archive.getinfo(f"{root}data/{key}")
            if info.file_size != storage.size or info.compress_type != zipfile.ZIP_STORED:
                raise ValueError("a storage of another size")
            storage.content = archive.read(info)
    return resolved(held)


def resolved(held: Any, depth: int = DEPTH + 1) -> Any:
    """Return the object with arrays as tensors, also inside dicts, down to the depth that weights are looked for."""
    if isinstance(held, dict) and depth >= 0:
        return {key: resolved(value, depth - 1) for key, value in held.items()}
    return held.array() if isinstance(held, Tensor) else held
