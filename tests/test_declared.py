"""What the package needs is declared, and what it promises holds without `assert`."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# The name of a module where it is not that of its distribution.
DISTRIBUTIONS = {"sklearn": "scikit-learn", "dp_accounting": "dp-accounting", "tomli_w": "tomli-w"}
# A module that comes with another distribution, or is imported only where its extra is there.
OWN = {"fedlearn", "clients", "server"}


def imported() -> dict[str, Path]:
    """Every module from elsewhere that the package imports, with a file that does."""
    found: dict[str, Path] = {}
    for path in sorted((ROOT / "fedlearn").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            found |= {name.partition(".")[0]: path for name in names}
    return {name: path for name, path in found.items() if name not in sys.stdlib_module_names | OWN}


def test_whatever_is_imported_is_declared() -> None:
    extras = PROJECT["optional-dependencies"]
    stated = [*PROJECT["dependencies"], *extras["ray"], *extras["data"]]
    declared = {re.split(r"[<>=\[ ]", text)[0] for text in stated} | {"ray"}  # of flwr[simulation]
    missing = {name: str(path) for name, path in imported().items() if DISTRIBUTIONS.get(name, name) not in declared}
    assert missing == {}


@pytest.mark.parametrize(
    "broken",
    [
        "from fedlearn.crypto.labels import label; label('another protocol')",
        "from fedlearn.crypto.signatures import verify; verify(bytes(32), bytes(64), purpose='any', message=b'')",
        "from fedlearn.crypto.keystream import Keystream; Keystream(bytes(39))",
        "from fedlearn.crypto.shamir import split; split(bytes(31), coefficients=[], holders=3)",
        "from fedlearn.privacy.discrete_gaussian import _step; _step(1)",
    ],
)
def test_guards_hold_where_asserts_are_taken_out(broken: str) -> None:
    """`python -O` changes no guarantee."""
    ended = subprocess.run([sys.executable, "-O", "-B", "-c", broken], capture_output=True, text=True, check=False)
    assert ended.stderr.splitlines()[-1].startswith("AssertionError"), ended.stderr
