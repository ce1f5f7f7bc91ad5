"""The whole table against PyTorch: what the frozen numbers of torch_family.npz share with the tests. NumPy only."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import seeded

# Parameters for 3 channels and so many classes, where not told otherwise in the test that reads them. torchvision's
# are those of its documentation; the small ones are told in thousands or millions by their papers, and the exact
# numbers are those of the plain PyTorch modules in make_torch_family.py.
COUNTS: dict[str, tuple[int, int]] = {  # name -> (classes, parameters)
    "resnet18": (10, 11_184_650),
    "resnet34": (10, 21_296_522),
    "resnext18": (10, 1_703_818),
    "resnext34": (10, 3_110_090),
    "tv_resnet18": (1000, 11_689_512),
    "tv_resnet34": (1000, 21_797_672),
    "resnet50": (1000, 25_557_032),
    "resnet101": (1000, 44_549_160),
    "resnet152": (1000, 60_192_808),
    "resnext50_32x4d": (1000, 25_028_904),
    "resnext101_32x8d": (1000, 88_791_336),
    "resnext101_64x4d": (1000, 83_455_272),
    "wide_resnet50_2": (1000, 68_883_240),
    "wide_resnet101_2": (1000, 126_886_696),
    "resnet20": (10, 269_722),  # arXiv:1512.03385, table 6: 0.27 M
    "resnet32": (10, 464_154),  # 0.46 M
    "resnet44": (10, 658_586),  # 0.66 M
    "resnet56": (10, 853_018),  # 0.85 M
    "resnet110": (10, 1_727_962),  # 1.7 M
    "resnext29_8x64d": (10, 34_426_698),  # arXiv:1611.05431, table 7: 34.4 M
    "wrn_16_4": (10, 2_748_890),  # arXiv:1605.07146, table 5: 2.7 M
    "wrn_28_10": (10, 36_479_194),  # 36.5 M
}
SQUEEZED_RESNET50 = 28_088_024  # timm's seresnet50, 1000 classes

# a small network of each kind of block and of stem; the others differ from these in depth and width
ONE_OF_EACH = ("resnet18", "resnext18", "tv_resnet18", "resnet50", "resnet20", "resnext29_8x64d", "wrn_16_4")

TORCHVISION = (
    "tv_resnet18", "tv_resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x8d",
    "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A network, its images and what is frozen of it beside outputs and statistics."""

    arch: str
    input_shape: tuple[int, int, int, int]
    gradients: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return "-".join([self.arch, str(self.input_shape[1]), *self.options])

    @property
    def num_classes(self) -> int:
        return COUNTS[self.arch][0]


LARGE = tuple(Case(name, (2, 224, 224, 3)) for name in TORCHVISION)
SMALL = (  # one of each block, with gradients; the sizes leave 8 numbers or more to each channel of the last stage
    Case("tv_resnet18", (2, 64, 64, 3), gradients=True),
    Case("resnext50_32x4d", (2, 64, 64, 3)),
    # Gradients of a quarter of its width alone. Of the whole one's 4,063,232 numbers before a ReLU in training, 3 fall
    # on the other side of 0 in PyTorch's float32 and 4 in ours, which changes gradients by up to 1e-2 of their norms;
    # float64's, through the ReLUs that are open in float32, are float32's to 1e-5, PyTorch's as ours.
    Case("resnext29_8x64d", (2, 16, 16, 3)),
    Case("resnext29_8x64d", (2, 16, 16, 3), gradients=True, options={"width": 0.25}),
    Case("resnet20", (2, 32, 32, 3), gradients=True),
    Case("resnet20", (2, 16, 16, 3), gradients=True, options={"squeeze_excitation": True}),
    Case("wrn_16_4", (2, 16, 16, 3), gradients=True),
)

# whose state dict is frozen to the byte, filled by name; for the others the keys and shapes
BYTES = ("resnet18", "resnext18", "tv_resnet18", "resnet50", "resnext50_32x4d", "resnet20", "wrn_16_4")
NUM_LOGITS = 32  # of each image, kept whole; the fingerprint sees all of them


def digest(state: Mapping[str, np.ndarray], content: bool) -> np.ndarray:
    """sha256 of a state dict's keys and shapes, in the order of the keys, and of its bytes if content. (32,)."""
    sha = hashlib.sha256()
    for key in sorted(state):
        sha.update(f"{key} {tuple(state[key].shape)} ".encode())
        if content:
            sha.update(np.ascontiguousarray(state[key], np.float32).tobytes())
    return np.frombuffer(sha.digest(), np.uint8).astype(np.int32)


def fingerprints(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """Of every array its seeded.fingerprint, in the order of the names. (arrays, 6)."""
    return np.stack([seeded.fingerprint(name, arrays[name]) for name in sorted(arrays)])


def summary(name: str, logits: np.ndarray) -> dict[str, np.ndarray]:
    """What is frozen of logits: the first of each image, and six numbers that stand for all."""
    return {"logits": logits[:, :NUM_LOGITS], "logits_fingerprint": seeded.fingerprint(name, logits)}
