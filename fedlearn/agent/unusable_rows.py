"""Beside the policy: which stored rows the last run of each data set could not use, for `client status`."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from fedlearn.agent.source import Unusable
from fedlearn.durable import read_small, write_whole

__all__ = ["keep_unusable", "unusable_of_last_run"]

_FILE: Final = "unusable.json"

_log = logging.getLogger(__name__)


def keep_unusable(folder: Path, dataset_id: str, unusable: Unusable) -> None:
    """Note it for one data set; what cannot be written is logged."""
    told = {**unusable_of_last_run(folder), dataset_id: unusable.sentence}
    content = json.dumps({name: sentence for name, sentence in told.items() if sentence}).encode()
    try:
        write_whole(folder / _FILE, content, mode=0o600)
    except OSError as error:
        _log.warning("which rows are unusable cannot be kept: %s", error.strerror)


def unusable_of_last_run(folder: Path) -> Mapping[str, str]:
    """By data set, a sentence; only those with unusable rows."""
    try:
        told = json.loads(read_small(folder / _FILE))
        return {str(name): str(sentence) for name, sentence in told.items()}
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}
