"""Cross-entropy of logits (clients, records, classes): its gradient by the logits is softmax - onehot."""

import torch
from torch import Tensor

__all__ = ["residuals"]


def residuals(logits: Tensor, targets: Tensor) -> Tensor:
    """softmax(logits) - onehot(targets); `targets` is (clients, records) int64."""
    delta = torch.softmax(logits, dim=2)
    minus_one = delta.new_full((1, 1, 1), -1.0).expand(*targets.shape, 1)
    return delta.scatter_add(2, targets.unsqueeze(2), minus_one)
