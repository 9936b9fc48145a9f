"""A model of the Llama family in torch, against plain loops on small random weights, and files written here."""

import importlib.util
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from descent.data.fetching import MissingDataError
from descent.data.packaged_files import SMOLLM2
from descent.experiments.smollm2 import (
    ChatTokenizer,
    LlamaModel,
    LlamaShape,
    StreamEdit,
    chat_text,
    load_smollm2,
    read_llama,
    rotate_pairs,
)

LACKING = [name for name in ("gguf", "tokenizers") if importlib.util.find_spec(name) is None]
needs_packages = pytest.mark.skipif(bool(LACKING), reason=f"not installed: {', '.join(LACKING)}")
SHAPE = LlamaShape(blocks=3, heads=6, kv_heads=2)
WIDTH, HIDDEN, VOCABULARY = 48, 80, 61
TEMPLATE = (  # of the published file
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n"
    "' + message['content'] + '<|im_end|>' + '\n"
    "'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def random_model(seed: int = 0, shape: LlamaShape = SHAPE, sizes: tuple[int, int, int] | None = None) -> LlamaModel:
    """A model of random weights in float64, whose norms and attention are far from uniform."""
    width, hidden, vocabulary = sizes or (WIDTH, HIDDEN, VOCABULARY)
    generator = torch.Generator().manual_seed(seed)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    values = width // shape.heads * shape.kv_heads
    weights = {"token_embd.weight": draw(vocabulary, width), "output_norm.weight": 1 + draw(width) / 4}
    for block in range(shape.blocks):
        sizes_of = {
            "attn_q": (width, width),
            "attn_k": (values, width),
            "attn_v": (values, width),
            "attn_output": (width, width),
            "ffn_gate": (hidden, width),
            "ffn_up": (hidden, width),
            "ffn_down": (width, hidden),
        }
        for name, size in sizes_of.items():
            weights[f"blk.{block}.{name}.weight"] = draw(*size) * 1.5 / size[1] ** 0.5
        for name in ("attn_norm", "ffn_norm"):
            weights[f"blk.{block}.{name}.weight"] = 1 + draw(width) / 4
    return LlamaModel(shape, weights)


MODEL = random_model()
ROWS = [[3, 1, 4, 1, 5, 9, 2], [6, 5], [3, 5, 8, 9, 7]]


# ------------------------------------------------------------------------------------------- a second implementation


def plain_loops(model: LlamaModel, tokens: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Stream at the last token `(blocks, width)`, behind the last block, and logits, one number after another.

    Pairs are turned as complex numbers, heads and tokens are looped over, and softmax is written out.
    """
    shape, weights = model.shape, {name: weight.numpy() for name, weight in model.weights.items()}
    size, group = model.width // shape.heads, shape.heads // shape.kv_heads

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return x / math.sqrt(sum(float(each) ** 2 for each in x) / len(x) + shape.eps) * weights[f"{name}.weight"]

    def turned(x: np.ndarray, position: int) -> np.ndarray:
        out = []
        for pair in range(size // 2):
            angle = position / shape.rope_base ** (2 * pair / size)
            number = complex(x[2 * pair], x[2 * pair + 1]) * complex(math.cos(angle), math.sin(angle))
            out += [number.real, number.imag]
        return np.array(out)

    x, stream = [weights["token_embd.weight"][token] for token in tokens], []
    for block in range(shape.blocks):
        own = {key.split(".")[2]: value for key, value in weights.items() if key.startswith(f"blk.{block}.")}
        stream.append(x[-1])
        seen = [norm(each, f"blk.{block}.attn_norm") for each in x]
        mixed = [np.zeros(model.width) for _ in tokens]
        for head in range(shape.heads):
            rows = slice(head * size, (head + 1) * size)
            shared = slice(head // group * size, (head // group + 1) * size)
            for now in range(len(tokens)):
                query = turned(own["attn_q"][rows] @ seen[now], now)
                scores = [
                    query @ turned(own["attn_k"][shared] @ seen[before], before) / math.sqrt(size)
                    for before in range(now + 1)
                ]
                shares = [math.exp(score - max(scores)) for score in scores]
                for before, share in enumerate(shares):
                    mixed[now][rows] += share / sum(shares) * (own["attn_v"][shared] @ seen[before])
        x = [each + own["attn_output"] @ part for each, part in zip(x, mixed, strict=True)]
        for now, each in enumerate(x):
            y = norm(each, f"blk.{block}.ffn_norm")
            gate = own["ffn_gate"] @ y
            x[now] = each + own["ffn_down"] @ (gate / (1 + np.exp(-gate)) * (own["ffn_up"] @ y))
    return np.array(stream), x[-1], weights["token_embd.weight"] @ norm(x[-1], "output_norm")


def padded(rows: list[list[int]], side: str, more: int = 0) -> tuple[Tensor, Tensor]:
    """Prompts with padding, whose tokens are any, on one side."""
    longest = max(map(len, rows)) + more
    tokens = torch.full((len(rows), longest), 17)
    mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    for k, row in enumerate(rows):
        place = slice(longest - len(row), None) if side == "left" else slice(0, len(row))
        tokens[k, place], mask[k, place] = torch.tensor(row), True
    return tokens, mask


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("more", [0, 3])
@pytest.mark.parametrize("before", [[], [11, 12, 13, 14]], ids=["alone", "behind a prefix"])
def test_a_batch_gives_what_plain_loops_give_for_each_prompt(side: str, more: int, before: list[int]) -> None:
    prefix = MODEL.run(torch.tensor([before])) if before else None
    run = MODEL.run(*padded(ROWS, side, more), prefix)
    logits = MODEL.logits(run.final)
    for k, row in enumerate(ROWS):
        stream, final, expected = plain_loops(MODEL, before + row)
        np.testing.assert_allclose(run.stream[k], stream, atol=1e-12)
        np.testing.assert_allclose(run.final[k], final, atol=1e-12)
        np.testing.assert_allclose(logits[k], expected, atol=1e-12)
    assert run.visible.sum(1).tolist() == [len(before) + len(row) for row in ROWS]


def test_the_next_token_has_probability_one_in_all() -> None:
    run = MODEL.run(torch.tensor(ROWS[:1]))
    np.testing.assert_allclose(MODEL.log_probabilities(run.final).exp().sum(-1), [1], atol=1e-12)
    differences = MODEL.log_probabilities(run.final)[..., [4, 9]] - MODEL.logits(run.final, [4, 9])
    np.testing.assert_allclose(differences[..., 0], differences[..., 1], atol=1e-12)


def test_gradients_reach_the_weights_through_a_prefix() -> None:
    name = "blk.0.ffn_down.weight"
    weight = MODEL.weights[name].clone().requires_grad_()
    changed = MODEL.with_weights({name: weight})
    run = changed.run(*padded(ROWS, "left"), changed.run(torch.tensor([[11, 12]])))
    changed.logits(run.final)[0, 7].backward()
    step, direction = 1e-6, torch.ones_like(weight)
    ends = []
    for sign in (1, -1):
        moved = MODEL.with_weights({name: MODEL.weights[name] + sign * step * direction})
        whole = moved.run(torch.tensor([[11, 12, *ROWS[0]]]))
        ends.append(float(moved.logits(whole.final)[0, 7]))
    assert weight.grad is not None
    assert float(weight.grad.sum()) == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-6)


def test_scores_of_pairs_depend_on_the_distance_alone() -> None:
    generator = torch.Generator().manual_seed(1)
    query, key = torch.randn(2, 8, generator=generator, dtype=torch.float64)
    rates = torch.tensor([1.0, 0.1, 0.01, 0.001], dtype=torch.float64)
    scores = [rotate_pairs(query, (3 + shift) * rates) @ rotate_pairs(key, shift * rates) for shift in (0, 5, 100)]
    np.testing.assert_allclose(scores, [float(scores[0])] * 3, atol=1e-12)
    assert rotate_pairs(query, 3 * rates).norm().item() == pytest.approx(query.norm().item())


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed")
def test_transformers_gives_the_same_logits() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM  # type: ignore[import-not-found, unused-ignore]

    names = {
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "attn_output": "self_attn.o_proj",
        **{f"attn_{one}": f"self_attn.{one}_proj" for one in "qkv"},
        **{f"ffn_{one}": f"mlp.{one}_proj" for one in ("gate", "up", "down")},
    }
    sizes = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": HIDDEN}
    heads = {"num_attention_heads": SHAPE.heads, "num_key_value_heads": SHAPE.kv_heads}
    how = {"num_hidden_layers": SHAPE.blocks, "rope_theta": SHAPE.rope_base, "rms_norm_eps": SHAPE.eps}
    theirs = LlamaForCausalLM(LlamaConfig(**sizes, **heads, **how, tie_word_embeddings=True)).double().eval()
    state = {
        "model.embed_tokens.weight": "token_embd",
        "lm_head.weight": "token_embd",
        "model.norm.weight": "output_norm",
    }
    weights = {name: MODEL.weights[f"{ours}.weight"] for name, ours in state.items()}
    for block in range(SHAPE.blocks):
        for ours, name in names.items():
            weight = MODEL.weights[f"blk.{block}.{ours}.weight"]
            if ours in ("attn_q", "attn_k"):  # neighbours become halves
                count = SHAPE.heads if ours == "attn_q" else SHAPE.kv_heads
                weight = weight.view(count, -1, 2, WIDTH).transpose(1, 2).reshape(weight.shape)
            weights[f"model.layers.{block}.{name}.weight"] = weight
    theirs.load_state_dict(weights)
    with torch.no_grad():
        expected = theirs(torch.tensor(ROWS[:1])).logits[:, -1]
    np.testing.assert_allclose(MODEL.logits(MODEL.run(torch.tensor(ROWS[:1])).final), expected, atol=1e-4)


# -------------------------------------------------------------------------------------------------- edits of the stream


@pytest.mark.parametrize("block", range(SHAPE.blocks))
@pytest.mark.parametrize("behind", [False, True])
def test_going_on_from_other_vectors_is_running_with_an_edit(block: int, behind: bool) -> None:
    prefix = MODEL.run(torch.tensor([[11, 12, 13]])) if behind else None
    batch = padded(ROWS, "right")
    run = MODEL.run(*batch, prefix)
    vectors = torch.randn(len(ROWS), 4, WIDTH, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    resumed = MODEL.resume(run, block, vectors)
    for k in range(4):
        edit = StreamEdit(block, lambda x, k=k: vectors[:, k, None])
        edited = MODEL.run(*batch, prefix, [edit])
        np.testing.assert_allclose(edited.final, resumed[:, k], atol=1e-12)
        np.testing.assert_allclose(edited.stream[:, block], vectors[:, k], atol=0)
        np.testing.assert_allclose(edited.stream[:, :block], run.stream[:, :block], atol=0)
    np.testing.assert_allclose(MODEL.resume(run, block, run.stream[:, block, None])[:, 0], run.final, atol=1e-12)


def test_an_edit_everywhere_before_the_first_block_is_another_embedding() -> None:
    shift = torch.linspace(-1, 1, WIDTH, dtype=torch.float64)
    edited = MODEL.run(*padded(ROWS, "right"), edits=[StreamEdit(0, lambda x: x + shift, everywhere=True)])
    moved = MODEL.with_weights({"token_embd.weight": MODEL.weights["token_embd.weight"] + shift})
    expected = moved.run(*padded(ROWS, "right"))
    np.testing.assert_allclose(edited.final, expected.final, atol=1e-12)
    last = MODEL.run(*padded(ROWS, "right"), edits=[StreamEdit(0, lambda x: x + shift)])
    assert float((last.final - edited.final).abs().max()) > 1e-3


@pytest.mark.parametrize("everywhere", [False, True])
def test_an_edit_in_place_is_one_that_returns_anew(everywhere: bool) -> None:
    ours, expected = (
        MODEL.run(*padded(ROWS, "left"), edits=[StreamEdit(1, change, everywhere)])
        for change in (lambda x: x.mul_(-2), lambda x: -2 * x)
    )
    assert torch.equal(ours.stream, expected.stream)
    assert torch.equal(ours.final, expected.final)


def test_edits_of_two_blocks_follow_each_other() -> None:
    first, second = StreamEdit(1, lambda x: 2 * x), StreamEdit(2, lambda x: x + 1)
    both = MODEL.run(*padded(ROWS, "left"), edits=[second, first])
    alone = MODEL.run(*padded(ROWS, "left"), edits=[first])
    np.testing.assert_allclose(both.stream[:, 2], alone.stream[:, 2] + 1, atol=1e-12)


# ------------------------------------------------------------------------------------------------------------ refusals

TWO = torch.tensor([[1, 2], [3, 4]])
OTHER = random_model(1, LlamaShape(blocks=4, heads=6, kv_heads=2))
REFUSED = {
    "one dimension": (lambda: MODEL.run(TWO[0]), r"tokens: torch.int64 \(2,\) .*expected int64 \(n, t\)"),
    "floats": (lambda: MODEL.run(TWO.float()), "tokens: torch.float32"),
    "a mask of numbers": (lambda: MODEL.run(TWO, TWO), "with a mask torch.int64"),
    "a token beyond": (lambda: MODEL.run(TWO + 60), "token 61: expected 0 to 60"),
    "a token below": (lambda: MODEL.run(TWO - 2), "token -1: expected 0 to 60"),
    "an empty prompt": (lambda: MODEL.run(TWO, TWO > 2), "mask of prompt 0: expected tokens, with padding on one side"),
    "holes": (
        lambda: MODEL.run(torch.ones(2, 3, dtype=torch.int64), torch.tensor([[True] * 3, [True, False, True]])),
        "mask of prompt 1",
    ),
    "two prefixes": (lambda: MODEL.run(TWO, None, MODEL.run(TWO)), "prefix of 2 sequences: expected one"),
    "a block beyond": (lambda: MODEL.run(TWO, edits=[StreamEdit(3, abs)]), "block=3: expected 0 to 2"),
    "two edits at one": (lambda: MODEL.run(TWO, edits=[StreamEdit(1, abs)] * 2), r"edits at blocks \[1, 1\]"),
    "resumed beyond": (lambda: MODEL.resume(MODEL.run(TWO), -1, torch.zeros(2, 1, 48)), "block=-1: expected 0 to 2"),
    "vectors of one": (
        lambda: MODEL.resume(MODEL.run(TWO), 1, torch.zeros(2, 48).double()),
        r"vectors of shape \(2, 48\): expected \(2, 'm', 48\)",
    ),
    "no prompt": (lambda: MODEL.run(TWO[:0]), "n from 1"),
    "a list": (lambda: MODEL.run(TWO.tolist()), "tokens of type list: expected a tensor"),
    "a mask in a list": (lambda: MODEL.run(TWO, [[True] * 2] * 2), "mask of type list: expected a tensor"),
    "tokens as a prefix": (
        lambda: MODEL.run(TWO, None, TWO[:1]),
        "prefix: expected what `run` gives of 3 blocks of width",
    ),
    "a prefix of another": (
        lambda: MODEL.run(TWO, None, OTHER.run(TWO[:1])),
        "prefix: expected .* 3 blocks of width 48",
    ),
    "a run of another": (lambda: MODEL.resume(OTHER.run(TWO), 1, torch.zeros(2, 1, 48)), "run: expected .* 3 blocks"),
    "half a block": (lambda: MODEL.run(TWO, edits=[StreamEdit(1.5, abs)]), "block=1.5: expected 0 to 2"),  # type: ignore[arg-type]
    "an edit of one number": (
        lambda: MODEL.run(TWO, edits=[StreamEdit(1, lambda x: x.sum(), everywhere=True)]),
        r"edit at block 1 gives torch.float64 \(\): expected torch.float64 \(2, 2, 48\)",
    ),
    "an edit of another type": (
        lambda: MODEL.run(TWO, edits=[StreamEdit(1, Tensor.float)]),
        "block 1 gives torch.float32",
    ),
    "an edit of nothing": (lambda: MODEL.run(TWO, edits=[StreamEdit(1, lambda x: None)]), "block 1 gives NoneType"),
    "vectors of another type": (
        lambda: MODEL.resume(MODEL.run(TWO), 1, torch.zeros(2, 1, 48)),
        "vectors of torch.float32",
    ),
    "no vectors": (lambda: MODEL.resume(MODEL.run(TWO), 1, torch.zeros(2, 0, 48).double()), "m from 1"),
    "logits of less": (lambda: MODEL.logits(torch.zeros(2, 40).double()), r"vectors of .* \(2, 40\): expected .* 48\)"),
    "a chosen token below": (lambda: MODEL.logits(MODEL.run(TWO).final, [-1]), "token -1: expected 0 to 60"),
    "a chosen token beyond": (lambda: MODEL.logits(MODEL.run(TWO).final, [61]), "token 61: expected 0 to 60"),
    "fewer blocks": (
        lambda: LlamaModel(LlamaShape(2, 6, 2), MODEL.weights),
        r"weight 'blk.2.attn_q.weight': torch.float64 \(48, 48\), expected none for LlamaShape\(blocks=2",
    ),
    "more blocks": (
        lambda: LlamaModel(LlamaShape(2**30, 6, 2), MODEL.weights),
        "weight 'blk.3.attn_norm.weight': none",
    ),
    "no blocks": (lambda: LlamaModel(LlamaShape(0, 6, 2), MODEL.weights), "blocks=0: expected at least 1"),
    "other heads": (
        lambda: LlamaModel(LlamaShape(3, 5, 1), MODEL.weights),
        "heads=5, .* width 48: expected heads of one",
    ),
    "odd heads": (lambda: LlamaModel(LlamaShape(3, 16, 2), MODEL.weights), "heads=16, .* one even width"),
    "heads not shared": (lambda: LlamaModel(LlamaShape(3, 6, 4), MODEL.weights), "kv_heads=4, .* kv_heads can share"),
    "no weights": (lambda: LlamaModel(SHAPE, {}), "weight 'token_embd.weight': none, expected"),
    "a bias": (
        lambda: LlamaModel(SHAPE, {**MODEL.weights, "blk.0.attn_q.bias": torch.zeros(48)}),
        r"weight 'blk.0.attn_q.bias': torch.float32 \(48,\), expected none",
    ),
    "a weight of another type": (
        lambda: MODEL.with_weights({"output_norm.weight": torch.ones(48)}),
        r"weight 'output_norm.weight': torch.float32 \(48,\), expected torch.float64 \(48,\)",
    ),
    "no such weight": (lambda: MODEL.with_weights({"x": TWO}), "weight 'x': expected one of the model"),
    "another shape": (
        lambda: MODEL.with_weights({"output_norm.weight": TWO}),
        r"weight 'output_norm.weight' of shape \(2, 2\): expected \(48,\)",
    ),
}


@pytest.mark.parametrize(("ask", "said"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_run_is_refused_by_its_value(ask, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ask()


# ------------------------------------------------------------------------------------------------------ text and files


def letters() -> ChatTokenizer:
    """A tokenizer for which each letter is a token."""
    encode = lambda text, add_special_tokens: SimpleNamespace(ids=[ord(letter) for letter in text])  # noqa: E731
    return ChatTokenizer(SimpleNamespace(encode=encode))


def test_the_chat_template_is_that_of_the_file() -> None:
    jinja2 = pytest.importorskip("jinja2")
    template = jinja2.Template(TEMPLATE)
    said = [{"role": "user", "content": "What is 12?"}]
    assert template.render(messages=said, add_generation_prompt=True) == chat_text("What is 12?")
    said = [{"role": "system", "content": "Be brief."}, *said]
    assert template.render(messages=said, add_generation_prompt=True) == chat_text("What is 12?", "Be brief.")


def test_questions_are_what_is_behind_the_prefix_that_they_share() -> None:
    prefix, tokens, mask = letters().chat(["Why?", "How far?"])
    for prompt, row, own in zip(["Why?", "How far?"], tokens, mask, strict=True):
        assert "".join(map(chr, [*prefix[0].tolist(), *row[own].tolist()])) == chat_text(prompt)
    assert mask[:, -1].all()
    assert mask.sum(1).tolist() == [mask.shape[1] - 4, mask.shape[1]]
    with pytest.raises(ValueError, match=r"prompts=\[\]: expected at least one"):
        letters().chat([])
    with pytest.raises(ValueError, match=r"prompts='Why\?': expected at least one, in a list"):
        letters().chat("Why?")


def test_without_the_file_the_command_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DESCENT_DATA", str(tmp_path))
    for name in ("gguf", "tokenizers"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace())
    with pytest.raises(MissingDataError, match=r"to fetch it .*: make language-model$"):
        load_smollm2()


@pytest.mark.parametrize("lacking", ["gguf", "tokenizers"])
def test_without_a_package_the_message_says_how_it_is_installed(lacking: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("gguf", "tokenizers"):
        monkeypatch.setitem(sys.modules, name, None if name == lacking else SimpleNamespace())
    said = rf"the package {lacking}, which is not installed: pip install --no-deps gguf tokenizers \(or"
    with pytest.raises(ImportError, match=said):
        load_smollm2()


def written(path: Path, model: LlamaModel, **other: str) -> Path:
    """A GGUF file of a small model with printable letters, two merges, one of them of digits, and control tokens."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, other.get("family", "llama"))
    writer.add_block_count(model.shape.blocks)
    writer.add_head_count(model.shape.heads)
    writer.add_head_count_kv(model.shape.kv_heads)
    writer.add_rope_freq_base(model.shape.rope_base)
    writer.add_layer_norm_rms_eps(model.shape.eps)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(other.get("pre", "smollm"))
    letters = [*map(chr, range(33, 127)), "Ġ", "Ċ"]
    writer.add_token_list(["<|im_start|>", "<|im_end|>", *letters, "th", "12"])
    writer.add_token_types([3, 3, *[1] * len(letters), 1, 1])
    writer.add_token_merges(["t h", "1 2"])
    packed = gguf.GGMLQuantizationType
    for name, weight in model.weights.items():
        kind = packed.F32 if weight.ndim == 1 else packed.Q8_0 if "embd" in name else packed.Q4_1
        array = weight.float().numpy()
        stored = array if kind == packed.F32 else gguf.quants.quantize(array, kind)
        writer.add_tensor(name, stored, raw_dtype=kind)
    if "head" in other:
        writer.add_tensor("output.weight", np.zeros((2, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


SMALL = LlamaShape(blocks=2, heads=4, kv_heads=2)


@needs_packages
def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    model = random_model(3, SMALL, (32, 64, 100))
    read, tokenizer = read_llama(written(tmp_path / "small.gguf", model))
    assert read.shape == SMALL
    assert {name: weight.shape for name, weight in read.weights.items()} == {
        name: weight.shape for name, weight in model.weights.items()
    }
    for name, weight in read.weights.items():
        assert weight.dtype == torch.float32
        steps = (
            1e9 if weight.ndim == 1 else 254 if "embd" in name else 15
        )  # from the least to the largest of 32 numbers
        largest = model.weights[name].reshape(-1, 32).abs().amax(1, keepdim=True)
        error = (weight.double() - model.weights[name]).reshape(-1, 32).abs()
        assert (error <= largest * (1.01 / steps + 1e-3)).all(), name  # half of a step, whose size is a float16
    assert tokenizer.decode(tokenizer.encode("<|im_start|>the 12\n")) == "<|im_start|>the 12\n"
    assert [tokenizer.decode([each]) for each in tokenizer.encode("the 12<|im_end|>")] == [
        *("th", "e", " ", "1", "2", "<|im_end|>"),
    ]
    run = read.run(*tokenizer.chat(["think", "of 3"])[1:])
    assert run.final.isfinite().all()


@needs_packages
@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"family": "mamba"}, "general.architecture='mamba', expected 'llama'"),
        ({"pre": "default"}, "tokenizer.ggml.pre='default', expected 'smollm'"),
        ({"head": "own"}, "output.weight: expected a model whose embedding is its head"),
    ],
)
def test_a_file_of_another_family_is_refused(tmp_path: Path, other: dict[str, str], said: str) -> None:
    path = written(tmp_path / "other.gguf", random_model(3, SMALL, (32, 64, 100)), **other)
    with pytest.raises(ValueError, match=f"^{path}: {said}"):
        read_llama(path)


@needs_packages
@pytest.mark.parametrize(
    ("left_out", "said"),
    [
        ("add_rope_freq_base", "llama.rope.freq_base: not there, expected in the header"),
        ("add_token_merges", "tokenizer.ggml.merges: not there"),
    ],
)
def test_a_file_without_a_number_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left_out: str, said: str
) -> None:
    monkeypatch.setattr(f"gguf.GGUFWriter.{left_out}", lambda *_: None)
    path = written(tmp_path / "small.gguf", random_model(3, SMALL, (32, 64, 100)))
    with pytest.raises(ValueError, match=f"^{path}: {said}"):
        read_llama(path)


@needs_packages
@pytest.mark.parametrize(
    ("was", "becomes", "said"),
    [
        (b"blk.1.ffn_up", b"blk.1.ffn_ap", "weight 'blk.1.ffn_up.weight': none, expected torch.float32"),
        (b"general.architecture", b"\xffeneral.architecture", ""),
        (b"t h", b"t j", "Error while initializing BPE: Token `tj` out of vocabulary"),
    ],
)
def test_a_file_with_a_damaged_header_is_refused(tmp_path: Path, was: bytes, becomes: bytes, said: str) -> None:
    path = written(tmp_path / "small.gguf", random_model(3, SMALL, (32, 64, 100)))
    path.write_bytes(path.read_bytes().replace(was, becomes, 1))
    with pytest.raises(ValueError, match=f"^{path}: {said}"):
        read_llama(path)


@needs_packages
@pytest.mark.parametrize("content", [b"", b"no model", bytes(100)], ids=["empty", "text", "zeros"])
def test_what_is_no_gguf_file_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "small.gguf").write_bytes(content)
    with pytest.raises(ValueError, match=rf"^{tmp_path / 'small.gguf'}: damaged, or no GGUF file"):
        read_llama(tmp_path / "small.gguf")


@needs_packages
@pytest.mark.skipif(not SMOLLM2.path.is_file(), reason="the weights are not there; make language-model fetches them")
def test_the_published_model_knows_the_capital_of_france() -> None:
    model, tokenizer = load_smollm2()
    assert (model.shape, model.width) == (LlamaShape(), 576)
    assert [tokenizer.encode(answer) for answer in ("I", "Sure")] == [[57], [34355]]
    said = tokenizer.encode(chat_text("What is the capital of France?") + "The capital of France is")
    with torch.no_grad():
        run = model.run(torch.tensor([said]))
    assert tokenizer.decode([int(model.logits(run.final).argmax())]) == " Paris"
