"""Strict conversion between PyTorch state dicts and Flax variables: a missing or unused tensor is an error."""

import logging
from collections.abc import Mapping
from functools import cache
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from jax import numpy as jnp

from resnet_jax.arguments import truth, whole
from resnet_jax.errors import InteropError, listed, unknown
from resnet_jax.interop.matching import Match, Report, Shapes, Tensors, below_head, find, matches, rank, report_match
from resnet_jax.interop.names import TO_FLAX, TO_TORCH, Shape, check_has_keys, head_keys, stem_key, torch_leaves
from resnet_jax.interop.numbers import Arrays, as_arrays, check_numbers
from resnet_jax.interop.renamings import recognised
from resnet_jax.models import ARCHS, Arch, as_arch, create_model
from resnet_jax.models.summary import LeafPath

HEADS = ("keep", "reset")
CLOSE = 0.5  # an error suggests an architecture if more than this share of the tensors matches
log = logging.getLogger("resnet_jax").info


def from_torch(
    state_dict: Mapping[str, Any],
    arch: str | Arch,
    *,
    head: str = "keep",
    num_classes: int | None = None,
    in_channels: int | None = None,
    allow_nan: bool = False,
    seed: int = 0,
    entry: str = "",
    report: Report = log,
    **options: Any,
) -> dict[str, Any]:
    """Convert a state dict of numpy or torch tensors to Flax variables {"params": ..., "batch_stats": ...}.

    The variables are numpy float32 arrays. Entries of a checkpoint, prefixes and the names of other codebases are
    understood (docs/pytorch_weights.md).
    head: "keep" keeps the head; "reset" initialises a new head of num_classes (default 10) from `seed`.
    in_channels: 1 sums the kernel of an RGB stem over its input channels. On a grey image the result equals that of
    the RGB network on three copies of the image.
    allow_nan: accept NaN and infinite numbers. entry: the dotted path of an entry or prefix, needed if several fit.
    report: takes a line, such as print, for each thing that was understood or changed; the default logs it.
    options: stem, width and squeeze_excitation of create_model.
    The running variance is copied unchanged, so evaluation matches PyTorch. PyTorch averages unbiased variances and
    Flax biased ones. In further training each new variance is therefore smaller by a factor of 1 - 1/n, where n is
    the number of values per channel.
    Raises InteropError if a key is missing or unused, or if a tensor has another shape, is not floating or not finite.
    Raises ConfigError for a number that is no number, or below 1.
    """
    arch = as_arch(arch)
    check_has_keys(arch)
    if head not in HEADS:
        raise InteropError(unknown("head", str(head), HEADS))
    num_classes = None if num_classes is None else whole("num_classes", num_classes, 1)
    in_channels = None if in_channels is None else whole("in_channels", in_channels, 1)
    allow_nan, seed = truth("allow_nan", allow_nan), whole("seed", seed)
    if not isinstance(state_dict, Mapping):
        raise InteropError(f"a {type(state_dict).__name__} is not a state dict; give model.state_dict()")
    leaves = torch_leaves(arch, create_model(arch, 1, **options), 3)
    wanted = {key: leaf.torch_shape for key, leaf in leaves.items()}
    match, tensors = find(state_dict, arch, wanted, entry=entry, reset=head == "reset", report=report)
    if head == "reset":
        tensors |= new_head(arch, 10 if num_classes is None else num_classes, wanted[head_keys(arch)[0]][1], seed)
    check_same(match, {key: tuple(tensor.shape) for key, tensor in tensors.items()}, wanted, arch, num_classes)
    report_match(match, report)
    arrays = as_arrays(tensors, report)
    if in_channels is not None:
        fold_channels(arrays, arch, in_channels)
    check_numbers(arrays, allow_nan)
    return traverse_util.unflatten_dict({leaf.path: to_layout(arrays[key], TO_FLAX) for key, leaf in leaves.items()})


def to_torch(variables: Mapping[str, Any], arch: str | Arch, **options: Any) -> Arrays:
    """Convert Flax variables to a state dict of numpy arrays; the inverse of from_torch.

    load_state_dict(strict=True) accepts the result as tensors. options: as in from_torch.
    Raises InteropError if the variables do not belong to the architecture.
    """
    arch = as_arch(arch)
    check_has_keys(arch)
    collections = {name: variables.get(name, {}) for name in ("params", "batch_stats")}
    flat: dict[LeafPath, Any] = traverse_util.flatten_dict(collections)
    kernels = {path[1:]: np.shape(flat[path]) for path in flat if path[1] in ("stem", "head") and path[-1] == "kernel"}
    if len(kernels) != 2:
        raise InteropError(f"these are not the variables of {arch.name}: they have no stem/conv/kernel or head/kernel")
    model = create_model(arch, kernels["head", "kernel"][-1], **options)
    leaves = torch_leaves(arch, model, kernels["stem", "conv", "kernel"][2])
    held = {"/".join(path): np.asarray(leaf) for path, leaf in flat.items()}
    wanted = {"/".join(leaf.path): leaf.shape for leaf in leaves.values()}
    if text := differences({path: leaf.shape for path, leaf in held.items()}, wanted):
        raise InteropError(f"these are not the variables of {arch.name}: {text}")
    return {key: to_layout(held["/".join(leaf.path)], TO_TORCH) for key, leaf in leaves.items()}


def to_layout(array: np.ndarray, axes: dict[int, tuple[int, ...]]) -> np.ndarray:
    """Return a contiguous copy with transposed axes."""
    return np.array(array.transpose(axes[array.ndim]), order="C")


def sizes(shapes: Shapes, arch: Arch) -> tuple[int, int]:
    """Return (number of classes, image channels) of a state dict. ImageNet's (1000, 3) replace unknown ones."""
    head, stem = shapes.get(head_keys(arch)[0], ()), shapes.get(stem_key(arch), ())
    return head[0] if len(head) == 2 else 1000, stem[1] if len(stem) == 4 else 3


def resized(wanted: Shapes, arch: Arch, classes: int, channels: int) -> dict[str, Shape]:
    """Return the shapes of a network for other numbers of classes and image channels."""
    (kernel, bias), stem = head_keys(arch), stem_key(arch)
    channels_out, _, height, width = wanted[stem]
    new = {kernel: (classes, wanted[kernel][1]), bias: (classes,), stem: (channels_out, channels, height, width)}
    return {**wanted, **new}


def new_head(arch: Arch, num_classes: int, features: int, seed: int) -> Arrays:
    """Return the two tensors of a newly initialised head, in PyTorch's layout."""
    kernel, bias = head_keys(arch)
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


def check_head(shapes: Shapes, wanted: Shapes, arch: Arch) -> None:
    """Raise InteropError if all tensors but the head's are there, as in a file of a backbone."""
    head = set(head_keys(arch))
    if wanted.keys() - shapes.keys() == head:
        extra = sorted(shapes.keys() - wanted.keys())
        others = f"; {len(extra)} other tensors: {listed(extra)}" if extra else ""
        raise InteropError(
            f"the weights have no head of one layer ({', '.join(sorted(head, reverse=True))} are missing{others}): "
            'a new one needs --head reset --num-classes N (in Python head="reset", num_classes=N)'
        )


def check_same(match: Match, shapes: Shapes, wanted: Shapes, arch: Arch, num_classes: int | None) -> None:
    """Raise InteropError if the keys, the shapes or the number of classes differ from the network's."""
    check_head(shapes, wanted, arch)
    classes, channels = sizes(shapes, arch)
    wanted = resized(wanted, arch, classes, channels)
    text = differences(shapes, wanted)
    if not text:
        if num_classes not in (None, classes):
            hint = 'add head="reset" (--head reset)'
            raise InteropError(f"num_classes {num_classes}: the file has {classes} classes; {hint}")
        return
    if reason := unfitting(shapes, wanted, arch) or recognised(match.entry.tensors):
        raise InteropError(f"not the weights of {arch.name}: {reason}")
    outside = any(not key.startswith(match.prefix) for key in match.rest)
    hint = f"; --entry {match.path} leaves out the tensors without the prefix {match.prefix}" if outside else ""
    raise InteropError(f"not the weights of {arch.name}: {text}; {closest(match.entry.tensors)}{hint}")


def unfitting(shapes: Shapes, wanted: Shapes, arch: Arch) -> str:
    """Return which extra layers the file has: squeeze-and-excitation or projected shortcuts. Empty for others."""
    extra = shapes.keys() - wanted.keys()
    if wanted.keys() - shapes.keys() or not extra:
        return ""
    if all(".se.fc" in key for key in extra):
        return "it has squeeze-and-excitation; add --squeeze-excitation (in Python squeeze_excitation=True)"
    if not arch.pad_shortcut or not all(".0.downsample." in key or ".0.shortcut." in key for key in extra):
        return ""
    return (
        f"its shortcuts are convolutions ({min(extra)}); those of {arch.name} have no parameters (arXiv:1512.03385, "
        "option A), and no small network of list_models() has convolutions there. In Python give "
        f'from_torch this architecture: dataclasses.replace(get_arch("{arch.name}"), pad_shortcut=False)'
    )


def differences(held: Shapes, wanted: Shapes) -> str:
    """Describe missing and unused keys and different shapes by their first names and counts. Empty if all match."""
    shapes = [f"{k} is {shape}, not {wanted[k]}" for k, shape in held.items() if wanted.get(k, shape) != shape]
    kinds = {
        "missing": sorted(wanted.keys() - held.keys()),
        "unused": sorted(held.keys() - wanted.keys()),
        "with another shape": shapes,
    }
    return "; ".join(f"{len(names)} {kind}: {listed(names)}" for kind, names in kinds.items() if names)


def closest(tensors: Tensors) -> str:
    """Describe the architectures whose keys and shapes match these best, without the head."""
    resnets = {name: arch for name, arch in ARCHS.items() if arch.trunk == "resnet"}
    depths = {name: sum(blocks for blocks, _ in arch.stages) for name, arch in resnets.items()}
    # a block has 8 to 21 tensors, so the others cannot be close; counting first saves a second for each
    near = [name for name in resnets if CLOSE * 8 * depths[name] < len(tensors) < 21 * (depths[name] + 1) / CLOSE]
    shares = {name: share(tensors, ARCHS[name]) for name in near}
    best = sorted((name for name in shares if shares[name][0] > CLOSE), key=lambda name: -shares[name][0])[:3]
    if not best:
        return "no known architecture is close"
    names = [f"{name}{shares[name][1]} ({shares[name][0]:.0%} of the tensors match)" for name in best]
    return "closest: " + ", ".join(names)


def share(tensors: Tensors, arch: Arch) -> tuple[float, str]:
    """Return the share of tensors, of those in either, that match by key and shape; and the --stem that they need."""
    shapes, stem, flag = body(arch), stem_key(arch), ""
    match = max(matches(tensors, arch, shapes), key=rank)
    same, kernel = match.same_shape, tensors.get(match.keys.get(stem, ""))
    other = {"standard": ("small", 3), "small": ("standard", 7)}[arch.stem]
    if kernel is not None and tuple(kernel.shape[2:]) == (other[1], other[1]) and same == len(match.keys) - 1:
        same, flag = same + 1, f" --stem {other[0]}"
    count = sum(not below_head(match.prefix, key) for key in match.entry.tensors)
    return same / (count + len(shapes) - same), flag


@cache
def body(arch: Arch) -> dict[str, Shape]:
    """Return the keys and shapes of a network's state dict, without the head."""
    leaves = torch_leaves(arch, create_model(arch), 3)
    return {key: leaf.torch_shape for key, leaf in leaves.items() if key not in head_keys(arch)}
