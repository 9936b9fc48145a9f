"""Named weights and the flat vector that stands for them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Where each named tensor lies in the flat vector.

    Attributes:
        names: parameter names, in the order in which they are laid out.
        shapes: their shapes, in that order.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, named: Iterable[tuple[str, Tensor]]) -> Layout:
        """The layout of `(name, tensor)` pairs, such as `model.named_parameters()`."""
        pairs = [(name, tuple(tensor.shape)) for name, tensor in named]
        return cls(tuple(name for name, _ in pairs), tuple(shape for _, shape in pairs))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of entries of each tensor."""
        return tuple(math.prod(shape) for shape in self.shapes)

    @property
    def size(self) -> int:
        """Length of the flat vector."""
        return sum(self.sizes)

    def slices(self) -> dict[str, slice]:
        """The part of the flat vector that belongs to each name."""
        ends = torch.tensor((0, *self.sizes)).cumsum(0).tolist()
        return {name: slice(ends[i], ends[i + 1]) for i, name in enumerate(self.names)}


def flatten(named: Mapping[str, Tensor]) -> Tensor:
    """Named tensors, in their own order, as one vector `(P,)`."""
    return torch.cat([tensor.reshape(-1) for tensor in named.values()])


def unflatten(vector: Tensor, layout: Layout) -> dict[str, Tensor]:
    """The inverse of `flatten`: views of `vector` `(P,)` under the layout's names and shapes.

    Raises:
        ValueError: the vector's length is not the layout's size.
    """
    if vector.shape != (layout.size,):
        raise ValueError(f"vector of shape {tuple(vector.shape)}: expected ({layout.size},) for this layout")
    parts = layout.slices()
    return {name: vector[parts[name]].reshape(shape) for name, shape in zip(layout.names, layout.shapes, strict=True)}
