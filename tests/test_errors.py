"""Messages of errors."""

import pytest

from resnet_jax.errors import one_line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "ValueError"),
        (" a b \n c", "a b"),
        ("a" * 200, "a" * 200),
        ("word " * 60, "word " * 39 + "..."),
        ("x" * 300, "x" * 196 + " ..."),
        ("key: " + "x" * 300, "key ..."),
    ],
)
def test_the_first_line_ends_after_a_whole_word(text, line):
    assert one_line(ValueError(text)) == line
    assert len(line) <= 200
