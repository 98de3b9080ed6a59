"""A whole model of many clients: forward and backward through its kernels."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, islice, pairwise
from math import prod
from typing import TypeVar

import torch
from torch import Tensor, nn

from fedlearn.task.task import Task
from fedlearn.training.plain import plain_layers
from fedlearn.training.stacked.convolution import ConvolutionKernel
from fedlearn.training.stacked.elementwise import FlattenKernel, ReluKernel, SigmoidKernel, TanhKernel
from fedlearn.training.stacked.embedding import EmbeddingKernel
from fedlearn.training.stacked.kernel import Kernel, Saved
from fedlearn.training.stacked.linear import LinearKernel
from fedlearn.training.stacked.normalization import GroupNormKernel
from fedlearn.training.stacked.pooling import AveragePoolKernel, MaxPoolKernel

__all__ = ["StackedModel", "has_kernels", "stack"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StackedModel:
    """The layers of one model, to be computed for many clients that each have weights of their own.

    `rows` are each client's parameters as one row, packed, (clients, d), and so are gradients; `inputs` is (clients,
    records, *input_shape) and `targets` (clients, records) int64.
    """

    kernels: tuple[Kernel, ...]
    shapes: tuple[tuple[int, ...], ...]  # of one client's packed parameters, in the order of the model's
    task: Task
    wide: bool = field(default=False, kw_only=True)  # whether clipped gradients are summed in float64

    def pack(self, parameters: Sequence[Tensor]) -> Tensor:
        """Parameters (clients, *shape) as rows, each client's entries in the order that their layer computes with."""
        return _joined(part for kernel, own in self._owned(parameters) for part in kernel.pack(own))

    def unpack(self, rows: Tensor) -> list[Tensor]:
        """The same back in PyTorch's order and shapes."""
        return [part for kernel, own in self._split(rows) for part in kernel.unpack(own)]

    def logits(self, rows: Tensor, inputs: Tensor) -> Tensor:
        """Each client's logits, (clients, records, classes)."""
        return self._forward(self._split(rows), inputs)[0]

    def gradient(self, rows: Tensor, inputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """The gradient of each client's weighted sum of losses; `weights` is (clients, records)."""
        split = self._split(rows)
        logits, saved = self._forward(split, inputs)
        delta = self.task.residual(logits, targets) * weights.unsqueeze(2)
        parts = self._backward(split, saved, delta, lambda kernel, kept, d: kernel.sums(kept, d))
        return _joined(gradient for part in parts for gradient in part)

    def clipped_sum(
        self, rows: Tensor, inputs: Tensor, targets: Tensor, present: Tensor, max_grad_norm: float
    ) -> Tensor:
        """The sum of each client's per-record gradients, each clipped to L2 norm `max_grad_norm` over all parameters.

        `present` is (clients, records), 0 for a record that only fills the batch up and 1 for the others. A record
        whose gradient is not finite counts as zeros, and leaves the others alone.
        """
        sums, finite = self.clipped(rows, inputs, targets, present, max_grad_norm)
        if finite.all():
            return sums
        del sums  # or one such record would need more memory than all others
        kept = present * finite
        return self._clipped(rows, inputs, targets, kept, max_grad_norm, kept > 0)[0]

    def clipped(
        self, rows: Tensor, inputs: Tensor, targets: Tensor, present: Tensor, max_grad_norm: float
    ) -> tuple[Tensor, Tensor]:
        """`clipped_sum` where every gradient is finite; and for each record whether its own is."""
        return self._clipped(rows, inputs, targets, present, max_grad_norm, None)

    def _clipped(
        self,
        rows: Tensor,
        inputs: Tensor,
        targets: Tensor,
        present: Tensor,
        max_grad_norm: float,
        stays: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """The same; with `stays` (clients, records) the other records are zeros from the loss on.

        To multiply them with zero is not enough, for zero times infinity is NaN; and no record could stand in for
        another, for in that one's place it may overflow.
        """
        split = self._split(rows)
        logits, saved = self._forward(split, inputs)
        delta = _only(stays, self.task.residual(logits, targets))
        saved = [tuple(_only(stays, part) for part in kept) for kept in saved]
        parts = self._backward(split, saved, delta, lambda kernel, kept, d: kernel.per_record(kept, d), stays)
        norms = torch.stack([part[0].double() for part in parts]).sum(dim=0).sqrt()
        factors = (torch.clamp(max_grad_norm / norms, max=1.0) * present).to(
            torch.float64 if self.wide else delta.dtype
        )
        return _joined(gradient for part in parts for gradient in part[1](factors)), torch.isfinite(norms)

    def multiplications(self, rows: Tensor, inputs: Tensor) -> int:
        """Multiply-adds of the products in a forward pass."""
        count, values = 0, inputs.permute(0, 1, 3, 4, 2) if inputs.dim() == 5 else inputs
        for kernel, own in self._split(rows):
            values, _ = kernel.forward(own, values)
            if own and own[0].dim() == 3:  # (clients, out, in)
                count += values.numel() * own[0].shape[2]
        return count

    def _split(self, rows: Tensor) -> list[tuple[Kernel, Sequence[Tensor]]]:
        """Each kernel and its own parameters, packed, as views of the rows."""
        parts = torch.split(rows, [prod(shape) for shape in self.shapes], dim=1)
        return self._owned([part.view(len(rows), *shape) for part, shape in zip(parts, self.shapes, strict=True)])

    def _owned(self, parameters: Sequence[Tensor]) -> list[tuple[Kernel, Sequence[Tensor]]]:
        """Each kernel and its own of the model's parameters."""
        ends = accumulate((kernel.parameter_count for kernel in self.kernels), initial=0)
        owned = [parameters[start:end] for start, end in pairwise(ends)]
        return list(zip(self.kernels, owned, strict=True))

    def _forward(self, split: Sequence[tuple[Kernel, Sequence[Tensor]]], inputs: Tensor) -> tuple[Tensor, list[Saved]]:
        values = inputs.permute(0, 1, 3, 4, 2) if inputs.dim() == 5 else inputs
        saved: list[Saved] = []
        for kernel, parameters in split:
            values, kept = kernel.forward(parameters, values)
            saved.append(kept)
        return values, saved

    def _backward(
        self,
        split: Sequence[tuple[Kernel, Sequence[Tensor]]],
        saved: Sequence[Saved],
        delta: Tensor,
        about: Callable[[Kernel, Saved, Tensor], T],
        stays: Tensor | None = None,
    ) -> list[T]:
        """What `about` gives for each kernel with parameters, in their order; nothing is computed below the first."""
        first = next(i for i, kernel in enumerate(self.kernels) if kernel.parameter_count)
        found = []
        for index in range(len(split) - 1, first - 1, -1):
            kernel, parameters = split[index]
            if kernel.parameter_count:
                found.append(about(kernel, saved[index], delta))
            if index > first:
                delta = _only(stays, kernel.input_gradient(parameters, saved[index], delta))
        return found[::-1]


def stack(model: nn.Module, task: Task) -> StackedModel | None:
    """The stacked form of `model` for the losses of `task`; None where `has_kernels` is False."""
    kernels = _kernels_of(model)
    return StackedModel(kernels, tuple(_packed_shapes(kernels, list(model.parameters()))), task) if kernels else None


def has_kernels(model: nn.Module) -> bool:
    """Whether `model` is plain, has parameters, and every layer has a kernel."""
    return bool(_kernels_of(model))


def _kernels_of(model: nn.Module) -> tuple[Kernel, ...]:
    """A kernel a layer; none at all where a layer has none, or there is nothing to train."""
    kernels = [_kernel(layer) for layer in plain_layers(model) or []]
    known = tuple(kernel for kernel in kernels if kernel is not None)
    return known if len(known) == len(kernels) and any(True for _ in model.parameters()) else ()


def _packed_shapes(kernels: Sequence[Kernel], parameters: Sequence[nn.Parameter]) -> Iterator[tuple[int, ...]]:
    left = iter(torch.empty(1, *parameter.shape, device="meta") for parameter in parameters)
    for kernel in kernels:
        yield from (tuple(part.shape[1:]) for part in kernel.pack(list(islice(left, kernel.parameter_count))))


def _only(stays: Tensor | None, values: Tensor) -> Tensor:
    """`values`, (clients, records, …) or (clients, records x places, …), with zeros for records that do not stay."""
    if stays is None or values.is_meta:
        return values
    return values.reshape(*stays.shape, -1).masked_fill(~stays.unsqueeze(2), 0).view(values.shape)


def _joined(parts: Iterable[Tensor]) -> Tensor:
    return torch.cat([part.flatten(1) for part in parts], dim=1)


def _kernel(layer: nn.Module) -> Kernel | None:
    """The kernel of one layer, or None. By exact type: a subclass may compute anything."""
    build = _KERNELS.get(type(layer))
    return build(layer) if build else None


def _of_linear(layer: nn.Linear) -> Kernel:
    return LinearKernel(layer.bias is not None)


def _of_convolution(layer: nn.Conv2d) -> Kernel | None:
    plain = layer.dilation == (1, 1) and layer.groups == 1 and layer.padding_mode == "zeros"
    if not plain or isinstance(layer.padding, str):
        return None
    return ConvolutionKernel(
        layer.in_channels,
        _pair(layer.kernel_size),
        _pair(layer.stride),
        _pair(layer.padding),
        layer.bias is not None,
    )


def _of_embedding(layer: nn.Embedding) -> Kernel | None:
    plain = layer.padding_idx is None and layer.max_norm is None and not layer.scale_grad_by_freq and not layer.sparse
    return EmbeddingKernel(layer.num_embeddings) if plain else None


def _of_group_norm(layer: nn.GroupNorm) -> Kernel:
    return GroupNormKernel(layer.num_groups, layer.eps, layer.affine)


def _of_max_pool(layer: nn.MaxPool2d) -> Kernel | None:
    plain = _pair(layer.padding) == (0, 0) and _pair(layer.dilation) == (1, 1) and not layer.ceil_mode
    return MaxPoolKernel(_pair(layer.kernel_size), _pair(layer.stride)) if plain and not layer.return_indices else None


def _of_average_pool(layer: nn.AvgPool2d) -> Kernel | None:
    plain = _pair(layer.padding) == (0, 0) and not layer.ceil_mode and layer.divisor_override is None
    return AveragePoolKernel(_pair(layer.kernel_size), _pair(layer.stride)) if plain else None


def _of_flatten(layer: nn.Flatten) -> Kernel | None:
    return FlattenKernel() if (layer.start_dim, layer.end_dim) == (1, -1) else None


_KERNELS: Mapping[type[nn.Module], Callable[..., Kernel | None]] = {
    nn.AvgPool2d: _of_average_pool,
    nn.Conv2d: _of_convolution,
    nn.Embedding: _of_embedding,
    nn.Flatten: _of_flatten,
    nn.GroupNorm: _of_group_norm,
    nn.Linear: _of_linear,
    nn.MaxPool2d: _of_max_pool,
    nn.ReLU: lambda _: ReluKernel(),
    nn.Sigmoid: lambda _: SigmoidKernel(),
    nn.Tanh: lambda _: TanhKernel(),
}


def _pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
