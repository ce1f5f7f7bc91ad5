"""The commands, a file each. main.py chooses one."""

from resnet_jax.interrupts import interruptible_import

with interruptible_import():
    from resnet_jax.cli.main import command, main

__all__ = ["command", "main"]
