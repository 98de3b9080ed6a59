"""What the glossary and the page on architecture name is in the code."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
GLOSSARY = re.findall(
    r"^\| ([^|]+) \| ([^|]+) \| \[[^]]+\]\([^)]+\) \|$", (ROOT / "docs/glossary.md").read_text("utf-8"), re.MULTILINE
)
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text("utf-8")


def test_every_word_of_the_glossary_that_is_code_is_in_the_code() -> None:
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "fedlearn").rglob("*.py"))
    words = {name for _, meaning in GLOSSARY for name in re.findall(r"`([^`]+)`", meaning)}
    assert len(words) > 20
    assert sorted(word for word in words if not re.search(rf"(?<!\w){re.escape(word)}(?!\w)", code)) == []


def test_the_glossary_is_sorted_and_each_meaning_is_a_sentence_with_a_place() -> None:
    rows = (ROOT / "docs/glossary.md").read_text("utf-8").splitlines()
    words = [word for word, _ in GLOSSARY]
    assert len(words) == sum(row.startswith("| ") for row in rows) - 1 >= 40
    assert words == sorted(words, key=str.casefold)
    assert [word for word, meaning in GLOSSARY if not meaning.endswith(".") or ". " in meaning] == []


def test_what_the_architecture_names_is_in_the_code() -> None:
    named = re.findall(r"`([\w/]+\.py)::([\w.]+)`", ARCHITECTURE)
    assert len(named) > 40
    for file, name in named:
        source = (ROOT / "fedlearn" / file).read_text(encoding="utf-8")
        assert all(re.search(rf"^ *(def|class) {part}\b", source, re.MULTILINE) for part in name.split(".")), name


def test_the_rooms_of_the_architecture_are_those_of_the_import_contract() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    floors = [re.findall(r"\w+", floor) for floor in contracts[0]["layers"]]
    rows = re.findall(r"^\| (\d+) \| (`[^|]+) \|", ARCHITECTURE, re.MULTILINE)
    assert [re.findall(r"\w+", rooms) for _, rooms in rows] == floors
    assert [int(number) for number, _ in rows] == list(range(len(floors), 0, -1))
