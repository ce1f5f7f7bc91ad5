"""What a network learns from: images with labels, as a value made of NumPy arrays."""

from resnet_jax.data.arrays import from_arrays
from resnet_jax.data.catalogue import load
from resnet_jax.data.dataset import Arrays, ImageDataset
from resnet_jax.data.folder import from_folder
from resnet_jax.data.sources import DownloadError
from resnet_jax.data.specs import DATASETS, DatasetSpec, Splits

__all__ = [
    "DATASETS",
    "Arrays",
    "DatasetSpec",
    "DownloadError",
    "ImageDataset",
    "Splits",
    "from_arrays",
    "from_folder",
    "load",
]
