"""Which keys of a configuration a mode needs; by itself, for who checks a certificate needs no more of this room."""

from collections.abc import Mapping

__all__ = ["REQUIRED_KEYS", "SUMMED"]

_ACCOUNTED = ("privacy.target_epsilon", "privacy.delta", "privacy.max_participations")
_RECORDS = ("privacy.max_grad_norm", "privacy.sampling_probability", "privacy.planned_records")
SUMMED = ("secure_aggregation.max_colluders",)
_LOCAL_SGD = ("training.local_steps", "training.batch_size")
# Keys that one mode needs and another does not; all others are required by their section.
REQUIRED_KEYS: Mapping[str, tuple[str, ...]] = {
    "record-distributed": _ACCOUNTED + _RECORDS + SUMMED,
    "record-local": (*_ACCOUNTED, *_RECORDS, "training.local_steps"),
    "client-distributed": _ACCOUNTED + SUMMED + _LOCAL_SGD,
    "client-central": _ACCOUNTED + _LOCAL_SGD,
    "none": _LOCAL_SGD,
}
