"""The tests run on 8 fake CPU devices, and keep the programs that XLA compiles for the next test run."""

import os
from pathlib import Path

import pytest

# They take effect only before jax is imported.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
# Most programs run once or twice. Without the expensive optimisations the suite takes two thirds of the time. The tests
# of make test-real and make test-long, and those with the fixture as_users_compile, have all of them.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import jax

# Compilation takes half of the suite's time. Each worker of pytest-xdist has a folder of its own, because jax writes
# without a lock. With a size limit jax locks, but then it reads the whole folder for every program that it writes. The
# folder is no environment variable, so that a process that a test kills leaves no half-written file there.
CACHE = Path(__file__).parents[1] / ".cache" / "tests" / os.environ.get("PYTEST_XDIST_WORKER", "gw0")
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


@pytest.fixture(scope="module", autouse=True)
def _programs():
    """Forget compiled programs. Thousands of them reach the system's limit on memory maps, and the process crashes."""
    yield
    jax.clear_caches()


@pytest.fixture
def as_users_compile():
    """With XLA's expensive optimisations, which change bits."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """The number of cores that this process may use. pytest-xdist's own default counts a hyperthreaded pair once."""
    return len(os.sched_getaffinity(0))
