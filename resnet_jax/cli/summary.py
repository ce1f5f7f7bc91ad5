"""summary: the layer table of an architecture."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated

from resnet_jax.cli.options import Stem, options_of
from resnet_jax.errors import ConfigError
from resnet_jax.models import create_model, layer_summary, multiply_adds
from resnet_jax.runs.argv import Positional, parse_as

ArchName = Annotated[str, Positional("ARCH")]


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


def summary(argv: Sequence[str], prog: str) -> None:
    """Print the layer table."""
    asked = parse_as(Summary, argv, prog)
    for flag, value in (("image-size", asked.image_size), ("in-channels", asked.in_channels)):
        if value < 1:
            raise ConfigError(f"--{flag} {value} must be at least 1")
    model = create_model(asked.arch, asked.num_classes, **options_of(asked))
    shape = (1, asked.image_size, asked.image_size, asked.in_channels)
    print(layer_summary(model, shape))
    print(f"multiply-adds for one image, by XLA's cost analysis: {multiply_adds(model, shape):,}")
