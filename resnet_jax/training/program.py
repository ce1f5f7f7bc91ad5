"""A network with everything that is compiled for it: its initial state, train steps and evaluation step."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import optax
from flax import linen as nn

from resnet_jax.data.augment import Preprocess
from resnet_jax.training.averaging import Averaging
from resnet_jax.training.losses import Loss, in_evaluation
from resnet_jax.training.parallel import Device
from resnet_jax.training.state import TrainState, Variables, create_state
from resnet_jax.training.step import make_eval_step, make_train_steps


@dataclasses.dataclass(frozen=True)
class Program:
    """model, optimizer, loss, preprocess, seed, devices: what the programs are compiled from.

    input_shape: (H, W, C) of the model's input. freeze: the paths of the parts that keep their weights. variables:
    weights to start from, or None for the model's initialisation. averaging, sam, accumulate: see create_state.
    """

    model: nn.Module
    optimizer: optax.GradientTransformation
    loss: Loss
    preprocess: Preprocess
    seed: int
    devices: list[Device]
    input_shape: tuple[int, ...]
    freeze: tuple[str, ...] = ()
    variables: Variables | None = None
    averaging: Averaging | None = None
    sam: float = 0.0
    accumulate: int = 1

    def initial_state(self) -> TrainState:
        """The state of step 0."""
        return create_state(
            self.model,
            self.optimizer,
            self.input_shape,
            seed=self.seed,
            loss=self.loss,
            freeze=self.freeze,
            variables=self.variables,
            averaging=self.averaging,
            sam=self.sam,
            accumulate=self.accumulate,
        )

    @functools.cached_property
    def train_steps(self) -> Callable[[int], Callable[..., Any]]:
        """num_steps -> a call of the devices that makes that many updates."""
        return make_train_steps(self.preprocess, self.devices)

    @functools.cached_property
    def eval_step(self) -> Callable[..., Any]:
        """A call of the devices that evaluates a batch."""
        return make_eval_step(self.model, in_evaluation(self.loss), self.preprocess, self.devices)

    def with_model(self, model: nn.Module) -> "Program":
        """The programs of another network, with its own initialisation."""
        return dataclasses.replace(self, model=model, variables=None)
