"""The README is followed word by word: its files written, its commands run, in an empty folder."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from fedlearn.cli import main

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*) ?([^\n]*)\n(.*?)```", README, re.DOTALL)
BIN = Path(sys.executable).parent


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.lengthy
@pytest.mark.timeout(300)
def test_the_worked_example_runs_as_written(tmp_path):
    for _, attributes, text in BLOCKS:
        if attributes.startswith("file="):
            (tmp_path / attributes.removeprefix("file=")).write_text(text, encoding="utf-8")
    for language, attributes, text in BLOCKS:
        if attributes != "run=own":
            continue
        if language == "python":
            run([sys.executable, "-c", text], tmp_path)
        else:
            run(["sh", "-ec", text], tmp_path)
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
    """`fedlearn` in this process, which has imported what each command would import anew."""
    name, *words = shlex.split(command)
    if name != "fedlearn":
        run([name, *words], tmp_path)
        return
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, *words])
    main()  # which ends with SystemExit where it fails


def test_make_runs_what_the_readme_names():
    makefile = (Path(__file__).parent.parent / "Makefile").read_text(encoding="utf-8")
    for command in COMMANDS:
        if command.startswith("make "):
            assert f"\n{command.split()[1]}:" in makefile


def test_links_lead_to_files():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (Path(__file__).parent.parent / target).is_file(), target
