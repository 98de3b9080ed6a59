"""Stage "attest": a holder signs its own rows and the model it was shown, once a session, and nothing after that."""

import hashlib
from collections import Counter

import numpy as np
import pytest

from fedlearn.certificate.attestation import ATTEST, ATTEST_REPLY_BYTES, Attestation, dataset_tag
from fedlearn.coordinator.attesting import attestations_in, collect_attestations
from fedlearn.crypto.signatures import verify
from fedlearn.errors import ProtocolError
from fedlearn.holder.frames import REFUSAL, Frame
from fedlearn.model.layout import write_model
from fedlearn.round.context_fields import context_fields_of
from fedlearn.run.checkpoint import RunFolder
from fedlearn.secagg.aggregator import Aggregator
from fedlearn.secagg.messages import Envelope, Stage
from fedlearn.secagg.transcript import Context, Position

SESSION = "0123456789abcdef" * 2
AFTER = Position(bytes.fromhex(SESSION), 3, 0)
NAMES = ("advertise", "share", "masked", "consistency", "unmask")


class Federation:
    """A coordinator that plays one masked round by hand with real agents."""

    def __init__(self, party):
        self.party, self.roster, config = party, party.pool.roster, party.config
        self.fields = context_fields_of(config, party.data.plan, party.layout, self.roster.sha256)
        self.ids = [entry.client_id for entry in self.roster.members]

    def play(self, round_number=1, stages=5):
        position = Position(bytes.fromhex(SESSION), round_number, 0)
        context = Context(position, hashlib.sha256(self.party.model).digest(), self.fields)
        config = self.party.config.to_bytes()
        server = Aggregator(context, config, model=self.party.model, roster=self.roster.keys, asked=self.ids)
        answers = Counter()
        for stage, name in list(zip(Stage, NAMES, strict=True))[:stages]:
            for client, request in sorted(server.requests().items()):
                frame = Frame(name, SESSION, round_number, 0, request.to_bytes()).to_bytes()
                reply = self.party.pool.handle(self.ids.index(client), name, frame)
                answers[reply.startswith(REFUSAL)] += 1
                if not reply.startswith(REFUSAL):
                    server.receive(stage, client, reply)
            if answers[True]:
                return answers
            server.close_stage()
        return answers

    def attest(self, client=0, model=None, session=SESSION):
        body = self.party.model if model is None else model
        frame = Frame("attest", session, AFTER.round, AFTER.attempt, body).to_bytes()
        return self.party.pool.handle(client, "attest", frame)

    def opened(self, reply, client=0, model=None):
        digest = hashlib.sha256(self.party.model if model is None else model).digest()
        entry = self.roster.members[client]
        return bytes(Envelope(AFTER, ATTEST, entry.client_id, digest).open(entry.key, reply))


@pytest.fixture
def federation(play, load_digits):
    return Federation(play(load_digits("run.rounds=2", "run.spare_rounds=1")))


def test_a_holder_signs_what_it_booked_and_the_model_it_hashed_itself(federation):
    federation.play()
    config_hash = hashlib.sha256(federation.party.config.to_bytes()).digest()
    entry = federation.roster.members[3]
    reply = federation.opened(federation.attest(3), 3)
    told = Attestation.from_reply(reply, client_id=entry.client_id, key=entry.key, config_hash=config_hash)
    state = federation.party.pool.ledger.session(SESSION, "client-3")
    assert (told.releases, told.entries, told.ledger_head) == (1, 2, state.head)
    assert told.dataset_tag == dataset_tag(bytes.fromhex(SESSION), "client-3")
    model_hash = hashlib.sha256(federation.party.model).digest()
    signed = bytes.fromhex(SESSION) + config_hash + federation.roster.sha256 + model_hash + bytes([0, 0, 0, 1])
    label, event = b"fedlearn/ledger/v1/events", federation.party.data.plan.ledger_event.to_bytes()
    events = hashlib.sha256(b"".join(len(part).to_bytes(4, "big") + part for part in (label, event))).digest()
    assert len(reply) == ATTEST_REPLY_BYTES == 132
    assert verify(entry.key, told.signature, purpose="attest", message=signed + state.head + events)


def test_another_model_is_refused_and_the_same_one_gets_the_same_bytes(federation):
    federation.play()
    other = write_model(np.ones(federation.party.layout.dimension), federation.party.layout)
    first = federation.attest()
    refused = federation.attest(model=other)
    assert federation.opened(refused, model=other) == REFUSAL
    assert federation.attest() == first
    assert len(federation.opened(first)) == ATTEST_REPLY_BYTES


def test_bytes_that_are_no_model_of_this_run_are_not_attested(federation):
    federation.play()
    assert federation.opened(federation.attest(model=b"anything"), model=b"anything") == REFUSAL
    assert len(federation.opened(federation.attest())) == ATTEST_REPLY_BYTES


def test_a_session_that_the_holder_does_not_know_is_not_attested(federation):
    assert federation.opened(federation.attest()) == REFUSAL


def test_after_it_attested_a_holder_takes_part_in_no_round_of_the_session(federation):
    federation.play()
    first = federation.attest()
    assert federation.play(round_number=2, stages=1) == {True: 1, False: 9}
    assert federation.party.pool.ledger.releases("client-0", SESSION) == 1
    assert federation.attest() == first


def test_the_coordinator_keeps_those_that_hold_and_asks_the_others_again(federation, tmp_path):
    federation.play()
    folder, asked = RunFolder(tmp_path), []

    def ask_with(tamper):
        def ask(bodies, receive):
            asked.append(sorted(bodies))
            for member in bodies:
                receive(member, tamper(member, federation.attest(member)))

        return ask

    def collect(tamper):
        collect_attestations(
            folder,
            ask=ask_with(tamper),
            roster=federation.roster,
            position=AFTER,
            config=federation.party.config.to_bytes(),
            model=federation.party.model,
            event=federation.party.data.plan.ledger_event.to_bytes(),
        )
        return attestations_in(folder)

    away = {2: b"", 5: bytes(196), 7: federation.attest(8)}  # nothing, garbage, and another member's reply
    assert len(collect(lambda member, reply: away.get(member, reply))) == 7
    known = collect(lambda member, reply: reply)
    assert asked == [list(range(10)), [2, 5, 7]]
    assert [entry.client_id for entry in known] == sorted(federation.ids)
    assert {entry.releases for entry in known} == {1}


def test_whether_code_of_the_coordinator_runs_as_the_holder_is_one_or_zero_and_attested(federation):
    federation.play()
    entry = federation.roster.members[0]
    reply = federation.opened(federation.attest())
    known = {"client_id": entry.client_id, "key": entry.key, "config_hash": bytes(32)}
    assert not Attestation.from_reply(reply, **known).same_user
    for number, said in ((1, True), (2, None), (1 << 31, None)):
        changed = reply[:32] + number.to_bytes(4, "big") + reply[36:]
        if said is None:
            with pytest.raises(ProtocolError, match="expected 0 or 1"):
                Attestation.from_reply(changed, **known)
        else:
            told = Attestation.from_reply(changed, **known)
            assert told.same_user is said
            assert told.to_reply() == changed
