"""`audit inversion`: can a record be rebuilt from what its client sends, or from the sum that is unmasked?

The gradient of a first layer that is linear is, for one record x, dW_i = g_i x and db_i = g_i: each row of it is the
record, db . dW the best mean of the rows. The client holds one record and nothing else, and the adversary knows all
other clients' data, so nothing hides the record but what the run itself does: masks, clipping and noise.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from math import prod
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import nn

from fedlearn.audit.canaries import Holding
from fedlearn.audit.masked_rounds import MaskedRounds
from fedlearn.audit.outcome import CONTROL_FAILED, Audit
from fedlearn.audit.parties import MakeParties, Parties
from fedlearn.audit.pictures import sheet
from fedlearn.audit.records import some_records
from fedlearn.audit.setting import NO_PRIVACY, changed, private_mechanism
from fedlearn.config.run_config import RunConfig
from fedlearn.coordinator.pooled_data import SimulatedData
from fedlearn.crypto.keystream import stream_entropy
from fedlearn.data.dataset import Dataset
from fedlearn.errors import ConfigError
from fedlearn.model.vector import read_parameters
from fedlearn.privacy.clipping import Vector
from fedlearn.privacy.noise_sources import NoiseSource
from fedlearn.privacy.quantization import from_lanes
from fedlearn.round.agreement import agree
from fedlearn.round.contribution import Contributor

__all__ = ["InversionAudit", "audit_inversion"]

_PICTURE = "inversion.png"

_RECORDS = 32
_SHOWN = 6
_CONTROL_AT_LEAST = 0.95
_CONFIDENCE, _NORMAL_QUANTILE = 0.999, 3.0902  # one-sided

_Records = NDArray[np.float64]  # (n, *shape)


@dataclass(frozen=True, slots=True)
class InversionAudit(Audit):
    """Mean cosines between records and what was rebuilt of them, 1 for a copy.

    `cosine_mean_image` is that of somebody who saw no client: the mean of the public test records. An audit fails if
    what was rebuilt from something that the run protects is better than that, beyond chance.
    """

    mode: str
    records: int
    cosine_control: float  # rebuilt without privacy
    cosine_sent: float  # from what leaves the client
    cosine_if_masking_fails: float | None  # from the same vector without its masks; None where there are none
    cosine_aggregate: float  # from the released sum, less what the adversary knows
    cosine_mean_image: float
    protected: tuple[str, ...]  # of these three, what the run's guarantee covers
    confidence: float
    false_alarm_rate: float
    control_passed: bool
    passed: bool
    picture: bytes = field(repr=False)

    FROM: ClassVar[tuple[str, ...]] = ("sent", "if_masking_fails", "aggregate")

    @property
    def failure(self) -> str | None:
        """Why it does not pass."""
        if not self.control_passed:
            return f"{CONTROL_FAILED}: records were not rebuilt there"
        if self.passed:
            return None
        return "records were rebuilt better than by somebody who saw no client: what leaves shows them"

    def pictures(self) -> Mapping[str, bytes]:
        """The sheet of records and what was rebuilt of them."""
        return {_PICTURE: self.picture}

    def as_dict(self) -> dict[str, Any]:
        """Every field but the picture, which is a file beside it."""
        values = asdict(self) | {"kind": "inversion", "protected": list(self.protected), "picture": _PICTURE}
        return values | {"picture_rows": list(_ROWS)}


_ROWS = (
    "records of a client",
    "rebuilt without privacy",
    "rebuilt from what leaves the client",
    "rebuilt from the released sum",
    "mean of the public records",
)


def audit_inversion(
    config: RunConfig, *, parties: MakeParties = Parties, progress: Callable[[int, int], None] | None = None
) -> InversionAudit:
    """Rebuild records from one round of the run `config`, with the run's own noise, and without privacy.

    `progress` is called with records done and to be done. `parties` are honest but in a test of the audit itself.

    Guarantees:
        an audit whose control does not succeed does not pass.

    Raises:
        ConfigError: the run claims no privacy, cannot be planned, or its model does not begin with a linear layer.
    """
    mechanism, masking = private_mechanism(config), config.secure_aggregation.masking
    data = some_records(config, _RECORDS)
    originals = data.train.features.astype(np.float64)
    images = _rebuilt(config, data, parties, progress)
    public = data.test if data.test is not None else data.train
    mean = np.broadcast_to(public.features.mean(axis=0, dtype=np.float64), originals.shape)
    cosines = {what: _cosines(originals, found) for what, found in images.items()}
    usual = _cosines(originals, mean)
    protected = _protected(mechanism.noise, masking=masking)
    control_passed = float(cosines["control"].mean()) > _CONTROL_AT_LEAST
    shown = [originals, images["control"], images["sent"], images["aggregate"], mean]
    return InversionAudit(
        mode=config.privacy.mode,
        records=len(originals),
        cosine_control=float(cosines["control"].mean()),
        cosine_sent=float(cosines["sent"].mean()),
        cosine_if_masking_fails=float(cosines["if_masking_fails"].mean()) if masking else None,
        cosine_aggregate=float(cosines["aggregate"].mean()),
        cosine_mean_image=float(usual.mean()),
        protected=protected,
        confidence=_CONFIDENCE,
        false_alarm_rate=round((1 - _CONFIDENCE) * len(protected), 12),
        control_passed=control_passed,
        passed=control_passed and not any(_beyond_chance(cosines[what] - usual) for what in protected),
        picture=sheet([row[:_SHOWN] for row in shown]),
    )


def _rebuilt(
    config: RunConfig, data: SimulatedData, parties: MakeParties, progress: Callable[[int, int], None] | None
) -> dict[str, _Records]:
    """What was rebuilt of each record, from each thing that is seen, and in the control."""
    bare = changed(config, {**NO_PRIVACY, "secure_aggregation": {"masking": False}})
    attack, control = _Attack(config, data, parties), _Attack(bare, data, Parties)
    rebuilt: dict[str, list[Vector]] = {"control": [], **{what: [] for what in InversionAudit.FROM}}
    for number in range(len(data.train)):
        record = data.train.take(np.array([number]))
        for what, image in attack.rebuild(record).items():
            rebuilt[what].append(image)
        rebuilt["control"].append(control.rebuild(record)["sent"])
        if progress is not None:
            progress(number + 1, len(data.train))
    return {what: np.array(found).reshape(data.train.features.shape) for what, found in rebuilt.items()}


def _protected(noise: NoiseSource, *, masking: bool) -> tuple[str, ...]:
    """What the guarantee covers: a client's vector by its own noise, or else by its masks; the sum always."""
    alone = noise.in_shares or noise.in_each_vector
    covered = (alone or masking, alone and masking, True)
    return tuple(name for name, holds in zip(InversionAudit.FROM, covered, strict=True) if holds)


class _Attack:
    """The adversary in the first round of one configuration."""

    def __init__(self, config: RunConfig, data: SimulatedData, parties: MakeParties) -> None:
        model, entropy = data.build_model(config), stream_entropy()
        agreement = agree(config, model, population_size=data.population_size, device="cpu", entropy=entropy)
        self._weight, self._bias = _first_linear(model, data.train.input_shape, config.model.name)
        self._layout = agreement.layout
        self._parties = parties(agreement, entropy)
        self._parties.weights = read_parameters(model)
        plan = agreement.plan
        self._survivors = plan.min_survivors
        self._honest = plan.honest_survivors if agreement.mechanism.noise.in_shares else plan.min_survivors
        self._nobody = data.train.take(np.zeros(0, dtype=np.int64))
        self._masked = MaskedRounds(config, agreement) if config.secure_aggregation.masking else None

    def rebuild(self, record: Dataset) -> dict[str, Vector]:
        """The record (flat) as rebuilt from each thing that is seen, when the first honest client holds it alone."""
        holdings = [record, *[self._nobody] * (self._survivors - 1)]
        lanes = self._parties.contribute(
            [Contributor(Holding(held), (number,)) for number, held in enumerate(holdings)]
        )
        total, sent = lanes.sum(axis=0, dtype=np.uint32), lanes[0]
        if self._masked is not None:
            total, sent = self._masked.sum_of(lanes), self._masked.sent_by(0)
        known = np.negative(lanes[self._honest :].sum(axis=0, dtype=np.uint32))
        return {
            "sent": self._from_gradient(from_lanes(sent).astype(np.float64)),
            "if_masking_fails": self._from_gradient(from_lanes(lanes[0]).astype(np.float64)),
            "aggregate": self._from_gradient(self._parties.finish([total, known])),
        }

    def _from_gradient(self, vector: Vector) -> Vector:
        parts = self._layout.split(vector)
        rebuilt: Vector = parts[self._bias] @ parts[self._weight]
        return rebuilt


def _first_linear(model: nn.Module, shape: tuple[int, ...], name: str) -> tuple[str, str]:
    """The names of weight and bias of the layer that the record goes into."""
    layers = [(path, layer) for path, layer in model.named_modules() if next(layer.parameters(False), None) is not None]
    path, first = layers[0]
    if not (isinstance(first, nn.Linear) and first.bias is not None and first.in_features == prod(shape)):
        raise ConfigError(
            f'model.name is "{name}", which begins with {type(first).__name__}; expected a model whose first layer is '
            "linear, with a bias, over the whole record: from its gradient a record can be read off"
        )
    prefix = f"{path}." if path else ""
    return f"{prefix}weight", f"{prefix}bias"


def _cosines(originals: _Records, rebuilt: _Records) -> Vector:
    """(n,); 0 for a rebuilt record of zeros."""
    x, y = originals.reshape(len(originals), -1), rebuilt.reshape(len(rebuilt), -1)
    norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    cosines: Vector = (x * y).sum(axis=1) / np.where(norms > 0, norms, 1.0)
    return cosines


def _beyond_chance(advantage: Vector) -> bool:
    """Whether the mean of (n,) differences is above zero, at `_CONFIDENCE`."""
    error = float(advantage.std(ddof=1)) / len(advantage) ** 0.5
    return bool(advantage.mean() > _NORMAL_QUANTILE * error)
