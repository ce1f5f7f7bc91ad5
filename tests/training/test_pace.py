"""The speed of a fit, and the time that is left of it, against the times that the test made up."""

import pytest
from watched import Clock, make_loop, play

from resnet_jax.training.pace import Pace


class Watch:
    """A Pace, and after each call: what it expects, and what the clock says then."""

    def __init__(self, clock):
        self.pace, self.clock, self.seen = Pace(), clock, []

    def on_step_end(self, loop):
        self.pace.step(loop)
        self.seen.append((loop.step, self.pace.step_seconds, self.pace.left(loop), self.clock.now))


def test_the_time_left_is_what_comes_true():
    """Steps of 2 s, evaluations of 6 s: before the first evaluation 30 images count as a third of 3 steps, 2 s."""
    clock = Clock()
    loop, watch = make_loop(steps=10, epochs=3), Watch(clock)
    play(loop, [watch], clock, step=2.0, evaluation=6.0)
    end = clock.now
    for step, seconds, left, now in watch.seen:
        if step <= 2:  # the first call compiles: it took 50 s
            assert seconds is left is None
            continue
        assert seconds == pytest.approx(2.0)
        guessed = 3 * (6.0 - 2.0) if step <= 10 else 0.0
        # the first call of an epoch does not wait for its step, nor do the others for their own
        assert now + left + guessed == pytest.approx(end), step


def test_several_steps_in_a_call():
    clock = Clock()
    loop, watch = make_loop(steps=10, epochs=2, steps_per_call=4), Watch(clock)
    play(loop, [watch], clock, step=2.0, evaluation=6.0)
    assert [step for step, *_ in watch.seen] == [4, 8, 10, 14, 18, 20]
    _, seconds, left, now = watch.seen[4]
    assert seconds == pytest.approx(2.0)
    assert left == pytest.approx(2.0 * (2 + 4) + 6.0)
    assert now + left == pytest.approx(clock.now)


def test_steps_of_other_sizes_count_by_their_pixels():
    """4x4 pixels in the first two epochs, then 8x8, the size of the evaluation. A new size compiles a new program."""
    pace, loop = Pace(), make_loop(steps=10, epochs=4, evaluated=8, sizes=((1, (4, 4)), (3, (8, 8))))

    def calls(count, seconds):
        for _ in range(count):
            loop.position += 1
            loop.seconds += seconds
            pace.step(loop)

    calls(4, 2.0)
    assert pace.step_seconds == pytest.approx(2.0)
    assert pace.training_left(loop) == pytest.approx(2.0 * (6 + 1) + 2.0 * 10 + 8.0 * 20)
    evaluation = 8.0 / 3 * 3  # 30 images of 8x8 pixels are the forward passes of 3 steps
    assert pace.left(loop) == pytest.approx(194.0 + 4 * evaluation)
    loop.history = [{"train_seconds": 20.0, "eval_seconds": 8.0}] * 2
    loop.position, loop.seconds = 0, 0.0
    calls(1, 50.0)  # with compilation
    assert pace.step_seconds is pace.left(loop) is None
    calls(3, 8.0)
    assert pace.step_seconds == pytest.approx(8.0)
    assert pace.training_left(loop) == pytest.approx(8.0 * (6 + 1 + 10))


def test_it_is_of_the_last_half_minute():
    pace, loop = Pace(), make_loop(steps=1000)
    for seconds in [*[1.0] * 100, *[3.0] * 20]:
        loop.position += 1
        loop.seconds += seconds
        pace.step(loop)
    assert pace.step_seconds == pytest.approx(3.0)


def test_a_resumed_fit_measures_itself_and_knows_the_evaluations_before():
    pace, loop = Pace(), make_loop(steps=10, epochs=4)
    loop.history = [{"train_seconds": 999.0, "eval_seconds": seconds} for seconds in (40.0, 5.0, 7.0)]
    loop.position, loop.seconds = 5, 777.0
    for _ in range(4):
        loop.position += 1
        loop.seconds += 2.0
        pace.step(loop)
    assert pace.step_seconds == pytest.approx(2.0)
    assert pace.left(loop) == pytest.approx(2.0 * (1 + 1) + 7.0)
