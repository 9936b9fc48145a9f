"""Eleven numbers of the chapter `grokking` by other code: nothing here imports the library, only numpy.

The chapter runs once at preset quick in a process of its own, and leaves its last weights, its curves and verdicts.
"""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
CUT = 0.85  # of a neuron's variance, from which it belongs to a frequency
HEADS = 4


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, float], dict[str, np.ndarray], dict[str, float]]:
    """What the chapter judged, its arrays, and its parameters."""
    folder = tmp_path_factory.mktemp("grokking")
    command = [sys.executable, "-m", "descent_book.run.edition", "run", "--preset", "quick", "--chapter", "grokking"]
    done = subprocess.run(
        [*command, "--force", "-p", "results_dir", str(folder)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    found = json.loads((folder / "claims.json").read_text())["claims"]
    judged = {each["id"].split(".")[1]: each["measured"]["value"] for each in found if each["measured"]}
    with np.load(folder / "grokking.npz", allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
        settings = json.loads(str(arrays.pop("__record__")))["settings"]
    return judged, arrays, settings


def network(flat: np.ndarray, p: int, w: int, m: int) -> tuple[np.ndarray, ...]:
    """Attention of "=" to a `(p, p, heads)`, neurons `(p, p, m)`, logits `(p, p, p)` and W_L `(m, p)`, in float64."""
    v, d = p + 1, w // HEADS
    shapes = [(w, v), (3, w), *[(HEADS, d, w)] * 3, (w, w), (m, w), (m,), (w, m), (w,), (w, v)]
    parts, at = [], 0
    for shape in shapes:
        parts.append(flat[at : at + math.prod(shape)].astype(float).reshape(shape))
        at += math.prod(shape)
    assert at == len(flat)
    E, place, K, Q, V, back, inward, b_in, out, b_out, U = parts
    a, b = np.divmod(np.arange(p * p), p)
    x = np.stack([E.T[a] + place[0], E.T[b] + place[1], np.tile(E[:, p] + place[2], (p * p, 1))], 1)
    looks, heads = [], []
    for h in range(HEADS):
        score = (x @ K[h].T) @ (Q[h] @ x[0, 2]) / math.sqrt(d)
        weight = np.exp(score - score.max(1, keepdims=True))
        weight /= weight.sum(1, keepdims=True)
        looks.append(weight[:, 0])
        heads.append(np.einsum("np,npd->nd", weight, x @ V[h].T))
    last = x[:, 2] + np.concatenate(heads, 1) @ back.T
    neurons = np.maximum(last @ inward.T + b_in, 0)
    logits = (last + neurons @ out.T + b_out) @ U
    return (
        np.stack(looks, 1).reshape(p, p, -1),
        neurons.reshape(p, p, m),
        logits[:, :p].reshape(p, p, p),
        out.T @ U[:, :p],
    )


def best_frequency(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of functions of a pair `(p, p, n)`: the frequency, from 1, with the largest share of the variance; the share."""
    p = len(values)
    power = np.abs(np.fft.fft2(values - values.mean((0, 1)), axes=(0, 1))) ** 2
    share = []
    for k in range(1, p // 2 + 1):
        at = [0, k, p - k]
        share.append(power[np.ix_(at, at)].sum((0, 1)))
    with np.errstate(invalid="ignore"):
        shares = np.nan_to_num(np.array(share) / power.sum((0, 1)))
    return shares.argmax(0) + 1, shares.max(0)


def measured(flat: np.ndarray, p: int, w: int, m: int) -> list[float]:
    """Key frequencies, explained share, W_L beyond the rank, off the waves, attention of one frequency."""
    look, neurons, logits, table = network(flat, p, w, m)
    frequency, share = best_frequency(neurons)
    counts = np.bincount(frequency[share > CUT], minlength=p // 2 + 1)
    keys = np.flatnonzero(counts >= 1 + m // 100)
    logits = logits - logits.mean(2, keepdims=True)
    spectrum = np.abs(np.fft.fftn(logits)) ** 2
    along = sum(spectrum[k, k, -k] + spectrum[-k, -k, k] for k in keys)
    waves = np.abs(np.fft.fft(table, axis=1)) ** 2
    on_keys = sum(waves[:, k].sum() + waves[:, -k].sum() for k in keys)
    values = np.linalg.svd(table, compute_uv=False) ** 2
    return [len(keys), along / spectrum.sum(), values[2 * len(keys) :].sum() / values.sum(),
            1 - on_keys / waves[:, 1:].sum(), best_frequency(look)[1].mean()]  # fmt: skip


def test_what_is_said_of_the_last_weights(quick) -> None:
    judged, arrays, settings = quick
    sizes = int(settings["p"]), int(settings["width"]), int(settings["hidden"])
    runs = [arrays[f"{settings['seed'] + number} final"] for number in range(settings["runs"])]
    found = np.mean([measured(flat, *sizes) for flat in runs], axis=0)
    names = ("key_frequencies", "key_explained", "w_l_rank", "w_l_fourier", "attention_wave")
    for name, value in zip(names, found, strict=True):
        assert value == pytest.approx(judged[name], rel=1e-3, abs=1e-6), name


def runs_of(settings: dict[str, float]) -> range:
    return range(int(settings["seed"]), int(settings["seed"]) + int(settings["runs"]))


def marks(arrays: dict[str, np.ndarray], seed: int) -> tuple[int, int, int]:
    """Rows: the first training loss below 0.01, from which it stays there, and from which the test loss stays below 1.

    The last row where it does not happen.
    """
    train, test = (arrays[f"{seed} {name}"] for name in ("train_loss", "test_loss"))
    rows = range(len(train))
    found = (
        [row for row in rows if train[row] < 0.01],
        [row for row in rows if (train[row:] < 0.01).all()],
        [row for row in rows if (test[row:] < 1).all()],
    )
    return tuple((each or [len(train) - 1])[0] for each in found)


def test_the_delay_is_read_off_the_curves(quick) -> None:
    judged, arrays, settings = quick
    ratios = []
    for seed in runs_of(settings):
        steps, (known, _, found) = arrays[f"{seed} steps"], marks(arrays, seed)
        ratios.append(steps[found] / steps[known])
    assert np.mean(ratios) == pytest.approx(judged["delay"], rel=1e-9)


def test_areas_and_falls_are_read_off_the_curves_of_restricted_and_excluded_networks(quick) -> None:
    judged, arrays, settings = quick
    constant, found = math.log(int(settings["p"])), []
    for seed in runs_of(settings):
        _, known, drop = marks(arrays, seed)
        here = slice(known, drop + 1)
        areas = [
            np.clip((constant - arrays[f"{seed} control {name}"][here]) / constant, 0, 1).mean()
            for name in ("test loss key", "all loss key", "test loss foreseen memorised")
        ]
        right = arrays[f"{seed} control excluded accuracy key"]
        gap = [arrays[f"{seed} control {name}"][(known + drop) // 2] for name in ("mirrored", "alone")]
        found.append([*areas, right[known] - right[drop], gap[0] - gap[1]])
    names = ("leakfree_area", "restricted_area", "foreseen_area", "excluded_falls", "mirror_memory")
    for name, value in zip(names, np.mean(found, axis=0), strict=True):
        assert value == pytest.approx(judged[name], rel=1e-6, abs=1e-9), name


def test_a_restricted_network_from_test_pairs_alone(quick) -> None:
    """A rule at one frequency under a memory of shown pairs: which mean shows which."""
    p, rng = 11, np.random.default_rng(0)
    a, b = np.divmod(np.arange(p * p), p)
    logits = np.cos(2 * np.pi * 3 * (a + b)[:, None] / p - 2 * np.pi * 3 * np.arange(p) / p) + 0.3 * rng.normal(
        size=(p * p, p)
    )
    shown = rng.random(p * p) < 0.4
    logits[shown, ((a + b) % p)[shown]] += 50
    table = np.array([logits[~shown & ((a + b) % p == s)].mean(0) for s in range(p)])
    spectrum = np.fft.fft(table, axis=0)
    spectrum[[k for k in range(p) if k not in (0, 3, p - 3)]] = 0
    right = np.fft.ifft(spectrum, axis=0).real.argmax(1) == np.arange(p)
    assert right.mean() > 0.7
    table = np.array([logits[(a + b) % p == s].mean(0) for s in range(p)])
    spectrum = np.fft.fft(table, axis=0)
    spectrum[[k for k in range(p) if k not in (0, 1, p - 1)]] = 0
    leaked = np.fft.ifft(spectrum, axis=0).real.argmax(1) == np.arange(p)
    assert leaked.mean() > 0.2  # the wrong frequency, by the mean with shown pairs


def test_this_code_finds_a_rule_that_was_put_in() -> None:
    """On tables whose answers are known on paper."""
    p, k = 11, 3
    a, b = np.divmod(np.arange(p * p), p)
    waves = np.stack([np.cos(2 * np.pi * k * a / p), np.cos(2 * np.pi * k * (a + b) / p), a % 2.0], 1).reshape(p, p, 3)
    frequency, share = best_frequency(waves)
    assert frequency[:2].tolist() == [k, k]
    np.testing.assert_allclose(share[:2], 1)
    assert share[2] < CUT
