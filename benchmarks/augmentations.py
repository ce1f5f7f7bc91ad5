"""Measure what each augmentation adds to the train step, in milliseconds and as a share of the step.

    python benchmarks/augmentations.py --arch resnet20

The program that makes a batch (gather, augment, scale) is timed alone, with each augmentation and without any, in
alternating rounds; the difference of the medians is the cost. The step itself is timed without augmentation, and with
crop, flip and erasing. The images are random bytes. Run no other program at the same time.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp
from step import machine

import resnet_jax
from resnet_jax.data import Arrays, ImageDataset
from resnet_jax.data.augment import Augmentation, Preprocess
from resnet_jax.runs.augmentations import augmentations
from resnet_jax.training.parallel import shard
from resnet_jax.training.step import Dataset, epoch_rows, training_batch

IMAGES, CLASSES = 6000, 10
TURN_CALLS = 9  # calls of a program in a turn; the median counts
LISTS = (
    "flip",
    "alternating_flip",
    "crop:padding=4",
    "crop:padding=4,mode=reflect",
    "resized_crop",
    "rotate",
    "shift",
    "brightness",
    "contrast",
    "rand_augment",
    "erasing",
    "cutout:size=8",
    "mixup",
    "cutmix",
    "crop:padding=4 flip erasing",
    "crop:padding=4 flip rand_augment erasing mixup cutmix",
)
COMMON = "crop:padding=4 flip erasing"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="resnet20")
    parser.add_argument("--image-size", type=int, default=28)
    parser.add_argument("--channels", type=int, choices=(1, 3), default=1)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=15, help="alternating rounds (default: 15)")
    args = parser.parse_args()
    size = args.image_size
    print(f"{machine()}; batch {args.batch_size}, {size}x{size}x{args.channels}, n = {args.rounds}")
    data = random_images(args)
    steps = measure([make_step(args, data, augmentations(words.split())) for words in ("", COMMON)], args.rounds, 1)
    print(f"step of {args.arch}, {args.precision}: {steps[0]:.1f} ms; with {COMMON}: {steps[1]:.1f} ms")
    batches = [make_batch(args, data, augmentations(words.split())) for words in ("", *LISTS)]
    plain, *times = measure(batches, args.rounds, TURN_CALLS)
    print(f"a batch without augmentation: {plain:.2f} ms\n")
    print("| augmentation | adds | share of the step |\n| --- | --- | --- |")
    for words, spent in zip(LISTS, times, strict=True):
        print(f"| {words} | {spent - plain:.2f} ms | {(spent - plain) / steps[0]:.2%} |")


def random_images(args: argparse.Namespace) -> ImageDataset:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (IMAGES, args.image_size, args.image_size, args.channels), np.uint8)
    labels = random.integers(0, CLASSES, IMAGES).astype(np.int32)
    return ImageDataset(Arrays(images, labels), class_names=tuple(map(str, range(CLASSES))))


def make_batch(args: argparse.Namespace, data: ImageDataset, augment: Sequence[Augmentation]) -> Callable[[], Any]:
    """Return a function that makes one batch as a step does, and waits for it."""
    preprocess, rows = Preprocess(augment=tuple(augment)), np.arange(args.batch_size, dtype=np.int32)
    held = jax.device_put(Dataset.of(*data.train, CLASSES))
    make = jax.jit(lambda data, step, rows: training_batch(preprocess, data, 0, step, 0, rows, jnp.arange(len(rows))))
    return lambda: jax.block_until_ready(make(held, np.int32(0), rows))


def make_step(args: argparse.Namespace, data: ImageDataset, augment: Sequence[Augmentation]) -> Callable[[], Any]:
    """Return a function that makes one update, and waits for it."""
    model = resnet_jax.create_model(args.arch, CLASSES, dtype=args.precision)
    trainer = resnet_jax.Trainer(batch_size=args.batch_size, augment=augment, devices=1)
    loop = trainer.make_loop(model, data)
    rows = shard(epoch_rows(0, 0, IMAGES, args.batch_size, 1), loop.devices)
    train, held, state = loop.program.train_steps(1), loop.part("train"), loop.state

    def step() -> None:
        nonlocal state
        state, metrics = train(state, held, rows, np.int32(0))
        jax.block_until_ready(metrics)

    return step


def measure(calls: Sequence[Callable[[], Any]], rounds: int, turn: int) -> list[float]:
    """The median milliseconds of each call, over alternating turns."""
    times: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()  # compiles
    for _ in range(rounds):
        for call, mine in zip(calls, times, strict=True):
            call()  # after another program the first call is slower
            spent = []
            for _ in range(turn):
                began = time.perf_counter()
                call()
                spent.append(1e3 * (time.perf_counter() - began))
            mine.append(statistics.median(spent))
    return [statistics.median(mine) for mine in times]


if __name__ == "__main__":
    main()
