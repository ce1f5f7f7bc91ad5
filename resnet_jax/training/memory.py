"""A lack of memory, on a device or on the host, as an error of one line."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from resnet_jax import host_memory
from resnet_jax.errors import ConfigError, TrainingError, one_line

if TYPE_CHECKING:
    from resnet_jax.data import ImageDataset
    from resnet_jax.training.parallel import Device, PyTree

# XLA's messages begin with the name of their status code. On a CPU, jaxlib 0.7 has another code and these words.
SIGNS = ("RESOURCE_EXHAUSTED", "Out of memory allocating")
HINT = (
    "use a smaller batch_size (--batch-size) or image_size (--image-size), or a network with remat=True (--remat), "
    "which keeps fewer activations"
)


def check_size(variables: "PyTree", device: "Device") -> None:
    """Raise ConfigError if weights and gradients of these shapes are larger than the memory of the device.

    A training step needs more than that: the optimizer's state and the activations.
    """
    import jax  # late: commands import this file before they import jax

    size = 2 * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(variables))
    held = memory_of(device)
    if held is not None and size > held:
        raise ConfigError(
            f"the network is too large: its weights and gradients take {size / 2**30:,.1f} GiB, and this "
            f"{device.platform} has {held / 2**30:,.1f} GiB; use a smaller width (--width) or architecture (--arch)"
        )


def check_images(data: "ImageDataset", device: "Device") -> None:
    """Raise ConfigError for images of more bytes than the device has: every device holds all images of all parts."""
    parts = [part for part in (data.train, data.validation, data.test) if part is not None]
    size, held = sum(part.images.nbytes for part in parts), memory_of(device)
    if held is not None and size > held:
        raise ConfigError(
            f"the images take {size / 2**30:,.1f} GiB, and this {device.platform}, which holds all of them, has "
            f"{held / 2**30:,.1f} GiB; give fewer (--train-images, --test-images), or smaller ones for a folder "
            "(--image-size)"
        )


def memory_of(device: "Device") -> int | None:
    """The memory of a device in bytes; that of the machine or its container for a CPU. None if it is unknown."""
    if device.platform != "cpu":
        return (device.memory_stats() or {}).get("bytes_limit")
    return host_memory.memory().total


@contextlib.contextmanager
def enough_memory() -> Iterator[None]:
    """Turn a lack of memory into a TrainingError; checkpoints that were written before are good."""
    try:
        yield
    except MemoryError as error:
        raise TrainingError(f"this machine has too little memory ({one_line(error)}); {HINT}") from error
    except RuntimeError as error:
        from jax.errors import JaxRuntimeError  # late: commands enter this block before they import jax

        short = str(error).startswith(SIGNS[0]) or SIGNS[1] in str(error)
        if not (short and isinstance(error, JaxRuntimeError)):
            raise
        raise TrainingError(f"the device has too little memory ({one_line(error)}); {HINT}") from error
