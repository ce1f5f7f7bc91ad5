"""Read files of torch.save without torch, and without running code of the file.

A pickle names the functions and classes that build its objects. `find_class` imports none of them: it knows torch's
tensors and dicts, and everything else becomes an empty Placeholder. Formats: torch/serialization.py, the ZIP archive
and the one of before 1.6.
"""

import math
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from jax import numpy as jnp

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


class Placeholder:
    """An object that is not read: of any class, with any arguments and state."""

    def __init__(self, *_: Any, **__: Any):
        pass

    def __setstate__(self, _: Any) -> None:
        pass

    def __setitem__(self, _: Any, __: Any) -> None:
        pass

    def __call__(self, *_: Any, **__: Any) -> "Placeholder":
        return self

    def append(self, _: Any) -> None:
        """Drop an element."""

    def extend(self, _: Any) -> None:
        """Drop elements."""


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

    def __init__(self, storage: Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any):
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


class Reader(pickle.Unpickler):
    """An unpickler that builds tensors, dicts, lists and numbers; everything else is a Placeholder.

    All classes that it hands to the pickle are new for each file, so that a file cannot change those of another.
    """

    def __init__(self, file: IO[bytes]):
        super().__init__(file, encoding="utf-8")
        self.storages: dict[str, Storage] = {}
        self.known: dict[tuple[str, str], Any] = {("torch", name): name for name in STORAGES}
        for name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
            self.known["torch._utils", name] = lambda *arguments: Tensor(*arguments)
        for name in ("_rebuild_parameter", "_rebuild_parameter_with_state"):
            self.known["torch._utils", name] = lambda data, *_: data
        self.known["collections", "OrderedDict"] = lambda *pairs: type("Dict", (dict,), {})(*pairs)
        self.known["collections", "defaultdict"] = lambda *_: type("Dict", (dict,), {})()

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a class or function of the file. Nothing is imported."""
        return self.known.get((module, name)) or type(name, (Placeholder,), {})

    def persistent_load(self, pid: Any) -> Any:
        """Return the storage that the file describes as ("storage", class, key, device, number of elements, view)."""
        kind, name, key, _, count, *view = pid
        if kind != "storage" or name not in STORAGES:
            return Placeholder()
        storage = self.storages.setdefault(str(key), Storage(STORAGES[name], int(count)))
        if view and view[0] is not None:
            raise ValueError("a storage that is a view of another one")
        return storage


def load_torch(path: Path) -> Any:
    """Return what torch.save wrote, with numpy arrays as tensors. Raises an exception of any type for damage."""
    if zipfile.is_zipfile(path):
        return load_zip(path)
    with path.open("rb") as file:
        for _ in range(3):  # a magic number, the version, and sizes of types
            Reader(file).load()
        reader = Reader(file)
        held = reader.load()
        for key in Reader(file).load():
            storage = reader.storages[str(key)]
            count = int.from_bytes(file.read(8), "little")
            storage.content = file.read(storage.size)
            if count != storage.count or len(storage.content) != storage.size:
                raise ValueError("the file ends too early")
    return resolved(held)


def load_zip(path: Path) -> Any:
    """Read the format of since 1.6: an archive of data.pkl and a member for each storage."""
    with zipfile.ZipFile(path) as archive:
        root = next(name for name in archive.namelist() if name.endswith("/data.pkl")).removesuffix("data.pkl")
        if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
            raise ValueError("the numbers are big-endian")
        with archive.open(f"{root}data.pkl") as file:
            reader = Reader(file)
            held = reader.load()
        for key, storage in reader.storages.items():
            info = archive.getinfo(f"{root}data/{key}")
            if info.file_size != storage.size or info.compress_type != zipfile.ZIP_STORED:
                raise ValueError("a storage of another size")
            storage.content = archive.read(info)
    return resolved(held)


def resolved(held: Any) -> Any:
    """Return the object with arrays as tensors, also inside dicts."""
    if isinstance(held, Tensor):
        return held.array() if isinstance(held.storage, Storage) else Placeholder()
    if isinstance(held, Mapping):
        return {key: resolved(value) for key, value in held.items()}
    return held
