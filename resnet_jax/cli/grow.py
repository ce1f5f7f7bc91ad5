"""grow: continue a run with a deeper network, in a new folder."""

import dataclasses
from collections.abc import Sequence

from resnet_jax.cli.options import OptionalInt, RunDir, notes_apart, print_json
from resnet_jax.runs.argv import parse_as
from resnet_jax.runs.values import PathText

EXAMPLES = (
    "runs/NAME --stage 3 --out runs/deeper  # one more block at the end of stage 3",
    "runs/NAME --stage 3 --blocks 2 --epochs 20 --out runs/deeper  # two, and more epochs",
)


@dataclasses.dataclass(frozen=True)
class Grow:
    """Make a new run from the latest checkpoint of another, with a network that is deeper by identity blocks."""

    run_dir: RunDir
    """The run's folder. It does not change."""
    out: PathText
    """The folder to make, for --resume --run-dir."""
    stage: int
    """The stage that gets the blocks, from 1."""
    blocks: int = 1
    """How many blocks."""
    position: OptionalInt = None
    """The position of the first new block in the stage, from 1, or from 2 if the first block halves or projects.
    None: at the end."""
    epochs: OptionalInt = None
    """Epochs of the new run in all, with those that are done. A cosine, linear or one_cycle schedule is stretched to
    them, so a finished run of one needs more. None: those of the old run."""
    json: bool = False
    """Print one JSON object: the new run, its network, step, epochs and learning rates."""


def grow(argv: Sequence[str], prog: str) -> None:
    """Make the new run, and print how to continue it."""
    asked = parse_as(Grow, argv, prog, EXAMPLES)
    from resnet_jax.runs import grow_run  # imports jax

    with notes_apart(asked.json):
        made = grow_run(asked.run_dir, asked.out, asked.stage, asked.blocks, asked.position, asked.epochs)
    old, new = made.rates
    if asked.json:
        run = {"out": asked.out, "arch": made.arch.name, "step": made.step, "epochs_done": made.epochs}
        print_json(run | {"epochs": made.config.epochs, "learning_rate": new, "learning_rate_of_old_run": old})
        return
    more = " --epochs MORE" if made.epochs == made.config.epochs else ""
    print(
        f"{made.arch.name}, at step {made.step}, {made.epochs} of {made.config.epochs} epochs done: {asked.out}; "
        f"train.py --resume --run-dir {asked.out}{more}"
    )
    if old != new:
        print(f"its learning rate continues at {new:.3g}; in {asked.run_dir} it would have been {old:.3g}")
