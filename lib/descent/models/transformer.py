"""The one-layer transformer of Nanda et al. 2023 (Progress measures for grokking, section 3).

It reads the tokens [a, b, =] and gives its answer at the last position. It has causal attention and a layer of ReLU
neurons, but no normalisation. Names and shapes of the weights are those of the published code, so that the weights
saved by that code can be loaded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from descent.repro.seeding import torch_generator

CONTEXT = 3  # a, b, =


@dataclass(frozen=True)
class TransformerSizes:
    """The sizes of a one-layer transformer.

    Attributes:
        symbols: number of elements of the task; the token for "=" comes after them.
        width: width of the residual stream.
        heads: number of attention heads, each of width / heads.
        hidden: number of neurons.

    Raises:
        ValueError: a size is below 1, or the number of heads does not divide the width.
    """

    symbols: int
    width: int = 128
    heads: int = 4
    hidden: int = 512

    def __post_init__(self) -> None:
        sizes = self.symbols, self.width, self.heads, self.hidden
        if not all(isinstance(size, int | np.integer) and size >= 1 for size in sizes):
            raise ValueError(f"{self}: expected sizes of at least 1, whole numbers")
        if self.width % self.heads:
            raise ValueError(f"width={self.width}, heads={self.heads}: expected heads that divide the width")


@dataclass(frozen=True)
class Activations:
    """What a forward pass computes for each example, at the last position.

    Attributes:
        attention: `(n, heads, 3)`, the weights on a, b and =, which sum to 1.
        neurons: `(n, hidden)`, the outputs of the ReLU layer.
        logits: `(n, symbols + 1)`, the last one for "=".
    """

    attention: Tensor
    neurons: Tensor
    logits: Tensor


class OneLayerTransformer(nn.Module):
    """A network from `(n, 2)` int64 pairs to `(n, symbols + 1)` logits.

    With width w, h heads, d = w / h, m neurons and v = symbols + 1 tokens, its weights are `W_E` (w, v), `W_pos`
    (3, w); `W_K`, `W_Q`, `W_V` (h, d, w), `W_O` (w, h d); `W_in` (m, w), `b_in` (m,), `W_out` (w, m), `b_out` (w,);
    `W_U` (w, v). Weights start Gaussian, drawn from `seed`, with variance 1 / w, `W_U` with 1 / v; biases at zero.

    Example:
        >>> model = OneLayerTransformer(TransformerSizes(symbols=7, width=8, heads=2, hidden=16), seed=0)
        >>> pairs = torch.tensor([[0, 6], [3, 3]])
        >>> tuple(model(pairs).shape)
        (2, 8)
    """

    def __init__(self, sizes: TransformerSizes, seed: int) -> None:
        super().__init__()
        self.sizes = sizes
        tokens, w, m, h = sizes.symbols + 1, sizes.width, sizes.hidden, sizes.heads
        generator = torch_generator(seed, "weights")

        def normal(*shape: int, variance: float = 1 / w) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=generator, dtype=torch.float32) * math.sqrt(variance))

        self.W_E, self.W_pos = normal(w, tokens), normal(CONTEXT, w)
        self.W_K, self.W_Q, self.W_V = (normal(h, w // h, w) for _ in range(3))
        self.W_O = normal(w, w)
        self.W_in, self.b_in = normal(m, w), nn.Parameter(self.W_O.new_zeros(m))
        self.W_out, self.b_out = normal(w, m), nn.Parameter(self.W_O.new_zeros(w))
        self.W_U = normal(w, tokens, variance=1 / tokens)

    def forward(self, pairs: Tensor) -> Tensor:
        """The logits, `(n, symbols + 1)`."""
        return self.activations(pairs).logits

    def activations(self, pairs: Tensor) -> Activations:
        """The logits, and what the network computes on the way to them.

        Only the last position is computed, because nothing reads the others, and keys and values once for each token
        and place, not once for each example. The numbers are those of a pass over all positions.
        """
        heads, w, n = self.sizes.heads, self.sizes.width, len(pairs)
        if pairs.shape != (n, 2) or pairs.dtype != torch.int64 or n == 0:
            raise ValueError(f"pairs of shape {tuple(pairs.shape)}, {pairs.dtype}: expected (n, 2), int64, n from 1")
        low, high = (0, 0) if pairs.is_meta else map(int, pairs.aminmax())
        if not 0 <= low <= high < self.sizes.symbols:
            raise ValueError(f"pairs of {low} to {high}: expected symbols from 0 to {self.sizes.symbols - 1}")
        end = self.W_E[:, -1] + self.W_pos[2]
        tokens = self.W_E[:, :-1].T
        sources = torch.cat([tokens + self.W_pos[0], tokens + self.W_pos[1], end[None]])  # (2 symbols + 1, w)
        places = nn.functional.pad(pairs + pairs.new_tensor([0, len(tokens)]), (0, 1), value=2 * len(tokens))
        query = (self.W_Q @ end) / math.sqrt(w // heads)  # (h, d)
        scores = sources @ torch.einsum("hd,hdw->wh", query, self.W_K)  # scores are linear in what is attended to
        attention = nn.functional.embedding(places, scores).softmax(1)  # (n, 3, h)
        outward = torch.einsum("whd,hdv->vhw", self.W_O.view(w, heads, -1), self.W_V)  # the values, then W_O
        written = (sources @ outward.reshape(w, heads * w)).view(-1, w)  # a row for each source and head
        rows = heads * places[:, :, None] + torch.arange(heads, device=places.device)
        weights = attention.reshape(n, -1)
        moved = nn.functional.embedding_bag(rows.view(n, -1), written, mode="sum", per_sample_weights=weights)
        residual = end + moved
        neurons = torch.addmm(self.b_in, residual, self.W_in.T).relu_()  # in place, to save a pass over memory
        # from the neurons to the logits all maps are linear, so they are one matrix
        logits = torch.addmm((residual + self.b_out) @ self.W_U, neurons, self.W_out.T @ self.W_U)
        return Activations(attention.transpose(1, 2), neurons, logits)

    def neuron_logit_map(self) -> Tensor:
        """`W_L` = (W_U^T W_out)^T, `(hidden, symbols)`: what each neuron adds to the logit of each element."""
        return self.W_out.T @ self.W_U[:, :-1]


def every_position(model: OneLayerTransformer, pairs: Tensor) -> Tensor:
    """The textbook's forward pass, over all three positions: what `forward` must equal, `(n, symbols + 1)`."""
    heads, w = model.sizes.heads, model.sizes.width
    ends = torch.full((len(pairs), 1), model.sizes.symbols, device=pairs.device)
    residual = model.W_E.T[torch.cat([pairs, ends], dim=1)] + model.W_pos  # (n, 3, w)

    def heads_of(weight: Tensor) -> Tensor:
        return (residual @ weight.reshape(w, w).T).view(len(pairs), CONTEXT, heads, w // heads).transpose(1, 2)

    mixed = nn.functional.scaled_dot_product_attention(
        heads_of(model.W_Q), heads_of(model.W_K), heads_of(model.W_V), is_causal=True
    )
    residual = residual + mixed.transpose(1, 2).flatten(2) @ model.W_O.T
    hidden = torch.relu(residual @ model.W_in.T + model.b_in)
    residual = residual + hidden @ model.W_out.T + model.b_out
    return (residual @ model.W_U)[:, -1]
