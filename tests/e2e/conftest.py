"""Whoever names this folder, or a file of it, asks for what is slow: there is nothing else here."""

from pathlib import Path

import pytest


def pytest_configure(config: pytest.Config) -> None:
    named = [Path(argument.partition("::")[0]).resolve() for argument in config.args]
    if config.option.markexpr == "not slow" and all(path.is_relative_to(Path(__file__).parent) for path in named):
        config.option.markexpr = ""
