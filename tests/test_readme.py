"""The README is followed word by word: its files written, its commands run, in an empty folder."""

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from fedlearn.cli import main

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*) ?([^\n]*)\n(.*?)```", README, re.DOTALL)


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


@pytest.mark.lengthy
@pytest.mark.timeout(300)
def test_the_worked_example_runs_as_written(tmp_path, monkeypatch):
    """Line by line in this process; that a shell takes such blocks is shown by the README's federation (`make e2e`)."""
    monkeypatch.chdir(tmp_path)
    for _, attributes, text in BLOCKS:
        if attributes.startswith("file="):
            (tmp_path / attributes.removeprefix("file=")).write_text(text, encoding="utf-8")
    for language, attributes, text in BLOCKS:
        if attributes != "run=own":
            continue
        if language == "python":
            exec(compile(text, "README.md", "exec"), {"__name__": "__main__"})
        else:
            for line in text.splitlines():
                run(shlex.split(line), monkeypatch)
    assert (tmp_path / "runs" / "patients" / "report.html").is_file()


COMMANDS = [
    line.removeprefix(".venv/bin/")
    for language, attributes, text in BLOCKS
    if language == "sh" and not attributes
    for line in text.splitlines()
]


@pytest.mark.lengthy
@pytest.mark.parametrize("command", [c for c in COMMANDS if not c.startswith("make") and "--engine ray" not in c])
def test_every_other_command_runs_as_written(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(shlex.split(command), monkeypatch)


def test_make_runs_what_the_readme_names():
    makefile = (Path(__file__).parent.parent / "Makefile").read_text(encoding="utf-8")
    for command in COMMANDS:
        if command.startswith("make "):
            assert f"\n{command.split()[1]}:" in makefile


def test_links_lead_to_files():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (Path(__file__).parent.parent / target).is_file(), target
