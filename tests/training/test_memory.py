"""A lack of memory and of devices, as the Trainer reports it."""

import types
from contextlib import nullcontext
from typing import Any

import jax
import numpy as np
import pytest
from flax import linen as nn
from jax import numpy as jnp

import resnet_jax
from resnet_jax import host_memory
from resnet_jax.errors import ConfigError, TrainingError
from resnet_jax.training.memory import check_images, check_size, enough_memory, memory_of
from resnet_jax.training.parallel import pick_devices
from resnet_jax.training.trainer import Trainer

IMAGES = np.arange(8 * 4 * 4, dtype=np.uint8).reshape(8, 4, 4, 1)
DATA: Any = resnet_jax.data.from_arrays(IMAGES, np.arange(8, dtype=np.int32) % 2)


class Tiny(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(2)(x.reshape(len(x), -1))


class Plain(nn.Module):
    """A network of two weights."""

    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(2, use_bias=False)(x.mean((1, 2, 3))[:, None])


def huge(logits, labels):
    """A loss that needs 4 petabytes."""
    numbers = jnp.zeros((1 << 20, 1 << 20, 1 << 10)).at[0, 0, labels[0]].add(logits[0, 0])
    return jnp.zeros(len(labels)) + jnp.sort(numbers)[0, 0, 0]


def trainer(**changes) -> Trainer:
    return Trainer(**{"max_epochs": 1, "batch_size": 4, "devices": 1, "progress": False, **changes})


@pytest.mark.skipif(jax.__version_info__ >= (0, 11), reason="XLA ends the process: floating-point exception (0.12)")
def test_a_device_without_enough_memory():
    """Issue 11, case 18: XLA's own error for an array that no machine holds."""
    with pytest.raises(
        TrainingError, match=r"the device has too little memory \(.*smaller batch_size.*--remat"
    ) as caught:
        trainer(loss=huge).fit(Tiny(), DATA)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value.__cause__, jax.errors.JaxRuntimeError)


class Takes:
    """A callback that takes more memory than the machine has."""

    def on_step_end(self, loop):
        np.empty(1 << 60, np.uint8)


def test_a_host_without_enough_memory():
    with pytest.raises(TrainingError, match=r"this machine has too little memory \(Unable to allocate") as caught:
        trainer(callbacks=[Takes()]).fit(Tiny(), DATA)
    assert isinstance(caught.value.__cause__, MemoryError)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm."), TrainingError),
        (jax.errors.JaxRuntimeError("INTERNAL: Error: Out of memory allocating 27 bytes."), TrainingError),  # 0.7
        (jax.errors.JaxRuntimeError("INTERNAL: RESOURCE_EXHAUSTED was not the reason"), jax.errors.JaxRuntimeError),
        (RuntimeError("RESOURCE_EXHAUSTED: of another library"), RuntimeError),
        (MemoryError(), TrainingError),
        (ValueError("out of memory"), ValueError),
    ],
)
def test_the_type_and_the_status_code_decide(error, expected):
    with pytest.raises(expected) as caught, enough_memory():
        raise error
    assert type(caught.value) is expected


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (AssertionError(), "no such device"),  # of JAX_PLATFORMS=cuda without CUDA's plugin
        (RuntimeError("Unable to initialize backend 'tpu': INTERNAL"), "Unable to initialize backend 'tpu': INTERNAL"),
    ],
)
def test_devices_that_jax_cannot_start(monkeypatch, error, reason):
    def fails():
        raise error

    monkeypatch.setattr(jax, "local_devices", fails)
    message = rf"JAX_PLATFORMS=cpu: JAX cannot start this machine's devices \({reason}\); set JAX_PLATFORMS=cpu"
    for call in (lambda: pick_devices(0), lambda: trainer(devices=0).fit(Tiny(), DATA)):
        with pytest.raises(ConfigError, match=message):
            call()


def test_several_processes_are_refused(monkeypatch, tmp_path):
    """Issue 11, case 21, with any choice of devices. Nothing is written."""
    devices = jax.local_devices()
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    for chosen in (0, 1, devices[:2]):
        with pytest.raises(ConfigError, match=r"process_count\(\) is 2: several processes are not supported"):
            trainer(devices=chosen).fit(Tiny(), DATA)
    with pytest.raises(ConfigError, match="several processes"):
        resnet_jax.Trainer(run_dir=tmp_path / "run", batch_size=4).fit(Tiny(), DATA)
    with pytest.raises(ConfigError, match="several processes"):
        trainer().evaluate(Tiny(), {}, DATA.train)
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_is_larger_than_the_memory():
    """Weights and gradients, 4 bytes a number; nothing is compiled."""
    device = jax.devices()[0]
    held = memory_of(device)
    assert held is not None
    check_size({"params": jax.ShapeDtypeStruct((held // 8,), np.float32)}, device)
    with pytest.raises(ConfigError, match=r"the network is too large: its weights .* GiB, and this cpu has .*--width"):
        check_size({"params": jax.ShapeDtypeStruct((held // 8 + 1,), np.float32)}, device)
    wide = resnet_jax.create_model("resnet18", 2, width=100000, stem="small")
    with pytest.raises(ConfigError, match="the network is too large"):
        trainer(image_size=32).fit(wide, DATA)


def test_the_limit_of_a_container_counts(monkeypatch):
    """The same network fits on a machine with twice the memory."""
    network = {"params": jax.ShapeDtypeStruct((2**20,), np.float32)}
    for held in (2**23, 2**23 - 1):
        monkeypatch.setattr(host_memory, "memory", lambda held=held: host_memory.Memory(None, held))
        refused = pytest.raises(ConfigError, match=r"and this cpu has 0\.0 GiB") if held < 2**23 else nullcontext()
        with refused:
            check_size(network, jax.devices()[0])


def test_images_that_are_larger_than_the_memory(monkeypatch):
    """Every device holds those of all parts, as bytes."""
    images = np.zeros((20, 32, 32, 1), np.uint8)
    data: Any = resnet_jax.data.from_arrays(images, np.arange(20, dtype=np.int32) % 2, test=0.5)
    gpu: Any = types.SimpleNamespace(platform="gpu", memory_stats=lambda: {"bytes_limit": images.nbytes})
    check_images(data, gpu)
    gpu.memory_stats = lambda: {"bytes_limit": images.nbytes - 1}
    with pytest.raises(ConfigError, match=r"the images take 0\.0 GiB, and this gpu, .* has 0\.0 GiB; give fewer"):
        check_images(data, gpu)
    monkeypatch.setattr(host_memory, "memory", lambda: host_memory.Memory(None, 16000))
    with pytest.raises(ConfigError, match="the images take"):
        trainer().make_loop(Plain(), data)


@pytest.mark.parametrize(("stats", "held"), [({"bytes_limit": 100}, 100), ({}, None), (None, None)])
def test_the_memory_of_a_gpu(stats, held):
    device: Any = types.SimpleNamespace(platform="gpu", memory_stats=lambda: stats)
    assert memory_of(device) == held
