"""The folder of a run: its name, and which run is resumed."""

import concurrent.futures
import datetime
import itertools
import os
from pathlib import Path

import made
import pytest

from resnet_jax.errors import CheckpointError, ConfigError
from resnet_jax.runs import Config, rundir
from resnet_jax.runs.rundir import CONFIG_FILE, METRICS_FILE, RUNS, Place, choose, hold, write_config

TINY = made.change(Config("tiny"), dataset="made")


class Stopped(datetime.datetime):
    """A clock that stands still."""

    @classmethod
    def now(cls, tz=None):
        return cls(2026, 1, 2, 3, 4, 5)


@pytest.fixture
def clock(monkeypatch) -> None:
    monkeypatch.setattr(rundir.datetime, "datetime", Stopped)


def make_run(name: str, seconds: float, config: Config = TINY, newest: str = CONFIG_FILE) -> Path:
    """A run in runs/ whose newest file is of that time."""
    path = RUNS / name
    (path / "checkpoints" / "3").mkdir(parents=True)
    write_config(path, config)
    (path / METRICS_FILE).touch()
    for file in (path / CONFIG_FILE, path / METRICS_FILE, path / "checkpoints" / "3"):
        os.utime(file, (seconds, seconds) if file == path / newest else (1, 1))
    return path


def resumed(config: Config) -> Path:
    return choose(made.change(config, resume=True)).path


# --- new runs


@pytest.mark.usefixtures("clock")
def test_runs_that_start_in_the_same_second_have_folders_of_their_own():
    """Issue 11, case 16: the second one ended with an error, or wrote into the first one's folder."""

    def start(_: int) -> tuple[str, bool]:
        place = choose(TINY)
        with hold(place.path, new=True, named=place.named) as path:
            return path.name, path.is_dir()

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        started = list(pool.map(start, range(8)))
    name = "tiny-made-2026-01-02-03-04-05"
    assert sorted(started) == [(name, True), *((f"{name}-{number}", True) for number in range(2, 9))]


def test_a_folder_that_another_run_takes_meanwhile():
    """Between the check and the lock: nothing of the other run is overwritten."""
    config = made.change(TINY, run_dir="run")
    place = choose(config)
    with hold(Path("run"), new=True):
        write_config(Path("run"), TINY)
    before = made.snapshot(Path())
    with (
        pytest.raises(ConfigError, match="--run-dir run exists and is not empty: add --resume"),
        hold(place.path, new=True),
    ):
        pass
    assert made.snapshot(Path()) == before


@pytest.mark.parametrize("left", [[], [".lock"], [".lock", "checkpoints/"], [".lock", "config.json.0a1b2c3d.part"]])
@pytest.mark.parametrize("resume", [False, "auto"])
def test_what_a_start_that_was_interrupted_leaves_is_no_run(left, resume):
    for name in ["", *left]:
        path = Path("run") / name
        path.mkdir() if name in ("", "checkpoints/") else path.touch()
    assert choose(made.change(TINY, run_dir="run", resume=resume)) == Place(Path("run"), False, True)


# --- which run is resumed


def test_the_newest_run_is_resumed():
    """Issue 11, case 16: it was the one whose name sorts last."""
    make_run("tiny-made-2026-01-02-03-04-05", 3)
    make_run("tiny-made-lr0.1", 2)
    make_run("zero", 9, made.change(TINY, dataset="mnist"))
    make_run("tiny-made-x-2026-01-02-03-04-05", 9, made.change(TINY, data_folder="made-x"))
    make_run("wide", 9, made.change(TINY, arch="tiny_wide"))
    assert resumed(TINY) == RUNS / "tiny-made-2026-01-02-03-04-05"
    for newest, time in zip((METRICS_FILE, "checkpoints/3", CONFIG_FILE), itertools.count(4), strict=False):
        run = make_run(f"experiment-{time}", time, newest=newest)
        assert resumed(TINY) == run


def test_a_run_whose_config_is_damaged_is_not_passed_over():
    make_run("tiny-made-a", 1)
    (make_run("tiny-made-b", 2) / CONFIG_FILE).write_text("{")
    with pytest.raises(CheckpointError, match=r"tiny-made-b/config.json: it does not hold a valid config"):
        resumed(TINY)


@pytest.mark.parametrize("run_dir", ["", "runs", "runs/c"])
def test_without_a_run_the_line_names_those_that_exist(run_dir):
    make_run("a", 2, made.change(TINY, dataset="mnist"))
    make_run("b", 1, made.change(TINY, arch="tiny_wide", run_dir="b"))
    where = f"in {run_dir}" if run_dir else "of tiny on made in runs/"
    others = "runs/a (tiny on mnist), runs/b (tiny_wide on made)"
    with pytest.raises(ConfigError) as caught:
        resumed(made.change(TINY, run_dir=run_dir))
    assert str(caught.value) == (
        f"--resume: there is no run {where}; leave --resume out to start one; "
        f"there is {others}: give one with --run-dir"
    )


def test_resume_auto_finds_a_run_or_starts_one():
    """Issue 11, case 17."""
    auto = made.change(TINY, resume="auto")
    assert not choose(auto).resumes
    run = make_run("tiny-made-a", 1)
    assert choose(auto) == Place(run, True, True)
    assert choose(made.change(auto, run_dir="other")) == Place(Path("other"), False, True)
    assert choose(made.change(auto, run_dir=run)) == Place(run, True, True)


@pytest.mark.parametrize("resume", [True, "auto"])
def test_a_run_without_its_config_is_never_started_anew(resume):
    run = make_run("a", 1)
    (run / CONFIG_FILE).unlink()
    with pytest.raises(ConfigError, match=r"runs/a has checkpoints and no config\.json; put that file back"):
        choose(made.change(TINY, resume=resume, run_dir=run))


# --- what an error leaves


def run_that_ends(path: Path, error: type[BaseException], content: dict[str, str], *, new: bool = True) -> None:
    """A run that makes these files, and then ends with this error."""
    with hold(path, new=new):
        write_config(path, TINY)
        for name, text in content.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_text(text)
        raise error


@pytest.mark.parametrize("exists", [False, True])
def test_a_new_run_that_ends_before_its_first_checkpoint_leaves_nothing(exists):
    """Neither its folder nor those above it; a folder that was there stays, and is empty again."""
    path = Path("a/b/run")
    if exists:
        (path / "checkpoints").mkdir(parents=True)
    with pytest.raises(ZeroDivisionError):
        run_that_ends(path, ZeroDivisionError, {METRICS_FILE: ""})
    assert [str(found) for found in sorted(Path().rglob("*"))] == ["a", "a/b", "a/b/run"][: 3 if exists else 0]


@pytest.mark.parametrize("kept", ["checkpoints/3/x", "notes.txt", METRICS_FILE])
def test_a_run_that_holds_anything_is_kept(kept):
    with pytest.raises(ZeroDivisionError):
        run_that_ends(Path("run"), ZeroDivisionError, {kept: "{}"})
    assert Path("run", kept).exists()
    assert Path("run", CONFIG_FILE).exists()


def test_an_interruption_and_a_resumed_run_leave_the_folder():
    for new, error in ((True, KeyboardInterrupt), (False, ZeroDivisionError)):
        with pytest.raises(error):
            run_that_ends(Path(error.__name__), error, {}, new=new)
        assert Path(error.__name__, CONFIG_FILE).exists()


def test_a_new_run_that_fails_before_its_first_checkpoint_leaves_no_event_files(tmp_path):
    def fail():
        with hold(tmp_path / "run", new=True, named=True) as run_dir:
            (run_dir / "tensorboard").mkdir()
            (run_dir / "tensorboard" / "events").write_text("first")
            raise ValueError("out of memory")

    with pytest.raises(ValueError, match="out of memory"):
        fail()
    assert not (tmp_path / "run").exists()
