"""Where the files that belong to the program but are not Python modules lie: scenarios, apps, bundle description.

A checkout has them beside the package; a wheel carries them inside it. This is the only place that looks.
"""

from pathlib import Path

__all__ = ["scenario_names", "scenario_path", "shipped_root"]

_PACKAGE = Path(__file__).resolve().parents[1]


def shipped_root() -> Path:
    """The folder that holds `clients/`, `server/`, `simulations/` and `pyproject.toml`.

    An editable install leaves a stale copy in site-packages, so a checkout beside the package always wins.
    """
    checkout = _PACKAGE.parent
    if (checkout / "pyproject.toml").is_file() and (checkout / "simulations").is_dir():
        return checkout
    return _PACKAGE / "_shipped"


def scenario_names() -> list[str]:
    """The scenarios that ship with the program, sorted."""
    return sorted(path.stem for path in (shipped_root() / "simulations").glob("*.toml"))


def scenario_path(name: str) -> Path:
    """The file of a shipped scenario (which may not exist)."""
    return shipped_root() / "simulations" / f"{name}.toml"
