"""The width of this package's numbers: 32 bits, whatever the session has chosen."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
from jax import experimental

# jax before 0.8 has it in jax.experimental alone, and later versions in jax alone
_switch: Any = getattr(jax if hasattr(jax, "enable_x64") else experimental, "enable_x64")  # noqa: B009


@contextlib.contextmanager
def without_x64() -> Iterator[None]:
    """Trace and run as with JAX_ENABLE_X64=0 inside the with block, or in a decorated function.

    With x64, arrays that have no dtype of their own are float64 and int64. Random numbers and schedules then differ.
    """
    with _switch(False):
        yield
