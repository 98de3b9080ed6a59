"""A holder whose agent and node are two users, for real: users are made, and the coordinator ships code that steals.

Ada joins with --system, as root; Ben, Cleo and Dora run with --same-user. The coordinator's bundle carries
`lying_app.py`: of Ada's home it gets nothing, of the others' everything, so the same code shows what the two users are
for.
"""

import grp
import os
import pwd
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.real_federation import BLOCKS, ROOT
from tests.test_wheel import programs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="makes users, so root on Linux"),
    pytest.mark.skipif(shutil.which("useradd") is None, reason="useradd is not on this machine"),
]

LIAR = Path(__file__).with_name("lying_app.py")
OTHERS = ("Ben", "Cleo", "Dora")
SHIPPED = ("fedlearn", "clients", "server", "simulations", "pyproject.toml", "requirements.lock")


def usable_python() -> str:
    """An interpreter of this version that every user may run; root's own need not be one."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for candidate in (os.path.realpath(sys.executable), shutil.which(version, path="/usr/local/bin:/usr/bin")):
        if candidate is not None and all(parent.stat().st_mode & 0o001 for parent in Path(candidate).parents):
            return candidate
    pytest.skip(f"no {version} here that every user may run")


class Machine:
    """One machine with a coordinator and four holders, in a folder that every user may enter."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.chmod(0o755)
        (folder / "homes").mkdir()
        (folder / "loot").touch()
        (folder / "loot").chmod(0o666)
        self.python = self._environment(folder / "environment")
        self.library = self._copy(folder / "library")
        self.crooked = self._copy(folder / "crooked")
        code = LIAR.read_text().replace("{LOOT}", str(folder / "loot")).replace("{HOMES}", str(folder / "homes"))
        (self.crooked / "clients" / "app.py").write_text(code)
        (folder / "holder.toml").write_text(BLOCKS["file=holder.toml"])

    def _environment(self, place: Path) -> Path:
        """A Python of everybody's that sees the packages of this one."""
        subprocess.run([usable_python(), "-m", "venv", "--without-pip", str(place)], check=True)
        python = place / "bin" / "python"
        asked = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
        site = Path(subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip())
        (site / "packages.pth").write_text(sysconfig.get_path("purelib"))
        programs(python)
        return python

    def _copy(self, place: Path) -> Path:
        place.mkdir()
        for name in SHIPPED:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
            copy(ROOT / name, place / name)
        return place

    def home(self, name: str) -> Path:
        return self.folder / "homes" / name

    def fedlearn(self, *words: object, crooked: bool = False, code: int | None = 0) -> str:
        """What a command prints, of both streams; it ends with `code`, None for any."""
        library = self.crooked if crooked else self.library
        done = subprocess.run(
            [str(self.python), "-m", "fedlearn.cli", *map(str, words)],
            cwd=self.folder,
            env={"PATH": os.environ["PATH"], "HOME": "/root", "PYTHONPATH": str(library), "TOKEN": "root's-token"},
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        assert code in (done.returncode, None), done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    def operator(self, *words: object) -> str:
        return self.fedlearn("server", *words, "--home", self.folder / "operator", crooked=True)

    def begin(self) -> None:
        """Everybody joins and starts; Ada as two users."""
        self.operator("init", "--port", 18600 + os.getpid() % 1000)
        self.operator("start", "--detach")
        codes = dict(
            line.split("\t")[:2] for line in self.operator("invite", "Ada", *OTHERS).splitlines() if "\t" in line
        )
        for name, code in codes.items():
            words = ["--system"] if name == "Ada" else []
            home = self.home(name)
            self.fedlearn("client", "join", code, "--policy", "holder.toml", "--home", home, *words)
            (home / "client" / "patients.csv").write_text("age,ill\n47,yes\n")
        os.chown(self.home("Ada") / "client" / "patients.csv", *self.ids("fedlearn-agent"))
        (self.home("Ada") / "client" / "patients.csv").chmod(0o600)
        self.operator("roster", "--close")
        for name in codes:
            home = self.home(name)
            told = self.fedlearn("client", "roster", "fetch", "--home", home)
            sha = next(line.split()[1] for line in told.splitlines() if line.startswith("SHA-256"))
            proposed = home / "client" / "roster.proposed.toml"
            self.fedlearn("client", "roster", "accept", proposed, "--sha256", sha, "--confirmed", "all", "--home", home)
            policy = subprocess.run(
                ["sha256sum", home / "client" / "client.toml"], capture_output=True, text=True
            ).stdout
            words = [] if name == "Ada" else ["--same-user"]
            words += ["--accept-policy", policy.split()[0], "--accept-roster", sha]
            self.fedlearn("client", "start", "--detach", "--home", home, *words)

    def ids(self, user: str) -> tuple[int, int]:
        account = pwd.getpwnam(user)
        return account.pw_uid, account.pw_gid

    def end(self) -> None:
        for name in ("Ada", *OTHERS):
            self.fedlearn("client", "stop", "--home", self.home(name), code=None)
        self.operator("stop")


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    names = {account.pw_name for account in pwd.getpwall()}
    groups = {group.gr_name for group in grp.getgrall()}
    with tempfile.TemporaryDirectory(prefix="fl-", dir="/tmp") as place:
        made = Machine(Path(place))
        try:
            made.begin()
            yield made
        finally:
            made.end()
    for name in {"fedlearn-agent", "fedlearn-node"} - names:
        subprocess.run(["userdel", name], check=False)
    if "fedlearn" not in groups:
        subprocess.run(["groupdel", "fedlearn"], check=False)


def processes_of(home: Path, word: str) -> dict[int, int]:
    """The processes of a home with a word in their command line, and the user of each."""
    found = {}
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                line = (process / "cmdline").read_bytes()
            except OSError:
                continue
            if word.encode() in line and str(home).encode() in line:
                found[int(process.name)] = process.stat().st_uid
    return found


def test_each_part_runs_as_its_user_and_each_folder_is_its_owners(machine: Machine) -> None:
    home, agent, node = machine.home("Ada"), machine.ids("fedlearn-agent")[0], machine.ids("fedlearn-node")[0]
    # The agent's process is closed to others, so the kernel shows it as root's: its supervisor's says who it is.
    assert agent in processes_of(home, "client\0start\0--only\0agent").values()
    assert set(processes_of(home, "fedlearn.flower.supernode").values()) == {node}
    environments = [Path(f"/proc/{process}/environ").read_bytes() for process in processes_of(home, "fedlearn.flower")]
    assert environments
    assert not any(b"root's-token" in environment for environment in environments)
    owners = {name: (home / name).stat() for name in ("client", "node", "door")}
    assert {name: status.st_uid for name, status in owners.items()} == {"client": agent, "node": node, "door": agent}
    assert [oct(status.st_mode & 0o777) for status in owners.values()] == ["0o700", "0o700", "0o750"]
    assert all(path.stat().st_uid == agent for path in (home / "client").rglob("*"))
    assert all(path.stat().st_uid == node for path in (home / "node").rglob("*"))


def test_the_doctor_finds_nothing_wrong(machine: Machine) -> None:
    told = machine.fedlearn("doctor", "--home", machine.home("Ada"))
    assert " ok       users " in told
    assert " ok       running " in told
    assert " error " not in told


def test_a_bundle_that_steals_does_its_work_and_gets_nothing_of_a_home_of_two_users(machine: Machine) -> None:
    example = machine.folder / "operator" / "server" / "run.example.toml"
    told = machine.operator("run", example, "--set", "run.rounds=2", "--watch")
    assert "round 2 of 2" in told
    lines = (machine.folder / "loot").read_text().splitlines()
    node = machine.ids("fedlearn-node")[0]
    assert f"uid {node}" in lines, "it ran as the node's user"
    assert "uid 0" in lines
    assert not [line for line in lines if line.startswith("FAILED")]
    by_user: dict[str, list[str]] = {}
    for line in lines:
        if line.startswith("uid "):
            user = line.removeprefix("uid ")
        else:
            by_user.setdefault(user, []).append(line)
    assert [line for line in by_user.get(str(node), []) if "/Ada/" in line] == []
    for name in ("client/identity.key", "client/patients.csv", "client/ledger.db"):
        assert f"GOT {machine.home('Ben') / name}" in by_user["0"], "as the owner's user it gets everything"


def test_what_ends_is_started_again_and_stop_ends_all(machine: Machine) -> None:
    home = machine.home("Ada")
    status = machine.fedlearn("client", "status", "--home", home)
    assert "agent: up" in status
    assert "node: up" in status
    machine.fedlearn("client", "stop", "--home", home)
    assert not processes_of(home, "fedlearn")
    assert "there is nothing to stop" in machine.fedlearn("client", "stop", "--home", home, code=2)
