"""summary: the layer table of an architecture."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated

from resnet_jax.cli.options import Stem, options_of, print_json
from resnet_jax.errors import ConfigError
from resnet_jax.runs.argv import Positional, parse_as

ArchName = Annotated[str, Positional("ARCH")]
EXAMPLES = (
    "resnet18 --image-size 96 --in-channels 1 --num-classes 10  # the chapter's network",
    "resnet18-2-2-3-2  # a network that has grown by a block in stage 3",
    "resnext50_32x4d --json",
)


@dataclasses.dataclass(frozen=True)
class Summary:
    """Print the layer table of an architecture, and its multiply-adds for one image."""

    arch: ArchName
    """A name of the table, or of a grown network, such as resnet18-2-2-3-2."""
    image_size: int = 224
    """Height and width in pixels."""
    in_channels: int = 3
    """Channels of the images."""
    num_classes: int = 1000
    """Classes of the head."""
    stem: Stem = "auto"
    """standard, small, or auto: the architecture's own."""
    width: float = 1.0
    """Multiply the number of channels by this."""
    squeeze_excitation: bool = False
    """Squeeze-and-excitation in every block."""
    json: bool = False
    """Print the table as JSON."""


def summary(argv: Sequence[str], prog: str) -> None:
    """Print the layer table: class, output shape and parameters of each layer, and the sums."""
    asked = parse_as(Summary, argv, prog, EXAMPLES)
    from resnet_jax.models import create_model, layer_summary, multiply_adds  # imports jax

    for flag, value in (("image-size", asked.image_size), ("in-channels", asked.in_channels)):
        if value < 1:
            raise ConfigError(f"--{flag} {value} must be at least 1")
    model = create_model(asked.arch, asked.num_classes, **options_of(asked))
    shape = (1, asked.image_size, asked.image_size, asked.in_channels)
    table, products = layer_summary(model, shape), multiply_adds(model, shape)
    if not asked.json:
        print(table)
        print(f"multiply-adds for one image, by XLA's cost analysis: {products:,}")
        return
    layers = [row._asdict() | {"class": kind} for row, kind in zip(table, table.classes, strict=True)]
    sums = {"parameters": table.parameters, "multiply_adds": products}
    print_json({"arch": asked.arch, "input_shape": shape, "layers": layers} | sums)
