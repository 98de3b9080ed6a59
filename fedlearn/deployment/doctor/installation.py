"""What is installed: Python, the packages against the lock, Flower's programs, the device."""

import importlib.metadata
import os
import platform
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from fedlearn.deployment.doctor.check import Check, error, ok, warning
from fedlearn.errors import ConfigError, RunFailedError
from fedlearn.flower.programs import flower_program
from fedlearn.host.shipped import shipped_root

__all__ = ["check_installation", "device_line", "package_lines", "python_line"]

_LOCK: Final = "requirements.lock"
_GPU_DRIVER: Final = Path("/proc/driver/nvidia/version")
_SHOWN: Final = 5


def check_installation(device: str = "auto") -> Iterator[Check]:
    """Every line about what is installed here; `device` is what a run asks for."""
    root = shipped_root()
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    yield python_line(platform.python_version(), project["requires-python"])
    yield from package_lines(root / _LOCK, project, _installed)
    yield _programs()
    yield _device(device)


def python_line(version: str, required: str) -> Check:
    """Of Python itself."""
    if version not in SpecifierSet(required):
        return error("python", f"Python {version}; expected {required}", "make the environment with another Python")
    return ok("python", f"Python {version} at {sys.prefix}")


def package_lines(lock: Path, project: dict[str, object], version_of: Callable[[str], str | None]) -> Iterator[Check]:
    """Of the packages: those that are required, then those that the lock names. `project` is that of pyproject.toml."""
    remedy = f"pip install -c {lock} fedlearn"
    required = [Requirement(text) for text in _texts(project["dependencies"])]
    wrong = [told for requirement in required if (told := _unfit(requirement, version_of(requirement.name)))]
    if wrong:
        yield error("packages", "; ".join(wrong), remedy)
    try:
        locked = dict(re.findall(r"^([A-Za-z0-9._-]+)==(\S+)$", lock.read_text(encoding="utf-8"), re.MULTILINE))
    except OSError as problem:
        yield warning("packages", f"{lock}: cannot be read: {problem.strerror}", "install fedlearn again")
        return
    # Tools of development run nowhere in a deployment.
    for text in _texts(dict(project["optional-dependencies"])["dev"]):  # type: ignore[call-overload]
        locked.pop(Requirement(text).name, None)
    there = {name: version for name in locked if (version := version_of(name)) is not None}
    other = [f"{name} {there[name]} ({locked[name]})" for name in there if not _same(there[name], locked[name])]
    if other:
        more = ", ..." if other[_SHOWN:] else ""
        detail = f"{len(other)} of {len(there)} packages are not those that were tested: {', '.join(other[:_SHOWN])}"
        yield warning("packages", detail + more, remedy)
    elif not wrong:
        yield ok("packages", f"{len(there)} packages are those of {lock}")


def device_line(chosen: str, *, torch_version: str, built_for: str | None, gpu: bool, why_not: str) -> Check:
    """Of the device that is used. `built_for` is PyTorch's CUDA, `gpu` whether a driver is there."""
    if chosen != "cpu" or not gpu:
        there = "" if gpu or chosen != "cpu" else "; there is no NVIDIA driver here"
        return ok("device", f"{chosen}, with PyTorch {torch_version}{there}")
    idle = "the CPU is used although a GPU is there"
    if built_for is None:
        return warning(
            "device",
            f"{idle}: PyTorch {torch_version} is a build without CUDA",
            "pip install torch --index-url https://download.pytorch.org/whl/cu130 (or the CUDA of your driver)",
        )
    return warning(
        "device",
        f"{idle}: PyTorch {torch_version} for CUDA {built_for} cannot use it: {why_not}",
        "see that nvidia-smi works for this user, and that the driver is new enough for this CUDA",
    )


def _device(wanted: str) -> Check:
    import torch

    from fedlearn.training.device import pick_device

    try:
        chosen = pick_device(wanted)
        computed = float(torch.ones(8, device=chosen).sum().item())
    except ConfigError as problem:
        return error("device", str(problem), 'take runtime.device = "auto"')
    except RuntimeError as problem:
        return error("device", f"PyTorch cannot compute here: {_first_line(problem)}", "install PyTorch again")
    if computed != 8:
        return error("device", f"{chosen} adds eight ones to {computed}", 'take runtime.device = "cpu"')
    return device_line(
        chosen,
        torch_version=torch.__version__,
        built_for=torch.version.cuda,
        gpu=_GPU_DRIVER.exists(),
        why_not=_why_no_cuda(),
    )


def _why_no_cuda() -> str:
    import torch

    try:
        torch.zeros(1, device="cuda")
    except (RuntimeError, AssertionError) as problem:
        return _first_line(problem)
    return "no device is visible"


def _programs() -> Check:
    for name in ("flower-superlink", "flower-supernode"):
        try:
            found = flower_program(name)
        except RunFailedError as problem:
            return error("flower", str(problem), "install fedlearn again")
    home = os.environ.get("FLWR_HOME")
    aside = f"; FLWR_HOME={home} is not used" if home else ""
    return ok("flower", f"Flower {_installed('flwr')}, its programs in {Path(found).parent}{aside}")


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _unfit(requirement: Requirement, version: str | None) -> str | None:
    if version is None:
        return f"{requirement.name} is missing"
    if not requirement.specifier.contains(version, prereleases=True):
        return f"{requirement.name} {version} does not fit {requirement.specifier}"
    return None


def _same(version: str, locked: str) -> bool:
    """Whether they are the same but for a local part: PyTorch's "+cpu" says where it was built for."""
    return Version(version).public == Version(locked).public


def _texts(values: object) -> list[str]:
    assert isinstance(values, list)
    return [str(value) for value in values]


def _first_line(problem: BaseException) -> str:
    return (str(problem).splitlines() or [type(problem).__name__])[0]
