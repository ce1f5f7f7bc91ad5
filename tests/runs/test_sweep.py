"""A recipe over several seeds, as a person types it: second calls, interruptions, failures and invalid words."""

import json
import os
import signal
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import made
import pytest
from made import STEPS, SignalAt, final, kept, read_rows, snapshot
from PIL import Image

from resnet_jax import fit
from resnet_jax.cli import command
from resnet_jax.runs import load_recipe, sweep
from resnet_jax.runs.flags import changed
from resnet_jax.runs.sweep_file import half_interval
from resnet_jax.training.metrics import diverged

RECIPE = """
arch = "tiny"
dataset = "made"
epochs = 2
batch_size = 16
devices = 2
precision = "float32"
learning_rate = 0.05
momentum = 0.9
report = false
"""
HELPERS = Path(__file__).parents[1] / "helpers"


@pytest.fixture(autouse=True)
def _recipe(_made, monkeypatch, tmp_path, data_dir):
    """my.toml in the current folder."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    (tmp_path / "my.toml").write_text(RECIPE)


@pytest.fixture(scope="module")
def whole(data_dir, cache_dir, tmp_path_factory) -> Path:
    """A sweep of the seeds 0 and 1 that was not disturbed; not to be changed."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        made.install(patch)
        patch.setenv("XDG_CACHE_HOME", str(cache_dir))
        patch.setenv("TFDS_DATA_DIR", str(data_dir))
        patch.chdir(folder)
        Path("my.toml").write_text(RECIPE)
        assert swept("my.toml --seeds 2") == 0
    return folder / "sweeps" / "my"


def swept(words: str) -> int:
    """The exit code of the command."""
    return command(["sweep", *words.split()])


def record_in(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "sweep.json").read_text(encoding="utf-8"))


def without_seconds(record: dict[str, Any]) -> dict[str, Any]:
    runs = [{key: value for key, value in run.items() if key != "seconds"} for run in record["runs"]]
    return record | {"runs": runs}


def copied(folder: Path, out: Path) -> Path:
    """A copy of a sweep, which a test may change."""
    out.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cp", "-r", folder, out], check=True)
    return out


def test_the_file_has_the_last_epochs_of_the_runs(whole):
    record = record_in(whole)
    rows = [read_rows(whole / f"seed{seed}")[-1] for seed in (0, 1)]
    assert [run["test_accuracy"] for run in record["runs"]] == [row["test_accuracy"] for row in rows]
    assert [(run["seed"], run["epochs"], run["steps"]) for run in record["runs"]] == [(0, 2, 6), (1, 2, 6)]
    accuracies = [row["test_accuracy"] for row in rows]
    mean, half = statistics.fmean(accuracies), half_interval(accuracies)
    std = statistics.stdev(accuracies)
    assert record["test_accuracy"] == {"n": 2, "mean": mean, "std": std, "interval": [mean - half, mean + half]}
    assert record["validation_accuracy"] is None
    assert record["command"] == "resnet-jax sweep my.toml --seeds 2"
    assert record["parameters"] == 90_164
    assert record["runs"][0]["hardware"]["devices"].startswith("cpu: 2 x cpu, float32, ")
    for run, seed in zip(record["runs"], (0, 1), strict=True):
        seconds = sum(row["train_seconds"] + row["eval_seconds"] for row in read_rows(whole / f"seed{seed}"))
        assert run["seconds"] == pytest.approx(seconds, abs=1e-3)


def test_the_run_of_a_seed_is_that_of_train(whole, tmp_path):
    config = changed(load_recipe("my.toml"), {"seed": 1, "run_dir": tmp_path / "run"})
    fit(config)
    assert final(tmp_path / "run") == final(whole / "seed1")


def test_the_last_checkpoint_is_kept(whole):
    assert [kept(whole / f"seed{seed}") for seed in (0, 1)] == [[2 * STEPS]] * 2


def test_a_second_call_trains_what_is_left(whole, tmp_path, capsys):
    folder = copied(whole, tmp_path / "sweeps" / "my")
    before = snapshot(folder)
    assert swept("my.toml --seeds 2") == 0
    assert "to train" not in capsys.readouterr().out
    assert swept("my.toml --seeds 1 --data-dir elsewhere") == 0
    assert snapshot(folder) == before
    assert swept("my.toml --seeds 0,5") == 0
    record = record_in(folder)
    assert [run["seed"] for run in record["runs"]] == [0, 1, 5]
    assert record["runs"][:2] == record_in(whole)["runs"]
    assert record["test_accuracy"]["n"] == 3
    assert record["command"] == "resnet-jax sweep my.toml --seeds 0,1,5"
    out = capsys.readouterr().out
    assert "seed 5, 1 of 1 to train: sweeps/my/seed5\n" in out
    assert out.endswith("the sweep is in sweeps/my\n")


def test_the_file_is_made_again_from_the_runs(whole, tmp_path):
    folder = copied(whole, tmp_path / "sweeps" / "my")
    (folder / "sweep.json").unlink()
    assert swept("my.toml --seeds 2") == 0
    assert record_in(folder) == record_in(whole)


def fit_stopped_at(step: int, seed: int) -> Any:
    """fit, with a SIGTERM at a step of one seed's run."""

    def fit_with(config: Any, callbacks: Any = ()) -> Any:
        return fit(config, callbacks=[*callbacks, SignalAt(step)] if config.seed == seed else callbacks)

    return fit_with


def test_a_sweep_that_is_stopped_continues(whole, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(sweep, "fit", fit_stopped_at(4, seed=1))
        assert swept("my.toml --seeds 2 --dir ab") == 128 + signal.SIGTERM
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == (
        "stopped at step 4; the same command continues the sweep: resnet-jax sweep my.toml --seeds 2 --dir ab"
    )
    assert [run["seed"] for run in record_in(Path("ab"))["runs"]] == [0]
    assert swept("my.toml --seeds 2 --dir ab") == 0
    assert without_seconds(record_in(Path("ab"))) == without_seconds(record_in(whole))
    assert [final(Path("ab", f"seed{seed}")) for seed in (0, 1)] == [final(whole / f"seed{seed}") for seed in (0, 1)]


def test_ctrl_c_between_two_runs(monkeypatch, capsys):
    def interrupted(config: Any, callbacks: Any = ()) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep, "fit", interrupted)
    assert swept("my.toml --seeds 2") == 130
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "interrupted; the same command continues the sweep: resnet-jax sweep my.toml --seeds 2"


@pytest.mark.thorough
def test_a_sweep_that_is_killed_continues(whole, data_dir, cache_dir, tmp_path):
    """SIGKILL in the second epoch of the first run: it continues from the checkpoint of the first epoch."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    words = "my.toml --seeds 2 --dir killed"
    process = subprocess.Popen(
        [sys.executable, HELPERS / "run_made.py", "4", "sweep", *words.split()],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert "waiting\n" in process.stdout
    process.kill()
    process.wait()
    process.stdout.close()
    assert not Path("killed", "sweep.json").exists()
    assert swept(words) == 0
    assert without_seconds(record_in(Path("killed"))) == without_seconds(record_in(whole))
    assert final(Path("killed", "seed0")) == final(whole / "seed0")


def test_a_run_that_diverges_is_recorded(whole, monkeypatch, capsys):
    """The others go on; a second call trains nothing and says the same."""

    def fit_with(config: Any, callbacks: Any = ()) -> Any:
        if config.seed == 0:
            raise diverged("the loss is nan at or before step 3")
        return fit(config, callbacks=callbacks)

    with monkeypatch.context() as patch:
        patch.setattr(sweep, "fit", fit_with)
        assert swept("my.toml --seeds 2") == 1
    record = record_in(Path("sweeps/my"))
    assert record["runs"][0]["seed"] == 0
    assert record["runs"][0]["failed"] == "the loss is nan at or before step 3: training has diverged"
    assert record["test_accuracy"] == {
        "n": 1,
        "mean": record_in(whole)["runs"][1]["test_accuracy"],
        "std": None,
        "interval": None,
    }
    out = capsys.readouterr().out
    assert "failed runs: 1 of 2; the accuracies do not count them" in out
    assert "(n = 1): one run has no deviation and no interval" in out
    assert swept("my.toml --seeds 2") == 1
    assert record_in(Path("sweeps/my")) == record


def test_seeds_that_another_process_trained_meanwhile_stay(whole, tmp_path, monkeypatch):
    """Each process has read sweep.json before the other one wrote it."""
    folder = copied(whole, tmp_path / "sweeps" / "my")
    (folder / "sweep.json").unlink()

    def fit_with(config: Any, callbacks: Any = ()) -> Any:
        monkeypatch.setattr(sweep, "fit", fit)
        assert swept("my.toml --seeds 1,") == 0
        return fit(config, callbacks=callbacks)

    monkeypatch.setattr(sweep, "fit", fit_with)
    assert swept("my.toml --seeds 0,") == 0
    assert without_seconds(record_in(folder)) == without_seconds(record_in(whole))


@pytest.mark.thorough
def test_all_runs_diverge(capsys):
    assert swept("my.toml --seeds 1 --learning-rate 1e30") == 1
    record = record_in(Path("sweeps/my"))
    assert record["test_accuracy"] is None
    assert "failed" in record["runs"][0]
    assert record["flags"] == ["--learning-rate", "1e+30"]
    assert record["command"] == "resnet-jax sweep my.toml --seeds 1 --learning-rate 1e+30"
    assert "failed: " in capsys.readouterr().out


def test_json_alone_is_on_stdout(whole, tmp_path, capsys):
    folder = copied(whole, tmp_path / "sweeps" / "my")
    assert swept("my.toml --seeds 3 --json") == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == record_in(folder)
    assert "seed 2, 1 of 1 to train" in captured.err


def test_without_the_test_part(capsys):
    """To choose by validation accuracy: no row has a test accuracy."""
    assert swept("my.toml --seeds 1 --validation 8 --no-test") == 0
    record, (first, last) = record_in(Path("sweeps/my")), read_rows(Path("sweeps/my/seed0"))
    assert not {"test_accuracy", "test_loss"} & (first.keys() | last.keys())
    assert record["test_accuracy"] is None
    assert record["validation_accuracy"]["mean"] == last["validation_accuracy"]
    assert record["command"] == "resnet-jax sweep my.toml --seeds 1 --validation 8 --no-test"
    assert kept(Path("sweeps/my/seed0")) == [last["step"]]
    capsys.readouterr()
    assert swept("my.toml --seeds 1 --validation 8") == 2
    assert "--dir sweeps/my holds other runs than those without --no-test" in capsys.readouterr().err


def write_photos(folder: Path) -> None:
    """16 pictures in train/ and 2 in test/, of two classes; no val/."""
    for part, count in (("train", 8), ("test", 1)):
        for number in range(2 * count):
            path = folder / part / "ab"[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), 9 * number).save(path)


BAD = {
    "": "RECIPE is needed: a name in configs/",
    "qick": "unknown recipe 'qick': did you mean quick? choose one of ",
    "nowhere.toml": "RECIPE nowhere.toml: there is no such file",
    "my.toml --seeds 0": "--seeds 0: give 1 to 1000 seeds; 0, with a comma is one seed",
    "my.toml --seeds 1001": "--seeds 1001: give 1 to 1000 seeds",
    "my.toml --seeds -1": "--seeds '-1': give how many, such as 5, or different seeds with commas",
    "my.toml --seeds many": "--seeds 'many': give how many",
    "my.toml --seeds 1,,2": "--seeds '1,,2': give how many",
    "my.toml --seeds=": "--seeds '': give how many",
    "my.toml --seeds 3,1,3": "--seeds 3,1,3: 3 is given twice",
    "my.toml --seeds 4294967296,": "--seed 4294967296 is out of range",
    "my.toml --seed 3": "--seed: --seeds gives the seeds; leave it out",
    "my.toml --config quick": "--config: RECIPE names the recipe; leave it out",
    "my.toml --run-dir a": "--run-dir: --dir names the folder; leave it out",
    "my.toml --resume": "--resume: a second call continues the sweep; leave it out",
    "my.toml --override": "--override: the runs of a sweep have the same options; leave it out",
    "my.toml quick": "unexpected word quick",
    "my.toml --epochs 0": "--epochs 0 is out of range",
    "my.toml --lr 0.1": "did you mean --learning-rate?",
    "my.toml --nesterov --momentum 0": "--nesterov needs a momentum",
    "my.toml --no-test": "--no-test: the data has no validation part; add --validation 0.1",
    "my.toml --no-test --data-folder photos": "--no-test: the data has no validation part; add --validation 0.1",
    "my.toml --no-test --data-folder photos --flip-averaging": "--no-test: the data has no validation part; add",
    "my.toml --batch-size 53": "batch_size (--batch-size) 53 is more than the 52 training images",
    "my.toml --dir file": "--dir file: file is not a writable folder",
    "my.toml --dir file/sweep": "file is not a writable folder",
    "my.toml --dir full": "--dir full exists and holds no sweep; give another folder",
    "my.toml --dir link": "--dir link: link is a link to nowhere, which does not exist",
    "my.toml --dir gs://bucket": "--dir gs://bucket is a URL",
    "my.toml --dir torn": "torn/sweep.json: it does not hold a sweep",
    "my.toml --dir odd": "odd/sweep.json: its config is invalid",
    "my.toml --dir old --epochs 3": "--dir old holds runs with --epochs 2, not --epochs 3; give the same rec",
    "my.toml --dir old --flip": "--dir old holds runs with --no-flip, not --flip",
    "my.toml --dir interrupted --learning-rate 0.1": "--dir interrupted holds runs with --learning-rate 0.05, not --le",
}


@pytest.mark.parametrize("words", BAD)
def test_invalid_words_are_one_line_and_write_nothing(words, whole, tmp_path, capsys):
    Path("file").touch()
    Path("full").mkdir()
    Path("full/anything").touch()
    Path("link").symlink_to("nowhere")
    for name, text in (("torn", '{"runs": ['), ("odd", json.dumps(record_in(whole) | {"config": {"a": 1}}))):
        Path(name).mkdir()
        Path(name, "sweep.json").write_text(text)
    if "photos" in words:
        write_photos(Path("photos"))
    if "old" in words or "interrupted" in words:
        copied(whole, Path("old"))
        copied(whole, Path("interrupted"))
        Path("interrupted/sweep.json").unlink()
    before = snapshot(Path())
    assert swept(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("resnet-jax: ")
    assert BAD[words] in line
    assert snapshot(Path()) == before
