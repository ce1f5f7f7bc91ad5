"""What the frozen PyTorch numbers share with the tests: the cases, the weights and the images. NumPy only.

Weights and images are functions of a name and a shape, so the frozen files hold answers alone. RandomState
and not Generator: NumPy promises the former's stream for good (NEP 19). Shapes and layouts are Flax's: HWIO
kernels, NHWC images.
"""

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
MODES = ("eval", "train")
SGD_STEPS, SGD_RATE = 5, 0.01
# The same 8 images in every step, 48x48: there float32 and float64 PyTorch agree to 1e-6 in all five losses,
# and still do with weights off by 3e-7. With a new batch each step, or one pixel in the last stage (28x28), a
# ReLU that flips on rounding grows to 0.01 to 0.3 within three steps in PyTorch alone.
SGD_IMAGES = (8, 48, 48, 1)


@dataclass(frozen=True)
class BlockCase:
    """One block: its arguments, as the seed names them, and its input's shape."""

    name: str
    arguments: tuple[Any, ...]  # (num_channels[, groups, bot_mul], use_1x1conv, strides)
    input_shape: tuple[int, int, int, int]

    def call(self, block: Any) -> Any:
        return block(*self.arguments)


RESIDUAL = (
    BlockCase("residual_identity", (3, False, 1), (4, 6, 6, 3)),
    BlockCase("residual_identity_odd", (4, False, 1), (2, 7, 9, 4)),
    BlockCase("residual_projection", (6, True, 1), (2, 7, 5, 4)),
    BlockCase("residual_halving", (6, True, 2), (4, 6, 6, 3)),
    BlockCase("residual_halving_odd", (6, True, 2), (2, 7, 9, 3)),
)
RESNEXT = (  # in each the two readings of `groups` differ: bot_channels // groups groups, or `groups` groups
    BlockCase("resnext_identity", (32, 16, 1, False, 1), (2, 7, 7, 32)),
    BlockCase("resnext_bottleneck_identity", (16, 4, 0.5, False, 1), (2, 6, 5, 16)),
    BlockCase("resnext_projection", (16, 2, 0.5, True, 1), (2, 5, 7, 6)),
    BlockCase("resnext_halving", (24, 4, 1, True, 2), (2, 8, 6, 12)),
    BlockCase("resnext_halving_odd", (16, 2, 0.5, True, 2), (2, 7, 9, 8)),
)
BLOCKS = RESIDUAL + RESNEXT


@dataclass(frozen=True)
class NetCase:
    """One whole network of 10 classes; group_width is ResNeXtBlock's `groups`, None for Residual blocks."""

    name: str
    arch: tuple[tuple[int, int], ...]
    input_shape: tuple[int, int, int, int]
    group_width: int | None = None


RESNET18 = ((2, 64), (2, 128), (2, 256), (2, 512))
RESNET34 = ((3, 64), (4, 128), (6, 256), (3, 512))
NETS = (
    NetCase("resnet18_96", RESNET18, (2, 96, 96, 1)),
    NetCase("resnet18_28", RESNET18, (8, 28, 28, 1)),
    NetCase("resnext_small", ((1, 64), (2, 32)), (4, 33, 35, 3), group_width=16),
)
# the registry's names, as the seed's trunk: stages, group width
ARCHS: dict[str, tuple[tuple[tuple[int, int], ...], int | None]] = {
    "resnet18": (RESNET18, None),
    "resnet34": (RESNET34, None),
    "resnext18": (RESNET18, 16),
    "resnext34": (RESNET34, 16),
}


@dataclass(frozen=True)
class InitCase:
    """A convolution whose initialisation is frozen: its maxima and deviations over `draws` keys."""

    name: str
    channels: int
    features: int
    size: int
    groups: int
    draws: int = 100


INITS = (
    InitCase("stem", 1, 64, 7, 1),
    InitCase("conv", 16, 32, 3, 1),
    InitCase("grouped", 32, 32, 3, 2),
    InitCase("pointwise", 24, 48, 1, 1),
)
DENSE_INIT = InitCase("dense", 512, 10, 0, 1)


def _random(name: str, shape: tuple[int, ...]) -> np.random.RandomState:
    return np.random.RandomState(zlib.crc32(f"{name} {tuple(shape)}".encode()))


def normal(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal float32 numbers, such as images."""
    return _random(name, shape).standard_normal(shape).astype(np.float32)


def loss_weights(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """What a loss multiplies an output with before it sums it up: noise, averaged over the images."""
    return normal(f"{name} loss", shape) / np.float32(shape[0])


def labels(name: str, count: int) -> np.ndarray:
    return _random(name, (count,)).randint(0, 10, count).astype(np.int32)


def sgd_batch() -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of every step of the frozen loss curve."""
    return normal("s1 x", SGD_IMAGES), labels("s1 y", SGD_IMAGES[0])


def parameter(path: str, shape: tuple[int, ...]) -> np.ndarray:
    """The value of one leaf by its Flax path, such as stage1/block1/bn1/scale.

    Kernels are Xavier uniform; the rest is away from 0 and 1, so that a swapped or dropped leaf shows.
    """
    random, kind = _random(path, shape), path.rsplit("/", 1)[-1]
    if kind == "kernel":
        field = int(np.prod(shape[:-2]))
        bound = np.sqrt(6 / (field * (shape[-2] + shape[-1])))
        return random.uniform(-bound, bound, shape).astype(np.float32)
    low, high = {"scale": (0.4, 1.0), "bias": (-0.3, 0.3), "mean": (-0.3, 0.3), "var": (0.6, 1.4)}[kind]
    return random.uniform(low, high, shape).astype(np.float32)


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(path, leaf) of nested dicts, paths joined by slashes."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value


def filled(shapes: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The tree of leaves with shapes, each leaf replaced by its `parameter`."""
    return {
        key: filled(value, f"{prefix}{key}/")
        if isinstance(value, Mapping)
        else parameter(f"{prefix}{key}", value.shape)
        for key, value in shapes.items()
    }


def canary() -> np.ndarray:
    """A few of the numbers that the functions above give: frozen too, since all else rests on them."""
    weights = [parameter(f"canary/{leaf}", (2,)) for leaf in ("scale", "bias", "mean", "var")]
    kernel = parameter("canary/kernel", (3, 3, 2, 4))
    parts = [*weights, kernel.reshape(-1), normal("canary", (5,)), labels("canary", 5)]
    return np.concatenate(parts).astype(np.float32)


def fingerprint(path: str, gradient: np.ndarray) -> np.ndarray:
    """Six numbers that stand for a large array: its norm, its product with seeded noise, and four entries.

    The product sees every entry and its place: a permuted or transposed array changes it.
    """
    g = np.asarray(gradient, np.float64)
    product = np.sum(g * normal(f"{path} fingerprint", g.shape))
    entries = g.reshape(-1)[np.linspace(0, g.size - 1, 4).astype(int)]
    return np.array([np.linalg.norm(g), product, *entries], np.float32)


def frozen(file: str) -> dict[str, np.ndarray]:
    """The arrays of tests/fixtures/FILE.npz by their names, such as residual_halving/train/output."""
    with np.load(FIXTURES / f"{file}.npz") as archive:
        return dict(archive)
