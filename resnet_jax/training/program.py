"""A network with everything that is compiled for it: its initial state, train steps and evaluation step."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import optax
from flax import linen as nn

from resnet_jax.data.augment import Preprocess
from resnet_jax.training.averaging import Averaging
from resnet_jax.training.losses import Loss, cross_entropy, in_evaluation
from resnet_jax.training.parallel import Device
from resnet_jax.training.state import TrainState, Variables, create_state
from resnet_jax.training.step import make_eval_step, make_train_steps

Size = tuple[int, int]  # height and width in pixels
Sizes = tuple[tuple[int, Size], ...]  # (epoch, size) in order, epochs from 1: of training images from that epoch on


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

    def train_steps(self, num_steps: int, size: Size | None = None) -> Callable[..., Any]:
        """A call of the devices that makes that many updates. size: of the images; None is that of the evaluation."""
        steps = self._of_size.get(size)
        if steps is None:
            steps = self._of_size[size] = make_train_steps(self.preprocess_to(size), self.devices)
        return steps(num_steps)

    def preprocess_to(self, size: Size | None) -> Preprocess:
        """What happens to training images of this size; None is that of the evaluation."""
        return self.preprocess if size is None else dataclasses.replace(self.preprocess, image_size=size)

    @functools.cached_property
    def _of_size(self) -> dict[Size | None, Callable[[int], Callable[..., Any]]]:
        return {}

    @functools.cached_property
    def eval_step(self) -> Callable[..., Any]:
        """A call of the devices that evaluates a batch."""
        return make_eval_step(self.model, in_evaluation(self.loss), self.preprocess, self.devices)

    @functools.cached_property
    def mirror_step(self) -> Callable[..., Any]:
        """As eval_step, with the probabilities of each image and its mirror image averaged, and their cross-entropy."""
        return make_eval_step(self.model, cross_entropy, self.preprocess, self.devices, mirror=True)

    def with_model(self, model: nn.Module) -> "Program":
        """The programs of another network, with its own initialisation."""
        return dataclasses.replace(self, model=model, variables=None)


def size_in(sizes: Sizes, epoch: int) -> Size | None:
    """The size of training images in an epoch, from 1; None before the first of the sizes: that of the evaluation."""
    begun = [size for first, size in sizes if first <= epoch]
    return begun[-1] if begun else None
