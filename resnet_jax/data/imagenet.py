"""What travels with weights that were trained on ImageNet: the preprocessing and the names of the classes."""

import importlib.util
from pathlib import Path
from typing import Any

CLASSES = 1000
# of torchvision's and timm's networks, for RGB images in [0, 1]
PREPROCESS: dict[str, Any] = {
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "image_size": [224, 224],
}
LABELS = "datasets/imagenet2012/labels.txt"  # of tensorflow-datasets: a WordNet id a line, in the order of the classes


def class_names() -> tuple[str, ...]:
    """Return the WordNet ids of ImageNet's classes, such as n01440764; empty if tensorflow-datasets lacks its list."""
    spec = importlib.util.find_spec("tensorflow_datasets")
    for folder in (spec.submodule_search_locations if spec else None) or ():
        path = Path(folder) / LABELS
        if path.is_file() and len(names := path.read_text(encoding="utf-8").split()) == CLASSES:
            return tuple(names)
    return ()
