"""Learning-rate schedules and the optimizer."""

import jax
import optax

from resnet_jax.training.config import OptimConfig


def make_schedule(config: OptimConfig, epochs: int, steps_per_epoch: int) -> optax.Schedule:
    """step -> learning rate, over epochs * steps_per_epoch steps."""
    warmup = round(config.warmup_epochs * steps_per_epoch)
    total = epochs * steps_per_epoch
    if config.schedule == "cosine":
        main = optax.cosine_decay_schedule(config.learning_rate, max(total - warmup, 1))
    elif config.schedule == "step":
        decays = {round(epoch * steps_per_epoch) - warmup: config.decay_factor for epoch in config.decay_epochs}
        main = optax.piecewise_constant_schedule(config.learning_rate, decays)
    else:
        main = optax.constant_schedule(config.learning_rate)
    if not warmup:
        return main
    return optax.join_schedules([optax.linear_schedule(0.0, config.learning_rate, warmup), main], [warmup])


def is_kernel(params):
    """A tree like params that is True at the kernels of convolutions and dense layers."""
    return jax.tree.map_with_path(lambda path, _: path[-1].key == "kernel", params)


def make_optimizer(config: OptimConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """PyTorch's SGD: weight decay joins the gradient before momentum does, here for kernels only."""
    decay = [optax.add_decayed_weights(config.weight_decay, mask=is_kernel)] if config.weight_decay else []
    momentum = config.momentum or None  # None: no buffer is kept
    return optax.chain(*decay, optax.sgd(schedule, momentum=momentum, nesterov=config.nesterov))
