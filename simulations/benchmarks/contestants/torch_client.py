"""What a client does where PyTorch trains one client after the other: one pass over its records."""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from contestants.workload import Workload

__all__ = ["train", "train_privately"]


def train(model: nn.Module, inputs: Tensor, targets: Tensor, workload: Workload) -> None:
    """Plain SGD in place, in a fresh random order."""
    optimizer = torch.optim.SGD(model.parameters(), lr=workload.learning_rate)
    for chosen in torch.randperm(len(inputs)).split(workload.batch_size):
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs[chosen]), targets[chosen]).backward()
        optimizer.step()


def train_privately(
    model: nn.Module, inputs: Tensor, targets: Tensor, workload: Workload, *, accounts: bool
) -> float | None:
    """DP-SGD in place, as Flower's example with Opacus does it: an engine and a loader for each visit.

    Returns the epsilon that the visit spent, worked out as that example does; None unless the client `accounts`.
    """
    from opacus import PrivacyEngine

    assert workload.record_clip is not None
    assert workload.delta is not None
    optimizer = torch.optim.SGD(model.parameters(), lr=workload.learning_rate)
    loader = DataLoader(TensorDataset(inputs, targets), batch_size=workload.batch_size)
    engine = PrivacyEngine()
    private, private_optimizer, batches = engine.make_private(
        module=model,
        optimizer=optimizer,
        data_loader=loader,
        noise_multiplier=1.0,
        max_grad_norm=workload.record_clip,
    )
    for batch, labels in batches:
        private_optimizer.zero_grad()
        functional.cross_entropy(private(batch), labels).backward()
        private_optimizer.step()
    return engine.get_epsilon(workload.delta) if accounts else None
