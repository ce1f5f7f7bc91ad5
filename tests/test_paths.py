"""Every path that a user gives goes through user_path."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resnet_jax.errors import ConfigError, DataError
from resnet_jax.paths import user_path


@pytest.fixture(autouse=True)
def _home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("~", "{home}"),
        ("~/x", "{home}/x"),
        (Path("~/x"), "{home}/x"),
        ("~root/x", "/root/x"),
        ("x/~", "x/~"),
        ("./~/x", "{cwd}/~/x"),
        ("name", "name"),
        ("/x/../y", "/x/../y"),
        ("file:///x/a%20b", "/x/a b"),
        ("FILE://localhost/x", "/x"),
        (Path("file:///x"), "/x"),
        ("file:///a#1?b", "/a#1?b"),
        ("C:/x", "C:/x"),
        ("a:b", "a:b"),
        ("./gs:/x", "{cwd}/gs:/x"),
        (b"bytes", "bytes"),
    ],
)
def test_a_path_that_is_understood(text, path, tmp_path):
    expected = path.format(home=tmp_path / "home", cwd=tmp_path)
    assert user_path(text, "--out") == Path(expected)
    assert user_path(str(user_path(text, "--out")), "--out") == Path(expected)  # once is enough


@pytest.mark.parametrize("scheme", ["gs", "s3", "http", "https", "hdfs", "GS", "az", "abfss", "s3a", "dbfs", "file"])
@pytest.mark.parametrize("kind", [str, Path])
def test_a_url(scheme, kind):
    with pytest.raises(DataError, match=r"--out \w+:/+bucket/x is a URL: .* give a local path"):
        user_path(kind(f"{scheme}://bucket/x") if scheme != "file" else "file://bucket/x", "--out", DataError)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", "--out '' is empty"),
        ("  ", "--out '  ' is empty"),
        ("a\0b", "cannot hold a NUL"),
        ("a\nb", "line break"),
        ("~nobody-at-all/x", "there is no user nobody-at-all; give the path without ~"),
        ("s3://[x/y", "is a URL"),
        ("$HOME/x", "variables are not expanded here"),
        ("${HOME}", "variables are not expanded here"),
        (None, "--out None is not a path"),
        (3, "--out 3 is not a path"),
    ],
)
def test_a_path_that_is_refused(value, message):
    with pytest.raises(ConfigError) as caught:
        user_path(value, "--out")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.text(max_size=20))
def test_any_text_is_a_path_or_refused(text):
    try:
        path = user_path(text, "--out")
    except ConfigError as error:
        line = str(error)
    else:
        line = f"--out {path}"
        assert user_path(str(path), "--out") == path
    assert len(line.splitlines()) == 1
