"""The command: what it prints and writes, and that whatever cannot be is one line on stderr and exit code 2."""

import concurrent.futures
import os
import runpy
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import made
import numpy as np
import pytest

import resnet_jax
from resnet_jax import cli, runs
from resnet_jax.data import builders
from resnet_jax.runs import Stopped, rundir
from resnet_jax.versions import versions

ROOT = Path(__file__).parents[1]
GOOD = (
    "--arch tiny --dataset made --batch-size 16 --devices 2 --epochs 2 --precision float32 "
    "--learning-rate 0.01 --schedule constant --warmup-epochs 0 --no-report"
)


@pytest.fixture(scope="session")
def made_dir(tmp_path_factory) -> Path:
    """Holds data, the made data set, and cache, the compiled programs."""
    folder = tmp_path_factory.mktemp("made")
    builders.prepare(made.make_spec(), folder / "data", made.make_splits())
    return folder


@pytest.fixture(autouse=True)
def _made(monkeypatch, tmp_path, made_dir):
    made.install(monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(made_dir / "cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(made_dir / "data"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def finished(made_dir) -> Path:
    """A run of two epochs; not to be changed."""
    environment = {"XDG_CACHE_HOME": str(made_dir / "cache"), "TFDS_DATA_DIR": str(made_dir / "data")}
    with pytest.MonkeyPatch.context() as patch:
        made.install(patch)
        for name, value in environment.items():
            patch.setenv(name, value)
        assert cli.main([*GOOD.split(), "--run-dir", str(made_dir / "finished")]) == 0
    return made_dir / "finished"


def process(*command: str | Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}
    return subprocess.run([sys.executable, *map(str, command)], env=environment, capture_output=True, text=True)


# --- bad input

IN_A_FOLDER_WITH = {
    "file": "",
    "full/anything": "",
    "empty/": "",
    "run/config.json": "{}",
    "lost/checkpoints/3": "",
    "syntax.toml": "epochs =",
    "key.toml": "epohs = 3",
    "empty.toml": "data_dir = ''",
    "type.toml": "epochs = 'three'",
    "value.toml": "arch = 'resnet81'",
}

BAD = {
    "--arch resnet81": "unknown architecture 'resnet81': did you mean resnet18? choose one of airbench, ",
    "--config quik": "unknown recipe 'quik': did you mean quick? choose one of airbench, default, ",
    "--config nowhere.toml": "--config nowhere.toml: there is no such file",
    "--dataset fashion-mnist": "unknown data set 'fashion-mnist': did you mean fashion_mnist? choose one of cifar10, ",
    "--precision float23": "unknown precision 'float23': did you mean float32? choose one of auto, ",
    "--lerning-rate 1": "unknown flag --lerning-rate: did you mean --learning-rate?",
    "--lr 0.1": "unknown flag --lr: did you mean --learning-rate?",
    "--flip True": "--flip True: it takes no value; write --flip or --no-flip alone",
    "--epochs abc": "--epochs abc: give a whole number",
    "--epochs -1": "--epochs -1 is out of range: it must be finite and at least 1",
    "--momentum 1.5": "--momentum 1.5 must be below 1",
    "--learning-rate nan": "--learning-rate nan is out of range",
    "--grow 3": "--grow '3' is not EPOCH:STAGE, or several separated by commas, such as 5:3,10:4",
    "--grow 2:2,": "--grow '2:2,' is not EPOCH:STAGE",
    "--grow 2:-1": "--grow '2:-1' is not EPOCH:STAGE",
    "--grow 1:2": "--grow 1:2: blocks are added at epoch 2 to --epochs 2",
    "--grow 3:2": "--grow 3:2: blocks are added at epoch 2 to --epochs 2",
    "--grow 2:3": "--grow 2:3: tiny has no stage 3; use 1 to 2",
    "--grow 2:0": "--grow 2:0: tiny has no stage 0",
    "--epochs 4 --grow 3:1,2:1": "--grow 3:1,2:1: the epochs are out of order; give the earliest first",
    "--batch-size 0": "--batch-size 0 is out of range: it must be finite and at least 1",
    "--batch-size 54": "batch_size (--batch-size) 54 is more than the 52 training images; use at most 52",
    "--batch-size 18 --train-images 16": "batch_size (--batch-size) 18 is more than the 16 training images",
    "--batch-size 15": (
        "batch_size (--batch-size) 15 cannot be split over 2 devices; use 14 or 16, or devices (--devices) 1"
    ),
    "--batch-size 1": "batch_size (--batch-size) 1 cannot be split over 2 devices; use 2, or devices (--devices) 1",
    "--batch-size 20 --devices 8": (
        "batch_size (--batch-size) 20 cannot be split over 8 devices; use 16 or 24, or devices (--devices) 5"
    ),
    "--devices 9": "devices (--devices) 9: this process has 8 (cpu); use 1 to 8, or 0 for all",
    "--image-size 4": 'image size 4x4 is too small: a stage would halve a single pixel; use at least 5x5, or stem "sma',
    "--image-size 100000": "--image-size 100000 must be at most 4096",
    "--arch resnet18 --image-size 16": "image size 16x16 is too small",
    "--run-dir file": "--run-dir file: file is not a writable folder",
    "--run-dir file/run": "file is not a writable folder",
    "--run-dir full": "--run-dir full exists and is not empty: give another folder",
    "--run-dir run": "--run-dir run exists and is not empty: add --resume to continue, or give another folder",
    "--run-dir full --resume": "--resume: there is no run in full; leave --resume out to start one; there is run: give",
    "--run-dir full --resume auto": "--run-dir full exists and is not empty: give another folder",
    "--run-dir lost --resume": "--run-dir lost has checkpoints and no config.json; put that file back, or give another",
    "--run-dir lost --resume auto": "--run-dir lost has checkpoints and no config.json",
    "--run-dir run --resume auto": "run/config.json: it does not hold a valid config",
    "--run-dir empty --resume": "--resume: there is no run in empty",
    "--run-dir nowhere --resume": "--resume: there is no run in nowhere",
    "--run-dir run --resume": "run/config.json: it does not hold a valid config",
    "--resume": "--resume: there is no run of tiny on made in runs/; leave --resume out to start one",
    f"--run-dir {'x' * 300}": "File name too long; give another path",
    "--run-dir /proc/run": "--run-dir /proc/run",
    "--data-dir file": "the data folder (--data-dir) file: file is not a writable folder",
    "--data-dir new --source-dir nowhere": "the data folder nowhere is not a folder",
    "--run-dir link": "--run-dir link: link is a link to nowhere, which does not exist; give another path",
    "--run-dir link/run": "link is a link to nowhere, which does not exist",
    "--run-dir loop": "--run-dir loop: Too many levels of symbolic links",
    "--run-dir=": "--run-dir '' is empty; give a path",
    "--data-dir=": "--data-dir '' is empty; give a path",
    "--source-dir=": "--source-dir '' is empty; give a path",
    "--data-folder=": "--data-folder '' is empty; give a path",
    "--pretrained=": "--pretrained '' is empty; give a path",
    "--config=": "--config '' is empty; give a path",
    "--config empty.toml": "empty.toml: data_dir (--data-dir) '' is empty; give a path",
    "--crop-padding 8": "--crop-padding 8: the images have 8x8 pixels; use at most 7",
    "--augment eraser": "--augment eraser: unknown augmentation 'eraser': did you mean erasing?",
    "--augment erasing:probability=2": "--augment erasing:probability=2: erasing: probability 2 is out of range",
    "--augment crop:padding=8": "augment (--augment): crop by 8 pixels: the images have 8x8; use less than 8",
    "--validation 1": "--validation 1: give a share below 1, such as 0.1, or a whole number of images from 2",
    "--validation 1.0": "--validation 1: give a share below 1",
    "--width 0.0001": "width 0.0001 leaves less than 1 of the 16 channels of a layer of tiny; use at least 0.0625",
    "--width 100000": "the network is too large: its weights and gradients take 6,427,768.1 GiB, and this cpu has",
    "--config syntax.toml": "syntax.toml: not a valid TOML file",
    "--config key.toml": "key.toml: unknown key epohs: did you mean --epochs?",
    "--config type.toml": "type.toml: epochs (--epochs) three: give a whole number",
}


def refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr, after a note for each flag that is given twice. Nothing is compiled or written."""
    before = made.snapshot(Path())
    with made.compilations() as programs:
        assert cli.main(argv) == 2
    assert not programs
    assert made.snapshot(Path()) == before
    *notes, line = capsys.readouterr().err.splitlines()
    assert all(note.endswith("is given twice: the last value counts") for note in notes)
    assert line.startswith("train.py: ")
    return line


@pytest.fixture
def folder(tmp_path) -> None:
    """The current folder holds IN_A_FOLDER_WITH."""
    for name, content in IN_A_FOLDER_WITH.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir()
        else:
            path.write_text(content)
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("flags", BAD)
def test_bad_input(capsys, flags):
    assert BAD[flags] in refused([*GOOD.split(), *flags.split()], capsys)


@pytest.mark.usefixtures("folder")
def test_a_recipe_with_a_name_that_is_unknown(capsys):
    assert "unknown architecture 'resnet81'" in refused(["--config", "value.toml"], capsys)


def test_a_folder_that_cannot_be_written_to(capsys, monkeypatch, tmp_path):
    """Said by the operating system: to root, nothing here is closed."""
    (tmp_path / "closed").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "closed")
    for run_dir in ("closed", "closed/run", "closed/a/b"):
        line = refused([*GOOD.split(), "--run-dir", run_dir], capsys)
        assert "closed is not a writable folder; give another one" in line


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--arch tiny_wide", "has --arch tiny, not tiny_wide; leave --arch out"),
        ("--arch resnet18 --image-size 32", "has --arch tiny, not resnet18"),
        ("--dataset fashion_mnist --image-size 32", "has --dataset made, not fashion_mnist"),
        ("--seed 7", "has --seed 0, not 7"),
        ("--config resnet18", "has --arch tiny, not resnet18"),
        ("--arch resnet18", "has --arch tiny, not resnet18"),  # whose images would be too small
        ("--image-size 4", "has --image-size 0, not 4"),
        ("--grow 2:2", "has --grow '', not 2:2; leave --grow out"),
    ],
)
def test_a_folder_that_belongs_to_another_run(capsys, finished, flags, message):
    before = made.snapshot(finished)
    line = refused(["--resume", "--run-dir", str(finished), *flags.split()], capsys)
    assert f"the run in {finished} {message}" in line
    assert made.snapshot(finished) == before


def test_fewer_epochs_than_the_run_has_begun(capsys, finished):
    """--override says what it changes after the check, not before the error."""
    assert cli.main(["--resume", "--run-dir", str(finished), "--override", "--epochs", "1"]) == 2
    out, err = capsys.readouterr()
    assert err == "train.py: --epochs 1: the run has begun epoch 2; give at least 2\n"
    assert "--override changes" not in out


def test_a_folder_that_another_process_trains_into(capsys, made_dir, tmp_path):
    with rundir.hold(tmp_path / "run"):
        rundir.write_config(tmp_path / "run", made.make_config(made_dir / "data", tmp_path / "run"))
        before = made.snapshot(tmp_path)
        with made.compilations() as programs:
            assert cli.main(["--run-dir", "run", "--resume"]) == 2
        assert (made.snapshot(tmp_path), programs) == (before, [])
    *notes, line = capsys.readouterr().err.splitlines()
    assert all(note.endswith("is given twice: the last value counts") for note in notes)
    assert line == "train.py: run: another process is training into this folder; wait for it or stop it"


def test_a_damaged_checkpoint(capsys, finished, tmp_path):
    """The meta of each one is empty: the line names the latest. No run is started from step 0."""
    latest = max((finished / "checkpoints").iterdir(), key=lambda path: int(path.name))
    copy = tmp_path / "run"
    for name, content in made.snapshot(finished).items():
        path = copy / Path(name).relative_to(finished)
        if content is None:
            path.mkdir(parents=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"" if "meta" in Path(name).parts else content)
    assert cli.main(["--resume", "--run-dir", str(copy), "--epochs", "3"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"train.py: {copy}/checkpoints/{latest.name}: the checkpoint is damaged")
    assert "; the run has no good one (damaged: " in line


# --- the ways out


def test_a_run_and_its_resumption(capsys, tmp_path):
    """--run-dir and --epochs are all that a resumption has to say; the rest is the run's own."""
    assert cli.main([*GOOD.split(), "--momentum", "0.9", "--schedule", "step", "--decay-epochs", "1"]) == 0
    out = capsys.readouterr().out.splitlines()
    (run_dir,) = (tmp_path / "runs").iterdir()
    assert out[-1].startswith("test accuracy 0.")
    assert out[-1].endswith(f"; the run is in {run_dir.relative_to(tmp_path)}")
    assert cli.main(["--arch", "tiny", "--dataset", "made", "--resume", "--epochs", "3"]) == 0
    assert cli.main(["--resume", "--run-dir", str(run_dir), "--image-size", "0", "--decay-epochs", "1"]) == 0
    assert [row["epoch"] for row in made.read_rows(run_dir)] == [1, 2, 3]
    assert made.read_rows(run_dir)[-1]["learning_rate"] == pytest.approx(0.001)


def test_a_job_that_is_always_started_with_the_same_line(capsys, tmp_path):
    """Issue 11, case 17: --resume was refused at the first start."""
    flags = [*GOOD.split(), "--epochs", "1", "--resume", "auto", "--run-dir", "run"]
    assert cli.main(flags) == 0
    assert "--resume auto: there is no run to continue, so this one starts" in capsys.readouterr().out
    assert cli.main(flags) == 0
    assert "resumed from step 3, after 1 of 1 epochs; nothing is left to do" in capsys.readouterr().out
    line = refused([*flags, "--learning-rate", "0.1"], capsys)
    assert "the run in run has --learning-rate 0.01, not 0.1; leave --learning-rate out, add --override to ch" in line
    assert cli.main([*flags, "--learning-rate", "0.1", "--override", "--epochs", "2"]) == 0
    assert [row["learning_rate"] for row in made.read_rows(tmp_path / "run")] == pytest.approx([0.01, 0.1])


def test_a_job_whose_flags_make_a_value_of_its_recipe_useless(capsys, tmp_path):
    """The value is left out at the first start, and at the second one too."""
    (tmp_path / "own.toml").write_text("decay-epochs = [1.0]\nschedule = 'step'\n")
    flags = [*GOOD.split(), "--epochs", "1", "--config", "own.toml", "--schedule", "constant", "--resume", "auto"]
    for says in ("so this one starts", "nothing is left to do"):
        assert cli.main([*flags, "--run-dir", "run"]) == 0
        assert says in capsys.readouterr().out


@pytest.mark.thorough
def test_what_is_said_again_of_a_run_is_not_held_against_it(capsys, tmp_path):
    """Flags that only the run's own others make possible: small images, decay epochs."""
    flags = [*GOOD.split(), "--image-size", "6", "--schedule", "step", "--decay-epochs", "1", "--run-dir", "run"]
    assert cli.main(flags) == 0
    for again in (["--image-size", "6"], ["--decay-epochs", "1"], flags):
        assert cli.main(["--resume", "--run-dir", "run", *again]) == 0
    assert "nothing is left to do" in capsys.readouterr().out


def test_the_exit_code_of_a_signal(capsys, monkeypatch):
    def stop(config, callbacks):
        raise Stopped(signal.SIGTERM, Path("runs/x"), 7)

    monkeypatch.setattr(runs, "fit", stop)
    assert cli.main([]) == 143
    assert capsys.readouterr().err == "stopped at step 7; continue with --resume --run-dir runs/x\n"


def test_a_keyboard_interrupt(capsys, monkeypatch):
    def interrupt(config, callbacks):
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "fit", interrupt)
    assert cli.main([]) == 130
    assert capsys.readouterr().err == "train.py: interrupted\n"


def test_what_is_no_mistake_of_the_users_is_not_hidden(monkeypatch):
    def fail(config, callbacks):
        raise ZeroDivisionError

    monkeypatch.setattr(runs, "fit", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main([])


# --- as a process


def test_the_process_on_the_made_data_set(tmp_path):
    run = process(ROOT / "tests" / "helpers" / "run_made.py", "-1", *shlex.split(GOOD), "--run-dir", "run")
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    starts = ["made: 52 training and 37 test", "tiny on cpu: 2 x cpu", "epoch 1/2: ", "epoch 2/2: ", "test accuracy "]
    shown = [line for line in lines if not line.startswith("first step")]
    for line, start in zip(shown, starts, strict=True):
        assert line.startswith(start)
    assert "Traceback" not in run.stderr
    rows = made.read_rows(tmp_path / "run")
    assert lines[-1] == f"test accuracy {rows[-1]['test_accuracy']:.4f}; the run is in run"
    probabilities = resnet_jax.load(tmp_path / "run")(made.make_splits().test.images)
    accuracy = (probabilities.argmax(1) == made.make_splits().test.labels).mean()
    assert accuracy == max(row["test_accuracy"] for row in rows)


def test_the_versions(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert not ended.value.code
    assert capsys.readouterr().out == f"{versions()}\n"


@pytest.mark.parametrize("command", [[ROOT / "train.py"], ["-m", "resnet_jax"]], ids=["train.py", "-m"])
def test_the_process_says_no_in_one_line(command, tmp_path):
    run = process(*command, "--arch", "resnet81")
    name = "train.py" if len(command) == 1 else "python -m resnet_jax"
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith(f"{name}: unknown architecture 'resnet81': did you mean resnet18?")
    assert run.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_process_where_stdout_is_not_utf_8(monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    run = process(ROOT / "train.py", "--epochs", "abc")
    assert run.returncode == 2
    assert run.stderr.startswith("train.py: --epochs abc: give a whole number")
    assert run.stderr.count("\n") == 1


def test_a_command_in_a_thread():
    """Where no handler of signals can be set."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
        assert pool.submit(cli.command, ["summary", "resnet20"]).result() == 0


def test_a_signal_that_is_ignored_stays_so(monkeypatch):
    seen = []
    monkeypatch.setattr("resnet_jax.cli.summary.summary", lambda *_: seen.append(signal.getsignal(signal.SIGTERM)))
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        assert cli.command(["summary"]) == 0
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [signal.SIG_IGN]


def test_an_output_that_nobody_reads():
    """As after `| head -1`: no traceback."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "resnet_jax", "summary", "resnet20"]
    run = subprocess.run(command, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (run.returncode, run.stderr) == (128 + signal.SIGPIPE, "")


def test_help(tmp_path):
    run = process(ROOT / "train.py", "--help")
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.startswith("usage: train.py")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "tunables", "enabled", "starts_over"),
    [
        ([str(ROOT / "train.py"), "--epochs", "1"], None, "always [madvise] never", True),
        ([str(ROOT / "train.py")], "", "always [madvise] never", False),
        ([str(ROOT / "train.py")], None, "[always] madvise never", False),
        ([str(ROOT / "train.py")], None, None, False),
        (["-X", "resnet_jax_pages", str(ROOT / "train.py")], None, "always [madvise] never", False),
        (["-m", "ipykernel_launcher"], None, "always [madvise] never", False),
    ],
    ids=["asked", "tunables of one's own", "pages for all", "no Linux", "started over", "in a notebook"],
)
def test_large_pages(words, tunables, enabled, starts_over, monkeypatch, tmp_path):
    """train.py starts Python over, once, with the same words, and only where it is what Python was started with."""
    module = runpy.run_path(str(ROOT / "train.py"))
    pages, started = tmp_path / "enabled", []
    if enabled:
        pages.write_text(enabled)
    monkeypatch.setitem(module["use_large_pages"].__globals__, "PAGES", pages)
    monkeypatch.setattr(sys, "orig_argv", ["python", *words])
    monkeypatch.setattr(sys, "_xoptions", {"resnet_jax_pages": True} if "-X" in words else {})
    monkeypatch.setattr(sys, "gettrace", lambda: None)  # a coverage tool's
    monkeypatch.setattr(os, "execve", lambda *call: started.append(call))
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    if tunables is not None:
        monkeypatch.setenv("GLIBC_TUNABLES", tunables)
    module["use_large_pages"]()
    assert len(started) == starts_over
    for program, argv, environment in started:
        assert (program, argv) == (sys.executable, [sys.executable, "-X", "resnet_jax_pages", *words])
        assert environment == os.environ | {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


@pytest.mark.real_data
def test_the_process_on_fashion_mnist(monkeypatch, tmp_path):
    """A few steps of the quick recipe; the images that it is given are the real ones."""
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("XLA_FLAGS", "")
    flags = "--config quick --train-images 256 --test-images 128 --epochs 2 --warmup-epochs 1 --run-dir run"
    run = process(ROOT / "train.py", *flags.split())
    assert run.returncode == 0, run.stderr
    assert "fashion_mnist: 60000 training and 10000 test images" in run.stdout
    assert [row["step"] for row in made.read_rows(tmp_path / "run")] == [2, 4]
    predict = resnet_jax.load(tmp_path / "run")
    assert predict.class_names[9] == "Ankle boot"
    assert predict(np.zeros((3, 28, 28), np.uint8)).shape == (3, 10)
    again = process(ROOT / "train.py", "--resume", "--run-dir", "run", "--epochs", "3")
    assert again.returncode == 0, again.stderr
    assert [row["step"] for row in made.read_rows(tmp_path / "run")] == [2, 4, 6]
