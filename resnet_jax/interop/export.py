"""Export of a network as a StableHLO program. jax.export runs the file without this package."""

from collections.abc import Callable
from pathlib import Path

import jax
from jax import export
from jax import numpy as jnp

from resnet_jax import ops
from resnet_jax.errors import InteropError
from resnet_jax.paths import user_path
from resnet_jax.whole_file import whole_file

PLATFORMS = ("cpu", "cuda", "tpu")


def export_program(
    predict: Callable[[jax.Array], jax.Array], image_shape: tuple[int, int, int], path: str | Path
) -> int:
    """Export `predict` for cpu, cuda and tpu to the file `path`, and return the file's size in bytes.

    predict: takes uint8 images (N, *image_shape) for any N. The file contains the arrays that predict closes over,
    such as the weights. Running it needs only jax and flatbuffers:

        exported = jax.export.deserialize(bytearray(pathlib.Path(path).read_bytes()))
        probabilities = exported.call(images)
    """
    path = user_path(path, "--out", InteropError)
    (batch,) = export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *image_shape), jnp.uint8)
    with ops.cpu_kernels("xla"):  # the native kernels may be missing on the machine that runs the file
        content = export.export(jax.jit(predict), platforms=PLATFORMS)(images).serialize()
    try:
        with whole_file(path) as part:
            part.write_bytes(content)
    except OSError as error:
        raise InteropError(f"{path} cannot be written: {error.strerror}; give another --out") from None
    return len(content)
