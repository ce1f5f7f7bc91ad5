"""The tests run on 8 fake CPU devices. The settings below take effect only before jax is imported."""

import os

import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """The number of cores that this process may use. pytest-xdist's own default counts a hyperthreaded pair once."""
    return len(os.sched_getaffinity(0))
