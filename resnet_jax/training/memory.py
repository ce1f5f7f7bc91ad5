"""A lack of memory, on a device or on the host, as an error of one line."""

import contextlib
from collections.abc import Iterator

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
    except RuntimeError as error:
        from jax.errors import JaxRuntimeError  # late: commands enter this block before they import jax

        short = str(error).startswith(SIGNS[0]) or SIGNS[1] in str(error)
        if not (short and isinstance(error, JaxRuntimeError)):
            raise
        raise TrainingError(f"the device has too little memory ({one_line(error)}); {HINT}") from error
