"""Parametrisations of which the default suite runs some cases, and make test-thorough the others."""

from collections.abc import Iterable
from typing import Any

import pytest


def thorough_except(cases: Iterable[Any], *kept: Any) -> list[Any]:
    """The cases of a parametrisation. Those in kept run by default; the others have the marker thorough.

    A tuple gives the values of several arguments. Raises ValueError if kept has a value that is no case, because the
    default suite would then lose that case.
    """
    held = list(cases)
    if unknown := [case for case in kept if case not in held]:
        raise ValueError(f"kept {unknown}: not in the cases {held}")
    return [case if case in kept else marked(case) for case in held]


def marked(case: Any) -> Any:
    """The case with the marker thorough."""
    values = case if isinstance(case, tuple) else (case,)
    return pytest.param(*values, marks=pytest.mark.thorough)
