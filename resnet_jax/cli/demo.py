"""demo: a page on this machine that shows what a trained network says about a picture."""

import contextlib
import dataclasses
import os
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence

from resnet_jax.cli.options import RunDir
from resnet_jax.errors import ConfigError
from resnet_jax.runs.argv import parse_as

EXAMPLES = (
    "runs/NAME",
    "runs/NAME --port 8000 --no-browser",
    "weights/resnet50  # a folder that convert made",
)
SETTINGS = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}  # the page asks no other host


@dataclasses.dataclass(frozen=True)
class Demo:
    """Open a page on which you drop or draw a picture and see its class, and where the network finds it (Grad-CAM).

    The page is served on this machine alone, until Ctrl-C. It needs the extra demo: pip install "resnet_jax[demo]".
    """

    run_dir: RunDir
    """The run's folder, or a folder that convert made."""
    port: int = 7860
    """Port of the page, 1 to 65535."""
    host: str = "127.0.0.1"
    """Name or IPv4 address to serve on. The default: this machine alone; 0.0.0.0: its whole network."""
    browser: bool = True
    """Open the page in the browser, if this machine has a display."""


def demo(argv: Sequence[str], prog: str) -> None:
    """Serve the page until Ctrl-C."""
    asked = parse_as(Demo, argv, prog, EXAMPLES)
    check_address(asked.host, asked.port)
    with settings():
        check_gradio()
        from resnet_jax.cli.demo_answer import Explainer
        from resnet_jax.cli.demo_examples import examples_or_reason
        from resnet_jax.data import pictures
        from resnet_jax.runs import load
        from resnet_jax.runs.hardware import compile_cache

        with compile_cache(), pictures.quiet():
            explainer = Explainer(load(asked.run_dir), asked.run_dir)
            explainer.warm_up()
            from resnet_jax.cli.demo_page import build, serve  # Gradio takes seconds

            page = build(explainer, examples_or_reason(explainer.predictor))
            serve(page, asked.host, asked.port, asked.browser and has_display())


@contextlib.contextmanager
def settings() -> Iterator[None]:
    """The environment that Gradio reads, and a folder for its files that is removed at the end."""
    with tempfile.TemporaryDirectory(prefix="resnet_jax_demo_") as folder:
        new = {**SETTINGS, "GRADIO_TEMP_DIR": folder}
        for name in ("NO_PROXY", "no_proxy"):  # Gradio asks its own server whether it runs; a proxy cannot answer
            new[name] = ",".join(filter(None, [os.environ.get(name), "127.0.0.1,localhost"]))
        before = {name: os.environ.get(name) for name in new}
        os.environ.update(new)
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})


def check_gradio() -> None:
    """Raise ConfigError if Gradio cannot be imported."""
    try:
        import gradio  # noqa: F401  # pyright: ignore[reportMissingImports]
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
