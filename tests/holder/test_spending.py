"""What a holder's agent spends and refuses over sessions and ids; the server sees vectors and one constant refusal."""

import numpy as np
import pytest

from fedlearn.data.dataset import Dataset
from fedlearn.data.readers import Table
from fedlearn.data.stored import fingerprint_of
from fedlearn.holder.context import Agent, Holder
from fedlearn.holder.frames import REFUSAL
from fedlearn.privacy.accounting import epsilon_at_order

SESSIONS = ["a" * 32, "b" * 32, "c" * 32]
ONE_RUN = ("run.rounds=2", "run.spare_rounds=0", "privacy.max_participations=2")


class Kept:
    """A holder whose file can grow, with an agent a session as after a restart; counts how often the file is read."""

    def __init__(self, party, dataset_id="client-0", records=None):
        self.party, self.dataset_id, self.reads = party, dataset_id, 0
        self.file = records or party.data.train.take(np.arange(100))

    def read(self) -> Dataset:
        self.reads += 1
        return self.file

    def stored(self, salt):
        rows = ["".join(map(str, row.ravel().tolist())) for row in self.file.features]
        return fingerprint_of(Table("here", {"row": rows}, len(rows)), salt)

    def append_a_record(self):
        everybody = self.party.data.train
        self.file = everybody.take(np.arange(len(self.file) + 1))

    def run(self, session, rounds=2):
        """The replies of one session, vectors as their length."""
        context = self.party.pool._context
        agent = Agent(Holder(bytes(16), self.dataset_id, self.read, fingerprint=self.stored), context)
        replies = []
        for number in range(1, rounds + 1):
            where = {"round_number": number, "session": session}
            agent.handle("advertise", self.party.frame("advertise", self.party.config.to_bytes(), **where))
            replies.append(agent.handle("masked", self.party.frame("masked", self.party.model, **where)))
        return [reply if reply == REFUSAL else len(reply) for reply in replies]


@pytest.fixture
def party(play, load_plain):
    return play(load_plain(*ONE_RUN))


def a_lifetime_of(party, dataset_id, releases):
    """A budget that so many of this run's releases just fit into."""
    ledger, event = party.pool.ledger, party.data.plan.ledger_event
    cost = epsilon_at_order([(event, releases)], delta=1e-5, epsilon_ceiling=9.0, order=8.0)
    ledger.open_dataset(dataset_id, privacy_unit="record", max_epsilon=cost * 1.001, max_delta=1e-5, order=8.0)


def test_r19_a_second_run_goes_on_spending_also_after_a_record_is_appended(party):
    a_lifetime_of(party, "ward", 3)
    holder = Kept(party, "ward")
    vector = 4 * party.layout.dimension
    assert holder.run(SESSIONS[0]) == [vector, vector]
    holder.append_a_record()
    reads = holder.reads
    assert holder.run(SESSIONS[1]) == [vector, REFUSAL], "the fourth would pass the budget"
    assert holder.reads == reads + 1, "no record is read for a release that is refused"
    holder.append_a_record()
    assert holder.run(SESSIONS[2]) == [REFUSAL, REFUSAL]
    assert holder.reads == reads + 1
    assert len(party.pool.ledger.events("ward")) == 3


def test_r19_records_known_under_another_id_are_refused_until_the_holder_confirms(party, caplog):
    for dataset_id in ("ward", "renamed"):
        a_lifetime_of(party, dataset_id, 9)
    vector = 4 * party.layout.dimension
    assert Kept(party, "ward").run(SESSIONS[0]) == [vector, vector]
    renamed = Kept(party, "renamed")
    with caplog.at_level("INFO", logger="fedlearn"):
        assert renamed.run(SESSIONS[1]) == [REFUSAL, REFUSAL]
    assert 'known as "ward"' in caplog.text
    assert [booking.released for booking in party.pool.ledger.events("renamed")] == [False, False]
    party.pool.ledger.confirm("renamed")
    assert renamed.run(SESSIONS[2]) == [vector, vector]


def test_records_that_differ_by_one_are_other_records(party):
    for dataset_id in ("ward", "neighbor"):
        a_lifetime_of(party, dataset_id, 9)
    vector = 4 * party.layout.dimension
    assert Kept(party, "ward").run(SESSIONS[0]) == [vector, vector]
    neighbor = Kept(party, "neighbor")
    neighbor.append_a_record()
    assert neighbor.run(SESSIONS[1]) == [vector, vector]


def test_a_holder_says_whether_its_releases_are_fingerprinted():
    with pytest.raises(TypeError, match="fingerprint"):
        Holder(bytes(16), "ward", lambda: None)


def test_records_that_cannot_be_read_are_zeros_and_noise_without_a_fingerprint(party):
    a_lifetime_of(party, "ward", 9)
    holder = Kept(party, "ward")
    holder.read = lambda: 1 / 0
    assert holder.run(SESSIONS[0]) == [4 * party.layout.dimension] * 2
    assert [booking.released for booking in party.pool.ledger.events("ward")] == [True, True]
