"""PyTorch files of state dicts, and folders of converted weights.

Only torch's weights_only loader unpickles a file. That loader accepts tensors and plain containers, and runs no code.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util

from resnet_jax.errors import InteropError, listed, one_line
from resnet_jax.interop.names import COUNTER
from resnet_jax.paths import user_path
from resnet_jax.whole_file import whole_file

SAFETENSORS = ".safetensors"
PICKLES = (".pth", ".pt", ".bin")
VARIABLES_FILE = "variables.safetensors"
WEIGHTS_FILE = "weights.json"
NO_TORCH = "reading .pth needs PyTorch: pip install torch, or convert the file to .safetensors on a machine with torch"


@dataclasses.dataclass(frozen=True)
class Weights:
    """The weights of a network.

    arch: the architecture's name. options: arguments of create_model that differ from the architecture's defaults.
    """

    arch: str
    options: dict[str, Any]
    variables: dict[str, Any]


def read_state_dict(path: str | Path) -> dict[str, Any]:
    """Return the tensors of a .safetensors file (numpy) or a .pth file (torch) by name.

    Raises InteropError if the file cannot be read.
    """
    path = user_path(path, "path", InteropError)
    check_file(path)
    if path.suffix == SAFETENSORS:
        return read_safetensors(path)
    if path.suffix in PICKLES:
        return read_pth(path)
    raise InteropError(f"{path}: unknown file type; use {SAFETENSORS} or {', '.join(PICKLES)}")


def check_file(path: Path) -> None:
    """Raise InteropError if the file does not exist."""
    if path.is_dir():
        raise InteropError(f"{path} is a folder; give a {SAFETENSORS} or .pth file (convert --to-torch writes one)")
    if not path.is_file():
        raise InteropError(f"{path}: there is no such file")


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Return the tensors of a .safetensors file. Raises InteropError if the file is damaged or not float32."""
    try:
        with safetensors.safe_open(path, framework="np") as file:
            dtypes = {key: file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118 (no mapping)
            # checked before the tensors are read: numpy lacks some of the types, such as bfloat16
            wrong = [f"{k} is {dtype}" for k, dtype in dtypes.items() if dtype != "F32" and not k.endswith(COUNTER)]
            if wrong:
                raise InteropError(f"{path}: only float32 weights are supported: {listed(wrong)}; use model.float()")
            return {key: file.get_tensor(key) for key in dtypes}
    except (safetensors.SafetensorError, OSError) as error:
        raise InteropError(f"{path}: damaged, or not a safetensors file ({one_line(error)})") from None


def read_pth(path: Path) -> dict[str, Any]:
    """Return the tensors of a .pth file, or of its "state_dict" entry if it has one."""
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise InteropError(f"{path}: {NO_TORCH}") from None
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # torch raises many types; its own message recommends the unsafe weights_only=False
        raise InteropError(
            f"{path}: damaged, or it contains objects other than tensors (none was run); save model.state_dict()"
        ) from None
    if isinstance(held, Mapping) and isinstance(held.get("state_dict"), Mapping):
        held = held["state_dict"]
    if not isinstance(held, Mapping):
        raise InteropError(f"{path}: contains a {type(held).__name__}, not a state dict; save model.state_dict()")
    return dict(held)


def write_state_dict(path: str | Path, state_dict: Mapping[str, np.ndarray]) -> None:
    """Write a .safetensors or .pth file atomically. A .pth file needs torch; torch.load(weights_only=True) reads it."""
    path = user_path(path, "path", InteropError)
    if path.suffix == SAFETENSORS:
        save = safetensors.numpy.save_file
    elif path.suffix in PICKLES:
        save = save_pth
    else:
        raise InteropError(f"{path}: unknown file type; use {SAFETENSORS} or .pth")
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
        (folder / WEIGHTS_FILE).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    except (OSError, safetensors.SafetensorError) as error:
        raise InteropError(f"{folder} cannot be written: {one_line(error)}") from None


def load_weights(folder: str | Path) -> Weights:
    """Read the weights that save_weights wrote. Raises InteropError if they are missing or damaged."""
    folder = user_path(folder, "folder", InteropError)
    if not folder.exists():
        raise InteropError(f"{folder}: there is no such folder; python -m resnet_jax convert makes a folder of weights")
    if not (folder / WEIGHTS_FILE).is_file():
        raise InteropError(
            f"{folder}: there is no {WEIGHTS_FILE} in it; python -m resnet_jax convert makes such a folder"
        )
    try:
        about = json.loads((folder / WEIGHTS_FILE).read_text(encoding="utf-8"))
        arch, options, digest = about["arch"], about["options"], about["sha256"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InteropError(f"{folder / WEIGHTS_FILE} is damaged ({one_line(error)}); convert again") from None
    check_file(folder / VARIABLES_FILE)
    if sha256(folder / VARIABLES_FILE) != digest:
        raise InteropError(f"{folder / VARIABLES_FILE} is damaged (its SHA-256 differs); convert again")
    return Weights(arch, options, traverse_util.unflatten_dict(read_safetensors(folder / VARIABLES_FILE), sep="/"))


def sha256(path: Path) -> str:
    """Return the SHA-256 digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
