"""The types of numbers that a caller passes."""

import math
from typing import Any

import numpy as np
import pytest
from jax import numpy as jnp

from resnet_jax.arguments import real, shown, truth, whole
from resnet_jax.errors import ConfigError, InteropError


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), np.array(3), jnp.int32(3)])
def test_a_number_in_every_form(value):
    assert (whole("n", value), type(whole("n", value))) == (3, int)
    assert (real("n", value), type(real("n", value))) == (3.0, float)


@pytest.mark.parametrize("value", [True, np.bool_(True), np.array(True)])
def test_a_truth_in_every_form(value):
    assert truth("n", value) is True
    for check in (whole, real):
        with pytest.raises(ConfigError, match=r"^n .*: give a"):
            check("n", value)


@pytest.mark.parametrize("value", ["3", None, [3], 3j, math.nan, 3.0, {}, np.zeros(2)])
def test_what_is_no_whole_number(value: Any):
    with pytest.raises(InteropError, match=r"^n .*: give a whole number") as caught:
        whole("n", value, error=InteropError)
    assert str(caught.value).endswith("such as 3") == (value == 3.0 if isinstance(value, float) else False)


def test_bounds():
    assert whole("n", 1, 1) == 1
    with pytest.raises(ConfigError, match=r"^n 0 must be at least 1$"):
        whole("n", 0, 1)
    with pytest.raises(ConfigError, match="is out of range"):
        real("n", 10**400)


def test_a_value_in_a_message_is_one_short_line():
    assert shown("text") == "text"
    assert shown("a\nb") == repr("a\nb")
    assert shown("") == "''"
    assert len(shown(list(range(1000)))) == 80
