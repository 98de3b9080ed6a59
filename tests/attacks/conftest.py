"""The attacks are played in the same small federation that the protocol's own tests use."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "secagg"))
