"""A network as a program: StableHLO in one file, which jax.export runs without this package."""

from collections.abc import Callable
from pathlib import Path

import jax
from jax import export
from jax import numpy as jnp

from resnet_jax import ops
from resnet_jax.errors import InteropError
from resnet_jax.whole_file import whole_file

PLATFORMS = ("cpu", "cuda", "tpu")


def export_program(
    predict: Callable[[jax.Array], jax.Array], image_shape: tuple[int, int, int], path: str | Path
) -> int:
    """Write predict, of uint8 images (N, H, W, C) for any N, for cpu, cuda and tpu; the file's bytes.

    What predict closes over, such as weights, is in the file. To run it, with jax and flatbuffers alone:

        exported = jax.export.deserialize(bytearray(pathlib.Path(path).read_bytes()))
        probabilities = exported.call(images)
    """
    path = Path(path)
    (batch,) = export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *image_shape), jnp.uint8)
    with ops.cpu_kernels("xla"):  # another machine need not have our own
        content = export.export(jax.jit(predict), platforms=PLATFORMS)(images).serialize()
    try:
        with whole_file(path) as part:
            part.write_bytes(content)
    except OSError as error:
        raise InteropError(f"{path} cannot be written: {error.strerror}; give another --out") from None
    return len(content)
