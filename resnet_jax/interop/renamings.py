"""The names of the same networks' tensors in other codebases, and the files that are recognised and refused."""

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from resnet_jax.models import Arch
from resnet_jax.models.registry import SEED_BLOCKS

Replacement = str | Callable[[re.Match[str]], str]


class Naming(NamedTuple):
    """How a codebase names the tensors of a network. rules: regular expressions from our keys to its keys."""

    codebase: str
    rules: tuple[tuple[str, Replacement], ...] = ()

    def key(self, key: str) -> str:
        """Return the codebase's name of one of our keys."""
        for pattern, replacement in self.rules:
            key = re.sub(pattern, replacement, key)
        return key


def shifted(template: str, step: int, times: int = 1) -> Callable[[re.Match[str]], str]:
    """Return a replacement: the template with the matched number * times + step."""
    return lambda match: template.format(int(match[1]) * times + step)


SHORTCUT = (r"\.downsample\.", ".shortcut.")
TORCHVISION_NAMINGS = (
    Naming("torchvision"),
    Naming("kuangliu/pytorch-cifar", (SHORTCUT,)),
    Naming(
        "transformers",
        (
            (r"^conv1\.", "embedder.embedder.convolution."),
            (r"^bn1\.", "embedder.embedder.normalization."),
            (r"\.downsample\.0\.", ".shortcut.convolution."),
            (r"\.downsample\.1\.", ".shortcut.normalization."),
            (r"\.conv(\d)\.", shifted(".layer.{}.convolution.", -1)),
            (r"\.bn(\d)\.", shifted(".layer.{}.normalization.", -1)),
            (r"^layer(\d+)\.", shifted("encoder.stages.{}.layers.", -1)),
        ),
    ),
    Naming(
        "weiaicunzai/pytorch-cifar100",
        (
            (r"^conv1\.", "conv1.0."),
            (r"^bn1\.", "conv1.1."),
            SHORTCUT,
            (r"\.conv(\d)\.", shifted(".residual_function.{}.", -3, 3)),  # convolution, batch norm and ReLU
            (r"\.bn(\d)\.", shifted(".residual_function.{}.", -2, 3)),
            (r"^layer(\d+)\.", shifted("conv{}_x.", 1)),
        ),
    ),
    Naming(
        "nn.Sequential(*network.children())",
        ((r"^conv1\.", "0."), (r"^bn1\.", "1."), (r"^layer(\d+)\.", shifted("{}.", 3))),
    ),
    Naming(
        "nn.Sequential(*network.children()) without a max-pool",
        ((r"^conv1\.", "0."), (r"^bn1\.", "1."), (r"^layer(\d+)\.", shifted("{}.", 2))),
    ),
    Naming(
        "xternalz/WideResNet-pytorch",
        ((r"^layer(\d+)\.", r"block\1.layer."), (r"\.downsample\.0\.", ".convShortcut.")),
    ),
)
SEED_NAMINGS = (
    Naming("the chapter"),
    Naming("nn.Sequential(b1, b2, ...)", ((r"^net\.0\.", "0."), (r"^net\.b(\d+)\.", shifted("{}.", -1)))),
    Naming(
        "d2l.resnet18",
        ((r"^net\.0\.0\.", "0."), (r"^net\.0\.1\.", "1."), (r"^net\.b(\d+)\.", shifted("resnet_block{}.", -1))),
    ),
)

# The module of a linear head: one of these words, or a number in an nn.Sequential, below others of them
HEAD = re.compile(
    r"(?:(?:fc|linear|classifier|classif|head|cls_head|last|last_linear|output|out|logits|final|dense|\d+)(?:\.|$))+"
)
# Modules that torch puts between others; they have no tensors of their own
WRAPPERS = re.compile(r"(?:(?<=\.)|^)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


def namings(arch: Arch) -> tuple[Naming, ...]:
    """Return the namings of an architecture; our own is the first."""
    return SEED_NAMINGS if arch.block in SEED_BLOCKS else TORCHVISION_NAMINGS


class Other(NamedTuple):
    """A file that is recognised by its keys and refused. has, lacks: a regular expression for its keys."""

    reason: str
    has: str
    lacks: str = r"(?!)"


OTHERS = (
    Other("it is pruned; call torch.nn.utils.prune.remove for each pruned layer, and save it again", r"weight_orig$"),
    Other(
        "it is quantised; convert the network before it is quantised",
        r"_packed_params|\.zero_point$|weight_fake_quant|\.qweight$",
    ),
    Other("it is CLIP's ResNet, which ends in attention pooling", r"(^|\.)attnpool\."),
    Other("it is a Swin transformer, not a ResNet", r"relative_position_bias_table$"),
    Other("it is a vision transformer, not a ResNet", r"(^|\.)(cls_token|class_token|pos_embed)$|encoder_layer_\d"),
    Other("it is a transformer, not a ResNet", r"self_attn\.|attention\.self\.|\.c_attn\.|\.q_proj\."),
    Other("it is a DenseNet, not a ResNet", r"denseblock\d|denselayer\d|(^|\.)dense\d\.\d+\.conv1"),
    Other("it is a ConvNeXt, not a ResNet", r"\.dwconv\.|\.layer_scale(_parameter)?$|blocks\.\d+\.gamma$"),
    Other(
        "it is a MobileNet or EfficientNet, not a ResNet",
        r"\.conv_dw\.|_depthwise_conv\.|features\.\d+\.conv\.\d|features\.\d+\.\d+\.block\.",
    ),
    Other("it is an Inception network, not a ResNet", r"(^|\.)(Mixed_\d|AuxLogits|inception\d[a-e])"),
    Other("it is a SqueezeNet, not a ResNet", r"\.expand1x1\."),
    Other("it is a ShuffleNet, not a ResNet", r"(^|\.)stage\d\.\d+\.branch\d\."),
    Other("it is a VGG or an AlexNet, not a ResNet", r"(^|\.)features\.\d+\.weight$"),
    Other("it is a RegNet, not a ResNet", r"trunk_output\.|(^|\.)s\d\.b\d+\."),
    Other("it is a Res2Net, not a ResNet", r"layer\d+\.\d+\.convs\.\d"),
    Other("it is a ResNeSt, not a ResNet", r"layer\d+\.\d+\.conv2\.fc\d"),
    Other(
        "it is a ResNet of detectron2, whose batch norms are inside its convolutions", r"(^|\.)res\d\.\d+\.conv1\.norm"
    ),
    Other("it is a ResNet v2 of timm (BiT), with another order of layers", r"stages\.\d+\.blocks\.\d+\.norm\d"),
    Other("it is a ResNet of timm with a stem of three convolutions (such as resnet50d)", r"(^|\.)conv1\.6\.weight$"),
    Other(
        "it is a pre-activation ResNet in the layout of kuangliu/pytorch-cifar, without a last batch norm; "
        "the pre-activation networks here are wrn_16_4 and wrn_28_10",
        r"(^|\.)layer\d+\.\d+\.shortcut\.0\.weight$",
        r"\.shortcut\.1\.weight$|(^|[^\d.]\.)bn1\.weight$",
    ),
    Other(
        "it is a wide ResNet in the layout of meliketoy/wide-resnet.pytorch, whose convolutions have biases",
        r"layer\d+\.\d+\.conv1\.bias$",
        r"\.(se|conv3)\.",
    ),
    Other(
        "its layers are normalised without running statistics (as in group norm); batch norms are needed",
        r"(^|\.)layer\d+\.\d+\.(bn|gn|norm)1\.weight$",
        r"running_mean$",
    ),
)


def recognised(keys: Iterable[str]) -> str:
    """Return why a file with these keys is refused, or an empty string."""
    keys = list(keys)

    def some(pattern: str) -> bool:
        return any(re.search(pattern, key) for key in keys)

    return next((other.reason for other in OTHERS if some(other.has) and not some(other.lacks)), "")
