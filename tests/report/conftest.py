"""Writes the run folder of `run_by_hand`, and whatever a test changes in it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import run_by_hand

from fedlearn.certificate.form import encode
from fedlearn.crypto.signatures import SigningKey

WriteFolder = Callable[..., Path]


@pytest.fixture
def write_folder(tmp_path: Path) -> WriteFolder:
    """Write a run folder; keyword arguments replace fields of `summary.json`, `config` the text of `config.toml`."""

    def write(
        *, name: str = "run", config: str = run_by_hand.CONFIG, metrics: Any = None, events: Any = None, **changed: Any
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.toml").write_text(config)
        fields = {**run_by_hand.summary(), **changed}
        (folder / "summary.json").write_text(json.dumps(fields))
        (folder / "certificate.json").write_bytes(
            encode(run_by_hand.certificate_content(fields), SigningKey(bytes(32)))
        )
        for file, lines in (("metrics.jsonl", metrics), ("events.jsonl", events)):
            lines = (
                lines
                if lines is not None
                else run_by_hand.metrics()
                if file == "metrics.jsonl"
                else run_by_hand.events()
            )
            (folder / file).write_text("".join(json.dumps(line) + "\n" for line in lines))
        return folder

    return write


@pytest.fixture
def summary_fields() -> dict[str, Any]:
    return run_by_hand.summary()
