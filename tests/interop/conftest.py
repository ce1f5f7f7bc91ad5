"""These tests share the seeded weights and the frozen digests of tests/models."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "models"))
