"""grow: continue a run with a deeper network, in a new folder."""

import dataclasses
from collections.abc import Sequence

from resnet_jax.cli.options import OptionalInt, RunDir
from resnet_jax.runs import grow_run
from resnet_jax.runs.flags import parse_as


@dataclasses.dataclass(frozen=True)
class Grow:
    """Make a run of another one's latest checkpoint, its network deeper by blocks that start as the identity."""

    run_dir: RunDir
    """The run's folder. It stays as it is."""
    out: str
    """The folder to make, for --resume --run-dir."""
    stage: int
    """The stage that the blocks come into, from 1."""
    blocks: int = 1
    """How many."""
    position: OptionalInt = None
    """Which block of the stage the first of them will be, from 1, or from 2 where the first one halves or projects.
    None: they come at its end."""
    epochs: OptionalInt = None
    """Epochs of the new run in all, those behind it counted; a cosine schedule is laid out anew for them, so that one
    that has come to its end needs them. None: those of the old one."""


def grow(argv: Sequence[str], prog: str) -> None:
    """A run of another one's network, with blocks more."""
    asked = parse_as(Grow, argv, prog)
    made = grow_run(asked.run_dir, asked.out, asked.stage, asked.blocks, asked.position, asked.epochs)
    more = " --epochs MORE" if made.epochs == made.config.epochs else ""
    print(
        f"{made.arch.name}, at step {made.step}, {made.epochs} of {made.config.epochs} epochs done: {asked.out}; "
        f"train.py --resume --run-dir {asked.out}{more}"
    )
    old, new = made.rates
    if old != new:
        print(f"its learning rate goes on at {new:.3g}, where that of {asked.run_dir} would have been {old:.3g}")
