"""The commands, a file each. main.py chooses one."""

import sys
from pathlib import Path

try:
    from resnet_jax.cli.main import command, main
except KeyboardInterrupt:  # this import takes a second, and no command has begun that could catch it
    script = Path(sys.argv[0]).name
    print(f"{'python -m resnet_jax' if script == '__main__.py' else script}: interrupted", file=sys.stderr)
    raise SystemExit(130) from None

__all__ = ["command", "main"]
