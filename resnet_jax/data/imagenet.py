"""What travels with weights that were trained on ImageNet: the preprocessing and the names of the classes."""

from pathlib import Path
from typing import Any

CLASSES = 1000
# of torchvision's and timm's networks, for RGB images in [0, 1]
PREPROCESS: dict[str, Any] = {
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "image_size": [224, 224],
}


def class_names() -> tuple[str, ...]:
    """Return the names of ImageNet's 1000 classes, such as "tench"."""
    lines = Path(__file__).with_name("imagenet_classes.txt").read_text(encoding="utf-8").splitlines()
    return tuple(line for line in lines if not line.startswith("#"))
