"""How a network learns."""

from resnet_jax.training.config import Config, DataConfig, OptimConfig, RunConfig, load_recipe
from resnet_jax.training.grown_run import grow_run
from resnet_jax.training.loop import Result, Stopped, fit
from resnet_jax.training.predictor import Predictor, load

__all__ = [
    "Config",
    "DataConfig",
    "OptimConfig",
    "Predictor",
    "Result",
    "RunConfig",
    "Stopped",
    "fit",
    "grow_run",
    "load",
    "load_recipe",
]
