"""A simulated cohort as one piece of work: the same integers as client by client, one draw of noise, one row booked."""

import json
import math
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

import fedlearn
from fedlearn.certificate.verify import verify_certificate
from fedlearn.coordinator.attempts import AttemptFailedError
from fedlearn.crypto.keystream import stream_entropy
from fedlearn.ledger import Ledger
from fedlearn.privacy.calibration import epsilon_after
from fedlearn.privacy.mechanisms import MECHANISMS
from fedlearn.privacy.quantization import from_lanes
from fedlearn.simulation.cohorts import CLIENTS
from fedlearn.simulation.run import resume
from fedlearn.simulation.worker_pool import OneProcess
from tests.simulation.federation import MLP, SESSION, UNMASKED, Federation


@pytest.fixture
def federate(load_digits, tmp_path):
    made = []

    def make(*overrides, name="run", entropy=None):
        made.append(Federation(load_digits(*UNMASKED, *overrides), tmp_path / name, entropy))
        return made[-1]

    yield make
    for federation in made:
        federation.cohorts.close()


@pytest.mark.parametrize("mode", ["none", "client-central"])
def test_a_sum_is_that_of_what_the_clients_send_one_by_one(federate, play, load_digits, mode):
    setting = (f"privacy.mode={mode}", *MLP)
    summed = federate(*setting).total(members=range(7))
    party = play(load_digits(*UNMASKED, *setting), "one-by-one")
    alone = np.zeros(party.layout.dimension, dtype=np.uint32)
    for client in range(7):
        party.advertise(client)
        alone += np.frombuffer(party.masked(client), "<u4")
    assert summed.survivors == 7
    np.testing.assert_array_equal(summed.lanes, alone)
    assert alone.any()


@pytest.mark.parametrize("mode", [name for name, mechanism in MECHANISMS.items() if mechanism.noise.in_shares])
def test_the_noise_of_a_sum_is_as_wide_as_the_shares_of_those_who_survived(federate, mode):
    """The difference of two totals of one cohort is noise alone: variance, kurtosis and low bits.

    z-scores below 5 and a chi-square above 1e-6: false alarms below 3e-6 in all.
    """
    federation = federate(f"privacy.mode={mode}", *MLP, "secure_aggregation.scale_bits=20", "run.seed=3")
    first, again = (federation.total(attempt=attempt, lost=(4, 8)) for attempt in (0, 1))
    assert first.survivors == again.survivors == 8
    noise = from_lanes(first.lanes - again.lanes)  # the same batches, so the rest cancels
    variance, count = 2 * 8 * federation.data.plan.noise_std**2, noise.size
    assert abs((noise.astype(float) ** 2).sum() / variance - count) < 5 * math.sqrt(2 * count)
    assert abs((noise.astype(float) ** 4).mean() / variance**2 - 3) < 5 * math.sqrt(96 / count)
    low = np.bincount(noise % 16, minlength=16)
    assert ((low - noise.size / 16) ** 2 / (noise.size / 16)).sum() < 58  # 15 degrees of freedom


def test_noise_is_new_in_each_round_and_one_draw_a_sum(federate):
    federation = federate("privacy.mode=record-distributed")
    first, second = federation.total(number=1), federation.total(number=2)
    assert np.mean(first.lanes == second.lanes) < 0.02
    repeated = [
        federate("privacy.mode=record-distributed", name=name, entropy=fixed_entropy()).total() for name in ("a", "b")
    ]
    np.testing.assert_array_equal(repeated[0].lanes, repeated[1].lanes)


def fixed_entropy():
    return stream_entropy(lambda size: b"\x07" * size)


def test_a_cohort_is_booked_by_two_rows_before_and_one_after_whatever_its_size(federate):
    federation = federate("data.population_size=40", "secure_aggregation.planned_cohort=30", "privacy.mode=none")
    federation.total(members=range(30))
    assert federation.cohorts.ledger.events() == []
    private = federate("data.population_size=40", name="private")
    private.total(members=range(10))
    (booking,) = private.cohorts.ledger.events(CLIENTS)
    assert booking.released
    assert private.cohorts.ledger.verify_chain() == 4  # a budget, who is reserved for, and the release
    assert private.cohorts.ledger.session(SESSION).releases == 1


def test_a_client_takes_part_as_often_as_it_may_and_a_lost_vector_counts(federate):
    federation = federate("data.population_size=30", "privacy.max_participations=1")
    federation.total(members=range(10), lost=(3,))
    federation.total(members=range(10, 20), number=2)
    with pytest.raises(AttemptFailedError, match="may make 1"):
        federation.total(members=[3, *range(20, 29)], number=3)
    assert len(federation.cohorts.ledger.events()) == 2


def test_a_million_clients_are_as_cheap_as_a_thousand_and_leave_what_their_cohorts_did(tmp_path):
    seconds = {}
    for population in (1_000, 1_000_000):
        records = {"data.population_size": population, "privacy.planned_records": 20 * population}
        config = fedlearn.RunConfig.load("million_clients", {**records, "privacy.max_participations": 32})
        federation = Federation(config, tmp_path / str(population))
        federation.total(range(0, 1000, 10))
        seconds[population] = []
        for number in range(2, 6):
            started = time.process_time()
            summed = federation.total(range(population - 150, population), number=number)
            seconds[population].append(time.process_time() - started)
        assert summed.survivors == 150
        assert federation.cohorts.ledger.verify_chain() == 1 + 5 * 3
        federation.cohorts.close()
    assert min(seconds[1_000_000]) < 1.5 * min(seconds[1_000])  # of processor time; on a quiet machine 1.0


def test_an_attempt_is_agreed_to_once_and_another_run_is_refused(federate, load_digits):
    federation = federate()
    federation.total(number=2)
    assert not federation.cohorts.agree((SESSION, 2, 0), range(10), federation.config.to_bytes())
    other = load_digits(*UNMASKED, "privacy.target_epsilon=9")
    assert not federation.cohorts.agree((SESSION, 3, 0), range(10), other.to_bytes())


class Killed(BaseException):
    """What kill -9 leaves: nobody cleans up after it."""


@pytest.mark.parametrize("moment", ["clean_sum", "release"])
def test_a_cohort_that_was_reserved_counts_if_the_process_dies_and_its_noise_is_not_drawn_again(
    load_digits, tmp_path, monkeypatch, moment
):
    def dies(*_, **__):
        raise Killed

    place = {"clean_sum": OneProcess, "release": Ledger}  # before there is noise, and after
    config = load_digits(*UNMASKED, "privacy.mode=client-distributed", "run.rounds=2", "run.spare_rounds=1")
    with monkeypatch.context() as dying:
        dying.setattr(place[moment], moment, dies)
        with pytest.raises(Killed):
            fedlearn.simulate(config, output=tmp_path / "run")
    result = resume(tmp_path / "run")
    ledger = Ledger(tmp_path / "run" / "ledger.db")
    booked = [(each.round, each.attempt, each.released) for each in ledger.events(CLIENTS)]
    ledger.close()
    assert booked == [(1, 0, False), (1, 1, True), (2, 0, True)]
    assert result.guarantees[0].epsilon == epsilon_after(fedlearn.plan(config), 3)
    certificate = (tmp_path / "run" / "certificate.json").read_bytes()
    assert verify_certificate(certificate, (tmp_path / "run" / "model.safetensors").read_bytes()).passed


def test_an_unmasked_simulation_says_that_one_draw_stood_for_the_shares(load_digits, tmp_path):
    told = {}
    for name, overrides in {"plain": UNMASKED, "masked": ("run.rounds=1",)}.items():
        result = fedlearn.simulate(load_digits(*overrides), output=tmp_path / name)
        certificate = (tmp_path / name / "certificate.json").read_bytes()
        told[name] = (result.noise, json.loads(certificate)["noise"]["drawn"])
        assert verify_certificate(certificate, (tmp_path / name / "model.safetensors").read_bytes()).passed
    assert told == {"plain": ("aggregate", "aggregate"), "masked": ("shares", "shares")}
    assert "one draw of the sum" in (tmp_path / "plain" / "report.html").read_text()
    assert load_file(tmp_path / "plain" / "model.safetensors")
