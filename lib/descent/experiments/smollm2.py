"""SmolLM2-135M-Instruct, a language model of the Llama family, read from one file and run in plain torch.

Its 30 blocks write to a residual stream of width 576. The functions here give the stream at the last token before each
block, change it there, and ask what the model would say next. The file holds plain tensors of 4 and 8 bits, no pickle;
`make language-model` fetches it (Apache-2.0; Allal et al., 2025).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from descent.data.packaged_files import SMOLLM2, read_packaged_file
from descent.repro.numbers import check_whole, described

SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"  # of the chat template
BEFORE, AFTER = "<|im_start|>{role}\n", "<|im_end|>\n"
CONTROL = 3  # the type of tokens such as <|im_start|> in a GGUF file
Cache = tuple[tuple[Tensor, Tensor], ...]  # keys and values of each block, `(n, kv_heads, tokens, head width)`
Vectors = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class LlamaShape:
    """What decides how the weights of a model of the Llama family are used.

    Attributes:
        blocks: number of blocks.
        heads: query heads of a block.
        kv_heads: heads of keys and values; `heads / kv_heads` query heads share one.
        rope_base: of the angles by which queries and keys are turned.
        eps: added to mean squares in RMSNorm.
    """

    blocks: int = 30
    heads: int = 9
    kv_heads: int = 3
    rope_base: float = 100_000.0
    eps: float = 1e-5


@dataclass(frozen=True)
class StreamEdit:
    """A change of the residual stream at the input of one block.

    Attributes:
        block: from 0 on.
        change: gives the new vectors `(..., width)` for those that are there.
        everywhere: whether all tokens of the prompts are changed, and not the last one only; those of a cached prefix
            stay as they were when it was computed.
    """

    block: int
    change: Vectors
    everywhere: bool = False


@dataclass(frozen=True, eq=False)
class PromptRun:
    """What a batch of `n` prompts leaves behind.

    Attributes:
        stream: `(n, blocks, width)`, the residual stream at the last token before each block, after its edit.
        final: `(n, width)`, the same behind the last block.
        cache: keys and values of each block; those of a prefix come first, then the prompts, flush right.
        visible: bool `(n, tokens)`, which of the cached tokens are no padding.
    """

    stream: Tensor
    final: Tensor
    cache: Cache
    visible: Tensor


@dataclass(frozen=True, eq=False)
class LlamaModel:
    """Weights under the names that GGUF files give them, and how they are run.

    Attributes:
        shape: see `LlamaShape`.
        weights: `token_embd.weight` `(vocabulary, width)`, which is the head too, `output_norm.weight` `(width,)`, and
            of each block such as `blk.0.ffn_down.weight` `(width, hidden)`. The rows of queries and keys are in the
            order of llama.cpp: the two that an angle turns are neighbours.

    Raises:
        ValueError: a weight is missing, has another size or type, or is one that `run` would not use; or heads that do
            not fit the width.
    """

    shape: LlamaShape
    weights: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        expected, found = self._expected_sizes(), {name: described(each) for name, each in self.weights.items()}
        kind = found.get("token_embd.weight", "").split(" ")[0]  # all have its type
        for name in {**expected, **found}:
            wanted = f"{kind} {expected[name]}" if name in expected else "none"
            if found.get(name, "none") != wanted:
                raise ValueError(f"weight {name!r}: {found.get(name, 'none')}, expected {wanted} for {self.shape}")

    def _expected_sizes(self) -> dict[str, tuple[int, ...]]:
        """Of each weight, given the shape and the sizes of the embedding and of the first layer of neurons."""
        shape, names = self.shape, ("token_embd.weight", "blk.0.ffn_down.weight")
        check_whole(blocks=shape.blocks, heads=shape.heads, kv_heads=shape.kv_heads)
        (words, width), (_, hidden) = ((*getattr(self.weights.get(name), "shape", ()), 0, 0)[:2] for name in names)
        if width % (2 * shape.heads) or shape.heads % shape.kv_heads:
            raise ValueError(f"{shape} with width {width}: expected heads of one even width that kv_heads can share")
        one, square, tall = (width,), (width, width), (hidden, width)
        keys = (width // shape.heads * shape.kv_heads, width)
        of_block = {"attn_norm": one, "attn_q": square, "attn_k": keys, "attn_v": keys, "attn_output": square}
        of_block |= {"ffn_norm": one, "ffn_gate": tall, "ffn_up": tall, "ffn_down": tall[::-1]}
        blocks = range(min(shape.blocks, len(self.weights)))  # a damaged file may speak of millions
        sizes = {f"blk.{block}.{name}.weight": size for block in blocks for name, size in of_block.items()}
        return {"token_embd.weight": (words, width), "output_norm.weight": one, **sizes}

    @property
    def width(self) -> int:
        """Of the residual stream."""
        return self.weights["token_embd.weight"].shape[1]

    def with_weights(self, changed: Mapping[str, Tensor]) -> LlamaModel:
        """The same model with some other weights; the others are shared.

        Raises:
            ValueError: there is no such weight, or it has another shape or type.
        """
        for name, weight in changed.items():
            if name not in self.weights:
                raise ValueError(f"weight {name!r}: expected one of the model, such as {next(iter(self.weights))!r}")
            if weight.shape != self.weights[name].shape:
                shapes = f"of shape {tuple(weight.shape)}: expected {tuple(self.weights[name].shape)}"
                raise ValueError(f"weight {name!r} {shapes}")
        return replace(self, weights={**self.weights, **changed})

    def run(
        self,
        tokens: Tensor,
        mask: Tensor | None = None,
        prefix: PromptRun | None = None,
        edits: Sequence[StreamEdit] = (),
    ) -> PromptRun:
        """Run prompts, padded on either side, behind a prefix that they have in common.

        Args:
            tokens: int64 `(n, t)`.
            mask: bool `(n, t)`, true where there is no padding; None where there is none.
            prefix: a run by this model of one sequence, `(1, p)` tokens without padding; that of another model with as
                many blocks is not noticed.
            edits: of the stream, at most one at the input of each block.

        Raises:
            ValueError: other shapes or types, no prompt, a token outside of the vocabulary, an empty prompt, padding
                amid a prompt, a prefix of several, a block that there is not, or two edits at one.
        """
        for name, given in (("tokens", tokens), ("mask", tokens if mask is None else mask)):
            if not isinstance(given, Tensor):
                raise ValueError(f"{name} of type {type(given).__name__}: expected a tensor (n, t)")
        mask = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask
        changes = self._check(tokens, mask, prefix, edits)
        tokens, mask = _flush_right(tokens, mask)
        n, t = tokens.shape
        past, before = (prefix.cache, prefix.visible.shape[1]) if prefix else ((), 0)
        visible = torch.cat([mask.new_ones(n, before), mask], 1)
        own = torch.ones(t, t, dtype=torch.bool, device=mask.device).tril() & mask[:, None, :]
        own = own | torch.eye(t, dtype=torch.bool, device=mask.device)  # padding sees itself: no mean over nothing
        allowed = torch.cat([own.new_ones(n, t, before), own], 2)[:, None]
        angles = self._angles(before + (mask.cumsum(1) - 1).clamp(0))
        x, stream, cache = self.weights["token_embd.weight"][tokens], [], []
        for block in range(self.shape.blocks):
            if block in changes:
                x = _changed(x, mask, changes[block])
            stream.append(x[:, -1])
            older = tuple(part.expand(n, -1, -1, -1) for part in past[block]) if past else ()
            x, kept = self._block(block, x, angles, allowed, older)
            cache.append(kept)
        return PromptRun(torch.stack(stream, 1), x[:, -1], tuple(cache), visible)

    def resume(self, run: PromptRun, block: int, vectors: Tensor) -> Tensor:
        """Run on from the input of a block, with other vectors at the last token; as quick as one token.

        All else that the last token attends to lies before it and is as it was. So this gives what `run` gives with an
        edit of the last token at that block.

        Args:
            run: of `n` prompts.
            block: from 0 on.
            vectors: `(n, m, width)`, `m` alternatives for each prompt, none of which sees the others.

        Returns:
            The stream at the last token behind the last block, `(n, m, width)`.

        Raises:
            ValueError: vectors of another shape or type, a block that there is not, or a run of another model.
        """
        self._check_block(block)
        self._check_run("run", run)
        n, expected = len(run.stream), (len(run.stream), "m", self.width)
        self._check_vectors(vectors)
        if vectors.ndim != 3 or vectors.shape[0] != n or not vectors.shape[1]:
            raise ValueError(f"vectors of shape {tuple(vectors.shape)}: expected {expected}, m from 1")
        m = vectors.shape[1]
        seen = run.visible[:, None, :-1].expand(n, m, -1)
        alone = torch.eye(m, dtype=torch.bool, device=seen.device).expand(n, m, m)
        angles = self._angles((run.visible.sum(1, keepdim=True) - 1).expand(n, m))
        x, allowed = vectors, torch.cat([seen, alone], 2)[:, None]
        for later in range(block, self.shape.blocks):
            older = tuple(part[:, :, :-1] for part in run.cache[later])
            x, _ = self._block(later, x, angles, allowed, older)
        return x

    def logits(self, final: Tensor, chosen: Sequence[int] | None = None) -> Tensor:
        """The logits of the next token, `(..., vocabulary)` or of the chosen ones only, from `(..., width)`."""
        self._check_vectors(final)
        head = self.weights["token_embd.weight"]
        for token in () if chosen is None else chosen:
            self._check_token(token)
        return self._norm(final, "output_norm") @ (head if chosen is None else head[list(map(int, chosen))]).T

    def log_probabilities(self, final: Tensor) -> Tensor:
        """Natural logarithms of the next token's probabilities, `(..., vocabulary)`, from `(..., width)`."""
        return self.logits(final).log_softmax(-1)

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weights[f"{name}.weight"], self.shape.eps)

    def _angles(self, position: Tensor) -> Tensor:
        """Angles `(n, 1, t, head width / 2)` of the tokens at positions `(n, t)`."""
        size = self.width // self.shape.heads
        steps = torch.arange(0, size, 2, device=position.device, dtype=torch.float64) / size
        angles = position[:, None, :, None].double() * self.shape.rope_base**-steps
        return angles.to(self.weights["token_embd.weight"].dtype)

    def _block(
        self, block: int, x: Tensor, angles: Tensor, allowed: Tensor, older: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """One block on the stream `(n, t, width)`: what it leaves there, and its keys and values with the older ones.

        `allowed`, bool `(n, 1, t, older + t)`, says which tokens each may attend to.
        """

        def linear(y: Tensor, name: str) -> Tensor:
            return y @ self.weights[f"blk.{block}.{name}.weight"].T

        def heads(y: Tensor, count: int) -> Tensor:
            return y.reshape(*y.shape[:2], count, -1).transpose(1, 2)

        y, shape = self._norm(x, f"blk.{block}.attn_norm"), self.shape
        query = rotate_pairs(heads(linear(y, "attn_q"), shape.heads), angles)
        key = rotate_pairs(heads(linear(y, "attn_k"), shape.kv_heads), angles)
        value = heads(linear(y, "attn_v"), shape.kv_heads)
        if older:
            key, value = torch.cat([older[0], key], 2), torch.cat([older[1], value], 2)
        keys, values = (part.repeat_interleave(shape.heads // shape.kv_heads, 1) for part in (key, value))
        mixed = F.scaled_dot_product_attention(query, keys, values, attn_mask=allowed)
        x = x + linear(mixed.transpose(1, 2).flatten(2), "attn_output")
        y = self._norm(x, f"blk.{block}.ffn_norm")
        return x + linear(F.silu(linear(y, "ffn_gate")) * linear(y, "ffn_up"), "ffn_down"), (key, value)

    def _check_block(self, block: int) -> None:
        if block not in range(self.shape.blocks):
            raise ValueError(f"block={block}: expected 0 to {self.shape.blocks - 1}")

    def _check_token(self, token: int) -> None:
        if token not in range(vocabulary := len(self.weights["token_embd.weight"])):
            raise ValueError(f"token {token}: expected 0 to {vocabulary - 1}")

    def _check_vectors(self, x: Tensor) -> None:
        expected = self.weights["token_embd.weight"].dtype
        if not isinstance(x, Tensor) or x.dtype != expected or x.shape[-1:] != (self.width,):
            raise ValueError(f"vectors of {described(x)}: expected {expected} (..., {self.width})")

    def _check_run(self, name: str, run: PromptRun) -> None:
        if not isinstance(run, PromptRun) or run.stream.shape[1:] != (self.shape.blocks, self.width):
            raise ValueError(f"{name}: expected what `run` gives of {self.shape.blocks} blocks of width {self.width}")

    def _check(
        self, tokens: Tensor, mask: Tensor, prefix: PromptRun | None, edits: Sequence[StreamEdit]
    ) -> dict[int, StreamEdit]:
        """Refuse what `run` refuses; the edits by their blocks."""
        right = tokens.ndim == 2 and tokens.dtype == torch.int64 and len(tokens) > 0
        if not right or mask.shape != tokens.shape or mask.dtype != torch.bool:
            shapes = f"{tokens.dtype} {tuple(tokens.shape)} with a mask {mask.dtype} {tuple(mask.shape)}"
            raise ValueError(f"tokens: {shapes}; expected int64 (n, t) with bool (n, t), n from 1")
        for end in (tokens.amin(), tokens.amax()) if tokens.numel() else ():
            self._check_token(int(end))
        if (bad := (mask.int().diff(dim=1).ne(0).sum(1) > 1) | ~mask.any(1)).any():
            raise ValueError(
                f"mask of prompt {int(bad.int().argmax())}: expected tokens, with padding on one side only"
            )
        if prefix is not None:
            self._check_run("prefix", prefix)
            if len(prefix.visible) != 1 or not prefix.visible.all():
                raise ValueError(f"prefix of {len(prefix.visible)} sequences: expected one, without padding")
        for edit in edits:
            self._check_block(edit.block)
        changes = {int(edit.block): edit for edit in edits}
        if len(changes) < len(edits):
            raise ValueError(f"edits at blocks {[edit.block for edit in edits]}: expected at most one at each")
        return changes


def rotate_pairs(x: Tensor, angles: Tensor) -> Tensor:
    """Turn the pairs (0, 1), (2, 3), ... of `(..., d)` by `(..., d / 2)` radians.

    Example:
        >>> rotate_pairs(torch.tensor([1.0, 0.0, 0.0, 2.0]), torch.tensor([torch.pi / 2, 0.0])).round()
        tensor([-0., 1., 0., 2.])
    """
    a, b, cosine, sine = x[..., ::2], x[..., 1::2], angles.cos(), angles.sin()
    return torch.stack([a * cosine - b * sine, a * sine + b * cosine], -1).flatten(-2)


def _flush_right(tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The same prompts with all of their padding on the left, and not more of it than is needed."""
    order = mask.int().argsort(dim=1, stable=True)  # padding first
    longest = int(mask.sum(1).max())
    return tokens.gather(1, order)[:, -longest:], mask.gather(1, order)[:, -longest:]


def _changed(x: Tensor, mask: Tensor, edit: StreamEdit) -> Tensor:
    before = x if edit.everywhere else x[:, -1:]
    after = edit.change(before.clone())
    if described(after) != described(before):
        raise ValueError(f"the edit at block {edit.block} gives {described(after)}: expected {described(before)}")
    return torch.where(mask[..., None], after, x) if edit.everywhere else torch.cat([x[:, :-1], after], 1)


def chat_text(prompt: str, system: str = SYSTEM) -> str:
    """One question as the model's chat template puts it, up to where the answer begins."""
    turns = {"system": system, "user": prompt}
    said = "".join(BEFORE.format(role=role) + text + AFTER for role, text in turns.items())
    return said + BEFORE.format(role="assistant")


@dataclass(frozen=True, eq=False)
class ChatTokenizer:
    """The tokens of SmolLM2.

    Attributes:
        tokenizer: of the package `tokenizers`.
    """

    tokenizer: Any

    def encode(self, text: str) -> list[int]:
        """The tokens of a text; those such as <|im_start|> are recognised."""
        tokens: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return tokens

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, with those such as <|im_end|>."""
        text: str = self.tokenizer.decode(list(tokens), skip_special_tokens=False)
        return text

    def chat(self, prompts: Sequence[str], system: str = SYSTEM) -> tuple[Tensor, Tensor, Tensor]:
        """Questions in the chat template: the prefix that all share, and what is behind it, padded on the left.

        Returns:
            int64 `(1, p)`, int64 `(n, t)`, and bool `(n, t)`, true where there is no padding.

        Raises:
            ValueError: no list of prompts, an empty one, or a prompt whose first letter joins the prefix in a token,
                such as a line break.
        """
        if isinstance(prompts, str) or not prompts:
            raise ValueError(f"prompts={prompts!r}: expected at least one, in a list")
        prefix = self.encode(BEFORE.format(role="system") + system + AFTER + BEFORE.format(role="user"))
        rows = [self.encode(chat_text(prompt, system)) for prompt in prompts]
        for prompt, row in zip(prompts, rows, strict=True):
            if row[: len(prefix)] != prefix:
                raise ValueError(f"prompt {prompt!r}: expected one that begins with a letter")
        longest = max(map(len, rows)) - len(prefix)
        tokens = torch.zeros(len(rows), longest, dtype=torch.int64)
        mask = torch.zeros(len(rows), longest, dtype=torch.bool)
        for k, row in enumerate(rows):
            own = len(row) - len(prefix)
            tokens[k, longest - own :], mask[k, longest - own :] = torch.tensor(row[len(prefix) :]), True
        return torch.tensor([prefix]), tokens, mask


def _packages() -> tuple[Any, Any]:
    """`gguf` and `tokenizers`, which nothing else needs.

    Raises:
        ImportError: one is not installed; the message says how to.
    """
    try:
        import gguf
        import tokenizers
    except ImportError as error:
        how = "pip install --no-deps gguf tokenizers (or anatomy-of-descent[steering])"
        raise ImportError(f"SmolLM2 is read with the package {error.name}, which is not installed: {how}") from error
    return gguf, tokenizers


def read_llama(path: str | Path) -> tuple[LlamaModel, ChatTokenizer]:
    """A model of the Llama family and its tokenizer from a GGUF file, its weights as float32.

    Raises:
        ImportError: `gguf` or `tokenizers` is not installed.
        ValueError: another family of models or of tokenizers, a head of its own, weights that do not fit together, or a
            file that is none.
    """
    packages = _packages()
    try:
        reader = packages[0].GGUFReader(path)
    except (ValueError, IndexError) as error:
        raise ValueError(f"{path}: damaged, or no GGUF file ({error})") from error
    try:
        return _model_of(reader, *packages)
    except Exception as error:  # `tokenizers` raises no other
        raise ValueError(f"{path}: {error}") from error


def _model_of(reader: Any, gguf: Any, tokenizers: Any) -> tuple[LlamaModel, ChatTokenizer]:

    def value(name: str) -> Any:
        field = reader.get_field(name)
        return None if field is None else field.contents()

    needed = {"general.architecture": "llama", "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm"}
    for name, expected in needed.items():
        if value(name) != expected:
            raise ValueError(f"{name}={value(name)!r}, expected {expected!r}")
    sizes = "block_count", "attention.head_count", "attention.head_count_kv", "rope.freq_base"
    names = [f"llama.{name}" for name in (*sizes, "attention.layer_norm_rms_epsilon")]
    names += [f"tokenizer.ggml.{name}" for name in ("tokens", "token_type", "merges")]
    if missing := [name for name in names if value(name) is None]:
        raise ValueError(f"{', '.join(missing)}: not there, expected in the header")
    blocks, heads, kv_heads, base, eps, words, types, merges = map(value, names)
    shape = LlamaShape(blocks, heads, kv_heads, base, round(eps, 9))
    stored = {each.name: gguf.quants.dequantize(each.data, each.tensor_type) for each in reader.tensors}
    if "output.weight" in stored:
        raise ValueError("output.weight: expected a model whose embedding is its head")
    model = LlamaModel(shape, {name: torch.tensor(array, dtype=torch.float32) for name, array in stored.items()})
    return model, ChatTokenizer(_byte_pairs(tokenizers, words, types, merges))


def _byte_pairs(tokenizers: Any, words: Sequence[str], types: Sequence[int], merges: Sequence[str]) -> Any:
    """The tokenizer of SmolLM: single digits, the words of GPT-2, pairs of bytes merged in this order."""
    pairs = [tuple(merge.split(" ")) for merge in merges]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=pairs))
    split = tokenizers.pre_tokenizers
    parts = [split.Digits(individual_digits=True), split.ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer, tokenizer.decoder = split.Sequence(parts), tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens([word for word, kind in zip(words, types, strict=True) if kind == CONTROL])
    return tokenizer


def load_smollm2() -> tuple[LlamaModel, ChatTokenizer]:
    """SmolLM2-135M-Instruct and its tokenizer, from the data folder; its SHA-256 is checked first.

    Raises:
        ImportError: `gguf` or `tokenizers` is not installed.
        MissingDataError: the file is absent; the message says how it is fetched.
        DamagedDataError: it is not the published one.
    """
    _packages()  # before 100 MB are read
    return read_llama(read_packaged_file(SMOLLM2))
