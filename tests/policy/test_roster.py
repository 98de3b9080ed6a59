"""The roster, and accepting one: a key is believed because a person was asked, never because a server said so."""

import hashlib
import stat
import tomllib
from dataclasses import replace

import pytest
from holder_files import client_id, coordinator, entry, key, small_roster, write_policy

from fedlearn.enrolment.roster_acceptance import accept_roster, accepted_roster, proposed_roster
from fedlearn.errors import ConfigError, RefusedError
from fedlearn.policy.holder_policy import HolderPolicy
from fedlearn.policy.roster import Roster


def test_members_are_sorted_by_id_and_the_first_entry_is_the_coordinators():
    roster = small_roster(entry(2), entry(0), entry(1))
    assert [member.name for member in roster.members] == ["Ada", "Ben", "Cleo"]
    assert roster.coordinator == coordinator()
    assert coordinator().client_id not in roster.keys


def test_a_fingerprint_is_the_key_and_nothing_else():
    digest = hashlib.sha256(key(0).public).hexdigest()
    assert entry(0).fingerprint.replace(" ", "") == digest[:32]
    assert replace(entry(0), name="Eve").fingerprint == entry(0).fingerprint


@pytest.mark.parametrize(
    ("members", "what"),
    [
        ((entry(0), replace(entry(1), client_id=client_id(0))), "client_id twice"),
        ((entry(0), replace(entry(1), key=key(0).public)), "key twice"),
        ((entry(0), replace(entry(1), key=coordinator().key)), "key twice"),
        ((entry(0), entry(1, "Ada")), "name twice"),
        ((entry(0), entry(1, "ADA")), "name twice"),
        ((entry(0), entry(1, "Ada ")), "name twice"),
        ((entry(0), entry(1, "Ａda")), "name twice"),
        ((entry(0), replace(entry(1), name="Ada\x1b[2K")), "printable"),
        ((entry(0), replace(entry(1), contact="\x1b[2K")), "printable"),
        ((entry(0), entry(1, "  ")), "name not empty"),
        ((replace(entry(0), client_id=b"short"),), "client_id of 16 bytes"),
    ],
)
def test_a_roster_that_could_deceive_a_reader_is_refused(members, what):
    with pytest.raises(ConfigError, match=what):
        small_roster(*members)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"\xff", "expected a TOML file"),
        (b"format = 1", "not one of format"),
        (small_roster().content.replace(b"/v1/", b"/v2/"), "not one of format"),
        (b"more = 1\n" + small_roster().content, "not one of format"),
        (small_roster().content.replace(b"contact", b"phone"), "member 1 of the roster: expected exactly"),
        (small_roster().content.replace(b'key = "', b'key = "x'), "hexadecimal digits"),
    ],
)
def test_what_is_no_roster_is_refused(content, what):
    with pytest.raises(ConfigError, match=what):
        Roster.from_bytes(content)


# Accepting.


@pytest.fixture
def policy(tmp_path):
    return write_policy(tmp_path / "client")


def sent(tmp_path, roster):
    file = tmp_path / "sent.toml"
    file.write_bytes(roster.content)
    return file


def grown():
    return small_roster(
        *(entry(member) for member in range(4)), replace(entry(0, "Emil", key(7)), client_id=b"\x20" * 16)
    )


def accept(tmp_path, policy, *names, roster=None):
    roster = roster or grown()
    return accept_roster(policy, sent(tmp_path, roster), sha256=roster.sha256.hex(), confirmed=names)


def test_an_accepted_roster_is_pinned_and_the_policy_keeps_every_other_byte(tmp_path, policy):
    before = policy.read_text()
    accept(tmp_path, policy)
    assert policy.read_text() == before.replace(small_roster().sha256.hex(), grown().sha256.hex())
    assert HolderPolicy.load(policy).roster == grown()


def test_the_confirmed_ones_are_written_down_and_nobody_else(tmp_path, policy):
    known = accept(tmp_path, policy, "Ben", "Emil")
    assert [member.name for member in known.unconfirmed] == ["Cleo", "Dora"]
    assert [known.standing(each) for each in known.entries] == [
        *("not confirmed", "yourself", "confirmed", "not confirmed", "not confirmed", "confirmed")
    ]
    assert accepted_roster(policy) == known


def test_all_confirms_everybody_and_the_coordinator(tmp_path, policy):
    known = accept(tmp_path, policy, "all")
    assert known.unconfirmed == ()
    assert known.confirmations.holds(known.roster.coordinator)


def test_who_was_confirmed_stays_so_with_the_same_key_and_not_with_another(tmp_path, policy):
    accept(tmp_path, policy, "all", roster=small_roster())
    changed = small_roster(entry(0), entry(1), entry(2, signing_key=key(60)), entry(3))
    assert [member.name for member in accept(tmp_path, policy, roster=changed).unconfirmed] == ["Cleo"]


def test_a_wrong_hash_is_refused_and_nothing_is_written(tmp_path, policy):
    before = {path.name: path.read_bytes() for path in policy.parent.iterdir()}
    with pytest.raises(RefusedError, match="it is another roster, so nothing was written"):
        accept_roster(policy, sent(tmp_path, grown()), sha256=small_roster().sha256.hex(), confirmed=["all"])
    assert {path.name: path.read_bytes() for path in policy.parent.iterdir()} == before


@pytest.mark.parametrize(
    ("names", "sha256", "what"),
    [
        (["Benn"], None, r"--confirmed Benn: expected a name in the roster: .*; did you mean Ben\?"),
        (["all"], "abc", "--sha256 abc: expected 64 hexadecimal digits"),
    ],
)
def test_a_mistyped_option_writes_nothing(tmp_path, policy, names, sha256, what):
    before = policy.read_bytes()
    with pytest.raises(ConfigError, match=what):
        accept_roster(policy, sent(tmp_path, grown()), sha256=sha256 or grown().sha256.hex(), confirmed=names)
    assert policy.read_bytes() == before
    assert not (policy.parent / "confirmed.toml").exists()


def test_a_member_named_all_is_refused(tmp_path, policy):
    with pytest.raises(ConfigError, match='a member named "all"'):
        accept(tmp_path, policy, "all", roster=small_roster(entry(0), entry(1, "all")))


def test_a_roster_without_this_holder_is_not_accepted(tmp_path, policy):
    with pytest.raises(ConfigError, match="no such member"):
        accept(tmp_path, policy, roster=small_roster(entry(1), entry(2), entry(3)))


def test_what_is_too_large_or_missing_is_one_sentence(tmp_path, policy):
    large = tmp_path / "large.toml"
    large.write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(ConfigError, match="larger than 1 MiB"):
        proposed_roster(policy, large)
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        proposed_roster(policy, tmp_path / "none.toml")


def test_a_pin_in_an_unusual_form_is_not_guessed_at(tmp_path, policy):
    text = policy.read_text()
    line = next(line for line in text.splitlines() if line.startswith("roster_sha256"))
    policy.write_text(text.replace(line, line.replace("roster_sha256", '"roster_sha256"')))
    with pytest.raises(ConfigError, match="on a line of its own"):
        accept(tmp_path, policy)


def test_a_pin_named_in_a_comment_or_another_text_is_left_alone(tmp_path, policy):
    text = '# roster_sha256 = ""\n' + policy.read_text().replace('"agent.sock"', "\"roster_sha256 = 'x'\"")
    policy.write_text(text)
    accept(tmp_path, policy)
    values = tomllib.loads(policy.read_text())
    assert values["agent"]["socket"] == "roster_sha256 = 'x'"
    assert values["holder"]["roster_sha256"] == grown().sha256.hex()


def test_a_crash_before_the_pin_leaves_a_policy_that_is_refused(tmp_path, policy):
    (policy.parent / "roster.toml").write_bytes(grown().content)
    with pytest.raises(RefusedError):
        HolderPolicy.load(policy)
    accept(tmp_path, policy)
    HolderPolicy.load(policy)


def test_new_files_are_their_owners_alone_and_a_policy_keeps_its_mode(tmp_path, policy):
    policy.chmod(0o640)
    (policy.parent / "roster.toml").unlink()
    accept(tmp_path, policy)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in policy.parent.iterdir()}
    assert modes.pop("identity.key") == 0o600
    assert modes == {"client.toml": 0o640, "roster.toml": 0o600, "confirmed.toml": 0o600}


def test_a_proposed_roster_is_shown_with_whom_one_knows_already(tmp_path, policy):
    accept(tmp_path, policy, "Ben", roster=small_roster())
    known = proposed_roster(policy, sent(tmp_path, grown()))
    assert [member.name for member in known.unconfirmed] == ["Cleo", "Dora", "Emil"]
    assert HolderPolicy.load(policy).roster == small_roster()
