"""The events of a fit, and the objects that it calls at them: callbacks.

A callback has some of these methods; each takes the Loop and returns nothing:

    on_fit_start(loop)   before the first step. A callback may set loop.state here, to resume.
    on_step_end(loop)    after each call of the devices: one step on a CPU, loop.steps_per_call steps elsewhere.
    on_epoch_end(loop)   after an epoch and its evaluation: loop.row holds its metrics and is loop.history[-1].
    on_fit_end(loop)     at the end, also after an error, in the reverse order of the callbacks.

Callbacks run in the order of the list. A callback may read every public attribute of the Loop. It may add keys to
loop.row, call loop.stop(reason), set loop.state to a state of the same form, and call loop.use(program, state) to go
on with another network. A step donates loop.state: copy with jax.device_get what you keep beyond the event.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from resnet_jax.errors import CallbackError, ConfigError, UserError, one_line

EVENTS = ("on_fit_start", "on_step_end", "on_epoch_end", "on_fit_end")


def notify(callbacks: Sequence[Any], event: str, loop: Any) -> None:
    """Call the method of that name on every callback that has it."""
    for callback in callbacks:
        call(callback, event, loop)


def call(callback: Any, event: str, loop: Any) -> None:
    """Call one method of a callback, if it has it. An exception that is not ours becomes a CallbackError."""
    method = getattr(callback, event, None)
    if method is None:
        return
    try:
        method(loop)
    except (UserError, BrokenPipeError, MemoryError):  # BrokenPipeError: the reader of the output has gone
        raise
    except Exception as error:
        raise CallbackError(
            f"callback {type(callback).__name__}: {event} raised {type(error).__name__}: {one_line(error)}"
        ) from error


@contextlib.contextmanager
def started(callbacks: Sequence[Any], loop: Any) -> Iterator[None]:
    """Call on_fit_start of every callback, and at the end on_fit_end of those whose on_fit_start was called."""
    with contextlib.ExitStack() as stack:
        for callback in callbacks:
            stack.callback(call, callback, "on_fit_end", loop)
            call(callback, "on_fit_start", loop)
        yield


def check_callbacks(callbacks: Sequence[Any]) -> None:
    """Raise ConfigError for an object that has none of the events."""
    if not isinstance(callbacks, Sequence):
        raise ConfigError(f"callbacks {type(callbacks).__name__}: give a list of callbacks")
    for callback in callbacks:
        if isinstance(callback, type) or not any(callable(getattr(callback, event, None)) for event in EVENTS):
            raise ConfigError(
                f"callbacks: {callback!r} is no callback; give an object with some of {', '.join(EVENTS)}"
            )
