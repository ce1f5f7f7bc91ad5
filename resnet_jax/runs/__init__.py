"""The shell around the core: configs and recipes, run folders, checkpoints, predictions."""

from resnet_jax.runs.config import Config, DataConfig, ModelConfig, OptimConfig, RunConfig
from resnet_jax.runs.fit import RunResult, Stopped, fit
from resnet_jax.runs.flags import load_recipe
from resnet_jax.runs.grown_run import grow_run
from resnet_jax.runs.opened import open_weights
from resnet_jax.runs.predictor import Predictor, load
from resnet_jax.runs.trainer import Trainer

__all__ = [
    "Config",
    "DataConfig",
    "ModelConfig",
    "OptimConfig",
    "Predictor",
    "RunConfig",
    "RunResult",
    "Stopped",
    "Trainer",
    "fit",
    "grow_run",
    "load",
    "load_recipe",
    "open_weights",
]
