"""What a machine has for training, and its problems. A broken part is reported, and the others are still checked."""

import importlib.util
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from resnet_jax import cores
from resnet_jax.errors import UserError, one_line
from resnet_jax.host_memory import memory
from resnet_jax.paths import cache_home, user_path
from resnet_jax.runs.machine import accelerators
from resnet_jax.versions import installed

Findings = dict[str, dict[str, Any]]
GB = 1e9
LITTLE_DISK, LITTLE_MEMORY = 1 * GB, 2 * GB  # the three checkpoints of resnet18 take 0.3 GB, its training step 2 GB
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "pillow", "tensorflow-datasets")
EXTRAS = {"report": ("jinja2", "matplotlib"), "tensorboard": ("tensorboardX",), "demo": ("gradio",)}
PREFIXES = ("XLA_", "JAX_", "TPU_", "LIBTPU_", "CUDA_", "ONEDNN_", "OMP_")
NAMES = (
    "PJRT_NPROC",
    "NPROC",
    "TFDS_DATA_DIR",
    "XDG_CACHE_HOME",
    "GLIBC_TUNABLES",
    "PYTHONPATH",
    "NVIDIA_VISIBLE_DEVICES",
)
SIMD = {0: "none of them", 2: "SSE4", 3: "AVX2", 4: "AVX-512"}  # by simd_level()
SETS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")  # instruction sets, as Linux names them


class Problem(NamedTuple):
    """fatal: training with the default flags is impossible. do: what the user can do, for the end of a sentence."""

    what: str
    do: str
    fatal: bool = False


Report = Callable[[Problem], object]


def diagnose(data_dir: str = "", run_dir: str = "runs") -> tuple[Findings, list[Problem]]:
    """The findings by topic, and the problems, the fatal ones first. Nothing is written, and no server is asked."""
    problems: list[Problem] = []
    variables = dict(os.environ)  # jax sets some when it is imported
    parts: dict[str, Callable[[Report], dict[str, Any]]] = {
        "versions": versions,
        "devices": devices,
        "kernels on the CPU": kernels,
        "machine": machine,
        "data sets": lambda report: data_sets(data_dir, report),
        "disk": lambda report: disk(data_dir, run_dir, report),
        "extras": extras,
        "environment": lambda report: environment(variables, report),
    }
    findings: Findings = {}
    for topic, look in parts.items():
        try:
            findings[topic] = look(problems.append)
        except Exception as error:  # a broken installation raises errors of any kind; the other parts say more
            findings[topic] = {"error": f"{type(error).__name__}: {one_line(error)}"}
            what = f"{topic}: {type(error).__name__}: {one_line(error)}"
            problems.append(Problem(what, "reinstall resnet_jax and jax", topic in ("devices", "kernels on the CPU")))
    return findings, sorted(problems, key=lambda problem: not problem.fatal)


def versions(report: Report) -> dict[str, Any]:
    """The version of Python and of each package; None if it is not installed."""
    found: dict[str, Any] = {"python": platform.python_version(), "resnet_jax": installed("resnet_jax") or "a checkout"}
    found |= {package: installed(package) for package in PACKAGES}
    for package in PACKAGES:
        if found[package] is None:
            report(Problem(f"{package} is not installed", "install it: pip install resnet_jax", fatal=True))
    return found


def devices(report: Report) -> dict[str, Any]:
    """The backend that JAX chooses, its devices, whether they compute, and accelerators that JAX does not use."""
    seen = accelerators()
    found: dict[str, Any] = {"backend": None, "devices": [], "precision": None, "accelerators seen": seen}
    try:
        import jax
        from jax import numpy as jnp

        from resnet_jax.runs.hardware import pick_dtype
        from resnet_jax.training.parallel import local_devices

        held = local_devices()
        found["backend"] = jax.default_backend()
        found["devices"] = [f"{device.device_kind} (id {device.id})" for device in held]
        total = float(jnp.ones((8, 8)).dot(jnp.ones((8, 8))).sum())
        if total != 512:
            report(Problem(f"the device computes {total} for 512", "train on another device", fatal=True))
        found["precision"] = jnp.dtype(pick_dtype("auto", held[0])).name
    except UserError as error:
        what, _, do = str(error).rpartition("; ")
        report(Problem(what, do, fatal=True))
    except Exception as error:
        what = f"JAX does not work: {type(error).__name__}: {one_line(error)}"
        report(Problem(what, 'reinstall it: pip install -U "jax" "jaxlib", of one version', fatal=True))
    _check_accelerators(found, seen, report)
    return found


def _check_accelerators(found: dict[str, Any], seen: list[str], report: Report) -> None:
    """Report an accelerator that JAX does not use."""
    if not seen or found["backend"] not in ("cpu", None):
        return
    what = f"this machine has {', '.join(seen)}, but JAX does not use it"
    asked = os.environ.get("JAX_PLATFORMS")
    if asked:
        report(Problem(f"{what}: JAX_PLATFORMS={asked}", "unset JAX_PLATFORMS"))
        return
    plugin = "tpu" if any(name.startswith("TPU") for name in seen) else "cuda"
    modules = {"tpu": ("libtpu",), "cuda": ("jax_cuda12_plugin", "jax_cuda13_plugin")}[plugin]
    if any(importlib.util.find_spec(module) for module in modules):
        do = "check its driver (nvidia-smi) and the messages of: python -c 'import jax; jax.devices()'"
        report(Problem(f"{what}, although its plugin is installed", do))
        return
    report(Problem(f"{what}: its plugin is not installed", f'install it: pip install "resnet_jax[{plugin}]"'))


def kernels(report: Report) -> dict[str, Any]:
    """Whether the native kernels are built, the instruction sets of the CPU, and which kernels training uses."""
    from resnet_jax import ops
    from resnet_jax.ops.select import native_problem, simd_level
    from resnet_jax.runs.hardware import cpu_flags

    problem = native_problem()
    if problem:
        what, _, do = problem.rpartition("; ")
        report(Problem(f"convolutions on the CPU are XLA's, which are slower: {what}", do))
    bfloat16 = {"fast": "yes", "slow": "in float32 inside", "": "no"}[ops.native_bfloat16()]
    return {
        "native kernels": "not used" if problem else f"oneDNN, resnet_jax_onednn {installed('resnet_jax_onednn')}",
        "instruction sets": [name for name in SETS if name in cpu_flags()],
        "native kernels use": SIMD[simd_level()],
        "native convolutions in bfloat16": bfloat16,
        "training uses": "XLA" if problem else "oneDNN",
    }


def machine(report: Report) -> dict[str, Any]:
    """Cores and memory that this process may use."""
    quota, usable = cores.cpu_quota(), cores.cpu_count()
    have = memory()
    if have.available is not None and have.available < LITTLE_MEMORY:
        what = f"only {_gb(have.available)} of memory are free"
        report(Problem(what, "end other programs, or use a smaller --batch-size or --image-size, or --remat"))
    return {
        "system": platform.platform(),
        "cores": f"{usable} of {os.cpu_count()}" + (f", quota of the container {quota:g}" if quota else ""),
        "memory": f"{_gb(have.available)} free of {_gb(have.total)}",
    }


def data_sets(data_dir: str, report: Report) -> dict[str, Any]:
    """Where each named data set is."""
    from resnet_jax.data import DATASETS
    from resnet_jax.data.catalogue import default_data_dir
    from resnet_jax.data.prepared import prepared_dir

    folder = user_path(data_dir or default_data_dir(), "data_dir (--data-dir)")
    found: dict[str, Any] = {}
    for spec in DATASETS.values():
        place = prepared_dir(spec, folder)
        if place.is_dir():
            found[spec.name] = f"prepared in {place}"
        elif spec.debian_dir is not None and Path(spec.debian_dir).is_dir():
            found[spec.name] = f"files in {spec.debian_dir}; the first run prepares them"
        else:
            found[spec.name] = "not here"
    if set(found.values()) == {"not here"}:
        do = "the first run downloads it, or give --source-dir FOLDER with its files, or --data-folder PICTURES"
        report(Problem(f"no named data set is in {folder}", do))
    return found


def disk(data_dir: str, run_dir: str, report: Report) -> dict[str, Any]:
    """The free space where data, runs and caches are."""
    from resnet_jax.data.catalogue import default_data_dir

    found: dict[str, Any] = {}
    data = user_path(data_dir or default_data_dir(), "data_dir (--data-dir)")
    for name, folder, flag in (("data", data, "--data-dir"), ("runs", user_path(run_dir, "--run-dir"), "--run-dir")):
        base = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        free = shutil.disk_usage(base).free
        found[name] = f"{_gb(free)} free in {folder}"
        if not (base.is_dir() and os.access(base, os.W_OK | os.X_OK)):
            report(Problem(f"{folder} cannot be written to", f"give {flag} another folder", fatal=name == "runs"))
        elif free < LITTLE_DISK:
            report(Problem(f"only {_gb(free)} are free in {folder}", f"free some, or give {flag} another folder"))
    home = cache_home()
    if home is None:
        report(Problem("the home folder is unknown, so compiled programs are not kept", "set XDG_CACHE_HOME"))
    held = sum(file.stat().st_size for file in _files(home)) if home else 0
    return found | {"caches": f"{_gb(held)} in {home}" if home else "none"}


def _files(folder: Path) -> Iterator[Path]:
    for root, _, names in os.walk(folder):
        yield from (path for name in names if (path := Path(root, name)).is_file())


def extras(report: Report) -> dict[str, Any]:
    """Which extras are installed. A missing one is no problem: its command names it."""

    def state(name: str, modules: tuple[str, ...]) -> str:
        lacking = [module for module in modules if importlib.util.find_spec(module) is None]
        return f'not installed; pip install "resnet_jax[{name}]"' if lacking else "installed"

    return {name: state(name, modules) for name, modules in EXTRAS.items()}


def environment(variables: Mapping[str, str], report: Report) -> dict[str, Any]:
    """The variables that change how JAX and the kernels work."""
    found = {name: variables[name] for name in sorted(variables) if name.startswith(PREFIXES) or name in NAMES}
    advice = {
        "JAX_DISABLE_JIT": "nothing is compiled, so training is very slow",
        "JAX_DEBUG_NANS": "every operation is checked, so training is slow",
        "JAX_LOG_COMPILES": "each compilation is printed",
    }
    for name, effect in advice.items():
        if found.get(name, "0").lower() not in ("", "0", "false", "off", "no"):
            report(Problem(f"{name}={found[name]}: {effect}", f"unset {name} to train"))
    if "xla_force_host_platform_device_count" in found.get("XLA_FLAGS", ""):
        what = f"XLA_FLAGS={found['XLA_FLAGS']} makes several devices of one CPU, which is slower"
        report(Problem(what, "leave it out, except in tests"))
    return found


def _gb(size: float | None) -> str:
    if size is None:
        return "unknown"
    return f"{size / GB:.1f} GB" if size >= GB / 10 else f"{size / 1e6:.1f} MB"
