"""Ten numbers of `grokking_basins` again, from the arrays that a run at preset `quick` keeps, by other code.

Nothing of the library is imported: what the chapter judges is written out from its words, with NumPy and SciPy alone.
Only the networks themselves are taken as given, by the losses and Gram matrices that were measured on them.
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
P = yaml.safe_load((ROOT / "notebooks" / "presets" / "quick" / "grokking_basins.yml").read_text())["p"]


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("basins")
    source = ROOT / "notebooks" / "grokking_basins.ipynb"
    command = [
        sys.executable,
        "-m",
        "papermill",
        "--no-progress-bar",
        "-p",
        "results_dir",
        folder,
        source,
        folder / "ran.ipynb",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    claims = json.loads((folder / "claims.json").read_text())["claims"]
    with np.load(folder / "grokking_basins.npz") as archive:
        arrays = {name: archive[name] for name in archive.files}
    seeds = sorted(int(name.split()[0]) for name in arrays if name.endswith(" weights"))
    return {each["id"].partition(".")[2]: each["measured"] for each in claims}, arrays, seeds


def compare(measured, values, level=0.95):
    values = np.array(values, float)
    assert measured["value"] == pytest.approx(values.mean(), rel=1e-6, abs=1e-9)
    if np.ptp(values) > 0:
        ends = scipy.stats.t.interval(level, len(values) - 1, values.mean(), scipy.stats.sem(values))
        assert measured["units"] == len(values)
        # an interval ends where the quantity does
        assert measured["low"] == pytest.approx(ends[0], rel=1e-6, abs=1e-9) or measured["low"] in (0, 1)
        assert measured["high"] == pytest.approx(ends[1], rel=1e-6, abs=1e-9) or measured["high"] in (0, 1)


def lasting(losses, below):
    for index in range(len(losses)):
        if (losses[index:] < below).all():
            return index
    return len(losses) - 1


def moments(arrays, name):
    learned = lasting(arrays[f"{name} train_loss"], 0.01)
    return learned, max(learned, lasting(arrays[f"{name} test_loss"], 1.0))


def before_the_switch(arrays, n):
    learned, switch = moments(arrays, f"removal {n}")
    looks = arrays[f"removal {n} looks"]
    return [i for i in range(len(looks)) if learned <= looks[i] < switch], looks


def with_looks(arrays, seeds):
    kept = []
    for n in seeds:
        early, looks = before_the_switch(arrays, n)
        if early and looks[-1] >= moments(arrays, f"removal {n}")[1]:
            kept.append(n)
    return kept


def decades(arrays, n, name):
    early, looks = before_the_switch(arrays, n)
    before = arrays[f"removal {n} test_loss"]
    return np.mean([np.log10(before[looks[i]] / arrays[f"removal {n} {name}"][i]) for i in early])


@pytest.mark.parametrize(("claim", "matrix"), [("checkpoint_svd_5", "weights"), ("gradient_rank_10", "gradients")])
def test_singular_values_above_a_tenth(kept, claim, matrix):
    measured, arrays, seeds = kept
    squares = [np.linalg.eigvalsh(arrays[f"{n} {matrix}"]) for n in seeds]
    compare(measured[claim], [np.sum(each >= each.max() / 100) for each in squares])


@pytest.mark.parametrize(
    ("claim", "names"),
    [
        ("removal_helps_then_hurts", ["mean"]),
        ("removal_to_zero", ["zero"]),
        ("removal_past_only", ["past mean", "past zero"]),
    ],
)
def test_shares_of_looks_that_help_and_hurt(kept, claim, names):
    measured, arrays, seeds = kept
    values = []
    for n in with_looks(arrays, seeds):
        early, looks = before_the_switch(arrays, n)
        switch = moments(arrays, f"removal {n}")[1]
        loss, right = (arrays[f"removal {n} {kind}"][looks] for kind in ("test_loss", "test_accuracy"))
        best = 0
        for name in names:
            after, answers = (arrays[f"removal {n} {kind} {name}"] for kind in ("test_loss", "test_accuracy"))
            helped = [after[i] < min(loss[i], np.log(P)) and answers[i] > right[i] for i in early]
            hurt = [after[i] > loss[i] for i in range(len(looks)) if looks[i] >= switch]
            best = max(best, min(np.mean(helped), np.mean(hurt)))
        values.append(best)
    compare(measured[claim], values)


def test_the_part_that_is_due_to_the_way_to_the_end(kept):
    measured, arrays, seeds = kept
    values = []
    for n in with_looks(arrays, seeds):
        both, way, rest = (decades(arrays, n, f"test_loss {name}") for name in ("mean", "along", "across"))
        values.append((rest + (both - way)) / 2 - (way + (both - rest)) / 2)
    compare(measured["nearer_to_end"], values)


def test_the_answers_that_each_part_of_a_removal_wins(kept):
    _, arrays, seeds = kept
    for way, names in (("way to the end", ("along", "across")), ("way to zero", ("inward", "beside"))):
        rows = []
        for n in with_looks(arrays, seeds):
            early, looks = before_the_switch(arrays, n)
            before = arrays[f"removal {n} test_accuracy"]
            first, second, both = (
                100 * np.mean([arrays[f"removal {n} test_accuracy {name}"][i] - before[looks[i]] for i in early])
                for name in (*names, "mean")
            )
            rows.append([(first + (both - second)) / 2, (second + (both - first)) / 2])
        np.testing.assert_allclose(arrays[f"answers {way}"], rows, rtol=1e-6, atol=1e-9)


def test_the_part_that_is_due_to_less_memory(kept):
    measured, arrays, seeds = kept
    values = []
    for n in with_looks(arrays, seeds):
        both, memory, waves = (decades(arrays, n, name) for name in ("test_loss mean", "memory mean", "waves mean"))
        values.append((memory + (both - waves)) / 2 - (waves + (both - memory)) / 2)
    compare(measured["less_memory"], values)


def height_of_line(arrays, n, name, place):
    loss = arrays[f"removal {n} train_loss"]
    top, higher = (arrays[f"removal {n} line {name} {kind}"][place] for kind in ("train_loss", "ends"))
    return np.log10(top / higher) / np.log10(loss.max() / loss.min())


def place_of_switch(arrays, n):
    (_, switch), looks = moments(arrays, f"removal {n}"), arrays[f"removal {n} looks"]
    return int(np.argmin([abs(look - switch) for look in looks]))


def lines_before(arrays, n):
    """Heights of the lines of the plateau's later half that are as long as that across the switch, whose ends count."""
    (learned, switch), looks, gram = (
        moments(arrays, f"removal {n}"),
        arrays[f"removal {n} looks"],
        arrays[f"{n} weights"],
    )
    dropped = lasting(arrays[f"removal {n} test_loss"], 1.0)  # a run may have memorised later than that
    count, at = len(gram), looks[int(np.argmin([abs(look - dropped) for look in looks]))]

    def length(look, reach):  # of the line whose ends are interpolated between kept weights
        ends = np.zeros(count)
        for way in (-1, 1):
            place = look + way * reach
            left = min(int(np.floor(place)), count - 2)
            ends[left] += way * (1 - (place - left))
            ends[left + 1] += way * (place - left)
        return np.sqrt(max(ends @ gram @ ends, 0))

    heights = []
    for place, look in enumerate(looks):
        reach = arrays[f"removal {n} reach long"][place]
        if not np.isfinite(reach):
            continue
        assert length(look, reach) == pytest.approx(length(at, 4), rel=1e-4)
        if look >= (learned + switch) // 2 and look - reach >= learned and look + reach < switch - 4:
            heights.append(height_of_line(arrays, n, "long", place))
    return heights


def test_the_height_of_a_straight_line_across_the_switch_and_before_it(kept):
    measured, arrays, seeds = kept
    across = {n: height_of_line(arrays, n, "long", place_of_switch(arrays, n)) for n in seeds}
    across = {n: height for n, height in across.items() if np.isfinite(height)}
    compare(measured["no_barrier_on_lines"], list(across.values()))
    more = [height - np.mean(lines_before(arrays, n)) for n, height in across.items() if lines_before(arrays, n)]
    if "lines_no_higher_at_switch" in measured and more:
        compare(measured["lines_no_higher_at_switch"], more, level=0.9)


def test_the_change_of_the_training_loss_at_the_switch(kept):
    measured, arrays, seeds = kept
    values = []
    for n in seeds:
        learned, switch = moments(arrays, str(n))
        loss = np.log10(arrays[f"{n} train_loss"])
        reach, last, half = max(1, round(switch / 20)), len(loss) - 1, (learned + switch) // 2

        def fall(at, loss=loss, reach=reach, last=last):
            later = [loss[min(at + k, last)] for k in range(reach, 3 * reach + 1)]
            sooner = [loss[max(at - k, 0)] for k in range(reach, 3 * reach + 1)]
            return np.mean(later) - np.mean(sooner)

        drift = np.mean([fall(at) for at in range(half, max(half + 1, switch - 3 * reach))])
        values.append((fall(switch) - drift) / (loss.max() - loss.min()))
    compare(measured["no_visible_mark"], values, level=0.9)


def test_where_the_second_corner_is(kept):
    measured, arrays, seeds = kept
    values = []
    for n in seeds:
        gram, steps = arrays[f"{n} logits"], arrays[f"{n} steps"]
        centred = gram - gram.mean(0) - gram.mean(1)[:, None] + gram.mean()
        squares, vectors = np.linalg.eigh(centred)
        path = vectors[:, [-1, -2]] * np.sqrt(squares[[-1, -2]])
        path = path / (path.max(0) - path.min(0))
        length = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(path, axis=0).T))])
        at = np.linspace(0, length[-1], 400)
        x, y = (np.interp(at, length, column) for column in path.T)
        heading = np.angle((x[20:] - x[:-20]) + 1j * (y[20:] - y[:-20]))  # of chords of a twentieth
        turn = np.abs((heading[20:] - heading[:-20] + np.pi) % (2 * np.pi) - np.pi)
        when = np.interp(at, length, steps)[20:-20]
        peaks = [i for i in range(1, len(turn) - 1) if turn[i - 1] < turn[i] > turn[i + 1]]
        chosen = []
        for i in sorted(peaks, key=lambda i: -turn[i]):
            if all(abs(i - other) >= 40 for other in chosen):
                chosen.append(i)
        second = max(when[i] for i in chosen[:2])
        ratio = arrays[f"{n} test_loss"] / arrays[f"{n} restricted_loss key"]
        values.append(abs(steps[ratio.argmax()] / second - 1))
    compare(measured["logit_corner"], values)
