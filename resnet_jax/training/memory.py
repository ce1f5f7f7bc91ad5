"""A lack of memory, on a device or on the host, as an error of one line."""

import contextlib
from collections.abc import Iterator

import jax

from resnet_jax.errors import TrainingError, one_line

# XLA's messages begin with the name of their status code. On a CPU, jaxlib 0.7 has another code and these words.
SIGNS = ("RESOURCE_EXHAUSTED", "Out of memory allocating")
HINT = (
    "use a smaller batch_size (--batch-size) or image_size (--image-size), or a network with remat=True (--remat), "
    "which keeps fewer activations"
)


@contextlib.contextmanager
def enough_memory() -> Iterator[None]:
    """Turn a lack of memory into a TrainingError; checkpoints that were written before are good."""
    try:
        yield
    except MemoryError as error:
        raise TrainingError(f"this machine has too little memory ({one_line(error)}); {HINT}") from error
    except jax.errors.JaxRuntimeError as error:
        if not str(error).startswith(SIGNS[0]) and SIGNS[1] not in str(error):
            raise
        raise TrainingError(f"the device has too little memory ({one_line(error)}); {HINT}") from error
