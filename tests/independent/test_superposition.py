"""Numbers of `superposition` again, by NumPy and PyTorch alone: nothing here imports the library.

The chapter is run at preset quick in a process of its own, and its record and claims are read from files.
"""

import json
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[2]
PROGRAM = """import sys
from pathlib import Path
sys.path.insert(0, str(Path("tests/helpers")))
from chapter_runs import claims
claims("superposition", Path(sys.argv[1]), 1)"""
TENTH = np.cos(2 * np.pi / 5 * np.array([1, 2]))
CORNERS = 2 * np.pi / 8 * np.arange(8)
ANTIPRISM = np.stack([np.cos(CORNERS) * (2 / 3) ** 0.5, np.sin(CORNERS) * (2 / 3) ** 0.5, [3**-0.5, -(3**-0.5)] * 4])
COSINES = {
    2: [[-1.0]], 3: [[-1 / 2] * 3], 4: [[-1 / 3] * 6], 5: [[-1 / 4] * 10, sorted([*TENTH] * 5)],
    8: [sorted(a @ b for a, b in combinations(ANTIPRISM.T, 2))],
}  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, float], dict[str, Any]]:
    """What the chapter measured, by claim, and its record."""
    folder = tmp_path_factory.mktemp("superposition")
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(folder)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    claims = json.loads((folder / "claims.json").read_text())["claims"]
    values = {each["id"].split(".")[1]: each["measured"]["value"] for each in claims if each.get("measured")}
    with np.load(folder / "superposition.npz") as record:
        return values, {name: record[name] for name in record.files if name != "__record__"}


def shares(W: np.ndarray) -> np.ndarray:
    gram = W.T @ W
    return np.diag(gram) ** 2 / (gram**2).sum(1)


def in_figures(W: np.ndarray) -> int:
    """How many columns stand in a figure of two or more: parts joined by cosines above 0.2, whose cosines fit one."""
    unit = W / np.linalg.norm(W, axis=0)
    near, left, count = np.abs(unit.T @ unit) > 0.2, set(range(W.shape[1])), 0
    while left:
        part, grown = set(), {left.pop()}
        while grown:
            part |= grown
            grown = {int(j) for i in grown for j in np.flatnonzero(near[i])} - part
        left -= part
        ours = sorted(unit[:, a] @ unit[:, b] for a, b in combinations(sorted(part), 2))
        fits = any(np.allclose(ours, each, rtol=0, atol=0.15) for each in COSINES.get(len(part), []))
        count += len(part) * fits
    return count


def by_curve(found: list[float], d_star: np.ndarray, learnt: list[int]) -> float:
    """Mean over curves of the mean over their networks with 3/8 <= D* < 0.95."""
    part = np.array(found).reshape(d_star.shape) / np.maximum(np.array(learnt).reshape(d_star.shape), 1)
    within = (d_star >= 3 / 8) & (d_star < 0.95)
    return float(np.mean([row[mask].mean() for row, mask in zip(part, within, strict=True)]))


def test_figures_lines_and_sums_of_the_equal_features(results: Any) -> None:
    claims, record = results
    networks = record["W equal"].astype(float)
    m = networks.shape[1]
    d_star = (m / (networks**2).sum((1, 2))).reshape(record["inverse"].shape)
    np.testing.assert_allclose(record["d_star"], d_star, rtol=1e-5)
    learnt = [W[:, np.linalg.norm(W, axis=0) > 0.5] for W in networks]
    counts, lines = [W.shape[1] for W in learnt], np.array([3 / 4, 2 / 3, 1 / 2, 2 / 5, 3 / 8])
    named = [in_figures(W) for W in learnt]
    lined = [int((np.abs(shares(W)[:, None] - lines) <= 0.02).any(1).sum()) for W in learnt]
    assert by_curve(named, d_star, counts) == pytest.approx(claims["features_in_figures"], abs=1e-6)
    assert by_curve(lined, d_star, counts) == pytest.approx(claims["geometry_lines"], abs=2e-3)
    total = np.mean([shares(W).sum() / m for W in networks])
    assert total == pytest.approx(claims["sum_is_m"], abs=1e-5)


def test_cells_beside_the_phase_line(results: Any) -> None:
    """Expected losses at Gauss-Legendre nodes, on either side of the kink in turn, choose the best of each cell."""
    claims, record = results
    nodes, weights = np.polynomial.legendre.leggauss(80)
    u, v = (nodes + 1) / 2, weights / 2
    x = np.concatenate([[0], u, 0 * u, np.repeat(u, 80)])
    y = np.concatenate([[0], 0 * u, u, np.tile(u, 80)])
    tries = record["losses"].shape[1]
    kinds = []
    for cell, (d, (_, r)) in enumerate(zip(record["density"], record["importance"], strict=True)):
        chance = np.concatenate([[(1 - d) ** 2], d * (1 - d) * v, d * (1 - d) * v, d**2 * np.outer(v, v).ravel()])
        losses = []
        for (p, q), (a, b) in zip(*(record[name].reshape(-1, tries, 2)[cell] for name in "wb"), strict=True):
            h = p * x + q * y
            first, second = np.maximum(0, p * h + a) - x, np.maximum(0, q * h + b) - y
            losses.append(chance @ (first**2 + r * second**2))
        np.testing.assert_allclose(record["losses"][cell], losses, rtol=0.02)
        p, q = record["w"].reshape(-1, tries, 2)[cell][int(np.argmin(losses))]
        kinds.append(min(abs(p), abs(q)) > 0.5 and p * q < 0)
    beside = np.array(kinds[:-4]).reshape(-1, 4)
    one_cell = 1.5 / len(beside)  # another rule of quadrature may choose another training there
    assert (~beside[:, 1]).mean() == pytest.approx(claims["phase_boundary"], abs=one_cell)
    lower = (beside[:, :2] == [False, True]).all(1).mean()
    assert lower == pytest.approx(claims["phase_lengths"], abs=one_cell)


def test_the_line_for_free_lengths_is_the_least_of_a_fraction() -> None:
    a = np.linspace(0, 1, 1_000_001)
    fraction = (2 - a) / (2 * (2 - a**2))
    assert fraction.min() == pytest.approx((2 + 2**0.5) / 8, abs=1e-9)
    assert a[fraction.argmin()] == pytest.approx(2 - 2**0.5, abs=1e-5)
    draw = np.random.default_rng(0)
    x, y = draw.random((2, 400_000))
    for length in (0.3, 0.6, 1.0):  # interference where both are present, by draws
        error = np.maximum(0, x - length * y) - x
        assert np.mean(error**2) == pytest.approx(length**2 / 3 - length**3 / 6, rel=0.01)


def test_dimensions_per_feature_of_a_network_trained_by_other_code(results: Any) -> None:
    """One network of equal features by automatic differentiation and torch's own optimiser, at the step of one half."""
    _, record = results
    _, m, n = record["W equal"].shape
    torch.manual_seed(0)
    density = 1 / 2.8
    W = torch.nn.Parameter(torch.randn(m, n) * (2 / (m + n)) ** 0.5)
    b = torch.nn.Parameter(torch.zeros(n))
    optimizer = torch.optim.AdamW([W, b], 0.01, weight_decay=0.01)
    for _ in range(600):
        x = torch.rand(256, n) * (torch.rand(256, n) < density)
        loss = (torch.relu(x @ W.T @ W + b) - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ours = m / float(W.detach().square().sum())
    curves = [np.interp(2.8, *each) for each in zip(record["inverse"], record["d_star"], strict=True)]
    assert ours == pytest.approx(np.mean(curves), abs=0.05)


def test_the_bias_that_noise_calls_for(results: Any) -> None:
    """The best length and bias of a feature with a dimension of its own at a noise of a tenth, by draws."""
    _, record = results
    draw, d = torch.Generator().manual_seed(0), 0.02
    present, noise = torch.rand(200_000, generator=draw), torch.randn(400_000, generator=draw)
    at = torch.tensor([1.0, 0.0], requires_grad=True)  # squared length, bias
    optimizer = torch.optim.Adam([at], 0.01)
    for _ in range(400):
        on = torch.relu(at[0] * (present + 0.1 * noise[:200_000]) + at[1]) - present
        off = torch.relu(at[0] * 0.1 * noise[200_000:] + at[1])
        loss = d * on.square().mean() + (1 - d) * off.square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    trained = record["bias single"][3].mean()  # the fourth noise of preset quick is a tenth
    assert trained == pytest.approx(float(at[1].detach()), rel=0.12)


def test_two_digons_and_a_pentagon_in_the_plane(results: Any) -> None:
    """The solution of lowest loss of each of five groups, at either density: angles and shares."""
    claims, record = results
    networks, losses = record["W plane"].reshape(2, 5, -1, 2, 5), record["plane losses"].reshape(2, 5, -1)
    right = np.zeros((2, 5), bool)
    for row, corners in enumerate((4, 5)):
        for group in range(5):
            W = networks[row, group, losses[row, group].argmin()].astype(float)
            kept = np.linalg.norm(W, axis=0) > 0.5
            unit = W[:, kept] / np.linalg.norm(W[:, kept], axis=0)
            angles = np.sort(np.degrees(np.arctan2(unit[1], unit[0])) % 360)
            gaps = np.diff([*angles, angles[0] + 360])
            regular = kept.sum() == corners and np.abs(gaps - 360 / corners).max() < 12
            right[row, group] = regular and np.abs(shares(W)[kept] - 2 / corners).max() < 0.03
    assert right.all(0).mean() == claims["pentagon"]


def test_losses_of_two_digons_are_those_on_paper(results: Any) -> None:
    """Where the odd feature is rarest of all, the best training from near two digons has their least loss on paper."""
    _, record = results
    _, digons = record["branches"]
    for base, losses in zip((0.05, 0.1), digons, strict=True):
        rare = base / 6  # the largest ratio of preset quick
        least = (4 * base**2 / 6 + rare / 3 - rare**2 / 4) / 5  # columns of length one, biases of 0
        assert losses[-1].min() == pytest.approx(least, rel=0.1)


def stays(x: np.ndarray, y: np.ndarray, low: float, high: float) -> float:
    """How much of x has low <= y < high, y being straight between its values."""
    fine = np.linspace(x[0], x[-1], 20_000)
    values = np.interp(fine, x, y)
    return float(np.mean((values >= low) & (values < high)) * (x[-1] - x[0]))


def test_how_long_dimensions_per_feature_stay_at_one_and_at_one_half(results: Any) -> None:
    """Above 0.95 beside a parabola through the same 0.85 on the same densities; and at 1/2 beside the bands there."""
    claims, record = results
    one, half = [], []
    for x, y in zip(np.log(record["inverse"]), record["d_star"], strict=True):
        first = int((y <= 0.85).argmax())
        at = np.interp(-0.85, [-y[first - 1], -y[first]], x[first - 1 : first + 1])
        flat = 1 - 0.15 * (x / at) ** 2
        one.append(np.divide(*(stays(x, z, 0.95, np.inf) / stays(x, z, 0.85, 0.95) for z in (y, flat))))
        half.append(stays(x, y, 0.45, 0.55) / np.mean([stays(x, y, 0.35, 0.45), stays(x, y, 0.55, 0.65)]))
    assert np.mean(one) == pytest.approx(claims["sticky_one"], rel=0.02)
    assert np.mean(half) == pytest.approx(claims["sticky_half"], rel=0.02)


def test_opposite_pairs_turned_at_random_have_figures_and_hardly_a_name(results: Any) -> None:
    _, record = results
    draw, m = np.random.default_rng(0), record["W equal"].shape[1]
    ours = []
    for count in record["learnt"]:
        half = draw.normal(size=(m, (count + 1) // 2))
        ours.append(in_figures(np.concatenate([half, -half], 1)[:, :count]) if count else 0)
    expected = np.sum(ours) / record["learnt"].sum()
    there = record["named opposite pairs, turned"].sum() / record["learnt"].sum()
    assert expected < 0.1
    assert there == pytest.approx(expected, abs=0.05)


def least_loss(figure: torch.Tensor, x: torch.Tensor, chance: torch.Tensor) -> float:
    """By a descent from this figure; x `(5, sets * points)`, chance `(sets,)`."""
    W, b = figure.clone().requires_grad_(), torch.zeros(5, 1).double().requires_grad_()
    descent = torch.optim.LBFGS([W, b], max_iter=200, line_search_fn="strong_wolfe", tolerance_change=1e-12)

    def loss() -> torch.Tensor:
        descent.zero_grad()
        errors = (torch.relu(W.T @ (W @ x) + b) - x).square().sum(0).reshape(len(chance), -1).mean(1)
        (total := 1e3 * errors @ chance).backward()
        return total

    descent.step(loss)
    return float(loss().detach())


def test_at_the_published_crossing_the_least_losses_of_pentagon_and_digons_are_equal() -> None:
    """Both on points of all 32 sets of features; 0.2 % are 0.02 in the ratio.

    The number is that of the published edition: at quick 600 steps end short of the least losses, and the crossing of
    what is reached there lies 2 % below.
    """
    published = json.loads((ROOT / "book" / "scorecard.json").read_text())["chapters"]["superposition"]["claims"]
    (crossing,) = [each["measured"]["value"] for each in published if each["claim"]["id"] == "superposition.digons"]
    sets = torch.tensor(np.arange(32) >> np.arange(5)[:, None] & 1).double()
    points = torch.quasirandom.SobolEngine(5, scramble=True, seed=1).draw(512).T.double()
    x = (sets[:, :, None] * points[:, None]).reshape(5, -1)
    d = torch.tensor([0.05 / crossing, *[0.05] * 4]).double()[:, None]
    chance = torch.where(sets > 0, d, 1 - d).prod(0)
    angles = 2 * np.pi / 5 * torch.arange(5).double()
    pairs = torch.tensor([[0, 1, -1, 0, 0], [0, 0, 0, 1, -1.0]]).double()
    pentagon, digons = (least_loss(each, x, chance) for each in (torch.stack([angles.cos(), angles.sin()]), pairs))
    assert pentagon == pytest.approx(digons, rel=2e-3)
