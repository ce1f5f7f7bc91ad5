"""What a network learns from: verified data sets as numpy arrays."""

from resnet_jax.data.dataset import load
from resnet_jax.data.sources import DownloadError
from resnet_jax.data.specs import DATASETS, Arrays, DatasetSpec, Splits

__all__ = ["DATASETS", "Arrays", "DatasetSpec", "DownloadError", "Splits", "load"]
