"""What the server promises where it adds the noise (`client-central`), booked before vectors are asked for.

The coordinator's own account stands in the run folder's ledger, in a simulation beside the holders' accounts. Its
budget is what all noised sums that the run may make cost a client that is in every one of them.
"""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field

from fedlearn.config.run_config import RunConfig
from fedlearn.ledger import COORDINATOR, Ledger, Reservation
from fedlearn.privacy.accounting import epsilon_at_order
from fedlearn.privacy.calibration import Plan
from fedlearn.privacy.mechanisms import MECHANISMS
from fedlearn.run.checkpoint import Progress, RunFolder

__all__ = ["ServerNoiseBooking"]


@dataclass(slots=True)
class ServerNoiseBooking:
    """The coordinator's account of one run. At most one sum is promised and not yet kept.

    Guarantees:
        a sum counts as spent from when it is promised, unless its attempt failed before noise was drawn;
        no run makes more noised sums than its plan has attempts.
    """

    ledger: Ledger
    event: bytes
    most: int
    _open: list[int] = field(default_factory=list)

    @classmethod
    @contextmanager
    def of_run(cls, folder: RunFolder, config: RunConfig, plan: Plan) -> Iterator["ServerNoiseBooking | None"]:
        """The account of the run in `folder`, open as long as the context is; None where the server adds no noise.

        Raises:
            RefusedError: the ledger cannot be used.
        """
        mechanism = MECHANISMS[config.privacy.mode]
        if not mechanism.noise.at_server or plan.ledger_event is None or plan.ledger_order is None:
            yield None
            return
        assert mechanism.privacy_unit is not None
        assert config.privacy.delta is not None
        worst = [(plan.ledger_event, plan.attempts)]
        epsilon = epsilon_at_order(
            worst,
            delta=config.privacy.delta,
            epsilon_ceiling=config.privacy.target_epsilon or 0.0,
            order=plan.ledger_order,
        )
        with closing(Ledger(folder.file("ledger.db"))) as ledger:
            ledger.open_dataset(
                COORDINATOR,
                privacy_unit=mechanism.privacy_unit,
                max_epsilon=epsilon,
                max_delta=config.privacy.delta,
                order=plan.ledger_order,
            )
            yield cls(ledger, plan.ledger_event.to_bytes(), plan.attempts)

    def make(self, progress: Progress) -> None:
        """Promise the noise of this attempt's sum.

        Raises:
            RefusedError: the run has made all the sums that it may make, or the ledger cannot be written.
        """
        self._open = self.ledger.reserve(
            [
                Reservation(
                    dataset_id=COORDINATOR,
                    session=progress.session,
                    round=progress.round + 1,
                    attempt=progress.attempt,
                    event=self.event,
                    max_releases=self.most,
                )
            ]
        )

    def withdraw(self) -> None:
        """The attempt failed: there is no sum, and no noise was drawn."""
        self.ledger.void(self._open)
        self._open = []

    def keep(self) -> None:
        """The noised sum is in the checkpoint, and from now on may be used."""
        self.ledger.release(self._open)
        self._open = []
