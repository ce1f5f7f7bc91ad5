"""Every path that a user gives goes through user_path."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resnet_jax.errors import ConfigError, DataError
from resnet_jax.paths import cache_home, check_file_writable, check_readable, check_writable, user_path


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


@pytest.mark.parametrize("home", ["", " "])
def test_an_empty_home_is_no_home(home, monkeypatch):
    """~ would be the root of the file system."""
    monkeypatch.setenv("HOME", home)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_home() is None
    for text in ("~", "~/x"):
        with pytest.raises(ConfigError, match="the home folder is unknown; give the path without ~"):
            user_path(text, "--out")
    assert user_path("~root/x", "--out") == Path("/root/x")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert cache_home() == Path("/caches/resnet_jax")


def test_what_can_be_written_to(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "closed").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "good").symlink_to(tmp_path)
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "closed" and access(path, mode))
    for path in ("new", "new/a/b", "good/new", "../new"):
        check_writable(tmp_path / path, "--out")
    for path, message in {
        "file": f"--out {tmp_path}/file: {tmp_path}/file is not a writable folder",
        "file/x": f"{tmp_path}/file is not a writable folder",
        "closed/x": f"{tmp_path}/closed is not a writable folder",
        "link": f"{tmp_path}/link is a link to nowhere, which does not exist",
        "link/x": f"{tmp_path}/link is a link to nowhere, which does not exist",
    }.items():
        with pytest.raises(DataError) as caught:
            check_writable(tmp_path / path, "--out", DataError)
        assert message in str(caught.value)
    check_file_writable(tmp_path / "new", "--out")
    check_file_writable(tmp_path / "file", "--out")
    for path, message in (("new/x", "new is not a writable"), ("closed/x", "closed is not a"), ("good", "is a folder")):
        with pytest.raises(ConfigError, match=message):
            check_file_writable(tmp_path / path, "--out")
    assert not (tmp_path / "new").exists()


def test_a_path_that_the_system_does_not_look_up(tmp_path, monkeypatch):
    """root may enter every folder, so os.stat is replaced for a closed one."""
    (tmp_path / "loop").symlink_to("loop")
    stat = os.stat

    def refuses(path, **options):
        if Path(path).parent.name == "closed":
            raise PermissionError(13, "Permission denied")
        return stat(path, **options)

    monkeypatch.setattr(os, "stat", refuses)
    check_readable(tmp_path / "nothing" / "there", "--out")
    for name, message in (("loop", "Too many levels of symbolic links"), ("closed/x", "Permission denied")):
        with pytest.raises(DataError, match=rf"--out {tmp_path}/{name}: {message}; give another path"):
            check_readable(tmp_path / name, "--out", DataError)
