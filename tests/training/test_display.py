"""What a fit shows: lines in a log file, a bar in a terminal, a bar in a notebook."""

import re
import sys
import threading
import types

import nbformat
import pytest
from nbclient import NotebookClient
from tqdm import tqdm
from watched import Clock, Terminal, make_loop, play

from resnet_jax.training import bars, display
from resnet_jax.training.display import EpochLines, Forecast, ProgressBar, duration


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(display, "time", clock)
    return clock


def use_terminal(monkeypatch):
    """Make stdout and stderr one terminal of 100 columns, in which the bar is drawn at each step."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    drawn = type("Drawn", (bars.bar_class(),), {"__init__": always_drawn})
    monkeypatch.setattr(display, "bar_class", lambda: drawn)
    return terminal


def always_drawn(self, *args, **options):
    bars.bar_class().__init__(self, *args, **options | {"mininterval": 0, "dynamic_ncols": False, "ncols": 100})


# --- no terminal


def test_a_log_file_gets_whole_lines(clock, capsys):
    """100 steps of 1.5 s, evaluations of 10 s: a line every 30 s, from 30 s after the forecast."""
    play(make_loop(steps=100), [ProgressBar(), EpochLines()], clock, step=1.5, evaluation=10.0)
    out, err = capsys.readouterr()
    assert err == ""
    assert out.splitlines() == [
        "epoch 1/2: 270 of 1,000 images, loss 0.5000, accuracy 0.5000, 7 images/s, 4 min 24 s left",
        "epoch 1/2: 470 of 1,000 images, loss 0.5000, accuracy 0.5000, 7 images/s, 3 min 54 s left",
        "epoch 1/2: 670 of 1,000 images, loss 0.5000, accuracy 0.5000, 7 images/s, 3 min 24 s left",
        "epoch 1/2: 870 of 1,000 images, loss 0.5000, accuracy 0.5000, 7 images/s, 2 min 54 s left",
        "epoch 1/2: train loss 0.5000 accuracy 0.5000, test loss 0.4000 accuracy 0.6000 (18 of 30), 7 images/s, "
        "3 min 30 s",
        "epoch 2/2: 210 of 1,000 images, loss 0.5000, accuracy 0.5000, 7 images/s, 2 min 10 s left",
        "epoch 2/2: 410 of 1,000 images, loss 0.5000, accuracy 0.5000, 7 images/s, 1 min 40 s left",
        "epoch 2/2: 610 of 1,000 images, loss 0.5000, accuracy 0.5000, 7 images/s, 1 min 10 s left",
        "epoch 2/2: 810 of 1,000 images, loss 0.5000, accuracy 0.5000, 7 images/s, 40 s left",
        "epoch 2/2: train loss 0.5000 accuracy 0.5000, test loss 0.4000 accuracy 0.6000 (18 of 30), 7 images/s, "
        "2 min 40 s",
    ]


@pytest.mark.parametrize(("step", "lines"), [(0.25, 0), (9.0, 9), (72.0, 19)])
def test_how_many_lines_an_epoch_has(step, lines, clock, capsys):
    """Epochs of 25 s, 15 min and 2 h: none below 30 s, about ten, and one in at least 5 min."""
    loop = make_loop(steps=100, epochs=4)
    play(loop, [ProgressBar()], clock, step=step, evaluation=1.0)
    assert len(re.findall("^epoch 4/4: ", capsys.readouterr().out, re.MULTILINE)) == lines


def test_the_forecast_comes_first(clock, capsys):
    """Steps of a minute: no line of progress repeats what the forecast says."""
    loop = make_loop(steps=20, epochs=1)
    loop.devices = [types.SimpleNamespace(platform="cpu")]
    play(loop, [ProgressBar(), Forecast()], clock, step=60.0, evaluation=10.0)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        "first step after 110.0 s, compilation included",
        "no accelerator: on this CPU an epoch takes about 20 min 0 s and the rest of the run 14 min 0 s, "
        "without evaluation",
    ]
    assert lines[2].startswith("epoch 1/1: 90 of 200 images, ")
    assert len(lines) == 2 + 6


@pytest.mark.parametrize(
    ("steps", "epochs", "epoch", "left"),
    [
        # 14 steps at 4x4 pixels, and then 20 at 8x8, which take four times as long
        (20, 2, "an epoch at 4x4 pixels takes about 20 min 0 s", "1 h 34 min"),
        # the sixth step is the first of another size and does not count, so the eighth tells
        (5, 4, "an epoch takes about 5 min 0 s", "13 min 0 s"),
    ],
    ids=["in the first size", "after a change of size"],
)
def test_the_forecast_with_sizes(steps, epochs, epoch, left, clock, capsys):
    """Steps of a minute; 4x4 pixels in the first epoch, and 8x8, the evaluation's size, from the second on."""
    loop = make_loop(steps=steps, epochs=epochs, evaluated=8, sizes=((1, (4, 4)), (2, (8, 8))))
    loop.devices = [types.SimpleNamespace(platform="cpu")]
    play(loop, [Forecast()], clock, step=60.0, evaluation=10.0)
    _, line = capsys.readouterr().out.splitlines()
    assert line == f"no accelerator: on this CPU {epoch} and the rest of the run {left}, without evaluation"


def test_durations():
    assert [duration(s) for s in (0, 59.4, 59.6, 3599, 3600, 12000)] == [
        "0 s",
        "59 s",
        "1 min 0 s",
        "59 min 59 s",
        "1 h 0 min",
        "3 h 20 min",
    ]


# --- a terminal


class Prints:
    """A user's callback: a whole line, a line in two parts, a line of tqdm, and a line between epochs."""

    def on_step_end(self, loop):
        if loop.step == 4:
            print("hello", loop.step)
        if loop.step == 5:
            print("one ", end="")
        if loop.step == 6:
            print("line")
            tqdm.write("by tqdm")

    def on_epoch_end(self, loop):
        print("between", loop.epoch)


def test_a_terminal_gets_a_bar_with_the_time_left(clock, monkeypatch):
    terminal = use_terminal(monkeypatch)
    play(make_loop(steps=100), [ProgressBar(), EpochLines()], clock, step=1.5, evaluation=10.0)
    shown = [re.sub(r"%\|.*\|", "%||", line) for line in re.split("[\r\n]", terminal.getvalue())]
    assert "epoch 1/2:  50%|| 3 min 50 s left, loss 0.5000, accuracy 0.5000, 7 images/s" in shown
    assert "epoch 2/2: 100%|| 12 s left, loss 0.5000, accuracy 0.5000, 7 images/s" in shown
    assert max(len(line) for line in shown) <= 100 + len(EPOCH_LINE)
    assert [line[:30] for line in terminal.screen()] == [
        "epoch 1/2: train loss 0.5000 a",
        "epoch 2/2: train loss 0.5000 a",
        "",
    ]


EPOCH_LINE = "epoch 1/2: train loss 0.5000 accuracy 0.5000, test loss 0.4000 accuracy 0.6000 (18 of 30)"


def test_what_callbacks_print_stays_whole(clock, monkeypatch):
    terminal = use_terminal(monkeypatch)
    play(make_loop(steps=8, epochs=1), [Prints(), ProgressBar()], clock, step=1.0, evaluation=0.0)
    assert terminal.screen() == ["hello 4", "one line", "by tqdm", "between 1", ""]
    assert sys.stdout is terminal


def test_stdout_is_put_back_after_an_error(clock, monkeypatch):
    terminal = use_terminal(monkeypatch)

    class Broken:
        def on_step_end(self, loop):
            if loop.step == 5:
                print("begun", end="")
                raise KeyError

    bar = ProgressBar()
    loop = make_loop(steps=8)
    with pytest.raises(Exception, match="KeyError"):
        play(loop, [bar, Broken()], clock, step=1.0, evaluation=0.0)
    bar.on_fit_end(loop)
    assert sys.stdout is terminal
    assert terminal.screen() == ["begun"]


def test_a_stdout_that_someone_else_has_replaced_stays(clock, monkeypatch):
    use_terminal(monkeypatch)
    other = Terminal()

    class Replaces:
        def on_step_end(self, loop):
            if loop.step == 3:
                sys.stdout = other

    play(make_loop(steps=8, epochs=1), [ProgressBar(), Replaces()], clock, step=1.0, evaluation=0.0)
    assert sys.stdout is other


def test_a_file_as_stdout_is_left_alone(clock, monkeypatch, tmp_path):
    """python train.py > log: the bar is in the terminal, the log has the lines of the epochs."""
    terminal = use_terminal(monkeypatch)
    with (tmp_path / "log").open("w") as log:
        monkeypatch.setattr(sys, "stdout", log)
        play(make_loop(steps=8), [ProgressBar(), EpochLines(), Prints()], clock, step=1.0, evaluation=0.0)
        assert sys.stdout is log
    assert (tmp_path / "log").read_text().count("\n") == 2 * 2 + 3
    assert "epoch 1/2:  50%|" in terminal.getvalue()


def test_a_bar_starts_no_thread():
    before = set(threading.enumerate())
    with bars.bar_class()(total=3) as bar:
        bar.update(1)
        assert set(threading.enumerate()) == before


# --- a notebook

CELL = """
import threading, warnings
warnings.simplefilter("error")
import sys
sys.path[:0] = {path!r}
from watched import Clock, make_loop, play
from resnet_jax.training import bars, display
assert bars.in_notebook()
display.time = clock = Clock()
play(make_loop(steps=50), [display.ProgressBar(), display.EpochLines()], clock, step=1.0, evaluation=5.0)
assert not any("Monitor" in type(thread).__name__ for thread in threading.enumerate())
warnings.resetwarnings()
"""


def test_a_notebook_shows_a_bar(tmp_path):
    """A widget if ipywidgets is installed, else text; in no case a warning."""
    cell = nbformat.v4.new_code_cell(CELL.format(path=[path for path in sys.path if path]))
    notebook = nbformat.v4.new_notebook(cells=[cell])
    NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    outputs = cell["outputs"]
    text = "".join(output["text"] for output in outputs if output["output_type"] == "stream")
    widgets = [output for output in outputs if "application/vnd.jupyter.widget-view+json" in output.get("data", {})]
    assert widgets or re.search(r"epoch 1/2: +\d+%\|", text)
    assert "epoch 2/2: train loss 0.5000" in text
    assert "Warning" not in text


def test_a_test_is_no_notebook():
    assert not bars.in_notebook()
