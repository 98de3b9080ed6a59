"""What a guarantee becomes when neighbors differ by a replaced record or client: an extra line of the report."""

from collections.abc import Sequence
from dataclasses import replace

from fedlearn.privacy.accounting import Event, epsilon_of
from fedlearn.privacy.guarantee import Guarantee

__all__ = ["epsilon_if_replaced"]


def epsilon_if_replaced(guarantee: Guarantee, events: Sequence[Event], releases: int) -> float | None:
    """Epsilon at the guarantee's delta under REPLACE_ONE, after `releases` of the one kind of event in `events`.

    Replacing moves a sum twice as far as adding or removing, so the noise multiplier counts half
    (docs/specification/privacy.md 7.6). None where that does not give the figure: records were sampled, events differ,
    or the events at their full multiplier do not give `guarantee.epsilon` (it is then about something else, such as an
    amplified cohort).
    """
    kinds = set(events)
    if len(kinds) != 1 or (event := kinds.pop()).sampling_probability != 1:
        return None
    delta, ceiling = guarantee.delta, guarantee.epsilon
    if abs(epsilon_of([(event, releases)], delta=delta, epsilon_ceiling=ceiling) - ceiling) > 1e-4:
        return None
    halved = replace(event, noise_multiplier_millionths=event.noise_multiplier_millionths // 2)
    return epsilon_of([(halved, releases)], delta=delta, epsilon_ceiling=ceiling)
