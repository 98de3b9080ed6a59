"""What `calibration.plan` derives: every public constant of a run's privacy, in one frozen value."""

from dataclasses import dataclass, fields
from fractions import Fraction

from fedlearn.privacy.accounting import Event
from fedlearn.privacy.guarantee import Guarantee

__all__ = ["Plan"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Server and client both derive it from the same public arguments; the client refuses any difference.

    Grid units are 1 / 2^scale_bits, except in record-local, whose `sensitivity` and `noise_std` are in units of
    2^-18 * max_grad_norm. A standard deviation is 0 where that party adds no noise.
    """

    mode: str
    dimension: int
    scale_bits: int
    largest_scale_bits: int  # the largest <= 20 with which this run passes
    clipping_norm: float
    clip_bound: int  # floor(2^scale_bits * clipping_norm)
    sensitivity: int
    noise_multiplier_millionths: int  # z_booked * 10^6
    noise_std: int  # of whoever draws it: one client's share, one step of one client, or the server; 0 without privacy
    divisor: Fraction  # a sum divided by divisor * 2^scale_bits is the mean
    planned_batch: Fraction | None  # record-local: the expected batch of one client's step
    releases: int  # A: what one client can take part in
    attempts: int  # rounds + spare_rounds
    planned_cohort: int
    cohort_probability: Fraction  # planned_cohort / population_size
    min_survivors: int
    max_colluders: int | None
    honest_survivors: int  # shares of noise in every sum that are neither missing nor known
    threshold: int
    target_epsilon: float | None
    event: Event | None  # one release as the guarantee counts it; for a Poisson cohort, one attempt
    ledger_event: Event | None  # one release as a client's own ledger counts it; differs for a Poisson cohort only
    event_of_single_vector: Event | None  # one release under one client's share alone: what a server sees if masks fall
    ledger_order: float | None  # the Renyi order at which A of `ledger_event` cost least
    guarantee: Guarantee | None  # the one that target_epsilon is for
    further_guarantees: tuple[Guarantee, ...]
    epsilon_replace_one: float | None  # unsampled modes: what exchanging one unit for another would cost (z / 2)
    noise_to_signal: float  # norm of the noise of a sum over the norm of the largest possible sum
    bytes_per_round: int  # what one client sends in a round, before secure aggregation's overhead
    warnings: tuple[str, ...]

    @property
    def noise_multiplier(self) -> float:
        """z_booked: standard deviation over sensitivity of what is released; 0 in mode none."""
        return self.noise_multiplier_millionths / 10**6

    @property
    def guarantees(self) -> tuple[Guarantee, ...]:
        """All guarantees, the one of `target_epsilon` first; empty in mode none."""
        return (self.guarantee, *self.further_guarantees) if self.guarantee else ()

    @property
    def ledger_guarantee(self) -> Guarantee | None:
        """The guarantee that a client's own ledger can count: by participations, never by amplified cohorts."""
        return self.guarantees[-1] if self.guarantee else None

    def as_dict(self) -> dict[str, object]:
        """The fields as JSON has them; fractions as text, events and guarantees as their own `as_dict`."""
        values: dict[str, object] = {"noise_multiplier": self.noise_multiplier}
        for field in fields(self):
            values[field.name] = _as_json(getattr(self, field.name))
        return values


def _as_json(value: object) -> object:
    if isinstance(value, Fraction):
        return str(value)
    if isinstance(value, Event | Guarantee):
        return value.as_dict()
    return [_as_json(item) for item in value] if isinstance(value, tuple) else value
