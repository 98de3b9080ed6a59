"""A data holder's folder for tests: a small roster, and a policy that accepts the digits scenario of four."""

import hashlib
import re
from pathlib import Path

from fedlearn.config.run_config import RunConfig
from fedlearn.config.schema import schema_sha256
from fedlearn.crypto.signatures import SigningKey
from fedlearn.host.durable import write_whole
from fedlearn.policy.roster import Roster, RosterEntry

NAMES = ("Ada", "Ben", "Cleo", "Dora")

POLICY = """\
# A comment that stays.
[holder]
client_id = "{client_id}"
key_file = "identity.key"
roster_file = "roster.toml"
roster_sha256 = "{roster_sha256}"    # pinned

[dataset.digits]
source = "digits"
privacy_unit = "record"
max_epsilon = 3.0
max_delta = 1e-5
models = ["linear"]
modes = ["record-distributed"]

[limits]
min_survivors = 3
max_colluders_at_least = 1
unconfirmed_members = 3
max_dimension = 650
releases_per_model = 2

[agent]
socket = "agent.sock"
reply_after_seconds = 0
"""
# Overrides that fit the digits scenario to four members.
FOUR = (
    "secure_aggregation.planned_cohort=4",
    "secure_aggregation.min_survivors=3",
    "privacy.planned_records=1000",
    "data.population_size=4",
)


def client_id(member: int) -> bytes:
    return bytes([member + 1]) * 16


def seed(member: int) -> bytes:
    """What a member's key file holds; 99 is the coordinator."""
    return hashlib.sha256(b"the key of member %d" % member).digest()


def key(member: int) -> SigningKey:
    return SigningKey(seed(member))


def entry(member: int, name: str | None = None, signing_key: SigningKey | None = None) -> RosterEntry:
    name = name or NAMES[member]
    return RosterEntry(name, f"{name.lower()}@example.org", client_id(member), (signing_key or key(member)).public)


def coordinator() -> RosterEntry:
    return RosterEntry("Coordinator", "", b"\xff" * 16, key(99).public)


def small_roster(*members: RosterEntry) -> Roster:
    return Roster.of(coordinator(), members or tuple(entry(member) for member in range(4)))


def table_source(path: str, config: RunConfig) -> str:
    """The value of `source` for a table, with the schema of `config` pinned on the line below."""
    return f'"{path}"\nschema_sha256 = "{schema_sha256(config.data)}"'


def write_policy(
    folder: Path, changes: dict[str, str] | None = None, roster: Roster | None = None, member: int = 0
) -> Path:
    """`client.toml` of a member, of Ada by default, with its key and the roster; `changes` replace values, as TOML."""
    roster = roster or small_roster()
    folder.mkdir(parents=True, exist_ok=True)
    text = POLICY.format(client_id=client_id(member).hex(), roster_sha256=roster.sha256.hex())
    for name, value in (changes or {}).items():
        text, count = re.subn(rf"(?m)^{name} = .*$", f"{name} = {value}", text)
        assert count == 1
    (folder / "roster.toml").write_bytes(roster.content)
    write_whole(folder / "identity.key", seed(member), mode=0o600)
    path = folder / "client.toml"
    path.write_text(text, encoding="utf-8")
    return path
