"""Each fault of docs/specification/faults.md 2, F1 to F21, has a test of its number that `make test` runs."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent
_SLOW = re.compile(r"\bslow\b")


def numbers(name: str) -> set[int]:
    """Of `test_f2_f3_what_is_lost` 2 and 3."""
    begins = re.match(r"test_((?:f\d+_(?:and_)?)+)", name)
    return {int(number) for number in re.findall(r"f(\d+)", begins.group(1))} if begins else set()


def named_in_fast_tests() -> Iterator[int]:
    for path in TESTS.rglob("test_*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        marks = [ast.unparse(node) for node in tree.body if isinstance(node, ast.Assign)]
        slow_file = any(mark.startswith("pytestmark") and _SLOW.search(mark) for mark in marks)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                slow = slow_file or any(
                    ast.unparse(mark).startswith("pytest.mark.slow") for mark in node.decorator_list
                )
                if not slow:
                    yield from numbers(node.name)


FAST = set(named_in_fast_tests())


@pytest.mark.parametrize("number", range(1, 22))
def test_every_fault_has_a_fast_test_of_its_number(number: int) -> None:
    assert number in FAST


def test_a_test_of_several_faults_counts_for_each() -> None:
    assert numbers("test_f2_f3_what_is_lost") == {2, 3}
    assert numbers("test_f13_and_f16_a_run") == {13, 16}
    assert numbers("test_four_agents") == set()
