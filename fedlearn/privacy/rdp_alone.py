"""dp-accounting without the half that Renyi accounting does not need: its import takes a second, this a fifth of it."""

import importlib
import importlib.util
import sys
from typing import Any

__all__ = ["load_parts_alone"]

_PACKAGE = "dp_accounting"


def load_parts_alone() -> None:
    """From now on a module of dp-accounting loads itself and what it needs, not the whole package.

    Whoever asks the package for a name of its own still gets it: then the package loads as ever.
    """
    spec = None if _PACKAGE in sys.modules else importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.loader is None:
        return
    package, loader = importlib.util.module_from_spec(spec), spec.loader

    def find(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if importlib.util.find_spec(f"{_PACKAGE}.{name}") is not None:
            return importlib.import_module(f"{_PACKAGE}.{name}")
        vars(package).pop("__getattr__", None)
        loader.exec_module(package)
        return getattr(package, name)

    vars(package)["__getattr__"] = find  # PEP 562
    sys.modules[_PACKAGE] = package
