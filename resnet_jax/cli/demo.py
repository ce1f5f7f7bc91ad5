"""demo: a page on this machine that shows what a trained network says about a picture."""

import contextlib
import dataclasses
import os
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from resnet_jax.cli.demo_answer import Example, Explainer
from resnet_jax.cli.options import RunDir
from resnet_jax.data import DATASETS, Arrays
from resnet_jax.data.catalogue import default_data_dir
from resnet_jax.data.prepared import prepared_dir, read_prepared
from resnet_jax.errors import ConfigError, DataError, UserError
from resnet_jax.paths import user_path
from resnet_jax.runs import load
from resnet_jax.runs.argv import parse_as
from resnet_jax.runs.build import load_data
from resnet_jax.runs.config import Config
from resnet_jax.runs.predictor import Predictor

EXAMPLES = 10  # on the page
SETTINGS = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}  # the page asks no other host


@dataclasses.dataclass(frozen=True)
class Demo:
    """Open a page on which you drop or draw a picture and see its class, and where the network finds it (Grad-CAM).

    The page is served on this machine alone, until Ctrl-C. It needs the extra demo: pip install "resnet_jax[demo]".
    Examples: demo runs/NAME; demo runs/NAME --port 8000 --no-browser.
    """

    run_dir: RunDir
    """The run's folder, or a folder that convert made."""
    port: int = 7860
    """Port of the page, 1 to 65535."""
    host: str = "127.0.0.1"
    """Name or IPv4 address to serve on. The default can be reached from this machine only; 0.0.0.0: from everywhere."""
    browser: bool = True
    """Open the page in the browser, if this machine has a display."""


def demo(argv: Sequence[str], prog: str) -> None:
    """Serve the page until Ctrl-C."""
    asked = parse_as(Demo, argv, prog)
    check_address(asked.host, asked.port)
    with settings():
        check_gradio()
        predictor = load(asked.run_dir)
        if predictor.image_shape[-1] not in (1, 3):
            channels = predictor.image_shape[-1]
            raise ConfigError(f"{asked.run_dir}: its network takes {channels} channels; demo needs gray (1) or RGB (3)")
        examples = examples_or_reason(predictor)
        explainer = Explainer(predictor)
        explainer.warm_up()
        from resnet_jax.cli.demo_page import build, serve

        page = build(explainer, title_of(asked.run_dir, predictor), examples)
        serve(page, asked.host, asked.port, asked.browser and has_display())


@contextlib.contextmanager
def settings() -> Iterator[None]:
    """Gradio's settings, which it reads when it is imported, and a folder for its files that is removed at the end."""
    with tempfile.TemporaryDirectory(prefix="resnet_jax_demo_") as folder:
        before = {name: os.environ.get(name) for name in (*SETTINGS, "GRADIO_TEMP_DIR")}
        os.environ.update(SETTINGS, GRADIO_TEMP_DIR=folder)
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})


def check_gradio() -> None:
    """Raise ConfigError if Gradio cannot be imported."""
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise ConfigError(f'demo needs Gradio ({error}); pip install "resnet_jax[demo]" installs it') from None


def check_address(host: str, port: int) -> None:
    """Raise ConfigError if the page cannot be served there. A port that is in use: the message names a free one."""
    if not 1 <= port <= 65535:
        raise ConfigError(f"--port {port} is out of range: give 1 to 65535")
    try:
        address = socket.getaddrinfo(host or None, None, socket.AF_INET, socket.SOCK_STREAM)[0][4][0]
        free = free_port(str(address))
    except OSError:
        raise ConfigError(f"--host {host}: this machine has no such IPv4 address; try 127.0.0.1") from None
    try:
        with listening(str(address), port):
            return
    except PermissionError:
        reason = "needs more permissions"
    except OSError:
        reason = "is in use"
    raise ConfigError(f"--port {port} {reason}; try --port {free}")


def listening(address: str, port: int) -> socket.socket:
    """A socket that listens there; OSError if another one does."""
    return socket.create_server((address, port))


def free_port(address: str) -> int:
    """A port that is free now."""
    with listening(address, 0) as server:
        return server.getsockname()[1]


def has_display() -> bool:
    """Whether a browser has a screen to open on. Without one, Python would open a text browser in the terminal."""
    return sys.platform != "linux" or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


def title_of(run_dir: str, predictor: Predictor) -> str:
    """What the page shows: the network and the name of the run's folder."""
    network = predictor.arch.name if predictor.arch else type(predictor.model).__name__
    return f"{network}, {Path(run_dir).resolve().name}"


def examples_or_reason(predictor: Predictor) -> list[Example]:
    """Examples of the run's test set. If they cannot be read, none, and a printed line gives the reason."""
    try:
        return examples_of(predictor)
    except UserError as error:
        print(f"the page has no examples: {error}")
        return []


def examples_of(predictor: Predictor) -> list[Example]:
    """The first test picture of each of the first ten classes. DataError or ConfigError if they cannot be read."""
    if predictor.config is None:
        raise DataError("a folder that convert made does not name its data set")
    arrays, names = test_pictures(predictor.config)
    if names != tuple(predictor.class_names):
        raise DataError("the classes of the data set have changed since the run")
    labels = list(arrays.labels)
    rows = [labels.index(label) for label in range(len(names)) if label in labels]
    return [Example(np.asarray(arrays.images[row]), names[labels[row]]) for row in rows[:EXAMPLES]]


def test_pictures(config: Config) -> tuple[Arrays, tuple[str, ...]]:
    """The test part of a run's data set and its class names. Nothing is downloaded."""
    held = config.data
    if held.data_folder:
        dataset = load_data(config)
        part = dataset.test or dataset.validation
        if part is None:
            raise DataError(f"{held.data_folder} has neither a test nor a validation part")
        return part, tuple(dataset.class_names)
    spec = DATASETS.get(held.dataset)
    if spec is None:
        raise DataError(f"the data set {held.dataset!r} is unknown here")
    folder = prepared_dir(spec, user_path(held.data_dir or default_data_dir(), "data_dir", DataError))
    if not folder.exists():
        raise DataError(f"{held.dataset} is not prepared on this machine ({folder} does not exist)")
    return read_prepared(spec, folder).test, spec.class_names
