"""One function for everything that holds weights: a run, a folder of converted weights, a file of PyTorch."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from resnet_jax.data import imagenet
from resnet_jax.errors import ConfigError, InteropError, listed
from resnet_jax.interop import Weights, from_torch, load_weights, read_state_dict, to_torch
from resnet_jax.interop.matching import Report
from resnet_jax.interop.torch_weights import log
from resnet_jax.models import get_arch
from resnet_jax.paths import check_readable, user_path
from resnet_jax.runs.converted import is_converted, sizes
from resnet_jax.runs.folders import CHECKPOINTS, CONFIG_FILE, readable, runs_hint
from resnet_jax.runs.predictor import load
from resnet_jax.runs.values import flag_text

FILES = ("*.safetensors", "*.pth", "*.pt", "*.bin", "*.th", "*.ckpt", "*.pth.tar", "*.npz")  # in a folder of a download


def open_weights(
    path: str | Path,
    arch: str = "",
    *,
    head: str = "keep",
    num_classes: int | None = None,
    in_channels: int | None = None,
    allow_nan: bool = False,
    entry: str = "",
    options: dict[str, Any] | None = None,
    report: Report = log,
) -> Weights:
    """Open a run's folder (its best checkpoint), a folder that `convert` made, or a file of weights.

    arch: the architecture of a file; a folder names its own. options: stem, width and squeeze_excitation of a file.
    head: "keep", "reset", or "any", which leaves out a head that is missing or has several layers. The others are
    those of from_torch. Raises InteropError, CheckpointError or ConfigError if it cannot open them.
    """
    path = user_path(path, "path", InteropError)
    check_readable(path, "path", InteropError)
    with readable(path):
        rules: dict[str, Any] = {"num_classes": num_classes, "in_channels": in_channels, "allow_nan": allow_nan}
        folder = path.is_dir() and folder_weights(path)
        if not folder:
            file = file_in(path, report) if path.is_dir() else path
            if not file.exists():
                raise InteropError(f"{path}: there is no such file or folder")
            if not arch:
                raise ConfigError(f"--arch NAME is needed: the architecture of the file {file}")
            return of_file(file, arch, head, rules | {"entry": entry, "report": report}, options or {})
        if arch not in ("", folder.arch):
            raise ConfigError(f"--arch {arch}: {path} holds {folder.arch}; leave --arch out")
        as_it_is = head != "reset" and num_classes is None and in_channels is None
        given = {"entry": entry, "allow_nan": allow_nan and as_it_is, **(options or {})}
        if wrong := [flag_text(name) for name, value in given.items() if value]:
            raise ConfigError(
                f"{', '.join(wrong)}: only for a file; leave it out: the folder {path} names its architecture"
            )
        if as_it_is:
            return folder
        return changed(folder, "keep" if head == "any" else head, rules)


def folder_weights(path: Path) -> Weights | None:
    """Return the weights of a run's folder or of converted weights; None for another folder."""
    if is_converted(path):
        return load_weights(path)
    return of_run(path) if is_run(path) else None


def is_run(path: Path) -> bool:
    """Tell whether a folder is a run's: with a checkpoint, or with config.json and no file of weights beside it.

    A download may have config.json too, and a cache of torch.hub has a folder checkpoints/ of files.
    """
    checkpoints = path / CHECKPOINTS
    if checkpoints.is_dir() and any(step.name.isdecimal() and step.is_dir() for step in checkpoints.iterdir()):
        return True
    return (path / CONFIG_FILE).is_file() and (checkpoints.is_dir() or not files_in(path))


def of_run(folder: Path) -> Weights:
    """Return the weights of a run's best checkpoint."""
    predictor = load(folder)
    model, shape = predictor.config.model, predictor.image_shape
    stem = predictor.config.stem_form
    options = {"width": model.width, "squeeze_excitation": model.squeeze_excitation, "stem": stem}
    plain = {"width": 1.0, "squeeze_excitation": False, "stem": predictor.arch.stem}
    mean_std = predictor.preprocess.mean_std or (None, None)
    mean, std = (None if value is None else np.ravel(value).astype(float).tolist() for value in mean_std)
    preprocess = {"mean": mean, "std": std, "image_size": list(predictor.preprocess.image_size or shape[:2])}
    return Weights(
        predictor.arch.name,
        {name: value for name, value in options.items() if value != plain[name]},
        jax.device_get(predictor.variables),
        preprocess,
        tuple(predictor.class_names),
    )


def of_file(path: Path, arch: str, head: str, rules: dict[str, Any], options: dict[str, Any]) -> Weights:
    """Return the weights of a file. The head is read also where a new one replaces it: it tells ImageNet's weights."""
    content, lines = read_state_dict(path), []
    kept = rules | {"report": lines.append, "num_classes": None, "in_channels": None}
    try:
        variables = from_torch(content, arch, **kept, **options)
    except InteropError:
        if head == "keep":
            raise
        variables = from_torch(content, arch, **rules, head="reset", **options)
        if head == "any":
            del variables["params"]["head"]
        return Weights(arch, options, variables)
    for line in lines:
        rules["report"](line)
    weights = Weights(arch, options, variables)
    if is_imagenet(weights):
        weights = dataclasses.replace(weights, preprocess=imagenet.PREPROCESS, class_names=imagenet.class_names())
    rules = {name: rules[name] for name in ("num_classes", "in_channels", "allow_nan")}
    return changed(weights, "keep" if head == "any" else head, rules)


def is_imagenet(weights: Weights) -> bool:
    """Tell whether weights are taken for ImageNet's: a network of torchvision's form, 1000 classes and RGB images."""
    arch = get_arch(weights.arch)
    stem = weights.options.get("stem") or arch.stem
    form = arch.block in ("basic", "bottleneck") and stem == "standard"
    return form and sizes(weights) == (imagenet.CLASSES, 3)


def changed(weights: Weights, head: str, rules: dict[str, Any]) -> Weights:
    """Return weights with another head or number of image channels, by the rules of from_torch."""
    if head == "keep" and rules["num_classes"] is None and rules["in_channels"] is None:
        return weights
    state_dict = to_torch(weights.variables, weights.arch, **weights.options)
    variables = from_torch(state_dict, weights.arch, head=head, report=lambda line: None, **rules, **weights.options)
    new = dataclasses.replace(weights, variables=variables)
    if sizes(new)[1] != sizes(weights)[1]:  # the numbers of the colours do not apply to grey images
        kept = {name: value for name, value in weights.preprocess.items() if name not in ("mean", "std")}
        new = dataclasses.replace(new, preprocess=kept)
    return new if head == "keep" else dataclasses.replace(new, class_names=())


def files_in(folder: Path) -> list[Path]:
    """Return the files of weights in a folder, by their ending."""
    return sorted({path for pattern in FILES for path in folder.glob(pattern) if path.is_file()})


def file_in(folder: Path, report: Report) -> Path:
    """Return the one file of weights in a folder, such as a download of a model hub."""
    files = files_in(folder)
    if len(files) == 1:
        report(f"weights read from {files[0]}")
        return files[0]
    if files:
        raise InteropError(f"{folder} has several files of weights: {listed(p.name for p in files)}; give one of them")
    raise InteropError(
        f"{folder}: there are no weights in this folder: it is neither a run's nor one that convert made, and it has "
        f"no .safetensors or .pth file{runs_hint(folder)}"
    )
