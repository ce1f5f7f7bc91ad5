"""Which implementation a program gets on the CPU: oneDNN's, where it is installed, or XLA's."""

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator
from typing import Any

import jax

from resnet_jax.errors import ConfigError, unknown

log = logging.getLogger(__name__)

CHOICES = ("auto", "xla", "onednn")
_chosen = "auto"


@functools.cache
def native_problem() -> str | None:
    """Why the native kernels cannot be used on this machine, in one line; None if they can."""
    try:
        import resnet_jax_onednn
    except ImportError as error:
        return f"resnet_jax_onednn is not installed ({error}); build it with: make native"
    try:
        resnet_jax_onednn.register()
    except resnet_jax_onednn.LoadError as error:
        return f"resnet_jax_onednn does not load ({error}); rebuild it with: make native"
    return None


def native_available() -> bool:
    """Whether the oneDNN kernels are installed and load."""
    return native_problem() is None


def use_cpu_kernels(choice: str) -> None:
    """Set what programs traced from now on use on the CPU: "auto", "xla" or "onednn".

    "auto" takes oneDNN where it loads, and says once in a line of the log where not. "onednn" insists:
    it raises ConfigError where oneDNN does not load. Programs already compiled stay as they are.
    """
    global _chosen
    if choice not in CHOICES:
        raise ConfigError(unknown("choice of CPU kernels", choice, CHOICES))
    if choice == "onednn" and (problem := native_problem()):
        raise ConfigError(f"CPU kernels 'onednn': {problem}, or use 'auto'")
    _chosen = choice


@contextlib.contextmanager
def cpu_kernels(choice: str) -> Iterator[None]:
    """`use_cpu_kernels(choice)` for the programs traced inside the with block."""
    before = _chosen
    use_cpu_kernels(choice)
    try:
        yield
    finally:
        use_cpu_kernels(before)


@functools.cache
def _say_once(problem: str) -> None:
    log.warning("CPU kernels: XLA, as %s", problem)


def native_chosen() -> bool:
    """Whether a program traced now should use the native kernels on the CPU."""
    if _chosen == "xla":
        return False
    problem = native_problem()
    if problem is not None and jax.default_backend() == "cpu":
        _say_once(problem)
    return problem is None


def by_platform(native: Callable | None, xla_cpu: Callable, plain: Callable, *args: Any) -> Any:
    """Call the implementation that fits the platform that the program is lowered for.

    native: None where the operands are none that the native kernels take.
    Lowering for one platform keeps that platform's branch alone: nothing is decided at run time.
    """
    on_cpu = native if native is not None and native_chosen() else xla_cpu
    return jax.lax.platform_dependent(*args, cpu=on_cpu, default=plain)
