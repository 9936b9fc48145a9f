"""Nine numbers of `gradient_controls` again, from the arrays that a run at preset `quick` keeps, by other code.

Nothing of the library is imported: what the chapter judges is written out from its words, with NumPy and SciPy alone.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import yaml

ROOT = Path(__file__).parents[2]
PRESET = yaml.safe_load((ROOT / "notebooks" / "presets" / "quick" / "gradient_controls.yml").read_text())


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("controls")
    source = ROOT / "notebooks" / "gradient_controls.ipynb"
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", "-p", "results_dir", folder, source]
    done = subprocess.run([*command, folder / "ran.ipynb"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    claims = json.loads((folder / "claims.json").read_text())["claims"]
    with np.load(folder / "gradient_controls.npz") as archive:
        arrays = {name: archive[name] for name in archive.files}
    return {each["id"].partition(".")[2]: each["measured"] for each in claims}, arrays


def compare(measured, values, within=1e-6, level=0.95):
    values = np.array(values, float)
    assert measured["units"] == len(values)
    assert measured["value"] == pytest.approx(values.mean(), rel=within, abs=1e-9)
    if within == 1e-6 and np.ptp(values) > 0:
        ends = scipy.stats.t.interval(level, len(values) - 1, values.mean(), scipy.stats.sem(values))
        # an interval ends where the quantity does
        assert measured["low"] == pytest.approx(ends[0], rel=1e-6, abs=1e-9) or measured["low"] in (-1, 0)
        assert measured["high"] == pytest.approx(ends[1], rel=1e-6, abs=1e-9) or measured["high"] == 1


def shares(arrays, name):
    return np.array([np.mean(each / each.max() >= 0.1) for each in arrays[f"spectrum {name}"]])


def test_counts_of_noise_and_of_a_permutation(kept):
    measured, arrays = kept
    plain = shares(arrays, "reference 0")
    compare(measured["noise_full_rank"], shares(arrays, "Gaussian noise 1"))
    change = shares(arrays, "one permutation 1") / plain - 1
    compare(measured["permutation_no_op"], change, level=0.9)  # the interval of a test of equivalence
    compare(measured["labels_modest"], shares(arrays, "labels 1") / plain)


def test_the_reference_is_the_spectrum_of_its_gram_matrices(kept):
    _, arrays = kept
    for gram, spectrum in zip(arrays["reference grams"], arrays["spectrum reference 0"], strict=True):
        values = np.sqrt(np.clip(np.linalg.svd(gram, compute_uv=False), 0, None))
        assert np.allclose(values / values[0], spectrum, atol=1e-4)


def test_the_power_of_the_number_of_classes(kept):
    measured, arrays = kept
    numbers = [n for n in PRESET["class_counts"] if n > 1]
    table = np.log([shares(arrays, f"classes {n}") for n in numbers])
    compare(measured["count_grows_with_classes"], [scipy.stats.linregress(np.log(numbers), y).slope for y in table.T])


def test_without_the_first_fifth_as_against_other_draws(kept):
    measured, arrays = kept
    draw, changes = np.random.default_rng(7), []

    def count(gram):
        values = np.linalg.eigvalsh(gram)
        return np.sum(values >= values.max() / 100)

    for gram in arrays["reference grams"]:
        n = len(gram)
        left = n - round(0.2 * n)
        drawn = [draw.choice(n, left, replace=False) for _ in range(100)]
        others = np.mean([count(gram[np.ix_(steps, steps)]) for steps in drawn])
        changes.append(count(gram[n - left :, n - left :]) / others - 1)
    assert measured["not_early"]["value"] == pytest.approx(np.mean(changes), abs=0.03)


def test_training_along_directions(kept):
    measured, arrays = kept
    own, k = arrays["along its own"], PRESET["ranks"]
    compare(measured["jump_at_classes"], own[:, k.index(10)] - own[:, k.index(5)])
    compare(measured["top_92_suffice"], own[:, k.index(92)] / arrays["full"])


def test_the_last_loss_without_the_largest_curvatures(kept):
    measured, arrays = kept
    whole, without = (each[:, -1] for each in arrays["losses"][:2])
    compare(measured["bulk_learns"], without / whole)


def test_a_quadratic_has_as_many_values_as_scales(kept):
    _, arrays = kept
    scales = np.repeat(np.geomspace(1, 0.01, 10), 50)
    start = np.random.default_rng(PRESET["seed"]).normal(size=500)
    rows = [scales * start * (1 - 0.5 * scales) ** step for step in range(PRESET["samples"])]
    values = np.linalg.svd(np.array(rows), compute_uv=False)
    assert np.sum(values > 1e-9 * values[0]) <= 10
    assert arrays["quadratic"][1] == pytest.approx(np.mean(values >= 0.1 * values[0]))
