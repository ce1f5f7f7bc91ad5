"""The keys and shapes of a network's PyTorch state dict, derived from its Flax variables."""

from typing import Any, NamedTuple

from flax import traverse_util

from resnet_jax.errors import InteropError
from resnet_jax.models import Arch, Network, ResNet
from resnet_jax.models.registry import SEED_BLOCKS
from resnet_jax.models.summary import LeafPath, variable_shapes

Shape = tuple[int, ...]

SEED_KEYS = {"stem/conv": "net.0.0", "stem/bn": "net.0.1", "head": "net.last.2"}
# "bn" is the last batch norm of a pre-activation network
TORCHVISION_KEYS = {"stem/conv": "conv1", "stem/bn": "bn1", "bn": "bn1", "head": "fc"}
SHORTCUT_KEYS = {"shortcut_conv": "downsample.0", "shortcut_bn": "downsample.1"}
LEAF_KEYS = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
COUNTER = "num_batches_tracked"  # PyTorch uses it only for momentum=None; load_state_dict accepts its absence
# Transposition for each number of axes: HWIO -> OIHW (also for grouped kernels), (in, out) -> (out, in)
TO_TORCH = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}
TO_FLAX = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}


class Leaf(NamedTuple):
    """The path and the shape of a leaf of the variables, in Flax's layout."""

    path: LeafPath
    shape: Shape

    @property
    def torch_shape(self) -> Shape:
        return tuple(self.shape[axis] for axis in TO_TORCH[len(self.shape)])


def torch_key(arch: Arch, path: LeafPath) -> str:
    """Return the state dict key of a leaf.

    The chapter's networks have the keys of the chapter's classes: params/stage2/block1/bn1/scale ->
    net.b3.0.bn1.weight. All others have torchvision's keys: layer2.0.bn1.weight. Squeeze-and-excitation has timm's
    keys, se.fc1 and se.fc2.
    """
    _, *module, leaf = path
    seeds = arch.block in SEED_BLOCKS
    key = (SEED_KEYS if seeds else TORCHVISION_KEYS).get("/".join(module))
    if key is None:
        stage, block = int(module[0].removeprefix("stage")), int(module[1].removeprefix("block")) - 1
        layer = ".".join(module[2:])
        key = f"{f'net.b{stage + 1}' if seeds else f'layer{stage}'}.{block}.{SHORTCUT_KEYS.get(layer, layer)}"
    return f"{key}.{LEAF_KEYS[leaf]}"


def stem_key(arch: Arch) -> str:
    """Return the key of the stem's kernel."""
    return torch_key(arch, ("params", "stem", "conv", "kernel"))


def head_keys(arch: Arch) -> tuple[str, str]:
    """Return the keys of the head's kernel and bias."""
    return torch_key(arch, ("params", "head", "kernel")), torch_key(arch, ("params", "head", "bias"))


def check_has_keys(arch: Arch) -> None:
    """Raise InteropError for an architecture whose weights have no names in PyTorch."""
    if arch.trunk != "resnet":
        raise InteropError(
            f"{arch.name}: its weights cannot be read from PyTorch or written for it; convert does this for ResNets"
        )


def torch_leaves(arch: Arch, model: Network, in_channels: int) -> dict[str, Leaf]:
    """Return the leaf for each key of a network's state dict. num_batches_tracked is left out.

    Raises InteropError for an architecture without such keys.
    """
    check_has_keys(arch)
    assert isinstance(model, ResNet)
    # All blocks of a stage after the first have the same shapes, so two of them are traced, and not up to 36.
    shallow = model.clone(arch=tuple((min(blocks, 2), channels) for blocks, channels in model.arch))
    traced: dict[LeafPath, Any] = traverse_util.flatten_dict(variable_shapes(shallow, in_channels))
    shapes = {deep: leaf.shape for path, leaf in traced.items() for deep in like_block(path, model)}
    return {torch_key(arch, path): Leaf(path, shape) for path, shape in sorted(shapes.items())}


def like_block(path: LeafPath, model: ResNet) -> list[LeafPath]:
    """Return the path itself, and for one in the second block of a stage those in the blocks after it."""
    collection, *module = path
    if len(module) < 3 or module[1] != "block2":
        return [path]
    stage = int(module[0].removeprefix("stage"))
    blocks, _ = model.arch[stage - 1]
    return [(collection, module[0], f"block{block}", *module[2:]) for block in range(2, blocks + 1)]
