"""`audit.json`: what audits found, one object a kind, in the folder of the audited run or in one of its own."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedlearn.bounded import read_bytes, read_json
from fedlearn.config.run_config import RunConfig
from fedlearn.errors import ConfigError
from fedlearn.run.checkpoint import RunFolder, load_run

__all__ = ["AUDIT_FILE", "AuditFolder", "config_hash"]

AUDIT_FILE = "audit.json"

_FORMAT = "fedlearn/v1/audit"


def config_hash(config: RunConfig) -> str:
    """By which an audit names the run that it is about: SHA-256 of the canonical bytes, in hexadecimal digits."""
    return hashlib.sha256(config.to_bytes()).hexdigest()


class AuditFolder:
    """Where audits of one run are kept.

    Guarantees:
        of a run's folder nothing is changed but `audit.json` and the pictures of audits;
        an audit replaces the earlier one of its kind, as a whole, and leaves the others.
    """

    def __init__(self, path: Path) -> None:
        """Read what is kept there; nothing is made before there is something to write.

        Raises:
            ConfigError: it is a file, or what is in `audit.json` is no list of audits.
        """
        if (path.exists() or path.is_symlink()) and not path.is_dir():
            raise ConfigError(f"--output {path}: is no folder; name a folder")
        self._folder = RunFolder(path)
        self._audits = self._read()

    @property
    def file(self) -> Path:
        """The list of audits."""
        return self._folder.file(AUDIT_FILE)

    def run(self) -> RunConfig | None:
        """The configuration of the run in this folder; None where there is no run."""
        file = self._folder.file("config.toml")
        return load_run(file) if file.is_file() else None

    def check_is_about(self, config: RunConfig) -> None:
        """See that all that is in this folder is about the run `config`.

        Raises:
            ConfigError: there is a run, or an audit, of another configuration.
        """
        run = self.run()
        others = [kind for kind, audit in self._audits.items() if audit.get("config_hash") != config_hash(config)]
        if others or (run is not None and config_hash(run) != config_hash(config)):
            what = f"the audit {others[0]}" if others else "a run"
            raise ConfigError(
                f"--output {self._folder.path}: holds {what} of another configuration; name another folder, or leave "
                "out SCENARIO and --set to audit the run in this one"
            )

    def write(self, audit: Mapping[str, Any], *, pictures: Mapping[str, bytes]) -> None:
        """Keep an audit, and its pictures by file name."""
        self._folder.path.mkdir(parents=True, exist_ok=True)
        for name, content in pictures.items():
            self._folder.write(name, content)
        self._audits[audit["kind"]] = dict(audit)
        listed = [self._audits[kind] for kind in sorted(self._audits)]
        self._folder.write_json(AUDIT_FILE, {"format": _FORMAT, "audits": listed})

    def _read(self) -> dict[str, dict[str, Any]]:
        if not self.file.is_file():
            return {}
        try:
            values = read_json(read_bytes(self.file), what="it")
            if values["format"] != _FORMAT:
                raise ValueError
            return {audit["kind"]: audit for audit in values["audits"]}
        except (ConfigError, ValueError, LookupError, TypeError):
            raise ConfigError(
                f"{self.file}: expected audits as `fedlearn audit` writes them; move the file away"
            ) from None
