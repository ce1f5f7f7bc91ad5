"""What a file of weights is, by its content. The ending of its name says nothing."""

import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

from resnet_jax.errors import InteropError, listed

SAFETENSORS, TORCH, NPZ = "safetensors", "torch", "npz"
HEAD_BYTES = 512
# torch's format of before 1.6: a pickle of protocol 2 that begins with this number
LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
SAVE = "save model.state_dict() with torch.save or safetensors"

# a name for the message, what to do, and the test of the first bytes
Format = tuple[str, str, Callable[[bytes], bool]]


def starts(*magic: bytes) -> Callable[[bytes], bool]:
    """Return a test for the first bytes of a file."""
    return lambda head: head.startswith(magic)


REFUSED: tuple[Format, ...] = (
    ("a pointer of Git LFS, not the file itself", "run git lfs pull", starts(b"version https://git-lfs")),
    (
        "a web page, not weights",
        "download the file again, from its direct address",
        lambda head: head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<head")),
    ),
    ("an HDF5 file, such as Keras writes", SAVE, starts(b"\x89HDF\r\n\x1a\n")),
    ("a GGUF file of llama.cpp", SAVE, starts(b"GGUF")),
    ("a single array of NumPy (.npy)", "save the arrays by name with numpy.savez", starts(b"\x93NUMPY")),
    ("a TensorFlow Lite file", SAVE, lambda head: head[4:8] == b"TFL3"),
    (
        "an ONNX file",
        SAVE,
        lambda head: head[:1] == b"\x08" and (head[2:3] == b"\x12" or b"onnx" in head or b"pytorch" in head),
    ),
    ("an array file of MXNet", SAVE, starts(struct.pack("<Q", 0x112))),
    (
        "a compressed file or archive",
        "unpack it and give the file in it",
        lambda head: (
            head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf"))
            or head[257:262] == b"ustar"
        ),
    ),
    (
        "a pickle that torch.save did not write",
        "a pickle can run code, so it is not read; save the arrays by name with numpy.savez",
        lambda head: head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05",
    ),
    ("a JSON file, not weights", "give the file of weights beside it", lambda head: head.lstrip()[:1] in (b"{", b"[")),
)


def format_of(path: Path) -> str:
    """Return SAFETENSORS, TORCH or NPZ. Raises InteropError, which names the format, for another file."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
            size = file.seek(0, io.SEEK_END)
    except OSError as error:
        raise InteropError(f"{path} cannot be read: {error.strerror}") from None
    if not head:
        raise InteropError(f"{path} is empty; download or copy it again")
    if head[6:9] == b"\0\0{":  # the length of the header in 8 bytes, then its JSON
        return SAFETENSORS
    if head.startswith(b"PK"):
        return format_of_zip(path)
    if head.startswith(LEGACY_TORCH):
        return TORCH
    for name, advice, test in REFUSED:
        if test(head):
            raise InteropError(f"{path} is {name}; {advice}")
    if size < HEAD_BYTES and head.isascii() and b"\0" not in head:
        first = head.decode().strip().splitlines()[:1]
        raise InteropError(f"{path} is a text file ({''.join(first)[:60]!r}), not weights; download or copy it again")
    raise InteropError(
        f"{path}: unknown file type, or damaged; use a file of safetensors, of torch.save or of numpy.savez"
    )


def format_of_zip(path: Path) -> str:
    """Return the format of a ZIP file: torch.save's or numpy.savez's."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        raise InteropError(f"{path} is damaged or incomplete; download or copy it again") from None
    last = {name.rpartition("/")[2] for name in names}
    if "constants.pkl" in last:
        raise InteropError(f"{path} is a TorchScript program; {SAVE}")
    if "data.pkl" in last:
        return TORCH
    if names and all(name.endswith(".npy") for name in names):
        return NPZ
    if "model.weights.h5" in last:
        raise InteropError(f"{path} is a model of Keras; {SAVE}")
    raise InteropError(f"{path} is a ZIP archive of {listed(sorted(names)) or 'nothing'}; unpack it")
