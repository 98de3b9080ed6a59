"""README and tutorials are followed word by word: files written, commands run, each page in an empty folder.

The federation of the operator's page, which starts processes that stay, is `tests/e2e/test_readme_federation.py`.
"""

import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from fedlearn.cli import main
from tests.pages import PAGES, ROOT, WAYS, Block, blocks_of, name_of, write_files

BIN = Path(sys.executable).parent
DOCUMENTS = [
    path
    for path in (
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *ROOT.glob("clients/*.md"),
        *ROOT.glob("server/*.md"),
    )
    if path.is_file()
]


def run(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """One line of a shell in this process, which has imported what each command would import anew."""
    name, *words = command
    if name == "python":
        runpy.run_path(words[0], run_name="__main__")
    elif name == "fedlearn":
        monkeypatch.setattr(sys, "argv", command)
        main()  # which ends with SystemExit where it fails
    else:
        assert name == "PATH=$PWD/.venv/bin:$PATH"


def run_by_shell(script: str, folder: Path) -> None:
    """A block by bash, as a person would paste it, but that the first thing that fails ends it."""
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    command = ["bash", "-e", "-o", "pipefail", "-c", script]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def run_block(block: Block, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if block.attribute == "run=shell":
        run_by_shell(block.text, folder)
    elif block.attribute == "run=own" and block.language == "python":
        exec(compile(block.text, "page", "exec"), {"__name__": "__main__"})
    elif block.attribute == "run=own":
        for line in block.text.splitlines():
            run(shlex.split(line), monkeypatch)


def pages_with(*attributes: str) -> list[Path]:
    return [page for page in PAGES if {block.attribute for block in blocks_of(page)} & set(attributes)]


@pytest.mark.lengthy
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "page",
    [*pages_with("run=own"), *(pytest.param(page, marks=pytest.mark.slow) for page in pages_with("run=shell"))],
    ids=name_of,
)
def test_a_page_runs_as_written(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_models", raising=False)  # two pages each have one
    write_files(page, tmp_path)
    for block in blocks_of(page):
        run_block(block, tmp_path, monkeypatch)
    simulated = any("fedlearn.simulate(" in block.text for block in blocks_of(page))
    assert simulated == bool(list(tmp_path.glob("runs/*/report.html")))


COMMANDS = [
    (name_of(page), line.removeprefix(".venv/bin/"))
    for page in PAGES
    for block in blocks_of(page)
    if block.language == "sh" and not block.attribute
    for line in block.text.splitlines()
]
RUN_HERE = [(page, line) for page, line in COMMANDS if not line.startswith("make") and "--engine ray" not in line]


@pytest.mark.lengthy
@pytest.mark.parametrize(("page", "command"), RUN_HERE)
def test_every_other_command_runs_as_written(page, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(shlex.split(command), monkeypatch)


def test_make_runs_what_the_pages_name():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = {line.split()[1] for _, line in COMMANDS if line.startswith("make ")}
    for page in DOCUMENTS:
        named |= set(re.findall(r"`make ([a-z0-9-]+)", page.read_text(encoding="utf-8")))
    assert {"simulate", "test", "soak"} <= named
    assert [target for target in sorted(named) if f"\n{target}:" not in makefile] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_block_says_what_is_done_with_it(page):
    for block in blocks_of(page):
        assert block.attribute in ("", *WAYS) or block.attribute.startswith("file="), block.attribute


def test_the_readme_is_short_and_still_shows_something():
    page, *tutorials = PAGES
    assert len(page.read_text(encoding="utf-8").splitlines()) <= 200
    assert len((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()) <= 90
    assert ("README.md", "make simulate") in COMMANDS
    assert page in pages_with("run=own")
    assert {"researcher.md", "operator.md", "holder.md"} <= {tutorial.name for tutorial in tutorials}


def anchors(page: Path) -> set[str]:
    """What a heading is called in a link."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", DOCUMENTS, ids=name_of)
def test_links_lead_to_files(page):
    for target, anchor in re.findall(r"\]\(([^)\s#]*)(?:#([^)\s]*))?\)", page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        leads_to = page.parent / target if target else page
        assert leads_to.exists(), target
        assert not anchor or anchor in anchors(leads_to), f"{target}#{anchor}"


def linked_from(page: Path) -> set[Path]:
    """The pages that a page links to."""
    targets = re.findall(r"\]\(([^)\s#:]+)\)", page.read_text(encoding="utf-8"))
    return {(page.parent / target).resolve() for target in targets}


def test_the_index_has_every_document():
    """A folder with an index of its own is there by that."""
    index = ROOT / "docs" / "README.md"
    linked = {index, *linked_from(index)}
    for inner in [page for page in linked if page.name == "README.md" and page.is_relative_to(index.parent)]:
        linked |= linked_from(inner)
    assert [name_of(page) for page in DOCUMENTS if page.is_relative_to(index.parent) and page not in linked] == []
