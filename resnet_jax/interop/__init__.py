"""Import and export of weights: PyTorch state dicts, folders of converted weights, exported programs."""

from resnet_jax.interop.files import Weights, load_weights, read_state_dict, save_weights, write_state_dict
from resnet_jax.interop.torch_weights import fold_stem, from_torch, to_torch

__all__ = [
    "Weights",
    "fold_stem",
    "from_torch",
    "load_weights",
    "read_state_dict",
    "save_weights",
    "to_torch",
    "write_state_dict",
]
