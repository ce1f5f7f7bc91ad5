"""Strict conversion between PyTorch state dicts and Flax variables: a missing or unused tensor is an error."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from jax import numpy as jnp

from resnet_jax.errors import InteropError, listed, unknown
from resnet_jax.interop.names import COUNTER, TO_FLAX, TO_TORCH, Leaf, head_keys, stem_key, torch_leaves
from resnet_jax.models import ARCHS, Arch, create_model, get_arch
from resnet_jax.models.summary import LeafPath

Arrays = dict[str, np.ndarray]
HEADS = ("keep", "reset")
CLOSE = 0.5  # an error suggests an architecture if more than this share of the tensors matches


def from_torch(
    state_dict: Mapping[str, Any],
    arch: str | Arch,
    *,
    head: str = "keep",
    num_classes: int | None = None,
    in_channels: int | None = None,
    allow_nan: bool = False,
    seed: int = 0,
    **options: Any,
) -> dict[str, Any]:
    """Convert a state dict of numpy or torch tensors to Flax variables {"params": ..., "batch_stats": ...}.

    The variables are numpy float32 arrays.
    head: "keep" keeps the head; "reset" initialises a new head of num_classes (default 10) from `seed`.
    in_channels: 1 sums the kernel of an RGB stem over its input channels. On a grey image the result equals that of
    the RGB network on three copies of the image.
    allow_nan: accept NaN and infinite numbers. options: stem, width and squeeze_excitation of create_model.
    The running variance is copied unchanged, so evaluation matches PyTorch. PyTorch averages unbiased variances and
    Flax biased ones. In further training each new variance is therefore smaller by a factor of 1 - 1/n, where n is
    the number of values per channel.
    Raises InteropError if a key is missing or unused, or if a tensor has another shape, is not float32 or not finite.
    """
    arch = get_arch(arch) if isinstance(arch, str) else arch
    if head not in HEADS:
        raise InteropError(unknown("head", head, HEADS))
    arrays = as_arrays(state_dict)
    if head == "reset":
        arrays |= new_head(arrays, arch, 10 if num_classes is None else num_classes, seed)
    if in_channels is not None:
        fold_channels(arrays, arch, in_channels)
    classes, channels = sizes(arrays, arch)
    if num_classes is not None and num_classes != classes:
        hint = 'add head="reset" (--head reset)'
        raise InteropError(f"num_classes {num_classes}: the file has {classes} classes; {hint}")
    leaves = torch_leaves(arch, create_model(arch, classes, **options), channels)
    check_same(arrays, leaves, arch)
    if not allow_nan:
        check_finite(arrays)
    flat = {leaf.path: to_layout(arrays[key], TO_FLAX) for key, leaf in leaves.items()}
    return traverse_util.unflatten_dict(flat)


def to_torch(variables: Mapping[str, Any], arch: str | Arch, **options: Any) -> Arrays:
    """Convert Flax variables to a state dict of numpy arrays; the inverse of from_torch.

    load_state_dict(strict=True) accepts the result as tensors. options: as in from_torch.
    Raises InteropError if the variables do not belong to the architecture.
    """
    arch = get_arch(arch) if isinstance(arch, str) else arch
    collections = {name: variables.get(name, {}) for name in ("params", "batch_stats")}
    flat: dict[LeafPath, Any] = traverse_util.flatten_dict(collections)
    kernels = {path[1:]: np.shape(flat[path]) for path in flat if path[1] in ("stem", "head") and path[-1] == "kernel"}
    if len(kernels) != 2:
        raise InteropError(f"these are not the variables of {arch.name}: they have no stem/conv/kernel or head/kernel")
    model = create_model(arch, kernels["head", "kernel"][-1], **options)
    leaves = torch_leaves(arch, model, kernels["stem", "conv", "kernel"][2])
    held = {"/".join(path): np.asarray(leaf) for path, leaf in flat.items()}
    wanted = {"/".join(leaf.path): leaf.shape for leaf in leaves.values()}
    if text := differences(held, wanted):
        raise InteropError(f"these are not the variables of {arch.name}: {text}")
    return {key: to_layout(held["/".join(leaf.path)], TO_TORCH) for key, leaf in leaves.items()}


def to_layout(array: np.ndarray, axes: dict[int, tuple[int, ...]]) -> np.ndarray:
    """Return a contiguous copy with transposed axes."""
    return np.array(array.transpose(axes[array.ndim]), order="C")


def as_arrays(state_dict: Mapping[str, Any]) -> Arrays:
    """Return the tensors as numpy arrays, without counters. Raises InteropError if one is not a float32 tensor."""
    tensors = {key: value for key, value in state_dict.items() if not str(key).endswith(COUNTER)}
    if strange := [str(key) for key, value in tensors.items() if not hasattr(value, "dtype")]:
        raise InteropError(f"not a state dict: no tensor under {listed(strange)}; give model.state_dict()")
    if wrong := [f"{k} is {v.dtype}" for k, v in tensors.items() if str(v.dtype).removeprefix("torch.") != "float32"]:
        raise InteropError(f"only float32 weights are supported: {listed(wrong)}; convert them with model.float()")
    return {key: as_numpy(value) for key, value in tensors.items()}


def as_numpy(tensor: Any) -> np.ndarray:
    """Return a numpy array unchanged, or copy a torch tensor from its device."""
    return tensor if isinstance(tensor, np.ndarray) else tensor.detach().cpu().numpy()


def sizes(arrays: Arrays, arch: Arch) -> tuple[int, int]:
    """Return (number of classes, image channels) of a state dict. ImageNet's (1000, 3) replace unknown ones."""
    head, stem = arrays.get(head_keys(arch)[0]), arrays.get(stem_key(arch))
    classes = head.shape[0] if head is not None and head.ndim == 2 else 1000
    return classes, stem.shape[1] if stem is not None and stem.ndim == 4 else 3


def new_head(arrays: Arrays, arch: Arch, num_classes: int, seed: int) -> Arrays:
    """Return the two tensors of a newly initialised head, in PyTorch's layout."""
    if num_classes < 1:
        raise InteropError(f"num_classes {num_classes} must be at least 1")
    kernel, bias = head_keys(arch)
    old = arrays.get(kernel)
    features = old.shape[1] if old is not None and old.ndim == 2 else arch.stages[-1][1]
    dense = create_model(arch, num_classes).dense(num_classes)
    params = dense.init(jax.random.key(seed), jnp.zeros((1, features)))["params"]
    return {kernel: np.asarray(params["kernel"]).T, bias: np.asarray(params["bias"])}


def fold_channels(arrays: Arrays, arch: Arch, in_channels: int) -> None:
    """Replace the stem's kernel by the result of fold_stem, in PyTorch's layout."""
    key = stem_key(arch)
    if key in arrays and arrays[key].ndim == 4:  # check_same reports any other shape
        arrays[key] = fold_stem(arrays[key].transpose(2, 3, 1, 0), in_channels).transpose(3, 2, 0, 1)


def fold_stem(kernel: np.ndarray, in_channels: int) -> np.ndarray:
    """Adapt a stem's kernel (H, W, I, O) to in_channels: I keeps it, 1 sums it over I. Others raise InteropError."""
    if kernel.shape[2] == in_channels:
        return kernel
    if in_channels != 1:
        raise InteropError(
            f"in_channels {in_channels}: the stem has {kernel.shape[2]} channels; use {kernel.shape[2]} or 1"
        )
    return kernel.sum(2, keepdims=True)


def check_same(arrays: Arrays, leaves: Mapping[str, Leaf], arch: Arch) -> None:
    """Raise InteropError if the keys or shapes differ from the network's."""
    if text := differences(arrays, {key: leaf.torch_shape for key, leaf in leaves.items()}):
        raise InteropError(f"not the weights of {arch.name}: {text}; {closest(arrays)}")


def check_finite(arrays: Arrays) -> None:
    """Raise InteropError if a number is NaN or infinite."""
    if bad := [key for key, array in arrays.items() if not np.isfinite(array).all()]:
        raise InteropError(f"NaN or infinite numbers in {listed(bad)}; allow_nan=True (--allow-nan) accepts them")


def differences(held: Arrays, wanted: Mapping[str, tuple[int, ...]]) -> str:
    """Describe missing and unused keys and different shapes by their first names and counts. Empty if all match."""
    shapes = [f"{k} is {a.shape}, not {wanted[k]}" for k, a in held.items() if k in wanted and a.shape != wanted[k]]
    kinds = {
        "missing": sorted(wanted.keys() - held.keys()),
        "unused": sorted(held.keys() - wanted.keys()),
        "with another shape": shapes,
    }
    return "; ".join(f"{len(names)} {kind}: {listed(names)}" for kind, names in kinds.items() if names)


def closest(arrays: Arrays) -> str:
    """Describe the architectures whose keys and shapes match these best, without the head."""
    shares = {name: share(arrays, arch) for name, arch in ARCHS.items()}
    best = sorted((name for name in shares if shares[name] > CLOSE), key=lambda name: -shares[name])[:3]
    if not best:
        return "no known architecture is close"
    return "closest: " + ", ".join(f"{name} ({shares[name]:.0%} of the tensors match)" for name in best)


def share(arrays: Arrays, arch: Arch) -> float:
    """Return the share of tensors, of those in either, that match by key and shape."""
    held = frozenset((key, array.shape) for key, array in arrays.items() if key not in head_keys(arch))
    wanted = body(arch, sizes(arrays, arch)[1])
    return len(held & wanted) / len(held | wanted)


@cache
def body(arch: Arch, in_channels: int) -> frozenset[tuple[str, tuple[int, ...]]]:
    """Return the keys and shapes of a network's state dict, without the head."""
    leaves = torch_leaves(arch, create_model(arch), in_channels)
    return frozenset((key, leaf.torch_shape) for key, leaf in leaves.items() if key not in head_keys(arch))
