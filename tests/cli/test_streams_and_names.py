"""What surrounds a command: full and closed streams, names that are not text, homes that are not there."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from fedlearn.cli.options import write_output
from fedlearn.config.run_config import RunConfig
from fedlearn.errors import ConfigError
from fedlearn.host.durable import write_whole
from fedlearn.host.home import home_folder

FEDLEARN = (sys.executable, "-B", "-m", "fedlearn.cli")
ODD = os.fsdecode(b"caf\xe9")  # a name of a file, and no UTF-8


def ended(
    *words: str, stdout: int = subprocess.PIPE, folder: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*FEDLEARN, *words],
        stdout=stdout,
        stderr=subprocess.PIPE,
        cwd=folder,
        env={**os.environ, **environment},
        check=False,
    )


def assert_one_sentence(said: bytes, expected: str) -> None:
    text = said.decode()
    assert text.startswith("fedlearn: ")
    assert text.count("\n") == 1
    assert expected in text


@pytest.mark.parametrize("words", [("simulate", "--list"), ("plan", "nosuch", "--help")])
def test_a_full_standard_output_is_one_sentence(words: tuple[str, ...]) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    told = ended(*words, stdout=full)
    os.close(full)
    assert told.returncode == 4
    assert_one_sentence(told.stderr, "standard output cannot be written: No space left on device")


def test_a_closed_pipe_is_one_sentence() -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    told = ended("simulate", "--list", stdout=theirs)
    os.close(theirs)
    assert told.returncode == 4
    assert_one_sentence(told.stderr, "nobody reads standard output any more")


@pytest.mark.slow
def test_names_that_are_not_text_are_printed_and_written(tmp_path: Path) -> None:
    short = ("--set", "run.rounds=1", "--set", "run.spare_rounds=0", "--set", "secure_aggregation.masking=false")
    (tmp_path / f"{ODD}.toml").write_text(RunConfig.load("digits", []).to_toml())
    told = ended("simulate", f"{ODD}.toml", *short, "--output", ODD, "--json", folder=tmp_path)
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout)["run_dir"] == ODD
    assert (tmp_path / ODD / "report.html").is_file()
    again = ended("report", ODD, folder=tmp_path)
    assert (again.returncode, again.stdout) == (0, b"caf\\udce9/report.html\n")
    assert_one_sentence(ended("simulate", ODD, folder=tmp_path).stderr, "no scenario of that name")
    assert_one_sentence(ended("simulate", f"no{ODD}.toml", folder=tmp_path).stderr, "no such file")


def test_records_below_a_name_that_is_not_text_are_one_sentence(tmp_path: Path) -> None:
    table = ("--set", "data.dataset=csv", "--set", f"data.path={ODD}/table.csv")
    told = ended("plan", "digits", *table, folder=tmp_path)
    assert told.returncode == 2
    assert_one_sentence(told.stderr, "is not UTF-8")
    assert not list(tmp_path.iterdir())


def test_a_home_may_begin_with_a_tilde(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("FEDLEARN_HOME", "~/fl")
    assert home_folder() == tmp_path / "fl"
    assert home_folder(Path("~/other")) == tmp_path / "other"
    monkeypatch.setenv("FEDLEARN_HOME", "~nobody-at-all/fl")
    with pytest.raises(ConfigError, match="~nobody-at-all/fl: there is no such home folder"):
        home_folder()


def test_a_user_without_a_home_folder_is_told_what_to_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container whose user stands in no /etc/passwd."""
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("FEDLEARN_HOME", raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000_000)
    with pytest.raises(ConfigError, match="this user has no home folder; name one for fedlearn: --home DIR"):
        home_folder()


@pytest.mark.parametrize("kind", ["link", "link to nothing", "pipe", "folder", "device"])
def test_what_is_no_plain_file_is_not_replaced(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "out"
    (tmp_path / "file").write_text("mine")
    match kind:
        case "link":
            path.symlink_to("file")
        case "link to nothing":
            path.symlink_to("nowhere")
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "device":
            try:
                os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))  # no device of this machine is put at risk
            except PermissionError:
                pytest.skip("making a device needs root")
    before = stat.S_IFMT(path.lstat().st_mode)
    with pytest.raises(OSError, match="which is not replaced"):
        write_whole(path, b"x")
    with pytest.raises(ConfigError, match="which is not replaced"):
        write_output(path, b"x")
    assert stat.S_IFMT(path.lstat().st_mode) == before
    assert (tmp_path / "file").read_text() == "mine"
    assert not [name for name in tmp_path.iterdir() if name.name.endswith(".new")]
