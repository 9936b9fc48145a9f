"""Numbers of `maze` again, from the arrays that a run at preset `quick` keeps, by other code.

Nothing of the library is imported: the network, the mazes and the agent's walk are written out with NumPy alone.
"""

import json
import subprocess
import sys
from collections import deque
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import yaml

ROOT = Path(__file__).parents[2]
PRESET = yaml.safe_load((ROOT / "notebooks" / "presets" / "quick" / "maze.yml").read_text())
MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("maze")
    source = ROOT / "notebooks" / "maze.ipynb"
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", "-p", "results_dir", folder, source]
    done = subprocess.run([*command, folder / "ran.ipynb"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    claims = json.loads((folder / "claims.json").read_text())["claims"]
    with np.load(folder / "maze.npz") as archive:
        arrays = {name: archive[name] for name in archive.files}
    return {each["id"].partition(".")[2]: each["measured"] for each in claims}, arrays


def compare(measured, values, low=-1, high=1):
    values = np.array(values, float)
    assert measured["units"] == len(values)
    assert measured["value"] == pytest.approx(values.mean(), rel=1e-6, abs=1e-9)
    ends = scipy.stats.t.interval(0.95, len(values) - 1, values.mean(), scipy.stats.sem(values))
    assert measured["low"] == pytest.approx(max(ends[0], low), rel=1e-6, abs=1e-9)
    assert measured["high"] == pytest.approx(min(ends[1], high), rel=1e-6, abs=1e-9)


def convolve(x, kernel, bias):  # x: (channels, side, side), zero padded; kernel: (out, in, k, k)
    k, side = kernel.shape[-1], x.shape[-1]
    padded = np.pad(x, ((0, 0), (k // 2,) * 2, (k // 2,) * 2))
    out = np.zeros((len(kernel), side, side))
    for i in range(k):
        for j in range(k):
            out += np.einsum("oc,cyx->oyx", kernel[:, :, i, j], padded[:, i : i + side, j : j + side])
    return out + bias[:, None, None]


def logits_of(weights, picture):
    width, blocks, rest = PRESET["width"], PRESET["blocks"], np.asarray(weights, float)

    def take(*shape):
        nonlocal rest
        count = int(np.prod(shape))
        taken, rest = rest[:count].reshape(shape), rest[count:]
        return taken

    x = np.maximum(convolve(picture, take(width, 2, 3, 3), take(width)), 0)
    for _ in range(blocks):
        x = x + np.maximum(convolve(x, take(width, width, 3, 3), take(width)), 0)
    out = convolve(x, take(4, width, 1, 1), take(4))
    assert len(rest) == 0
    return out


def distances(free, place):
    far, queue = {place: 0}, deque([place])
    while queue:
        r, c = queue.popleft()
        for dr, dc in MOVES:
            after = r + dr, c + dc
            if min(after) >= 0 and max(after) < len(free) and free[after] and after not in far:
                far[after] = far[r, c] + 1
                queue.append(after)
    return far


def policy_of(weights, free, cheese):
    seen = np.zeros((2, *free.shape))
    seen[0] = free
    if cheese:
        seen[1][cheese] = 1
    logits = logits_of(weights, seen)
    odds = np.exp(logits - logits.max(0))
    return odds / odds.sum(0)


def reached(policy, free, targets, start, steps):
    """Probability to have been in `targets` after at most so many steps, walking forward from one cell."""
    here, done = {start: 1.0}, 0.0
    for _ in range(steps):
        after = {}
        for (r, c), share in here.items():
            for move, (dr, dc) in enumerate(MOVES):
                there = r + dr, c + dc
                if not (min(there) >= 0 and max(there) < len(free) and free[there]):
                    there = r, c
                part = share * policy[move, r, c]
                if there in targets:
                    done += part
                else:
                    after[there] = after.get(there, 0.0) + part
        here = after
    return done


def first_step(free, far, place):
    ways = [(place[0] + dr, place[1] + dc) for dr, dc in MOVES]
    return min((w for w in ways if w in far), key=lambda w: far[w])


def test_near_cheese_and_corner_of_an_agent(kept):
    _, arrays = kept
    side, block = arrays["exam free"].shape[1], PRESET["block"]
    targets = {(r, c) for r in range(block) for c in range(side - block, side)}
    near, corner = {1: [], 2: [], 3: []}, []
    for free, moved in zip(arrays["exam free"], arrays["exam moved"], strict=True):
        cheese, weights = tuple(moved.tolist()), arrays["natural last"][0]
        start, far, to_corner = (side - 1, 0), distances(free, cheese), distances(free, (0, side - 1))
        with_cheese = policy_of(weights, free, cheese)
        for place, distance in far.items():
            parts = distance and first_step(free, far, place) != first_step(free, to_corner, place)
            if distance in near and place not in targets and place != (0, side - 1) and parts:
                near[distance].append(reached(with_cheese, free, {cheese}, place, distance + 2))
        shortest = min(distances(free, start)[place] for place in targets if free[place])
        inside = {place for place in targets if free[place]}
        corner.append(reached(policy_of(weights, free, None), free, inside, start, shortest + 4))
    found = [np.mean([np.mean(each) for each in near.values()]), np.mean(corner)]
    assert arrays["natural base"][0] == pytest.approx(found, abs=2e-5)


def test_behaviour(kept):
    measured, arrays = kept
    last, first = arrays["course convolutional"][:, -1], arrays["course convolutional"][:, 0]
    compare(measured["solves"], last[:, 0], 0)
    compare(measured["cheese_first"], last[:, 3], 0)
    compare(measured["block_first"], last[:, 4], 0)
    compare(measured["straight_to_block"], last[:, 5], 0)
    assert ((last[:, 3] + last[:, 4]) <= 1 + 1e-6).all()
    assert ((first[:, 3] + first[:, 4]) > 0.99).all()
    near = arrays["distance convolutional"]
    falls = [(each[0] - each[-1]) * all(np.diff(each) <= 0) for each in near[:, 1]]
    compare(measured["falls_with_distance"], falls)
    compare(measured["takes_near"], near[:, 1, 2] - near[:, 0, 2])
    compare(measured["sharing"], last[:, 3] - arrays["course dense"][:, -1, 3])


def test_components(kept):
    measured, arrays = kept
    compare(measured["first_hold_most"], arrays["natural held"].sum(1), 0)
    assert (arrays["natural held"] >= 0).all()
    assert (np.diff(arrays["natural S"], axis=1) <= 0).all()
    for kind, claim in (("natural", "late_selective"), ("two heads", "heads_selective")):
        fallen = arrays[f"{kind} base"] - arrays[f"{kind} without late"]
        compare(measured[claim], fallen[:, 0] - np.abs(fallen[:, 1]))


def test_patches_and_stars(kept):
    measured, arrays = kept
    compare(measured["patch_subtracted"], arrays["patches"][:, 0, 0], 0)
    compare(measured["phantom"], arrays["patches"][:, 2, 2], 0)
    stars, plain = arrays["stars stars too"], arrays["natural base"][:, 0]
    compare(measured["stars_teach_cheese"], stars[:, 0, 0] - plain)
