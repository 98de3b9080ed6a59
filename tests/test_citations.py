"""Whatever a comment, a docstring or a page cites stands in the repository: the file, and the section of it."""

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
SPECIFICATION = ROOT / "docs/specification"
# Who cites: whatever somebody reads in this repository.
CITING = ("fedlearn", "tests", "simulations", "clients", "server", "docs", "README.md", "CHANGELOG.md", "SECURITY.md")
SUFFIXES = {".py", ".md", ".toml", ".yaml", ".service"}

# A page, and what is cited of it: `privacy.md 3.2`, `privacy.md 5.2 and 8`, `faults.md F12`, [privacy](privacy.md) 5.1.
_PLACE = r"(?:[RF]\d+|\d+(?:\.\d+)*)(?![\w%])"
_CITED = re.compile(rf"([\w./-]+\.md)\b(#[\w-]+)?((?:[`)\]]*\s+{_PLACE}(?:(?:, | and ){_PLACE})*)?)")
_BEFORE = re.compile(r"[Ss]ection (\d+(?:\.\d+)*) of\s+(?:\[[^\]]*\]\()?([\w./-]+\.md)")
_OWN = re.compile(r"\((\d+(?:\.\d+)?(?:, \d+(?:\.\d+)?)*)\)|[Ss]ection (\d+)(?! of)")


def read(path: Path) -> str:
    """A file's text; the marks of comments are left out, for they may stand between a page and its section."""
    text = path.read_text(encoding="utf-8")
    return text if path.suffix == ".md" else re.sub(r"\n *# ?", "\n", text)


def places_of(page: Path) -> set[str]:
    """What can be cited of a page: numbers and anchors of its headings, and rows of its tables that have a number."""
    text = page.read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    numbers = re.findall(r"^#+ (\d+(?:\.\d+)*)\.? ", text, re.MULTILINE)
    anchors = {"#" + re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return anchors | set(numbers) | set(re.findall(r"^\| ([RF]\d+) \|", text, re.MULTILINE))


def citations(text: str) -> Iterator[tuple[str, list[str]]]:
    """Each page that a text cites, with the places cited of it; a name in quotes is a file that code opens."""
    for found in _CITED.finditer(text):
        page, anchor, places = found.groups()
        around = text[: found.start()][-1:] + text[found.end() :][:1]
        if around not in {'""', "''"} and "//" not in page:
            yield page, [anchor] * bool(anchor) + re.findall(_PLACE, places)
    for number, page in _BEFORE.findall(text):
        yield page, [number]


def dangling(path: Path) -> Iterator[str]:
    """What a file cites and nobody finds; a page is looked for from the top of the repository and beside the file."""
    for page, places in citations(read(path)):
        found = next((base / page for base in (ROOT, path.parent) if (base / page).is_file()), None)
        there = places_of(found) if found else set()
        yield from [f"{page} is not there"] * (found is None)
        yield from (f"{page} has no {place}" for place in places if found and place not in there)


def citing_files() -> list[Path]:
    files = [
        path for place in map(ROOT.joinpath, CITING) for path in ([place] if place.is_file() else place.rglob("*"))
    ]
    return sorted(path for path in files if path.suffix in SUFFIXES and path.is_file() and path != Path(__file__))


def test_what_is_cited_is_in_the_repository_and_so_is_its_section() -> None:
    assert [f"{path.relative_to(ROOT)}: {line}" for path in citing_files() for line in dangling(path)] == []


def test_own_sections_that_the_specification_cites_are_there() -> None:
    """Without the name of a page: (7.4), (1.3, 7.6), section 2."""
    missing = []
    for page in SPECIFICATION.glob("*.md"):
        cited = ", ".join(map(max, _OWN.findall(page.read_text(encoding="utf-8")))).split(", ")
        missing += [f"{page.name}: {number}" for number in sorted(set(cited) - places_of(page) - {""})]
    assert missing == []


def test_a_citation_that_leads_nowhere_is_noticed(tmp_path: Path) -> None:
    module, page = tmp_path / "module.py", "docs/specification/privacy.md"
    module.write_text(f"# see {page}\n# 3.2 and 99, of 3 clients\n# section 98 of {page}\n# [it]({page}#nowhere) R99\n")
    assert sorted(dangling(module)) == [f"{page} has no {place}" for place in ("#nowhere", "98", "99", "R99")]
    module.write_text('"""See design/house.md 3."""\nPAGE = read("nothing.md")\n')
    assert list(dangling(module)) == ["design/house.md is not there"]


def test_a_number_in_the_name_of_a_test_is_listed() -> None:
    """R and F in the specification, in tests/attacks the attacks of the threat model."""
    listed = places_of(SPECIFICATION / "privacy.md") | places_of(SPECIFICATION / "faults.md")
    attacks = set(
        re.findall(r"^\| (\d+) \|", (ROOT / "docs/threat-model.md").read_text(encoding="utf-8"), re.MULTILINE)
    )
    named = re.compile(r"^ *def test_((?:[a-z]?\d+_(?:and_)?)+)", re.MULTILINE)
    unknown = []
    for path in (ROOT / "tests").rglob("test_*.py"):
        known = listed | attacks if path.parent.name == "attacks" else listed
        numbers = re.findall(r"([a-z]?)0*(\d+)_", "".join(named.findall(path.read_text(encoding="utf-8"))))
        unknown += [f"{path.relative_to(ROOT)}: {a}{b}" for a, b in numbers if f"{a.upper()}{b}" not in known]
    assert unknown == []


def test_the_tests_that_a_requirement_or_a_fault_names_have_its_number() -> None:
    missing = []
    for page, folder in (("privacy.md", ROOT), ("faults.md", ROOT / "tests/faults")):
        rows = re.findall(r"^\| ([RF])(\d+) \|(.*)", (SPECIFICATION / page).read_text(encoding="utf-8"), re.MULTILINE)
        for letter, number, row in rows:
            names = re.compile(rf"def test_\w*?{letter.lower()}0?{number}_|{letter}{number}: ")
            for cited in re.findall(r"`([\w/]+\.py)`", row):
                path = next((path for path in (folder / cited, ROOT / cited) if path.is_file()), None)
                if path is None or not names.search(path.read_text(encoding="utf-8")):
                    missing.append(f"{letter}{number}: {cited}")
    assert missing == []


def test_what_was_wrong_has_the_test_that_the_table_names() -> None:
    missing = []
    for cited in re.findall(r"`(tests/[\w/.]+\.py)(?:::(\w+))?", (ROOT / "docs/audits/2026-11.md").read_text()):
        path = ROOT / cited[0]
        if not path.is_file() or f"def {cited[1]}" not in path.read_text(encoding="utf-8"):
            missing.append("::".join(cited))
    assert missing == []
