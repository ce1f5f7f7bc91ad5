"""The shell around the core: configs and recipes, run folders, checkpoints, predictions.

Each name below is imported when it is first used, so that reading flags does not import jax.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resnet_jax.runs.config import Config, DataConfig, ModelConfig, OptimConfig, RunConfig
    from resnet_jax.runs.fit_run import RunResult, fit
    from resnet_jax.runs.flags import load_recipe
    from resnet_jax.runs.grown_run import grow_run
    from resnet_jax.runs.opened import open_weights
    from resnet_jax.runs.predictor import Predictor, load
    from resnet_jax.runs.stopped import Stopped
    from resnet_jax.runs.trainer import Trainer

# public name -> the module that defines it. No module has the name of one: importing it would replace the name
NAMES = {
    **dict.fromkeys(("Config", "DataConfig", "ModelConfig", "OptimConfig", "RunConfig"), "config"),
    **dict.fromkeys(("RunResult", "fit"), "fit_run"),
    **dict.fromkeys(("Predictor", "load"), "predictor"),
    "Stopped": "stopped",
    "Trainer": "trainer",
    "grow_run": "grown_run",
    "load_recipe": "flags",
    "open_weights": "opened",
}

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


def __getattr__(name: str) -> Any:
    if name not in NAMES:
        raise AttributeError(f"module 'resnet_jax.runs' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"resnet_jax.runs.{NAMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
