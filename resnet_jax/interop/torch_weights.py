"""State dicts of PyTorch to Flax variables and back, strictly: every tensor has a place and every place a tensor."""

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
CLOSE = 0.5  # share of tensors in common, of all tensors of both, from which an architecture is said to be close


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
    """The variables {"params": ..., "batch_stats": ...}, numpy float32, of a state dict of numpy or torch tensors.

    head: "reset" draws a new head of num_classes (10 if not told) from seed; "keep" keeps the file's. in_channels: 1
    sums the kernel of an RGB stem over its channels, which is the same network on a grey image in all three.
    options: create_model's stem, width and squeeze_excitation.
    The running variance is taken as it is: PyTorch's is an average of unbiased ones, Flax goes on with biased ones,
    smaller by 1 / n of what a batch of n numbers a channel adds. Evaluation has PyTorch's numbers.
    InteropError, of one line, if a key is missing or unused, or a tensor of another shape, not float32 or not finite.
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
    """The state dict, of numpy arrays, that from_torch makes such variables of; load_state_dict takes it, strictly.

    options: as from_torch's. InteropError if the variables are not the architecture's.
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
    """A contiguous copy in the other's order of axes."""
    return np.array(array.transpose(axes[array.ndim]), order="C")


def as_arrays(state_dict: Mapping[str, Any]) -> Arrays:
    """The tensors as numpy arrays, counters left out. InteropError if one is no float32 tensor."""
    tensors = {key: value for key, value in state_dict.items() if not str(key).endswith(COUNTER)}
    if strange := [str(key) for key, value in tensors.items() if not hasattr(value, "dtype")]:
        raise InteropError(f"not a state dict: {listed(strange)} hold no tensor; give model.state_dict()")
    if wrong := [f"{k} is {v.dtype}" for k, v in tensors.items() if str(v.dtype).removeprefix("torch.") != "float32"]:
        raise InteropError(f"only float32 weights are taken: {listed(wrong)}; convert them with model.float()")
    return {key: as_numpy(value) for key, value in tensors.items()}


def as_numpy(tensor: Any) -> np.ndarray:
    """A numpy array as it is, a torch tensor's numbers from wherever it is."""
    return tensor if isinstance(tensor, np.ndarray) else tensor.detach().cpu().numpy()


def sizes(arrays: Arrays, arch: Arch) -> tuple[int, int]:
    """(classes, channels of the images) that a state dict is for; those of ImageNet where it does not tell."""
    head, stem = arrays.get(head_keys(arch)[0]), arrays.get(stem_key(arch))
    classes = head.shape[0] if head is not None and head.ndim == 2 else 1000
    return classes, stem.shape[1] if stem is not None and stem.ndim == 4 else 3


def new_head(arrays: Arrays, arch: Arch, num_classes: int, seed: int) -> Arrays:
    """The two tensors of a freshly initialised head, in PyTorch's layout."""
    if num_classes < 1:
        raise InteropError(f"num_classes {num_classes} must be at least 1")
    kernel, bias = head_keys(arch)
    old = arrays.get(kernel)
    features = old.shape[1] if old is not None and old.ndim == 2 else arch.stages[-1][1]
    dense = create_model(arch, num_classes).dense(num_classes)
    params = dense.init(jax.random.key(seed), jnp.zeros((1, features)))["params"]
    return {kernel: np.asarray(params["kernel"]).T, bias: np.asarray(params["bias"])}


def fold_channels(arrays: Arrays, arch: Arch, in_channels: int) -> None:
    """Replace the stem's kernel by fold_stem's, in PyTorch's layout."""
    key = stem_key(arch)
    if key in arrays and arrays[key].ndim == 4:  # what else it may be, check_same tells
        arrays[key] = fold_stem(arrays[key].transpose(2, 3, 1, 0), in_channels).transpose(3, 2, 0, 1)


def fold_stem(kernel: np.ndarray, in_channels: int) -> np.ndarray:
    """A stem's kernel (H, W, I, O) for in_channels: as it is, or summed over I where one channel stands for all."""
    if kernel.shape[2] == in_channels:
        return kernel
    if in_channels != 1:
        raise InteropError(
            f"in_channels {in_channels}: the stem has {kernel.shape[2]} channels, which can be kept or folded into 1"
        )
    return kernel.sum(2, keepdims=True)


def check_same(arrays: Arrays, leaves: Mapping[str, Leaf], arch: Arch) -> None:
    """InteropError where keys and shapes are not the network's."""
    if text := differences(arrays, {key: leaf.torch_shape for key, leaf in leaves.items()}):
        raise InteropError(f"not the weights of {arch.name}: {text}; {closest(arrays)}")


def check_finite(arrays: Arrays) -> None:
    """InteropError where a number is NaN or infinite."""
    if bad := [key for key, array in arrays.items() if not np.isfinite(array).all()]:
        raise InteropError(f"NaN or infinite numbers in {listed(bad)}; allow_nan=True (--allow-nan) takes them")


def differences(held: Arrays, wanted: Mapping[str, tuple[int, ...]]) -> str:
    """What is missing, unused and of another shape, each by its first names and their count; empty if nothing is."""
    shapes = [f"{k} is {a.shape}, not {wanted[k]}" for k, a in held.items() if k in wanted and a.shape != wanted[k]]
    kinds = {
        "missing": sorted(wanted.keys() - held.keys()),
        "unused": sorted(held.keys() - wanted.keys()),
        "of another shape": shapes,
    }
    return "; ".join(f"{len(names)} {kind}: {listed(names)}" for kind, names in kinds.items() if names)


def closest(arrays: Arrays) -> str:
    """The names of the table whose keys and shapes, the head's aside, have most in common with these."""
    shares = {name: share(arrays, arch) for name, arch in ARCHS.items()}
    best = sorted((name for name in shares if shares[name] > CLOSE), key=lambda name: -shares[name])[:3]
    if not best:
        return "no architecture of the table is close"
    return "closest: " + ", ".join(f"{name} ({shares[name]:.0%} in common)" for name in best)


def share(arrays: Arrays, arch: Arch) -> float:
    """How many of the tensors of both are the same by key and shape."""
    held = frozenset((key, array.shape) for key, array in arrays.items() if key not in head_keys(arch))
    wanted = body(arch, sizes(arrays, arch)[1])
    return len(held & wanted) / len(held | wanted)


@cache
def body(arch: Arch, in_channels: int) -> frozenset[tuple[str, tuple[int, ...]]]:
    """Keys and shapes of a network's state dict, the head's aside."""
    leaves = torch_leaves(arch, create_model(arch), in_channels)
    return frozenset((key, leaf.torch_shape) for key, leaf in leaves.items() if key not in head_keys(arch))
