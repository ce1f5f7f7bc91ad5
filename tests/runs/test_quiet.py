"""Hooks and loggers: as before after a success, and filtered until the process ends after an error of Orbax."""

import logging
import sys
import types
from typing import Any

import pytest

from resnet_jax.errors import ConfigError
from resnet_jax.runs.quiet import late_errors, quiet


@pytest.fixture
def seen(monkeypatch) -> list[Any]:
    """What reaches the hook of the process."""
    seen: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", seen.append)
    monkeypatch.setattr(logging.getLogger("asyncio"), "filters", [])  # an earlier test may have left one
    return seen


def call_back(message: str = "Event loop is closed") -> None:
    sys.unraisablehook(types.SimpleNamespace(object=None, exc_value=RuntimeError(message)))  # pyright: ignore


def test_after_a_success_everything_is_as_before(seen):
    hook, filters = sys.unraisablehook, list(logging.getLogger("asyncio").filters)
    with late_errors():
        call_back()
        assert seen == []
    assert sys.unraisablehook is hook
    assert logging.getLogger("asyncio").filters == filters
    call_back()
    assert len(seen) == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, ConfigError, ValueError])
def test_an_exception_outside_of_orbax_leaves_everything_as_before(seen, error):
    """As of Ctrl-C during training."""
    hook, filters = sys.unraisablehook, list(logging.getLogger("asyncio").filters)
    with pytest.raises(error), quiet():
        raise error
    assert sys.unraisablehook is hook
    assert logging.getLogger("asyncio").filters == filters


def test_an_interrupted_call_of_orbax_is_an_error(seen):
    """Ctrl-C during a restore of 200 arrays was followed by up to 190 late calls."""
    with pytest.raises(KeyboardInterrupt), quiet(), late_errors():
        raise KeyboardInterrupt
    call_back()
    assert seen == []


def test_after_an_error_late_calls_are_ignored_and_nothing_else(seen):
    for _ in range(2):
        with pytest.raises(ValueError, match="damaged"), late_errors():
            raise ValueError("damaged")
        call_back()
        assert seen == []
    call_back("another error")
    assert len(seen) == 1  # the second error has not added a second filter


def test_an_error_that_is_caught_inside(seen):
    """As of a damaged checkpoint, after which the next one is read."""
    with quiet():
        with pytest.raises(ValueError, match="damaged"), late_errors():
            raise ValueError("damaged")
        call_back()
    call_back()
    assert seen == []


def test_what_orbax_logs_of_a_file_that_no_run_needs(caplog):
    logger = logging.getLogger("absl")
    with caplog.at_level("ERROR", "absl"):
        with quiet():
            logger.error("Failed to json parse Metadata file: x")
            logger.error("something else")
        logger.error("Failed to json parse Metadata file: y")
    assert [record.getMessage()[-4:] for record in caplog.records] == ["else", "e: y"]
