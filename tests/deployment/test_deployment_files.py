"""Units and images: what can be checked of them where no image can be built and no systemd runs."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent.parent
DOCKERFILES = [ROOT / party / "Dockerfile" for party in ("clients", "server")]
UNITS = sorted(ROOT.glob("clients/*.service")) + sorted(ROOT.glob("server/*.service"))
PROGRAM = "/opt/fedlearn/bin/fedlearn"

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not on this machine (apt-get install systemd)"
)
named = pytest.mark.parametrize("path", [*DOCKERFILES], ids=lambda path: path.parent.name)
of_each_unit = pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.stem)


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """Each instruction with its arguments, comments left out and lines joined."""
    lines = [line for line in dockerfile.read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line.strip())]


def final_stage(dockerfile: Path) -> list[tuple[str, str]]:
    steps = instructions(dockerfile)
    return steps[max(index for index, (word, _) in enumerate(steps) if word == "FROM") :]


def ignored(name: str) -> bool:
    """Whether .dockerignore, which lets nothing in but what it names, keeps a file out of the context."""
    return f"!{name}" not in (ROOT / ".dockerignore").read_text().splitlines()


@named
def test_every_file_that_is_copied_exists_and_is_in_the_context(path):
    copied = [rest.split()[:-1] for word, rest in instructions(path) if word == "COPY" and "--from" not in rest]
    sources = [source for group in copied for source in group]
    assert {"fedlearn", "requirements.lock"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists()
        assert not ignored(source)
    assert ignored(".venv")
    assert ignored(".data")


@named
def test_the_image_is_slim_and_its_user_is_not_root(path):
    steps = final_stage(path)
    assert steps[0] == ("FROM", "python:3.11-slim")
    (user,) = [rest for word, rest in steps if word == "USER"]
    assert user.startswith("fedlearn-")
    assert any(word == "RUN" and f"{user}" in rest and "useradd" in rest for word, rest in steps)


@named
def test_pytorch_is_the_cpus_unless_it_is_asked_otherwise(path):
    assert ("ARG", "TORCH_INDEX=https://download.pytorch.org/whl/cpu") in instructions(path)
    assert "--build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu" in path.read_text()


@named
def test_the_files_of_both_images_say_the_same_of_how_they_are_built(path):
    first = [step for step in instructions(path) if step not in final_stage(path)]
    assert first == [step for step in instructions(DOCKERFILES[0]) if step not in final_stage(DOCKERFILES[0])]


@pytest.mark.parametrize("party", ["clients", "server"])
def test_containers_have_a_read_only_root_file_system_no_capability_and_limits(party):
    services = yaml.safe_load((ROOT / party / "compose.yaml").read_text())["services"]
    services.pop("join", None)
    for service in services.values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["user"].startswith("fedlearn-")
        assert service["mem_limit"]
        assert service["pids_limit"]


def test_of_a_holders_containers_the_node_sees_nothing_of_the_agents_and_the_agent_no_network():
    services = yaml.safe_load((ROOT / "clients" / "compose.yaml").read_text())["services"]
    assert services["agent"]["network_mode"] == "none"
    assert services["agent"]["user"] != services["node"]["user"]
    assert services["agent"]["memswap_limit"] == services["agent"]["mem_limit"], "no swap"
    seen = [volume.split(":")[1] for volume in services["node"]["volumes"]]
    assert seen == ["/var/lib/fedlearn/node", "/var/lib/fedlearn/door"]


@pytest.mark.slow
@pytest.mark.timeout(580)
def test_the_run_lines_work_in_an_empty_environment(tmp_path):
    """Those of the build stage, in a folder as the context has it; useradd is the two users' test."""
    steps = instructions(DOCKERFILES[0])
    context, target = tmp_path / "context", tmp_path / "fedlearn"
    context.mkdir()
    for word, rest in steps:
        if word == "COPY" and "--from" not in rest:
            *sources, place = rest.split()
            for source in sources:
                copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copyfile
                copy(ROOT / source, context / (source if place == "./" else place))
    build = steps[: len(steps) - len(final_stage(DOCKERFILES[0]))]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= dict(rest.split("=", 1) for word, rest in build if word == "ARG")
    environment["PIP_RETRIES"] = "0"  # an index that cannot be reached: this machine's own wheels do
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for command in (rest.replace("/opt/fedlearn", str(target)) for word, rest in build if word == "RUN"):
        done = subprocess.run(
            ["sh", "-ec", command], cwd=context, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    where = [
        str(target / "bin" / "python"),
        "-c",
        "import fedlearn, torch; print(fedlearn.__file__, torch.version.cuda)",
    ]
    told = subprocess.run(where, capture_output=True, text=True, check=True, cwd=tmp_path, env=environment).stdout
    size = subprocess.run(["du", "-sm", str(target)], capture_output=True, text=True, check=True).stdout.split()[0]
    print(f"\nthe environment of an image: {size} MB")
    assert told.startswith(str(target))
    assert told.split()[1] == "None"


def values(unit: Path, key: str) -> list[str]:
    return [line.partition("=")[2] for line in unit.read_text().splitlines() if line.partition("=")[0] == key]


@pytest.fixture
def installed(tmp_path):
    """Units as they would be installed here: their program is one that this machine has."""
    program = tmp_path / "fedlearn"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    for unit in UNITS:
        (tmp_path / unit.name).write_text(unit.read_text().replace(PROGRAM, str(program)))
    return tmp_path


@needs_systemd
def test_the_units_pass_systemds_own_check(installed):
    command = ["systemd-analyze", "verify", "--man=no", *(str(installed / unit.name) for unit in UNITS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@needs_systemd
@of_each_unit
def test_a_unit_is_exposed_to_3_of_10_at_most(unit, installed):
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(installed / unit.name)]
    told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert float(re.findall(r"exposure level for \S+: ([0-9.]+)", told)[0]) <= 3.0


@of_each_unit
def test_a_unit_runs_a_command_that_exists_as_a_user_of_its_own_with_a_memory_limit(unit):
    from click import Context
    from typer.main import get_command

    from fedlearn.cli import app

    (command,) = values(unit, "ExecStart")
    program, *words = shlex.split(command)
    assert program == PROGRAM
    found = get_command(app)
    while words and not words[0].startswith("-"):
        found = found.commands[words.pop(0)]
    found.make_parser(Context(found)).parse_args(words)  # an unknown option would raise
    assert values(unit, "User") != ["root"]
    assert values(unit, "MemoryMax")
    assert values(unit, "Restart") == ["always"]


def test_the_two_units_of_a_holder_are_two_users_and_the_node_cannot_see_the_agents_files():
    agent, node = (ROOT / "clients" / f"fedlearn-{part}.service" for part in ("agent", "node"))
    assert values(agent, "User") == ["fedlearn-agent"]
    assert values(node, "User") == ["fedlearn-node"]
    assert values(agent, "SupplementaryGroups") == values(node, "SupplementaryGroups") == ["fedlearn"]
    assert values(node, "InaccessiblePaths") == ["/var/lib/fedlearn/client"]
    assert values(agent, "PrivateNetwork") == ["yes"]
    assert values(agent, "MemorySwapMax") == ["0"]
