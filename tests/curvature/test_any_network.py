"""Layers and wrappers that people use: the Hessian of differences of plain gradients, or a refusal by name."""

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from dense import dense_matrix, differenced_hessian
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint

from descent.curvature import extreme_eigenpairs, gauss_newton, hessian
from descent.models import Layout
from descent.training import batch_cross_entropy

KINDS = [hessian, gauss_newton]
S, L = nn.Sequential, nn.Linear


def vectors(width: int = 3) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(10, width, dtype=torch.float64), torch.arange(10) % 2


def images() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(10, 2, 5, 5, dtype=torch.float64), torch.arange(10) % 2


def series() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(10, 4, 4, dtype=torch.float64), torch.arange(10) % 2


def tokens() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randint(5, (10, 4)), torch.arange(10) % 5


class Module(nn.Module):
    """Named layers and a function of them and the inputs."""

    def __init__(self, function: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        self.function, self.layers = function, nn.ModuleDict(layers)

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(self.layers, *inputs)


def recurrent(layer: nn.Module, width: int) -> nn.Module:
    return Module(lambda m, x: m["head"](m["rnn"](x)[0][:, -1]), rnn=layer, head=L(width, 2))


def encoder(dropout: float = 0.1, layers: int = 1) -> nn.Module:
    """Tied embeddings, as of a language model; `inputs` are tokens and, as an option, the places to leave out."""

    def forward(m: nn.ModuleDict, inputs: Tensor, left_out: Tensor | None = None) -> Tensor:
        return m["head"](m["body"](m["embedding"](inputs), src_key_padding_mask=left_out).mean(1))

    layer = nn.TransformerEncoderLayer(4, 2, 3, dropout, batch_first=True, activation="gelu")
    parts = {"embedding": nn.Embedding(5, 4), "body": nn.TransformerEncoder(layer, layers), "head": L(4, 5)}
    parts["head"].weight = parts["embedding"].weight
    return Module(forward, **parts)


def attention(**options: Any) -> nn.Module:
    return Module(lambda m, x: m["a"](x, x, x)[0][:, 0, :2], a=nn.MultiheadAttention(4, 2, **options))


def used_twice() -> nn.Module:
    return Module(lambda m, x: m["head"](m["one"](m["one"](x).tanh()).tanh()), one=L(3, 3), head=L(3, 2))


def residual() -> nn.Module:
    """A pre-activation block: normalisation before the convolution that it goes with."""
    return Module(
        lambda m, x: m["head"](x + m["conv"](F.silu(m["norm"](x)))),
        norm=nn.BatchNorm2d(2),
        conv=nn.Conv2d(2, 2, 3, padding=1),
        head=S(nn.Flatten(), L(50, 2)),
    )


def head(*layers: nn.Module, width: int = 2) -> nn.Module:
    return S(*layers, nn.Flatten(), nn.LazyLinear(width))


Parts = tuple[Callable[[], nn.Module], Callable[[], tuple[Tensor, Tensor]]]
NETWORKS: dict[str, Parts] = {
    "LSTM": (lambda: recurrent(nn.LSTM(4, 2, batch_first=True), 2), series),
    "LSTM of two layers, both ways": (
        lambda: recurrent(nn.LSTM(4, 1, 2, batch_first=True, bidirectional=True), 2),
        series,
    ),
    "LSTM with projection": (lambda: recurrent(nn.LSTM(4, 3, batch_first=True, proj_size=2), 2), series),
    "GRU": (lambda: recurrent(nn.GRU(4, 2, batch_first=True), 2), series),
    "RNN": (lambda: recurrent(nn.RNN(4, 2, batch_first=True), 2), series),
    "encoder with tied embeddings": (encoder, tokens),
    "attention": (lambda: attention(batch_first=True), series),
    "fused attention": (
        lambda: Module(lambda m, x: F.scaled_dot_product_attention(*m["q"](x).chunk(3, -1)).mean(1)[:, :2], q=L(4, 12)),
        series,
    ),
    "one layer twice": (used_twice, vectors),
    "pre-activation block": (residual, images),
    "convolution and batch norm": (
        lambda: head(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2), nn.GELU(), nn.AvgPool2d(2)),
        images,
    ),
    "channels last": (
        lambda: S(nn.Conv2d(2, 2, 3).to(memory_format=torch.channels_last), nn.Flatten(), L(18, 2)),
        images,
    ),
    "transposed convolution": (lambda: head(nn.ConvTranspose2d(2, 1, 2, stride=2), nn.Softplus()), images),
    "one-dimensional": (lambda: head(nn.Conv1d(4, 2, 3, groups=2), nn.BatchNorm1d(2), nn.GLU(1)), series),
    "upsampling": (lambda: head(nn.Conv2d(2, 1, 3), nn.Upsample(scale_factor=2, mode="bilinear"), nn.SiLU()), images),
    "group norm": (lambda: head(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.ELU(), nn.AdaptiveAvgPool2d(1)), images),
    "instance norm": (lambda: head(nn.Conv2d(2, 2, 3), nn.InstanceNorm2d(2, affine=True), nn.Mish()), images),
    "layer norm": (lambda: S(L(3, 4), nn.LayerNorm(4), nn.GELU(), L(4, 2)), vectors),
    "root mean square norm": (lambda: S(L(3, 4), nn.RMSNorm(4), nn.SiLU(), L(4, 2)), vectors),
    "parametric rectifier": (lambda: S(L(3, 4), nn.PReLU(4), L(4, 2)), vectors),
    "rectifiers": (lambda: S(L(3, 4), nn.ReLU(), L(4, 4), nn.LeakyReLU(0.1), L(4, 2)), vectors),
    "max pooling": (lambda: head(nn.Conv2d(2, 3, 2), nn.MaxPool2d(2)), images),
    "bilinear": (lambda: Module(lambda m, x: m["b"](x, x.tanh()), b=nn.Bilinear(3, 3, 2)), vectors),
    "embedding with sparse gradients": (lambda: head(nn.Embedding(5, 2, sparse=True), nn.Tanh(), width=5), tokens),
    "spectral norm": (lambda: S(parametrizations.spectral_norm(L(3, 4)), nn.Tanh(), L(4, 2)), vectors),
    "orthogonal": (lambda: S(parametrizations.orthogonal(L(3, 3)), nn.Tanh(), L(3, 2)), vectors),
    "orthogonal by Cayley": (
        lambda: S(parametrizations.orthogonal(L(3, 3), orthogonal_map="cayley"), nn.Tanh(), L(3, 2)),
        vectors,
    ),
    "weight norm of the whole": (
        lambda: S(parametrizations.weight_norm(L(3, 4), dim=None), nn.Tanh(), L(4, 2)),
        vectors,
    ),
    "checkpointed": (
        lambda: Module(lambda m, x: checkpoint(m["body"], x, use_reentrant=False), body=S(L(3, 4), nn.Tanh(), L(4, 2))),
        vectors,
    ),
    "data parallel": (lambda: nn.DataParallel(S(L(3, 4), nn.Tanh(), L(4, 2))), vectors),
    "dropout that is off": (lambda: S(L(3, 4), nn.Dropout(0.5), nn.Tanh(), L(4, 2)), vectors),
    "a number of its own": (lambda: Scaled(), vectors),
}


class Scaled(nn.Module):
    """A parameter without dimensions, one that is unused, and a list of parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale, self.unused = nn.Parameter(torch.tensor(0.3)), nn.Parameter(torch.ones(2))
        self.rows = nn.ParameterList([torch.randn(3), torch.randn(3)])

    def forward(self, inputs: Tensor) -> Tensor:
        return self.log_scale.exp() * torch.stack([(inputs @ row).sin() for row in self.rows], 1)


def build(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    make, examples = NETWORKS[name]
    torch.manual_seed(0)
    model, (inputs, targets) = make().to(dtype), examples()
    inputs = inputs.to(dtype) if inputs.is_floating_point() else inputs
    with torch.no_grad():
        for _ in range(5):  # running statistics, power iterations and shapes of lazy layers
            model(inputs)
    return model.eval(), (inputs, targets)


@pytest.mark.parametrize("name", NETWORKS)
def test_hessian_is_that_of_differences_of_gradients(name: str) -> None:
    model, batch = build(name)
    found = hessian(model, batch_cross_entropy, [batch]) @ np.eye(Layout.of(model.named_parameters()).size)
    np.testing.assert_allclose(found, differenced_hessian(model, batch_cross_entropy, batch), atol=2e-7)
    np.testing.assert_allclose(found, found.T, atol=1e-12)


def dense_gauss_newton(model: nn.Module, batch: tuple[Tensor, Tensor]) -> np.ndarray:
    """J^T (diag(p) - p p^T) J, mean over the rows, J by one plain gradient for each output."""
    weights, outputs = list(model.parameters()), model(batch[0])
    gradients = [
        [torch.autograd.grad(value, weights, retain_graph=True, materialize_grads=True) for value in row]
        for row in outputs
    ]
    J = torch.stack(
        [torch.stack([torch.cat([part.to_dense().flatten() for part in one]) for one in row]) for row in gradients]
    )
    p = outputs.softmax(1).detach()
    middle = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    return (torch.einsum("nap,nab,nbq->pq", J, middle, J) / len(p)).numpy()


@pytest.mark.parametrize("name", NETWORKS)
def test_gauss_newton_is_that_of_plain_jacobians(name: str) -> None:
    model, batch = build(name)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        expected = dense_gauss_newton(model, batch)
    np.testing.assert_allclose(dense_matrix(gauss_newton(model, batch_cross_entropy, [batch])), expected, atol=1e-12)


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("name", NETWORKS)
def test_float32_has_the_hessian_of_float64(name: str) -> None:
    exact, wide = build(name)
    model, (inputs, targets) = build(name, torch.float32)
    model.load_state_dict(exact.state_dict())
    expected = dense_matrix(hessian(exact, batch_cross_entropy, [wide]))
    found = dense_matrix(hessian(model, batch_cross_entropy, [(inputs, targets)]))
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_an_encoder_with_places_left_out_does_not_take_its_fast_path() -> None:
    """In evaluation mode without gradients torch replaces the layers by one kernel on nested tensors."""

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(model(batch[0], batch[2]), batch[1])

    model, (inputs, targets) = build("encoder with tied embeddings")
    batch = inputs, targets, torch.arange(4) >= 4 - torch.arange(10)[:, None] % 3
    found = dense_matrix(hessian(model, loss, [batch]))
    np.testing.assert_allclose(found, differenced_hessian(model, loss, batch), atol=2e-7)
    model.layers["body"].requires_grad_(False)
    block = Layout.of(model.named_parameters()).slices()
    names = ["layers.embedding.weight", "layers.head.bias"]
    rows = np.concatenate([np.arange(600)[block[name]] for name in names])
    for parameters in (None, names):
        part = dense_matrix(hessian(model, loss, [batch], parameters))
        np.testing.assert_allclose(part, found[np.ix_(rows, rows)], atol=1e-9)


def test_the_row_of_a_padding_token_is_held_fast() -> None:
    """Its gradient by torch is zero, so that it is never trained: its row and column of the Hessian are zero."""
    torch.manual_seed(0)
    model, (inputs, targets) = S(nn.Embedding(5, 2, padding_idx=0), nn.Tanh(), nn.Flatten(), L(8, 5)).double(), tokens()
    nn.init.ones_(model[0].weight[:1].data)
    free = differenced_hessian(model, batch_cross_entropy, (inputs, targets))
    found = dense_matrix(hessian(model, batch_cross_entropy, [(inputs, targets)]))
    assert not found[:2].any()
    assert np.abs(free[:2]).max() > 1e-3
    np.testing.assert_allclose(found[2:, 2:], free[2:, 2:], atol=2e-7)
    tied = S(nn.Embedding(5, 4, padding_idx=0), nn.Tanh(), L(4, 5)).double()
    tied[2].weight = tied[0].weight
    with pytest.raises(ValueError, match=r"second derivative by parameter '(0|2)\..*' is not that of the loss"):
        hessian(tied, lambda m, batch: F.cross_entropy(m(batch[0]).mean(1), batch[1]), [(inputs, targets)])


@pytest.mark.parametrize("names", [["layers.head.weight"], ["layers.embedding.weight", "layers.head.weight"]])
def test_a_tied_weight_counts_once_by_any_of_its_names(names: list[str]) -> None:
    model, batch = build("encoder with tied embeddings")
    expected = dense_matrix(hessian(model, batch_cross_entropy, [batch], ["layers.embedding.weight"]))
    found = dense_matrix(hessian(model, batch_cross_entropy, [batch], names))
    assert found.shape == (20, 20)
    np.testing.assert_array_equal(found, expected)


def test_a_frozen_backbone_leaves_the_block_of_the_head() -> None:
    model, batch = build("pre-activation block")
    whole = differenced_hessian(model, batch_cross_entropy, batch)
    model.layers["conv"].requires_grad_(False)
    model.layers["norm"].requires_grad_(False)
    operator = hessian(model, batch_cross_entropy, [batch])
    np.testing.assert_allclose(dense_matrix(operator), whole[-102:, -102:], atol=2e-7)


def test_inference_mode_and_autocast_around_do_not_matter() -> None:
    model, batch = build("layer norm", torch.float32)
    operator = hessian(model, batch_cross_entropy, [batch])
    expected = operator @ np.eye(34)
    for around in (torch.inference_mode(), torch.no_grad(), torch.autocast("cpu", torch.bfloat16)):
        with around:
            np.testing.assert_array_equal(operator @ np.eye(34), expected)
            split = list(zip(batch[0].split(4), batch[1].split(4), strict=True))
            np.testing.assert_allclose(hessian(model, batch_cross_entropy, split) @ np.eye(34), expected, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated")
def test_a_network_compiled_in_place_is_taken_and_a_wrapper_refused() -> None:
    model, batch = build("layer norm")
    expected = hessian(model, batch_cross_entropy, [batch]) @ np.ones(34)
    model.compile()
    np.testing.assert_array_equal(hessian(model, batch_cross_entropy, [batch]) @ np.ones(34), expected)
    wrapped = [torch.compile(model), torch.jit.script(S(L(3, 2))), S(torch.compile(L(3, 2)))]
    names = ["OptimizedModule ''", "RecursiveScriptModule ''", "OptimizedModule '0'"]
    for kind in KINDS:
        for wrapper, name in zip(wrapped, names, strict=True):
            with pytest.raises(
                ValueError, match=f"{name} has no second derivative: expected the module that it was made"
            ):
                kind(wrapper, batch_cross_entropy, [batch])


# ---- what is refused


class Reversed(torch.autograd.Function):
    """The identity, with a gradient of the other sign, as for adversarial features."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        return inputs.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return -gradient


class Cubed(torch.autograd.Function):
    """x^3 with a right gradient, computed out of sight of a second differentiation."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        ctx.save_for_backward(inputs)
        return inputs**3

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (inputs,) = ctx.saved_tensors
        return gradient * 3 * inputs.detach() ** 2


def through(function: Callable[[Tensor], Tensor]) -> nn.Module:
    return Module(lambda m, x: m["last"](function(m["first"](x).tanh())), first=L(3, 4), last=L(4, 2))


def straight_through(hidden: Tensor) -> Tensor:
    return hidden + ((4 * hidden).round() / 4 - hidden).detach()


def half_detached(hidden: Tensor) -> Tensor:
    return hidden * hidden.detach().exp()


WRONG: dict[str, Parts] = {
    "weight norm": (lambda: S(parametrizations.weight_norm(L(3, 4)), nn.Tanh(), L(4, 2)), vectors),
    "weight norm and rectifiers": (lambda: S(parametrizations.weight_norm(L(3, 4)), nn.ReLU(), L(4, 2)), vectors),
    "weight norm of a convolution": (lambda: head(parametrizations.weight_norm(nn.Conv2d(2, 2, 3)), nn.Tanh()), images),
    "reversed gradient": (lambda: through(Reversed.apply), vectors),
    "straight-through": (lambda: through(straight_through), vectors),
    "detached factor": (lambda: through(half_detached), vectors),
    "own function": (lambda: through(Cubed.apply), vectors),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", WRONG)
def test_wrong_second_derivatives_are_refused_by_name(name: str, dtype: torch.dtype) -> None:
    make, examples = WRONG[name]
    torch.manual_seed(0)
    model, (inputs, targets) = make().to(dtype), examples()
    model(inputs.to(dtype))
    message = (
        r"second derivative by parameter '.*(first|last|original1|bias|weight).*' is not that of the loss: u . H w ="
    )
    with pytest.raises(ValueError, match=message):
        hessian(model, batch_cross_entropy, [(inputs.to(dtype), targets)])


def test_weight_norm_is_named_and_taken_once_it_is_removed() -> None:
    torch.manual_seed(0)
    model = S(L(3, 3), nn.Tanh(), parametrizations.weight_norm(L(3, 4)), nn.Tanh(), L(4, 2)).double()
    with pytest.raises(ValueError, match=r"'2\.parametrizations\.weight\.original1' .*; known of weight_norm"):
        hessian(model, batch_cross_entropy, [vectors()])
    parametrize.remove_parametrizations(model[2], "weight")
    found = dense_matrix(hessian(model, batch_cross_entropy, [vectors()]))
    np.testing.assert_allclose(found, differenced_hessian(model, batch_cross_entropy, vectors()), atol=1e-7)


def test_a_layer_norm_in_a_loss_of_gradients_is_refused() -> None:
    """Its third derivative by torch takes mean and deviation for constants."""

    def loss(model: nn.Module, batch: Any) -> Tensor:
        inputs = batch[0].clone().requires_grad_()
        slope = torch.autograd.grad(model(inputs).sum(), inputs, create_graph=True)[0]
        return slope.square().sum(1).mean()

    torch.manual_seed(0)
    model = S(L(3, 4), nn.LayerNorm(4), nn.Tanh(), L(4, 2)).double()
    with pytest.raises(ValueError, match=r"is not that of the loss.*of layer_norm in a loss of gradients"):
        hessian(model, loss, [vectors()])


class Noisy(nn.Module):
    def __init__(self, noise: Callable[[], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.noise = S(L(3, 4), nn.Tanh(), L(4, 2)).double(), noise

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs) * (1 + self.noise())


RANDOM: dict[str, Parts] = {
    "functional dropout": (lambda: Module(lambda m, x: m["a"](F.dropout(x)), a=L(3, 2)), vectors),
    "numpy": (lambda: Noisy(np.random.default_rng(0).random), vectors),
    "python": (lambda: Noisy(random.Random(0).random), vectors),
    "faint": (lambda: Noisy(lambda: 1e-9 * torch.rand((), dtype=torch.float64)), vectors),
    "a counter": (lambda: Noisy(partial(next, iter(range(10**6)))), vectors),
    "dropout of attention": (lambda: attention(batch_first=True, dropout=0.3), series),
    "dropout of an LSTM": (lambda: recurrent(nn.LSTM(4, 2, 2, batch_first=True, dropout=0.5), 2), series),
    "random rectifier": (lambda: S(L(3, 4), nn.RReLU(), L(4, 2)), vectors),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", RANDOM)
def test_random_forward_passes_are_refused(name: str, kind: Callable[..., Any]) -> None:
    make, examples = RANDOM[name]
    torch.manual_seed(0)
    with pytest.raises(ValueError, match=r"loss of batch 0 is .*, then .*: products would be random"):
        kind(make().double(), batch_cross_entropy, [examples()])


@pytest.mark.parametrize("kind", KINDS)
def test_a_pass_that_is_random_on_one_batch_alone_is_refused(kind: Callable[..., Any]) -> None:
    def forward(m: nn.ModuleDict, x: Tensor) -> Tensor:
        return m["a"](F.dropout(x) if x[0, 0] > 0 else x)

    inputs, targets = vectors()
    inputs[:, 0] = inputs[:, 0].abs() * torch.tensor([-1.0] * 6 + [1.0] * 4)
    batches = list(zip(inputs.split([6, 4]), targets.split([6, 4]), strict=True))
    with pytest.raises(ValueError, match=r"loss of batch 1 is .*: products would be random"):
        kind(Module(forward, a=L(3, 2)).double(), batch_cross_entropy, batches)


def test_random_features_below_a_last_layer_of_zeros_are_refused() -> None:
    """The loss is log 2 whatever the features are; its Hessian is not."""
    torch.manual_seed(0)
    model = Module(lambda m, x: m["last"](F.dropout(m["first"](x))), first=L(3, 4), last=L(4, 2)).double()
    nn.init.zeros_(model.layers["last"].weight)
    nn.init.zeros_(model.layers["last"].bias)
    with pytest.raises(ValueError, match=r"products of two passes.* differ by .*: expected no random numbers"):
        hessian(model, batch_cross_entropy, [vectors()])


class Remembering(nn.Module):
    """Keeps what it gave last."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = L(3, 2).double()

    def forward(self, inputs: Tensor) -> Tensor:
        self.last = self.layer(inputs)
        return self.last


def low_precision(model: nn.Module, batch: Any) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(batch[0])
    return F.cross_entropy(outputs.float(), batch[1])


def reentrant(m: nn.ModuleDict, x: Tensor) -> Tensor:
    """A pass whose weights autograd does not see: their gradients are zero unless by `backward`."""
    return checkpoint(m["body"], x.clone().requires_grad_(), use_reentrant=True)


OTHERS: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Tensor, Tensor]], str]] = {
    "batch norm in training": (
        lambda: S(L(3, 4), nn.BatchNorm1d(4)).train(),
        vectors,
        "BatchNorm1d '1' uses each batch's own",
    ),
    "encoder in training": (
        lambda: encoder().train(),
        tokens,
        "Dropout '.*' is in training mode: products would be random",
    ),
    "spectral norm in training": (
        lambda: S(parametrizations.spectral_norm(L(3, 2))).train(),
        vectors,
        r"the loss changes '0\.parametrizations\.weight\.0\._u': expected model.eval\(\)",
    ),
    "embedding of bounded norm": (
        lambda: head(nn.Embedding(5, 3, max_norm=0.1), width=5),
        tokens,
        "the loss changes '0.weight'",
    ),
    "weight norm by hooks": (
        lambda: S(nn.utils.weight_norm(L(3, 2))),
        vectors,
        "Linear '0' cannot be copied, since it keeps a computed tensor 'weight': .* torch.nn.utils.parametrizations",
    ),
    "a kept output": (Remembering, vectors, "Remembering '' cannot be copied, since it keeps a computed tensor 'last'"),
    "bag of embeddings": (lambda: head(nn.EmbeddingBag(5, 2), width=5), tokens, "twice: .*_embedding_bag_backward"),
    "hard sigmoid": (
        lambda: S(L(3, 4), nn.Hardsigmoid(), L(4, 2)),
        vectors,
        "cannot be differentiated twice: .*hardsigmoid",
    ),
    "reentrant checkpoint": (
        lambda: Module(reentrant, body=L(3, 2)),
        vectors,
        r"the loss changes by something else .* use_reentrant=False",
    ),
    "lazy": (
        lambda: nn.LazyLinear(2),
        vectors,
        "parameter 'weight' has no shape yet: expected a lazy model that has run",
    ),
    "bfloat16": (
        lambda: L(3, 2).bfloat16(),
        vectors,
        "parameter 'weight' is torch.bfloat16: expected float32 or float64",
    ),
    "float16": (lambda: L(3, 2).half(), vectors, "parameter 'weight' is torch.float16: expected float32 or float64"),
    "two dtypes": (lambda: S(L(3, 2), L(2, 2).float()), vectors, "float64 on cpu: expected one dtype on one device"),
    "no parameters": (lambda: nn.Flatten(), vectors, "expected at least one, and the model trains none"),
    "all frozen": (lambda: L(3, 2).requires_grad_(False), vectors, "expected at least one, and the model trains none"),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OTHERS)
def test_others_are_refused_by_name(name: str, kind: Callable[..., Any]) -> None:
    make, examples, message = OTHERS[name]
    torch.manual_seed(0)
    model, (inputs, targets) = make(), examples()
    if name not in ("bfloat16", "float16", "two dtypes"):
        model = model.double()
    if name in ("a kept output", "weight norm by hooks", "embedding of bounded norm", "bag of embeddings"):
        model(inputs)
    if name == "embedding of bounded norm":
        model[0].weight.data *= 2
    if name == "two dtypes":
        model[0].double()
    with pytest.raises(ValueError, match=message):
        kind(model, batch_cross_entropy, [(inputs, targets)])


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_within_the_loss_is_refused(kind: Callable[..., Any]) -> None:
    inputs, targets = vectors()
    with pytest.raises(ValueError, match=r"the loss computes in torch.bfloat16: .* expected no autocast"):
        kind(S(L(3, 4), nn.Tanh(), L(4, 2)), low_precision, [(inputs.float(), targets)])


def test_two_parameters_of_one_memory_are_refused() -> None:
    model = used_twice().double()
    model.layers["two"] = L(3, 3).double()
    model.layers["two"].weight = nn.Parameter(model.layers["one"].weight.data)
    with pytest.raises(ValueError, match=r"parameters 'layers.one.weight' and 'layers.two.weight' share memory"):
        hessian(model, batch_cross_entropy, [vectors()])


def test_a_norm_layer_that_goes_down_to_float32_within_is_taken() -> None:
    """As those of language models do, whatever the dtype of their weights."""

    def forward(m: nn.ModuleDict, x: Tensor) -> Tensor:
        hidden = m["first"](x)
        narrow = hidden.float()
        return m["last"]((narrow * torch.rsqrt(narrow.square().mean(1, keepdim=True) + 1e-6)).to(hidden.dtype)).float()

    torch.manual_seed(0)
    inputs, targets = vectors()
    for kind in KINDS:
        for dtype in (torch.float32, torch.float64):
            network, part = Module(forward, first=L(3, 4), last=L(4, 2)).to(dtype), inputs.to(dtype)
            top = extreme_eigenpairs(
                kind(network, batch_cross_entropy, [(part, targets)]), 1, "largest", np.random.default_rng(0)
            )
            assert top.converged
