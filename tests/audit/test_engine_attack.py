"""`audit mechanism` sends stored records through the whole engine: an honest one passes, each sabotaged one is found.

A sabotage replaces a function that a run itself calls. An honest engine fails here with a probability of at most 1e-4.
"""

import numpy as np
import pytest
import torch

from fedlearn.audit.engine_attack import FALSE_ALARM_RATE, ROUNDS, attack_engine
from fedlearn.crypto import keystream
from fedlearn.privacy import noise_sources, works
from fedlearn.privacy.noise_sources import SERVER, SHARES
from fedlearn.simulation import simulated
from fedlearn.training import local, record_sums
from fedlearn.training.stacked import trainer
from fedlearn.training.stacked.linear import LinearKernel
from fedlearn.training.stacked.model import StackedModel

pytestmark = [pytest.mark.lengthy, pytest.mark.timeout(300)]

FEW = 18  # rounds, which suffice for most sabotages
MLP = ("model.name=mlp", "model.options={hidden=[16]}")


@pytest.fixture
def attack(load_plain, load_digits):
    """Attacks the digits scenario's engine, in the clear where it is not said otherwise."""

    def run(*overrides, masked=False, rounds=FEW):
        return attack_engine((load_digits if masked else load_plain)(*overrides), rounds=rounds)

    return run


def failed(told, name):
    return any(check.name.endswith(f": {name}") and not check.passed for check in told.checks)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["record-distributed", "record-local", "client-distributed", "client-central"])
@pytest.mark.parametrize("model", [(), MLP])
def test_an_honest_engine_passes_in_every_mode_and_none_is_found_unprotected(attack, mode, model):
    told = attack(f"privacy.mode={mode}", *model, rounds=ROUNDS)
    assert told.failed is None
    assert told.unprotected
    assert sum(check.false_alarm_rate for check in told.checks) <= FALSE_ALARM_RATE * 1.0001
    assert told.reach > 3


def test_an_honest_engine_passes_and_none_is_found_unprotected(attack):
    told = attack()
    assert told.failed is None
    assert told.unprotected


@pytest.mark.slow
def test_a_masked_run_is_attacked_masked_and_summed(attack):
    told = attack(masked=True)
    assert told.failed is None
    assert {check.name.split(":")[0] for check in told.checks} == {"masked", "summed"}


def test_a_clip_that_is_off_in_the_closed_form_is_found(attack, monkeypatch):
    honest = record_sums._clip_factors
    monkeypatch.setattr(record_sums, "_clip_factors", lambda norms, bound: honest(norms, 1e6 * bound))
    assert failed(attack(), "reach")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["record-distributed", "record-local"])
def test_a_clip_that_is_off_in_the_kernels_is_found(attack, monkeypatch, mode):
    """In float32 alone: the engine's own check of the kernels is in float64."""
    honest = StackedModel.clipped

    def too_long(self, rows, inputs, targets, present, bound):
        return honest(self, rows, inputs, targets, present, 1e6 * bound if inputs.dtype == torch.float32 else bound)

    monkeypatch.setattr(StackedModel, "clipped", too_long)
    assert failed(attack(f"privacy.mode={mode}", *MLP), "reach")


@pytest.mark.slow
@pytest.mark.parametrize("left_out", [64, 16])
def test_a_clip_that_leaves_one_layer_out_is_found(attack, monkeypatch, left_out):
    """The layer that has so many inputs, and in float32 alone."""
    honest = LinearKernel.per_record

    def without_layer(self, saved, delta):
        squares, sums = honest(self, saved, delta)
        lost = delta.dtype == torch.float32 and saved[0].shape[-1] == left_out
        return (torch.zeros_like(squares) if lost else squares), sums

    monkeypatch.setattr(LinearKernel, "per_record", without_layer)
    assert failed(attack(*MLP), "reach")


@pytest.mark.slow
def test_a_client_clip_that_is_off_is_found(attack, monkeypatch):
    honest = works.truncate_within
    monkeypatch.setattr(
        works, "truncate_within", lambda rows, scale, sensitivity: honest(rows, scale=scale, sensitivity=10**8)
    )
    assert failed(attack("privacy.mode=client-distributed"), "reach")


def noise_of_sum(monkeypatch, change):
    """Every sum's noise, changed."""
    honest = SHARES.of_sum
    monkeypatch.setattr(type(SHARES), "of_sum", lambda self, *given: change(honest(*given)))


def test_a_sum_without_noise_is_found(attack, monkeypatch):
    noise_of_sum(monkeypatch, np.zeros_like)
    assert failed(attack(), "noise")


@pytest.mark.slow
def test_a_server_without_noise_is_found(attack, monkeypatch):
    honest = SERVER.central
    monkeypatch.setattr(type(SERVER), "central", lambda self, *given: np.zeros_like(honest(*given)))
    assert failed(attack("privacy.mode=client-central"), "noise")


@pytest.mark.slow
def test_steps_without_noise_are_found(attack, monkeypatch):
    monkeypatch.setattr(simulated, "box_muller", lambda std, dimension, entropy: np.zeros(dimension, dtype=np.int64))
    assert failed(attack("privacy.mode=record-local"), "noise")


@pytest.mark.slow
def test_shares_that_are_missing_are_found(attack, monkeypatch):
    honest = SHARES.of_sum
    monkeypatch.setattr(
        type(SHARES), "of_sum", lambda self, plan, survivors, entropy: honest(plan, survivors - 1, entropy)
    )
    assert failed(attack(), "noise")


@pytest.mark.parametrize("bare", [slice(7, 8), pytest.param(slice(0, 65), marks=pytest.mark.slow)])
def test_entries_without_noise_are_found(attack, monkeypatch, bare):
    def change(noise):
        noise[bare] = 0
        return noise

    noise_of_sum(monkeypatch, change)
    assert failed(attack(), "bare")


@pytest.mark.parametrize("later", [2, *(pytest.param(later, marks=pytest.mark.slow) for later in (1, 3, 16))])
def test_noise_that_comes_again_later_is_found(attack, monkeypatch, later):
    kept = []

    def change(noise):
        kept.append(noise.copy())
        number = len(kept) - 1
        return kept[number - later] if (number // later) % 2 else noise

    noise_of_sum(monkeypatch, change)
    told = attack(rounds=ROUNDS if later > 3 else FEW)
    assert failed(told, "releases")
    assert failed(told, "reuse")


@pytest.mark.slow
@pytest.mark.parametrize("period", [64, 7, 325])
def test_noise_with_a_period_is_found(attack, monkeypatch, period):
    noise_of_sum(monkeypatch, lambda noise: np.resize(noise[:period], len(noise)))
    assert failed(attack(), "entries")


@pytest.mark.slow
def test_noise_that_goes_with_its_neighbor_is_found(attack, monkeypatch):
    noise_of_sum(monkeypatch, lambda noise: np.rint(0.96 * noise + 0.28 * np.roll(noise, 1)).astype(np.int64))
    assert failed(attack(), "entries")


@pytest.mark.slow
def test_a_keystream_with_a_period_of_seven_blocks_is_found(attack, monkeypatch):
    def periodic(cipher, out):
        start = bytearray(7 * 16)
        cipher.update_into(bytes(len(start)), start)
        out[:] = (bytes(start) * (len(out) // len(start) + 1))[: len(out)]

    monkeypatch.setattr(keystream, "_fill_zeros", periodic)
    assert attack("privacy.mode=record-local").failed


@pytest.mark.slow
def test_box_muller_at_half_size_is_found(attack, monkeypatch):
    honest = simulated.box_muller
    monkeypatch.setattr(simulated, "box_muller", lambda std, *given: honest(std // 2, *given))
    assert failed(attack("privacy.mode=record-local"), "noise")


def coins(monkeypatch, sample):
    """Other coins, wherever they are thrown."""
    for module in (local, trainer):
        monkeypatch.setattr(module, "poisson_sample", sample)


@pytest.mark.parametrize("mode", ["record-distributed", pytest.param("record-local", marks=pytest.mark.slow)])
def test_coins_that_repeat_from_round_to_round_are_found(attack, monkeypatch, mode):
    honest = local.poisson_sample
    coins(monkeypatch, lambda records, probability, _: honest(records, probability, keystream.stream_entropy(bytes)))
    assert failed(attack(f"privacy.mode={mode}"), "coins-repeat")


def test_coins_that_are_thrown_for_all_records_together_are_found(attack, monkeypatch):
    def together(records, probability, entropy):
        return np.arange(records if entropy(1)[0] < 128 else 0)

    coins(monkeypatch, together)
    assert failed(attack(), "coins-apart")


@pytest.mark.slow
def test_coins_that_fall_too_often_are_found(attack, monkeypatch):
    honest = local.poisson_sample
    coins(monkeypatch, lambda records, probability, entropy: honest(records, min(1, probability * 6 / 5), entropy))
    assert failed(attack(), "coins")


@pytest.mark.slow
def test_a_masked_client_without_noise_is_found(attack, monkeypatch):
    honest = noise_sources.discrete_gaussian
    calls = []

    def one_forgets(std, dimension, entropy, out=None):
        drawn = honest(std, dimension, entropy, out=out)
        calls.append(None)
        if len(calls) % 10 == 0:
            drawn[:] = 0
        return drawn

    monkeypatch.setattr(noise_sources, "discrete_gaussian", one_forgets)
    assert failed(attack(masked=True), "noise")
