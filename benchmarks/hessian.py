"""Products, top eigenpairs and spectral density of the Hessian: ours against PyHessian and the textbook method.

Two networks: a 64-24-10 tanh network trained on digits, whose dense Hessian in float64 is the yardstick, and ResNet-20
trained briefly on made-up images, where residuals and standard errors stand in for it. All methods work in float32, on
one batch. Times include building the operator and its checks.

PyHessian takes part when PEERS names a folder that holds its repository:
    git clone https://github.com/amirgholami/PyHessian peers/PyHessian && PEERS=peers make bench
Its published version 0.1 calls torch.eig, which torch 2 does not have; the repository (commit de8cf23 was used) calls
torch.linalg.eig and runs as it stands, on a copy of the model, since it leaves gradients behind. Without it only the
textbook method is compared with. Our density counts some eigenpairs exactly, then needs fewer probes and steps; those
it is given here were chosen for an error no higher than that of 10 probes x 100 steps. Run through `make bench`.
"""

from __future__ import annotations

import copy
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from scipy.linalg import eigh_tridiagonal
from scipy.sparse.linalg import LinearOperator
from scipy.stats import wasserstein_distance
from torch import Tensor, nn

from descent.curvature.density import spectral_density
from descent.curvature.eigen import extreme_eigenpairs
from descent.curvature.operators import hessian
from descent.data.datasets import load_dataset, standardise
from descent.models.image_networks import cifar_resnet, mlp
from descent.repro.seeding import numpy_generator, torch_generator
from measure import Result, repeat

LOSS = nn.CrossEntropyLoss()
TOP = 5
IMAGES = 128


class Work(NamedTuple):
    """A trained network in evaluation mode with the one batch of its loss."""

    model: nn.Module
    inputs: Tensor
    targets: Tensor

    def double(self) -> Work:
        """The same in float64, a copy."""
        return Work(copy.deepcopy(self.model).double(), self.inputs.double(), self.targets)

    def operator(self) -> LinearOperator:
        """Our Hessian of it."""
        return hessian(self.model, lambda model, batch: LOSS(model(batch[0]), batch[1]), [(self.inputs, self.targets)])


class Top(NamedTuple):
    """Eigenpairs, and what they cost."""

    values: np.ndarray  # (k,)
    vectors: np.ndarray  # (P, k)
    products: int


class Quadrature(NamedTuple):
    """Nodes and weights of each probe, and what they cost."""

    nodes: np.ndarray  # (probes, m)
    weights: np.ndarray  # (probes, m)
    products: int


class Method(Protocol):
    """What the tables compare."""

    name: str

    def top(self, work: Work, tolerance: float) -> Top:
        """The five largest eigenvalues."""

    def density(self, work: Work, steps: int, probes: int, seed: int) -> Quadrature:
        """The density of eigenvalues."""


class Ours:
    """The library; its density with the eigenpairs of largest absolute value counted exactly, or without."""

    def __init__(self, known: int) -> None:
        self.known, self.name = known, f"ours, {known} known pairs" if known else "ours"

    def top(self, work: Work, tolerance: float) -> Top:  # noqa: D102
        found = extreme_eigenpairs(work.operator(), TOP, "largest", numpy_generator(0, "start"), tolerance=tolerance)
        return Top(found.values, found.vectors, found.matvecs)

    def density(self, work: Work, steps: int, probes: int, seed: int) -> Quadrature:  # noqa: D102
        operator, generator = work.operator(), numpy_generator(seed, "probes")
        known, spent = None, steps * probes
        if self.known:
            pairs = extreme_eigenpairs(operator, self.known, "magnitude", generator, tolerance=1e-3)
            known, spent = (pairs.values, pairs.vectors), spent + pairs.matvecs
        found = spectral_density(operator, steps, probes, generator, known=known)
        return Quadrature(found.nodes, found.weights, spent)


class PyHessian:
    """Its power iteration and its Lanczos quadrature, products counted."""

    name = "PyHessian"

    def __init__(self, folder: Path) -> None:
        sys.path.insert(0, str(folder))
        import pyhessian

        self._kind, self._products = pyhessian.hessian, 0
        module: Any = sys.modules["pyhessian.hessian"]
        product = module.hessian_vector_product

        def counted(*arguments: object) -> object:
            self._products += 1
            return product(*arguments)

        module.hessian_vector_product = counted

    def _start(self, work: Work, seed: int) -> Any:
        self._products = 0
        torch.manual_seed(seed)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Using backward", UserWarning)  # its graph refers to itself
            data = (work.inputs, work.targets)
            return self._kind(copy.deepcopy(work.model), LOSS, data=data, cuda=False)

    def top(self, work: Work, tolerance: float) -> Top:  # noqa: D102
        values, vectors = self._start(work, 0).eigenvalues(maxIter=1000, tol=tolerance, top_n=TOP)
        flat = [torch.cat([part.reshape(-1) for part in vector]).detach().numpy() for vector in vectors]
        return Top(np.array(values), np.stack(flat, 1).astype(np.float64), self._products)

    def density(self, work: Work, steps: int, probes: int, seed: int) -> Quadrature:  # noqa: D102
        nodes, weights = self._start(work, seed).density(iter=steps, n_v=probes)
        return Quadrature(np.real(nodes), np.real(weights), self._products)


class Textbook:
    """Power iteration with deflation, and Lanczos without reorthogonalisation; the graph is built for each product."""

    name = "textbook"

    def product(self, work: Work) -> Callable[[Tensor], Tensor]:
        """The product with a vector `(P,)`, counted."""
        parameters = list(work.model.parameters())

        def product(vector: Tensor) -> Tensor:
            self.products += 1
            loss = LOSS(work.model(work.inputs), work.targets)
            gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, parameters, create_graph=True)])
            return torch.cat([p.reshape(-1) for p in torch.autograd.grad(gradient @ vector, parameters)])

        self.products, self.size = 0, sum(p.numel() for p in parameters)
        return product

    def top(self, work: Work, tolerance: float) -> Top:  # noqa: D102
        product = self.product(work)
        found, values = torch.zeros(self.size, 0), []
        generator = torch_generator(0, "start")
        for _ in range(TOP):
            vector, value = torch.randn(self.size, generator=generator), np.inf
            for _ in range(1000):
                vector = vector - found @ (found.T @ vector)
                vector = vector / vector.norm()
                image = product(vector)
                before, value = value, float(image @ vector)
                if abs(value - before) < tolerance * abs(before):
                    break
                vector = image
            vector = vector / vector.norm()
            found, values = torch.cat([found, vector[:, None]], 1), [*values, value]
        return Top(np.array(values), found.double().numpy(), self.products)

    def density(self, work: Work, steps: int, probes: int, seed: int) -> Quadrature:  # noqa: D102
        product = self.product(work)
        generator = torch_generator(seed, "probes")
        nodes, weights = np.empty((2, probes, steps))
        for i in range(probes):
            vector = torch.randn(self.size, generator=generator)
            vector, last, off = vector / vector.norm(), torch.zeros(self.size), [0.0]
            diagonal = []
            for _ in range(steps):
                image = product(vector) - off[-1] * last
                diagonal.append(float(image @ vector))
                image = image - diagonal[-1] * vector
                off.append(float(image.norm()))
                vector, last = image / off[-1], vector
            nodes[i], rotation = eigh_tridiagonal(diagonal, off[1:-1])
            weights[i] = rotation[0] ** 2
        return Quadrature(nodes, weights, self.products)


def small() -> Work:
    """64-24-10, tanh, 1,810 weights, after 200 steps of gradient descent on digits."""
    data = load_dataset("digits")
    inputs = standardise(data)
    model = mlp(inputs.shape[1:], [24], data.classes, 0, activation=nn.Tanh)
    return trained(Work(model, inputs, data.targets), 200, 0.5)


def resnet() -> Work:
    """ResNet-20, 269,722 weights, after 20 steps on ten smooth patterns under noise; batch-norm in evaluation mode."""
    generator = torch_generator(0, "images")
    targets = torch.arange(IMAGES) % 10
    patterns = nn.functional.interpolate(torch.randn(10, 3, 8, 8, generator=generator), size=32, mode="bilinear")
    inputs = patterns[targets] + torch.randn(IMAGES, 3, 32, 32, generator=generator)
    return trained(Work(cifar_resnet(20, 10, 0, shortcuts="padding"), inputs, targets), 20, 0.05)


def trained(work: Work, steps: int, rate: float) -> Work:
    optimizer = torch.optim.SGD(work.model.parameters(), rate, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        LOSS(work.model(work.inputs), work.targets).backward()
        optimizer.step()
    optimizer.zero_grad()
    with torch.no_grad():
        for _ in range(20):  # running statistics of the weights as they now are
            work.model(work.inputs)
    work.model.eval()
    return work


def products(label: str, work: Work, runs: int) -> list[Result]:
    """One Hessian-vector product in units of one gradient of the same batch: ours, and the textbook double backward."""
    parameters = list(work.model.parameters())
    gradient, _ = repeat(lambda: torch.autograd.grad(LOSS(work.model(work.inputs), work.targets), parameters), runs)
    ours, double_backward = work.operator(), Textbook().product(work)
    vector = numpy_generator(0, "vector").standard_normal(ours.shape[0])
    narrow = torch.from_numpy(vector).float()
    exact = work.double().operator() @ vector
    results = []
    methods = {"ours": lambda: ours @ vector, "textbook, double backward": lambda: double_backward(narrow)}
    for name, multiply in methods.items():
        multiply()  # the first product builds what the others reuse
        seconds, product = repeat(multiply, runs)
        error = float(np.linalg.norm(np.asarray(product) - exact) / np.linalg.norm(exact))
        figures = {"gradients per product": seconds / gradient, "gradient, ms": 1e3 * gradient, "error": error}
        results.append(Result(f"one Hessian-vector product, {label}", name, figures))
    return results


def top(
    label: str, work: Work, runs: list[tuple[Method, float]], repeats: int, exact: np.ndarray | None
) -> list[Result]:
    """The five largest eigenvalues; residuals by products in float64, errors against the dense Hessian if given."""
    yardstick = work.double().operator()
    results: list[Result] = []
    first = 0.0
    for method, tolerance in runs:
        print(f"  {label}: top {TOP}, {method.name}, tolerance {tolerance:g} ...", file=sys.stderr, flush=True)
        seconds, found = repeat(lambda method=method, tolerance=tolerance: method.top(work, tolerance), repeats)
        first = first or seconds
        residuals = np.linalg.norm(yardstick @ found.vectors - found.vectors * found.values, axis=0)
        figures = {"seconds": seconds, "seconds / ours": seconds / first, "products": found.products}
        figures["largest residual / value"] = float((residuals / np.abs(found.values)).max())
        if exact is not None:
            figures["largest error / first value"] = float(
                np.abs(np.sort(found.values) - exact[-TOP:]).max() / exact[-1]
            )
        results.append(Result(f"top {TOP} eigenpairs, {label}", f"{method.name}, tolerance {tolerance:g}", figures))
    return results


def densities(
    label: str, work: Work, runs: list[tuple[Method, int, int]], seeds: int, exact: np.ndarray | None
) -> list[Result]:
    """The density: distance from the exact spectrum, mean over seeds, or the standard error of its second moment."""
    results: list[Result] = []
    first = 0.0
    for method, steps, probes in runs:
        print(f"  {label}: density, {method.name}, {probes} x {steps} ...", file=sys.stderr, flush=True)
        every: list[Quadrature] = []
        seconds, _ = repeat(lambda m=method, s=steps, p=probes, e=every: e.append(m.density(work, s, p, len(e))), seeds)
        first = first or seconds
        figures = {"seconds": seconds, "seconds / ours": seconds / first, "products": every[0].products}
        if exact is not None:
            spread = exact[-1] - exact[0]
            apart = [wasserstein_distance(exact, q.nodes.ravel(), None, q.weights.ravel()) / spread for q in every]
            figures["distance / range"] = float(np.mean(apart))
        for power in (1, 2):
            moments = (every[0].weights * every[0].nodes ** power).sum(1)
            figures[f"error of mean of power {power}"] = float(
                moments.std(ddof=1) / len(moments) ** 0.5 / moments.mean()
            )
        results.append(Result(f"density, {label}", f"{method.name}, {probes} probes x {steps} steps", figures))
    return results


def peers() -> list[Method]:
    """PyHessian where PEERS says it is, then the textbook method."""
    folder = os.environ.get("PEERS")
    if folder is None:
        return [Textbook()]
    return [PyHessian(Path(folder) / "PyHessian"), Textbook()]


def run() -> list[Result]:
    """Both networks."""
    others = peers()
    work = small()
    operator = work.double().operator()
    exact = np.linalg.eigvalsh(operator @ np.eye(operator.shape[0]))
    results = products("tanh network", work, 50)
    pairs = [(method, tolerance) for method in others for tolerance in (1e-3, 1e-6)]
    results += top("tanh network", work, [(Ours(0), 1e-5), *pairs], 5, exact)
    runs = [(Ours(20), 40, 4), *((method, 100, 10) for method in (Ours(0), *others))]
    results += densities("tanh network", work, runs, 5, exact)
    work = resnet()
    results += products("ResNet-20", work, 5)
    results += top("ResNet-20", work, [(Ours(0), 1e-5), (others[0], 1e-3), (others[0], 1e-6)], 1, None)
    return results + densities("ResNet-20", work, [(Ours(10), 20, 3), (others[0], 100, 3)], 1, None)
