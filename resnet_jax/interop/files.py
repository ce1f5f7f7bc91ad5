"""Files of state dicts, and folders of converted weights.

Files of torch.save are read without torch, and no code in them is run (resnet_jax/interop/torch_file.py).
"""

import dataclasses
import errno
import hashlib
import json
import math
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util
from jax import numpy as jnp

from resnet_jax.errors import InteropError, listed, one_line
from resnet_jax.interop.formats import NPZ, SAFETENSORS, format_of
from resnet_jax.interop.matching import DEPTH
from resnet_jax.interop.torch_file import Unsupported, load_torch
from resnet_jax.paths import user_path
from resnet_jax.whole_file import whole_file

ENDING = ".safetensors"
PICKLES = (".pth", ".pt", ".bin", ".th", ".ckpt", ".pth.tar", ".params")  # endings of files to write
VARIABLES_FILE = "variables.safetensors"
WEIGHTS_FILE = "weights.json"
DAMAGE = (  # what damaged pickles and archives raise
    *(ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, StopIteration, TypeError, ValueError),
    *(RuntimeError, zipfile.BadZipFile, zlib.error),  # RuntimeError: an encrypted archive, or too many containers
)
DTYPES = {  # of safetensors
    "BF16": jnp.dtype("bfloat16"),
    "BOOL": np.bool_,
    **{f"F{bits}": f"<f{bits // 8}" for bits in (16, 32, 64)},
    **{f"I{bits}": f"<i{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"<u{bits // 8}" for bits in (8, 16, 32, 64)},
}


@dataclasses.dataclass(frozen=True)
class Weights:
    """The weights of a network.

    arch: the architecture's name. options: arguments of create_model that differ from the architecture's defaults.
    preprocess: mean and std, a number for each channel or None for images in [0, 1], and image_size in pixels; empty
    if it is unknown. class_names: empty if they are unknown.
    """

    arch: str
    options: dict[str, Any]
    variables: dict[str, Any]
    preprocess: dict[str, Any] = dataclasses.field(default_factory=dict)
    class_names: tuple[str, ...] = ()


def read_state_dict(path: str | Path) -> dict[str, Any]:
    """Return what a file of weights holds: arrays by name.

    The content shows the type, not the name. A checkpoint is returned as it is, with its entries; from_torch finds
    the weights in it. Raises InteropError if the file cannot be read.
    """
    path = user_path(path, "path", InteropError)
    check_file(path)
    kind = format_of(path)
    if kind == NPZ:
        return read_npz(path)
    return read_safetensors(path) if kind == SAFETENSORS else read_pth(path)


def check_file(path: Path) -> None:
    """Raise InteropError if the file does not exist."""
    if path.is_dir():
        raise InteropError(f"{path} is a folder; give a {ENDING} or .pth file (convert --to-torch writes one)")
    if not path.is_file():
        raise InteropError(f"{path}: there is no such file")


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Return the tensors of a .safetensors file. Raises InteropError if it is damaged or has types that numpy lacks."""
    try:
        held = safetensors.deserialize(path.read_bytes())
    except OSError as error:
        raise unreadable(path, error) from None
    except safetensors.SafetensorError as error:
        raise InteropError(f"{path}: damaged, or not a safetensors file ({one_line(error)})") from None
    if wrong := [f"{key} is {about['dtype']}" for key, about in held if about["dtype"] not in DTYPES]:
        raise InteropError(f"{path}: types that are not supported: {listed(wrong)}; save the weights as float32")
    return {key: np.frombuffer(about["data"], DTYPES[about["dtype"]]).reshape(about["shape"]) for key, about in held}


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a .npz file. Raises InteropError if it is damaged or has pickled objects."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except OSError as error:
        raise unreadable(path, error) from None
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InteropError(f"{path}: damaged, or with objects other than arrays ({one_line(error)})") from None


def read_pth(path: Path) -> dict[str, Any]:
    """Return what torch.save wrote to a file: a state dict, or a checkpoint that has one in an entry."""
    try:
        held = load_torch(path, DEPTH + 1)
    except OSError as error:
        raise unreadable(path, error) from None
    except Unsupported as error:
        raise InteropError(f"{path}: {error}") from None
    except DAMAGE as error:
        raise InteropError(
            f"{path}: damaged, or not a state dict ({one_line(error)}); copy it again, or save model.state_dict()"
        ) from None
    if not isinstance(held, Mapping):
        name = getattr(getattr(held, "made_by", None), "name", type(held).__name__)
        raise InteropError(f"{path}: contains a {name}, not a state dict; save model.state_dict()")
    return dict(held)


def unreadable(path: Path, error: OSError) -> InteropError:
    """Return the error for a file that the system does not read."""
    if error.errno == errno.EINVAL:  # a place before the file's start
        return InteropError(f"{path} is damaged ({one_line(error)}); copy it again")
    return InteropError(f"{path} cannot be read: {error.strerror or one_line(error)}")


def write_state_dict(path: str | Path, state_dict: Mapping[str, np.ndarray]) -> None:
    """Write a .safetensors or .pth file atomically. A .pth file needs torch; torch.load(weights_only=True) reads it."""
    path = user_path(path, "path", InteropError)
    if path.suffix == ENDING:
        save = safetensors.numpy.save_file
    elif path.name.endswith(PICKLES):
        save = save_pth
    else:
        raise InteropError(f"{path}: unknown file type; use {ENDING} or .pth")
    try:
        with whole_file(path) as part:
            save(dict(state_dict), part)
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:  # torch raises RuntimeError
        raise InteropError(f"{path} cannot be written: {one_line(error)}") from None


def save_pth(state_dict: Mapping[str, np.ndarray], path: Path) -> None:
    """Write the tensors with torch.save."""
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise InteropError("writing .pth needs PyTorch: pip install torch, or write .safetensors") from None
    torch.save({key: torch.from_numpy(array) for key, array in state_dict.items()}, path)


def save_weights(folder: str | Path, weights: Weights) -> None:
    """Write the variables, the architecture and its options to a new or empty folder."""
    folder = user_path(folder, "folder", InteropError)
    flat = traverse_util.flatten_dict(weights.variables, sep="/")
    try:
        if folder.exists() and not folder.is_dir():
            raise InteropError(f"{folder} is a file; give a new folder")
        if folder.is_dir() and any(folder.iterdir()):
            raise InteropError(f"{folder} exists and is not empty; give another folder")
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(folder / VARIABLES_FILE) as part:
            safetensors.numpy.save_file({key: np.asarray(leaf) for key, leaf in flat.items()}, part)
        about = {"arch": weights.arch, "options": weights.options, "sha256": sha256(folder / VARIABLES_FILE)}
        about |= {"preprocess": weights.preprocess, "class_names": weights.class_names}
        about["entries_sha256"] = entries_digest(about)
        (folder / WEIGHTS_FILE).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    except (OSError, safetensors.SafetensorError) as error:
        raise InteropError(f"{folder} cannot be written: {one_line(error)}") from None


def load_weights(folder: str | Path) -> Weights:
    """Read the weights that save_weights wrote. Raises InteropError if they are missing or damaged."""
    folder = user_path(folder, "folder", InteropError)
    if folder.is_file():
        raise InteropError(f"{folder} is a file; python -m resnet_jax convert makes a folder of weights from it")
    if not folder.exists():
        raise InteropError(f"{folder}: there is no such folder; python -m resnet_jax convert makes a folder of weights")
    if not (folder / WEIGHTS_FILE).is_file():
        raise InteropError(
            f"{folder}: there is no {WEIGHTS_FILE} in it; python -m resnet_jax convert makes such a folder"
        )
    try:
        about = json.loads((folder / WEIGHTS_FILE).read_text(encoding="utf-8"))
        check_entries(about)
    except OSError as error:
        raise unreadable(folder / WEIGHTS_FILE, error) from None
    except (ValueError, RecursionError) as error:
        raise InteropError(f"{folder / WEIGHTS_FILE} is damaged ({one_line(error)}); convert again") from None
    check_file(folder / VARIABLES_FILE)
    if sha256(folder / VARIABLES_FILE) != about["sha256"]:
        raise InteropError(f"{folder / VARIABLES_FILE} is damaged (its SHA-256 differs); convert again")
    variables = traverse_util.unflatten_dict(read_safetensors(folder / VARIABLES_FILE), sep="/")
    names = tuple(about.get("class_names", ()))  # an older folder has none
    return Weights(about["arch"], about["options"], variables, about.get("preprocess", {}), names)


def entries_digest(about: dict[str, Any]) -> str:
    """Return the SHA-256 digest of the entries of weights.json, without itself."""
    held = {name: value for name, value in about.items() if name != "entries_sha256"}
    return hashlib.sha256(json.dumps(held, sort_keys=True).encode()).hexdigest()


def check_entries(about: Any) -> None:
    """Raise ValueError if the entries of weights.json have other types, or were changed after they were written.

    Folders of older versions have no digest, preprocess or class_names.
    """
    if not isinstance(about, dict):
        raise ValueError("it is not a JSON object")
    for name, kind in (("arch", str), ("options", dict), ("sha256", str), ("preprocess", dict), ("class_names", list)):
        if not isinstance(about.get(name, kind() if name in ("preprocess", "class_names") else None), kind):
            raise ValueError(f"{name} is {about.get(name)!r}")
    if wrong := [name for name in about.get("class_names", []) if not isinstance(name, str)]:
        raise ValueError(f"class_names has {wrong[0]!r}")
    held = about.get("preprocess", {})
    for name in ("mean", "std", "image_size"):
        if (values := held.get(name)) is not None and not are_numbers(name, values):
            raise ValueError(f"{name} is {values!r}")
    if about.get("entries_sha256", entries_digest(about)) != entries_digest(about):
        raise ValueError("its SHA-256 differs: it was changed after convert wrote it")


def are_numbers(name: str, values: Any) -> bool:
    """Tell whether the values can be a mean, a std or an image_size of preprocess."""
    if not isinstance(values, list) or not all(type(value) in (int, float) for value in values):
        return False
    if name == "image_size":
        return len(values) == 2 and all(type(value) is int and value > 0 for value in values)
    return all(math.isfinite(value) and (value > 0 or name == "mean") for value in values)


def sha256(path: Path) -> str:
    """Return the SHA-256 digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
