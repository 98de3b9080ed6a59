"""The book of members: names, rosters, revoking."""

import os

import pytest

from fedlearn.crypto.certificates import new_node_key, node_public_key
from fedlearn.crypto.signatures import SigningKey
from fedlearn.enrolment.federation import Federation
from fedlearn.enrolment.invitation import NO_NONCE, Applicant, applicant_proof, verifier_of
from fedlearn.errors import ConfigError, RefusedError
from fedlearn.policy.roster import Roster, RosterEntry

PIN = bytes(16)
COORDINATOR = RosterEntry("Coordinator", "", b"\xff" * 16, SigningKey(b"\x09" * 32).public)
NODE_KEYS = [node_public_key(new_node_key()) for _ in range(6)]


class Clock:
    now = 1e9

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def book(tmp_path, clock):
    federation = Federation(tmp_path / "federation.db", clock=clock)
    yield federation
    federation.close()


def admit(book, secret, number):
    """Let somebody in by a code; `number` makes the keys."""
    key = SigningKey(bytes([number]) * 32)
    applicant = Applicant(bytes([number]) * 16, key.public, NODE_KEYS[number], "")
    proof, signature = applicant_proof(verifier_of(secret, PIN), applicant, key, pin=PIN, nonce=NO_NONCE)
    return book.admit(applicant, proof, signature, pin=PIN, nonce=NO_NONCE)


def joined(book, *names, first=0):
    for number, secret in enumerate(book.invite(names, pin=PIN, days=1), start=first):
        admit(book, secret, number)


def test_the_names_that_are_invited_are_the_roster(book):
    secrets = book.invite(["Ada", "Ben", "Cleo"], pin=PIN, days=1)
    for number, secret in enumerate(secrets[:2]):
        admit(book, secret, number)
    with pytest.raises(ConfigError, match="Cleo did not join yet; wait, or withdraw"):
        book.close_roster(COORDINATOR)
    assert book.roster is None
    admit(book, secrets[2], 2)
    roster = book.close_roster(COORDINATOR)
    assert {entry.name for entry in roster.members} == {"Ada", "Ben", "Cleo"}
    assert roster.coordinator == COORDINATOR
    assert book.roster.content == roster.content


def test_a_withdrawn_invitation_is_not_awaited(book):
    secrets = book.invite(["Ada", "Ben"], pin=PIN, days=1)
    admit(book, secrets[0], 0)
    book.revoke("Ben")
    assert [entry.name for entry in book.close_roster(COORDINATOR).members] == ["Ada"]


def test_a_code_is_good_until_it_expires(book, clock):
    first, second = book.invite(["Ada", "Ben"], pin=PIN, days=2)
    clock.now += 2 * 86400 - 1
    admit(book, first, 0)
    clock.now += 2
    with pytest.raises(RefusedError):
        admit(book, second, 1)
    assert [book.is_open(member) for member in book.members()] == [False, False]


def test_f20_revoking_leaves_the_closed_roster_and_is_in_the_next_one(book):
    joined(book, "Ada", "Ben", "Cleo")
    first = book.close_roster(COORDINATOR)
    book.revoke("Ben")
    assert book.roster.content == first.content
    assert [member.name for member in book.in_roster()] == ["Ada", "Cleo"]
    second = book.close_roster(COORDINATOR)
    assert {entry.name for entry in second.members} == {"Ada", "Cleo"}
    assert book.give_roster(bytes([1]) * 16) is None


def test_f20_who_comes_back_comes_with_a_new_key(book):
    joined(book, "Ada", "Ben")
    book.close_roster(COORDINATOR)
    book.revoke("Ben")
    (secret,) = book.invite(["Ben"], pin=PIN, days=1)
    with pytest.raises(RefusedError):
        admit(book, secret, 1)
    admit(book, secret, 2)
    assert [member.name for member in book.in_roster()] == ["Ada"]  # until the next roster
    book.close_roster(COORDINATOR)
    assert [member.name for member in book.in_roster()] == ["Ada", "Ben"]


def test_closing_again_without_a_change_is_the_same_roster(book):
    joined(book, "Ada", "Ben")
    once = book.close_roster(COORDINATOR)
    book.give_roster(bytes([0]) * 16)
    book.give_roster(bytes([1]) * 16)
    assert not book.is_awaited()
    assert book.close_roster(COORDINATOR).content == once.content
    assert not book.is_awaited()


def test_somebody_new_makes_a_new_roster_that_everybody_is_given(book):
    joined(book, "Ada", "Ben")
    book.close_roster(COORDINATOR)
    book.give_roster(bytes([0]) * 16)
    book.give_roster(bytes([1]) * 16)
    joined(book, "Cleo", first=2)
    assert len(book.roster.members) == 2
    assert book.is_awaited()
    three = book.close_roster(COORDINATOR)
    assert Roster.from_bytes(book.give_roster(bytes([0]) * 16)).members == three.members


def test_two_processes_see_one_book(book, tmp_path):
    joined(book, "Ada")
    other = Federation(tmp_path / "federation.db")
    assert other.members() == book.members()
    other.revoke("Ada")
    assert book.members()[0].revoked
    other.close()


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["Ada", "Ada"], "a name twice"),
        (["Ada", "ada "], "two that read alike"),
        (["all"], "cannot be a member's name"),
        (["COORDINATOR"], "cannot be a member's name"),
        ([""], "cannot be a member's name"),
        (["a\nb"], "cannot be a member's name"),
        (["x" * 65], "cannot be a member's name"),
        (["Eve", "Zoe"], "Zoe has joined"),
        (["ｚｏｅ"], "two that read alike"),
    ],
    ids=str,
)
def test_a_name_that_cannot_be_is_one_sentence_and_nobody_is_invited(book, names, sentence):
    joined(book, "Zoe")
    before = book.members()
    with pytest.raises(ConfigError, match=sentence):
        book.invite(names, pin=PIN, days=1)
    assert book.members() == before


def test_an_unknown_name_is_one_sentence(book):
    with pytest.raises(ConfigError, match="Eve: no such member; the names are none yet"):
        book.revoke("Eve")


def test_nobody_is_no_roster(book):
    with pytest.raises(ConfigError, match="nobody has joined"):
        book.close_roster(COORDINATOR)


def test_the_file_is_its_owners_alone_and_another_one_is_refused(book, tmp_path):
    assert (tmp_path / "federation.db").stat().st_mode & 0o077 == 0
    (tmp_path / "other.db").write_bytes(os.urandom(5000))
    with pytest.raises(ConfigError, match="not a book of members"):
        Federation(tmp_path / "other.db")
