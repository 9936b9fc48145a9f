"""Named weights as one flat vector, and back."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Which part of the flat vector belongs to which named tensor.

    Attributes:
        names: parameter names, in the order of the vector.
        shapes: their shapes, in the same order.

    Raises:
        ValueError: a name that comes twice, or not one shape for each name.

    Example:
        >>> layout = Layout.of(torch.nn.Linear(3, 2).named_parameters())
        >>> layout.names, layout.size, layout.slices()["bias"]
        (('weight', 'bias'), 8, slice(6, 8, None))
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if not len(set(self.names)) == len(self.names) == len(self.shapes):
            raise ValueError(f"{len(self.shapes)} shapes for {', '.join(self.names)}: expected one for each name, once")

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
    """Named tensors, in the order of the mapping, as one vector `(P,)`.

    Raises:
        ValueError: no tensor.

    Example:
        >>> flatten({"weight": torch.tensor([[1.0, 2.0]]), "bias": torch.tensor([3.0])})
        tensor([1., 2., 3.])
    """
    if not named:
        raise ValueError("no tensor to flatten: expected at least one")
    return torch.cat([tensor.reshape(-1) for tensor in named.values()])


def unflatten(vector: Tensor, layout: Layout) -> dict[str, Tensor]:
    """The inverse of `flatten`: views of `vector` `(P,)`, with the names and shapes of the layout.

    Raises:
        ValueError: the length of the vector is not the size of the layout.

    Example:
        >>> unflatten(torch.arange(3.0), Layout(("weight", "bias"), ((1, 2), (1,))))
        {'weight': tensor([[0., 1.]]), 'bias': tensor([2.])}
    """
    if vector.shape != (layout.size,):
        raise ValueError(f"vector of shape {tuple(vector.shape)}: expected ({layout.size},) for this layout")
    parts = layout.slices()
    return {name: vector[parts[name]].reshape(shape) for name, shape in zip(layout.names, layout.shapes, strict=True)}
