"""What training changes: one pytree, the same on every device, with no device axis."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import optax
from flax import linen as nn
from flax import struct, traverse_util
from jax import numpy as jnp

from resnet_jax.arguments import real, whole
from resnet_jax.errors import ConfigError, listed, one_line
from resnet_jax.ops.precision import without_x64
from resnet_jax.training.averaging import Averaging, check_averaging
from resnet_jax.training.losses import Loss, cross_entropy

PyTree = Any
Variables = Mapping[str, PyTree]
PARAMS, STATISTICS = "params", "batch_stats"


class TrainState(struct.PyTreeNode):
    """A network in training.

    step: () int32, updates made so far. params, batch_stats: the model's; batch_stats is {} for a model without them.
    opt_state: the optimizer's, of the trained params alone. others: the model's further collections, {} for most.
    seed: () uint32, from which each step draws its random numbers. averages: with averaging, the averaged
    params and batch_stats in a dict of these two names. The other fields are constants of the program, and no part of
    the pytree: model, optimizer, loss, averaging, sam, accumulate (see create_state), and frozen, the paths of the
    parts that keep their weights ("stem", "stage1/block1").
    """

    step: Any
    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree
    others: PyTree
    seed: Any
    model: nn.Module = struct.field(pytree_node=False)
    optimizer: optax.GradientTransformation = struct.field(pytree_node=False)
    loss: Loss = struct.field(pytree_node=False, default=cross_entropy)
    frozen: tuple[str, ...] = struct.field(pytree_node=False, default=())
    averages: PyTree = None
    averaging: Averaging | None = struct.field(pytree_node=False, default=None)
    sam: float = struct.field(pytree_node=False, default=0.0)
    accumulate: int = struct.field(pytree_node=False, default=1)

    @property
    def variables(self) -> dict[str, PyTree]:
        """What model.apply takes in an evaluation: the averaged weights and statistics if there are averages."""
        held = self.averages or {PARAMS: self.params, STATISTICS: self.batch_stats}
        return variables_of(held[PARAMS], held[STATISTICS], self.others)

    def averaged(self) -> "TrainState":
        """The state after its averages are updated by the step that was made."""
        if self.averaging is None:
            return self
        weights = {PARAMS: self.params, STATISTICS: self.batch_stats}
        averages, weights = self.averaging.update(self.step, self.averages, weights)
        return self.replace(averages=averages, params=weights[PARAMS], batch_stats=weights[STATISTICS])


def variables_of(params: PyTree, batch_stats: PyTree, others: PyTree) -> dict[str, PyTree]:
    """The collections of a model in one dict, without those that it does not have."""
    statistics = {STATISTICS: batch_stats} if batch_stats else {}
    return {PARAMS: params, **statistics, **others}


def is_frozen(path: str, frozen: Sequence[str]) -> bool:
    """Whether a path such as "stage1/block1/conv1/kernel" is one of the frozen parts or inside of one."""
    return any(path == part or path.startswith(part + "/") for part in frozen)


def trained(params: PyTree, frozen: Sequence[str]) -> PyTree:
    """The params that training changes and that the optimizer knows: those outside the frozen parts."""
    if not frozen:
        return params
    flat = traverse_util.flatten_dict(params, sep="/")
    return traverse_util.unflatten_dict({k: v for k, v in flat.items() if not is_frozen(k, frozen)}, sep="/")


def merged(params: PyTree, changed: PyTree) -> PyTree:
    """params with the leaves of `changed`, whose paths are among theirs."""
    if not isinstance(changed, Mapping):
        return changed
    return {**params, **{name: merged(params.get(name), tree) for name, tree in changed.items()}}


def everything_but_head(params: PyTree) -> tuple[str, ...]:
    """The parts that --freeze keeps: all but the head."""
    return tuple(name for name in params if name != "head")


@without_x64()
def create_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    image_shape: tuple[int, ...],
    *,
    seed: int = 0,
    loss: Loss = cross_entropy,
    freeze: Sequence[str] = (),
    variables: Variables | None = None,
    averaging: Averaging | None = None,
    sam: float = 0.0,
    accumulate: int = 1,
) -> TrainState:
    """The state of step 0 for images of (H, W, C), a pure function of seed.

    variables: weights to start from; collections and top-level parts that they lack are initialised from seed.
    freeze: paths of parts that keep their weights, such as "stem" or "stage1/block1"; their batch norms run as in
    evaluation. averaging: resnet_jax.Ema or Lookahead, whose averages start at the initial weights. sam: the
    radius rho of sharpness-aware minimisation (arXiv:2010.01412), 0 for none: the gradient is taken at the weights
    moved by rho along the gradient of the batch. accumulate: parts of a batch that are computed one after the other.
    ConfigError for a path that names no part, or an optimizer that does not fit.
    """
    check_seed(seed)
    check_averaging(averaging)
    check_sam(sam)
    whole("accumulate", accumulate, 1)
    if freeze or variables:
        shapes = jax.eval_shape(lambda: initialise(model, image_shape, seed))
        check_frozen(freeze, shapes[PARAMS])
        check_variables(variables or {}, shapes)

    def init(given: Variables) -> TrainState:
        new = initialise(model, image_shape, seed)
        new |= {name: {**new.get(name, {}), **tree} for name, tree in given.items()}
        params, statistics = new.pop(PARAMS), new.pop(STATISTICS, {})
        opt_state = start_optimizer(optimizer, trained(params, freeze))
        averages = {PARAMS: params, STATISTICS: statistics} if averaging else None
        return TrainState(
            step=jnp.int32(0),
            params=params,
            batch_stats=statistics,
            opt_state=opt_state,
            others=new,
            seed=jnp.uint32(seed),
            model=model,
            optimizer=optimizer,
            loss=loss,
            frozen=tuple(freeze),
            averages=averages,
            averaging=averaging,
            sam=sam,
            accumulate=accumulate,
        )

    return jax.jit(init)(variables or {})


def start_optimizer(optimizer: optax.GradientTransformation, params: PyTree) -> PyTree:
    """The optimizer's initial state; ConfigError if it does not fit the params."""
    try:
        return optimizer.init(params)
    except ConfigError:
        raise
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise ConfigError(f"optimizer: it does not fit the model's parameters ({one_line(error)})") from error


def check_sam(sam: float) -> None:
    """Raise ConfigError for a radius that is not finite or below 0."""
    if not 0 <= real("sam", sam) < math.inf:
        raise ConfigError(f"sam {sam} is out of range: it must be finite and at least 0")


def check_seed(seed: int) -> None:
    """Raise ConfigError for a seed that does not fit into 32 bits, which is what jax.random.key takes."""
    if not 0 <= seed < 2**32:
        raise ConfigError(f"seed {seed} is out of range: it must be from 0 to 2**32 - 1")


def initialise(model: nn.Module, image_shape: tuple[int, ...], seed: int) -> dict[str, PyTree]:
    """The variables of the model for images of (H, W, C), drawn from seed."""
    return dict(model.init(jax.random.key(seed), jnp.zeros((1, *image_shape)), train=False))


def check_variables(variables: Variables, shapes: PyTree) -> None:
    """Raise ConfigError for weights to start from that the model does not have, or with other shapes."""
    have = {f"{name}/{path}": leaf.shape for name, tree in shapes.items() for path, leaf in _flat(tree).items()}
    given = {
        f"{name}/{path}": jnp.shape(leaf) for name, tree in variables.items() for path, leaf in _flat(tree).items()
    }
    if unknown := [path for path in given if path not in have]:
        raise ConfigError(f"variables: the model has no {listed(unknown)}; give its own collections and paths")
    if wrong := [f"{path} is {shape}, not {have[path]}" for path, shape in given.items() if shape != have[path]]:
        raise ConfigError(f"variables: {listed(wrong)}; give weights of this model")
    parts = {tuple(path.split("/")[:2]) for path in given}
    if missing := [path for path in have if path not in given and tuple(path.split("/")[:2]) in parts]:
        raise ConfigError(f"variables: {listed(missing)} is missing; give each part as a whole, or leave it out")


def _flat(tree: Variables) -> dict[str, Any]:
    return traverse_util.flatten_dict(dict(tree), sep="/")


def check_frozen(freeze: Sequence[str], params: PyTree) -> None:
    """Raise ConfigError where a path names no part of the params, or nothing is left to train."""
    paths = list(traverse_util.flatten_dict(params, sep="/"))
    unknown = [part for part in freeze if not any(is_frozen(path, [part]) for path in paths)]
    if unknown:
        raise ConfigError(f"freeze {unknown[0]!r} names no part of the model; its parts are {listed(params)}")
    if freeze and all(is_frozen(path, freeze) for path in paths):
        raise ConfigError(f"freeze {', '.join(freeze)}: nothing is left to train; leave a part out")
