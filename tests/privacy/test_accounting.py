"""Events and the one accountant: known answers, canonical bytes, and equality with dp-accounting itself."""

import logging
import math
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction

import pytest
from dp_accounting.dp_event import ComposedDpEvent, GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant
from dp_accounting.privacy_accountant import NeighboringRelation
from dp_accounting.rdp import RdpAccountant

from fedlearn.errors import ConfigError
from fedlearn.privacy.accounting import (
    Event,
    best_order,
    best_order_of_budget,
    delta_for_rdp,
    epsilon_at_order,
    epsilon_of,
    estimate_epsilon,
    eta_of,
    gaussian_epsilon,
)
from fedlearn.privacy.guarantee import Guarantee, PrivacyUnit, rounded_up


def an_event(z: str, probability: Fraction = Fraction(1), *, count: int = 1, eta: str | None = None) -> Event:
    tiny = "0" if probability == 1 else "1.00e-40"
    return Event(
        count=count,
        eta=Decimal(eta or tiny),
        noise_multiplier_millionths=int(Decimal(z).scaleb(6)),
        sampling_probability=probability,
    )


REFERENCE = [  # docs/specification/privacy.md 7.6: probability, z, sums, delta, RDP, PLD at 1e-3
    (Fraction(2048, 60000), "1.5", 1171, 1e-5, 4.254, 3.903),
    (Fraction(512, 60000), "1.1", 2343, 1e-5, 2.169, 1.970),
    (Fraction(256, 6000), "2.0", 703, 1e-5, 2.784, 2.550),
    (Fraction(64, 600), "2.0", 937, 1e-4, 8.296, 7.569),
    (Fraction(1, 20), "1.0", 100, 1e-4, 3.387, 2.870),
    (Fraction(1), "10", 100, 1e-4, 4.176, 3.804),
    (Fraction(1, 1000), "0.7", 1500, 1e-7, 2.525, 1.520),
    (Fraction(1, 10), "1.5", 50, 1e-3, 1.929, 1.616),
]


@pytest.mark.parametrize(("probability", "z", "sums", "delta", "rdp", "pld"), REFERENCE)
def test_reference_settings_are_met_within_half_a_percent(probability, z, sums, delta, rdp, pld):
    events = [(an_event(z, probability), sums)]
    assert epsilon_of(events, delta=delta, epsilon_ceiling=10.0) == pytest.approx(rdp, rel=0.005)
    assert estimate_epsilon(events, delta=delta, relation="ADD_OR_REMOVE_ONE") == pytest.approx(pld, rel=0.005)


def test_epsilon_of_mixed_events_equals_dp_accounting_recomputed_from_their_bytes():
    events = [(an_event("7.004007"), 12), (an_event("1.5", Fraction(1, 3), count=4), 5)]
    composed = []
    for event, times in events:
        read = Event.from_bytes(event.to_bytes())
        gaussian = GaussianDpEvent(read.noise_multiplier)
        sampled = PoissonSampledDpEvent(float(read.sampling_probability), gaussian)
        one = gaussian if read.sampling_probability == 1 else sampled
        composed.append(SelfComposedDpEvent(one, read.count * times))
    theirs = RdpAccountant().compose(ComposedDpEvent(composed)).get_epsilon(1e-5)
    assert epsilon_of(events, delta=1e-5, epsilon_ceiling=10.0) == pytest.approx(theirs, rel=1e-12)


def test_r12_fifty_rounds_are_composed_and_not_counted_once_each():
    one, fifty = ([(an_event("12.0"), times)] for times in (1, 50))
    composed = RdpAccountant().compose(SelfComposedDpEvent(GaussianDpEvent(12.0), 50)).get_epsilon(1e-5)
    assert epsilon_of(fifty, delta=1e-5, epsilon_ceiling=3.0) == pytest.approx(composed, rel=1e-12)
    assert epsilon_of(fifty, delta=1e-5, epsilon_ceiling=3.0) > 5 * epsilon_of(one, delta=1e-5, epsilon_ceiling=3.0)


def test_r14_the_conventions_of_replace_one_differ_between_accountants_so_it_is_never_used():
    event, delta = SelfComposedDpEvent(GaussianDpEvent(10.0), 100), 1e-4

    def epsilon(accountant):
        return accountant.compose(event).get_epsilon(delta)

    assert epsilon(PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE, 1e-3)) == pytest.approx(3.804, abs=0.005)
    assert epsilon(PLDAccountant(NeighboringRelation.REPLACE_SPECIAL, 1e-3)) == pytest.approx(3.804, abs=0.005)
    assert epsilon(PLDAccountant(NeighboringRelation.REPLACE_ONE, 1e-3)) == pytest.approx(8.88, abs=0.01)
    for relation in NeighboringRelation:  # RDP gives one figure for all three, with z read against another sensitivity
        assert epsilon(RdpAccountant(neighboring_relation=relation)) == pytest.approx(4.176, abs=0.005)
    ours = epsilon_of([(an_event("10"), 100)], delta=delta, epsilon_ceiling=5.0)
    assert ours == pytest.approx(4.176, abs=0.005)


def test_exact_gaussian_epsilon_is_the_figure_of_the_audit():
    assert gaussian_epsilon(1.0, 1e-5) == pytest.approx(4.38, abs=0.005)


def test_event_bytes_are_the_documented_ones():
    body = b'{"count":1,"eta":"0","mechanism":"gaussian","noise_multiplier":"7.004007","sampling_probability":"1"}'
    assert an_event("7.004007").to_bytes() == body
    assert Event.from_bytes(body) == an_event("7.004007")


def test_event_bytes_come_back():
    event = an_event("0.000001", Fraction(7, 4294967295), count=12, eta="1.23e-25")
    assert Event.from_bytes(event.to_bytes()) == event
    assert b'"eta":"1.23e-25"' in event.to_bytes()


@pytest.mark.parametrize(
    "change",
    [
        ('"count":1', '"count":0'),
        ('"count":1', '"count":true'),
        ('"count":1', '"count":1.0'),
        ('"gaussian"', '"laplace"'),
        ('"7.004007"', '"7.0040070"'),
        ('"7.004007"', '"0.000000"'),
        ('"7.004007"', '"nan"'),
        ('"7.004007"', '"Infinity"'),
        ('"sampling_probability":"1"', '"sampling_probability":"2"'),
        ('"sampling_probability":"1"', '"sampling_probability":"1/2"'),  # sampled, but without eta
        ('"sampling_probability":"1"', '"sampling_probability":"1/0"'),
        ('"eta":"0"', '"eta":"1e-9"'),
        ('"eta":"0"', '"eta":"-1.00e-09"'),
        ('"count":1,', ""),
        ('"count":1,', '"count": 1,'),
        ('{"count"', '{"alpha":1,"count"'),
    ],
)
def test_what_is_not_a_canonical_event_is_refused(change):
    body = an_event("7.004007").to_bytes().decode().replace(*change)
    with pytest.raises(ConfigError):
        Event.from_bytes(body.encode())


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b"\xff", b'"x"'])
def test_other_bytes_are_no_event(body):
    with pytest.raises(ConfigError):
        Event.from_bytes(body)


def test_eta_known_answer():
    # 8.6e-4 * sqrt(650) / 10^24 = 2.19258...e-26, rounded up to three digits
    assert eta_of(Fraction(1, 3), dimension=650, noise_variance=10**12) == Decimal("2.20e-26")
    # 8.6e-4 * 100 / 64^4 = 5.1259...e-09
    assert eta_of(Fraction(1, 3), dimension=10**4, noise_variance=64**2) == Decimal("5.13e-9")


def test_eta_is_zero_where_every_record_is_taken():
    assert eta_of(Fraction(1), dimension=10**6, noise_variance=64**2) == 0


def test_every_sum_pays_eta_out_of_delta():
    event = an_event("2.0", Fraction(1, 3), count=3, eta="1.00e-9")
    expected = 1e-5 - (1 + math.exp(2)) * 1e-9 * 3 * 7
    assert delta_for_rdp([(event, 7)], delta=1e-5, epsilon_ceiling=2.0) == pytest.approx(expected, rel=1e-12)
    dear = an_event("2.0", Fraction(1, 3), count=3, eta="1.00e-7")
    cheap = an_event("2.0", Fraction(1, 3), count=3)
    at = {"delta": 1e-5, "epsilon_ceiling": 2.0}
    assert epsilon_of([(dear, 2)], **at) > epsilon_of([(cheap, 2)], **at)


def test_epsilon_is_infinite_once_eta_has_eaten_delta():
    event = an_event("2.0", Fraction(1, 3), eta="1.00e-6")
    assert epsilon_of([(event, 10)], delta=1e-5, epsilon_ceiling=2.0) == math.inf
    assert epsilon_at_order([(event, 10)], delta=1e-5, epsilon_ceiling=2.0, order=8.0) == math.inf


def test_one_order_never_gives_less_than_the_best_and_the_best_order_gives_it():
    events = [(an_event("7.0"), 20)]
    at = {"delta": 1e-5, "epsilon_ceiling": 3.0}
    best = epsilon_of(events, **at)
    assert epsilon_at_order(events, order=best_order(events, **at), **at) == best
    assert all(epsilon_at_order(events, order=order, **at) >= best for order in (2.0, 5.0, 16.0, 1024.0))


def test_order_of_a_budget_is_the_best_for_the_gaussian_that_spends_it():
    order = best_order_of_budget(3.0, 1e-5)
    assert order == 7.5
    assert best_order([(an_event("14.933"), 100)], delta=1e-5, epsilon_ceiling=3.0) == order


def test_an_unknown_order_is_refused():
    with pytest.raises(ConfigError, match="order"):
        epsilon_at_order([(an_event("7.0"), 1)], delta=1e-5, epsilon_ceiling=3.0, order=7.51)


def test_nothing_released_costs_nothing():
    assert epsilon_of([], delta=1e-5, epsilon_ceiling=3.0) == 0
    assert epsilon_of([(an_event("1.0"), 0)], delta=1e-5, epsilon_ceiling=3.0) == 0
    assert estimate_epsilon([], delta=1e-5, relation="REPLACE_SPECIAL") == 0


def test_orders_that_are_left_out_make_no_noise_in_the_log(caplog):
    with caplog.at_level(logging.INFO):
        epsilon_of([(an_event("0.7412", Fraction(1, 7)), 10)], delta=1e-5, epsilon_ceiling=8.0)
    assert not caplog.records


@pytest.mark.parametrize(
    ("epsilon", "decimals", "shown"),
    [(2.99990001, 4, 3.0), (2.9999, 4, 2.9999), (1.23456701, 6, 1.234568), (0.0, 4, 0.0), (math.inf, 4, math.inf)],
)
def test_epsilon_is_shown_rounded_up(epsilon, decimals, shown):
    assert rounded_up(epsilon, decimals) == shown


def test_a_guarantee_above_ten_is_weak_and_its_json_is_plain():
    guarantee = Guarantee(
        epsilon=10.0000001,
        delta=1e-5,
        privacy_unit=PrivacyUnit.RECORD,
        neighboring_relation="ADD_OR_REMOVE_ONE",
        holds_against=("the server",),
        mechanism="m",
        accountant="a",
        assumptions=("x",),
        epsilon_estimate=None,
        epsilon_if_masking_fails=12.3456789,
    )
    assert guarantee.weak
    values = guarantee.as_dict()
    assert values["epsilon"] == 10.000001
    assert values["epsilon_if_masking_fails"] == 12.345679
    assert values["privacy_unit"] == "record"
    assert values["holds_against"] == ["the server"]
    endless = replace(guarantee, epsilon=math.inf, epsilon_if_masking_fails=math.inf).as_dict()
    assert (endless["epsilon"], endless["epsilon_if_masking_fails"]) == (None, None), "JSON has no infinity"
