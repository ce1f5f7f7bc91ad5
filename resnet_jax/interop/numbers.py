"""The numbers of a state dict's tensors, as float32 arrays."""

from typing import Any

import numpy as np

from resnet_jax.errors import InteropError, listed, one_line
from resnet_jax.interop.matching import Report, Tensors

Arrays = dict[str, np.ndarray]
CONVERTED = {"float16": "widened", "bfloat16": "widened", "float64": "rounded"}  # to float32


def as_arrays(tensors: Tensors, report: Report) -> Arrays:
    """Return the tensors as float32 arrays, and report other types. Raises InteropError if one is not floating."""
    types = {key: type_name(tensor) for key, tensor in tensors.items()}
    if wrong := [f"{key} is {name}" for key, name in types.items() if name not in {"float32", *CONVERTED}]:
        raise InteropError(
            f"only floating weights are supported, of 16, 32 or 64 bits: {listed(wrong)}; save them as float32"
        )
    for name, verb in CONVERTED.items():
        if count := list(types.values()).count(name):
            report(f"{count} of {len(types)} tensors are {name}: {verb} to float32")
    return {key: as_float32(key, tensor) for key, tensor in tensors.items()}


def type_name(tensor: Any) -> str:
    """Return the name of a tensor's type, such as bfloat16. A tensor that is not dense has its layout's name."""
    layout = str(getattr(tensor, "layout", "")).removeprefix("torch.")
    if layout.startswith(("sparse", "jagged", "_mkldnn")):
        return layout
    return np.dtype(tensor.dtype).name if isinstance(tensor.dtype, np.dtype) else str(tensor.dtype).split(".")[-1]


def as_float32(key: str, tensor: Any) -> np.ndarray:
    """Return a float32 array of a numpy, jax or torch tensor. Infinite where a float64 number is too large."""
    if hasattr(tensor, "detach"):  # torch's; numpy has no bfloat16
        try:
            tensor = tensor.detach().cpu()
            tensor = (tensor if str(tensor.dtype) == "torch.float32" else tensor.float()).numpy()
        except (RuntimeError, TypeError) as error:  # such as a tensor on the meta device
            raise InteropError(f"{key} has no numbers to read ({one_line(error)}); give model.state_dict()") from None
    with np.errstate(over="ignore"):  # check_finite reports it
        return np.asarray(tensor).astype(np.float32, copy=False)


def check_numbers(arrays: Arrays, allow_nan: bool) -> None:
    """Raise InteropError if a number is NaN or infinite, unless allow_nan, or if a variance is negative."""
    bad = [key for key, array in arrays.items() if not np.isfinite(array).all()]
    if bad and not allow_nan:
        raise InteropError(f"NaN or infinite numbers in {listed(bad)}; allow_nan=True (--allow-nan) accepts them")
    if bad := [key for key, array in arrays.items() if key.endswith("running_var") and (array < 0).any()]:
        raise InteropError(f"negative variances in {listed(bad)}; the file is damaged, or these are no variances")
