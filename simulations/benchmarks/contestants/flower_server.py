"""Flower's FedAvg, unchanged but for saying when a round is over; for W4 inside Flower's own clipping at the server."""

import os
from collections.abc import Iterable

from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAvg, Strategy
from opacus_cnn import build

from contestants.workload import Given, round_done

__all__ = ["announce", "start_weights", "strategy_of"]


class _Reporting(FedAvg):
    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """As FedAvg's."""
        result = super().aggregate_train(server_round, replies)
        assert result[0] is not None, "no client replied"
        round_done()
        return result


def strategy_of(asked: Given) -> Strategy:
    """The strategy of a workload."""
    workload = asked.workload
    plain = _Reporting(
        fraction_train=workload.cohort / workload.population,
        fraction_evaluate=0.0,
        min_train_nodes=workload.cohort,
        min_available_nodes=workload.population,
    )
    if workload.client_clip is None:
        return plain
    return DifferentialPrivacyServerSideFixedClipping(
        plain, noise_multiplier=1.0, clipping_norm=workload.client_clip, num_sampled_clients=workload.cohort
    )


def start_weights() -> ArrayRecord:
    """The model at the start."""
    return ArrayRecord(build().state_dict())


def announce(asked: Given) -> None:
    """Tell the client app, in whatever process it runs, which workload this is."""
    os.environ |= {
        "WORKLOAD": asked.workload.name,
        "WORKLOAD_DATA": str(asked.data),
        "WORKLOAD_DEVICE": asked.device,
        "WORKLOAD_OPTIONS": " ".join(asked.options),
    }
