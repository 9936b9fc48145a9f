"""Numbers of `steering` again, by other code: its cells run here with two small networks, and its records are read.

The network, its answers, the oracle, the edits and all that is judged are written out with NumPy and SciPy from the
chapter's words; of the library come prompts, seeds of streams and what is tested. To train networks as the chapter does
takes longer than this file may: those it is given here have learnt for two seconds.
"""

import copy
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import scipy.integrate
import scipy.interpolate
import scipy.optimize
import scipy.stats
import torch
from scipy.special import erf, expit

from descent.experiments import steering, steering_language
from descent.repro import numpy_generator, torch_generator

ROOT = Path(__file__).parents[2]
NOTEBOOK = json.loads((ROOT / "notebooks" / "steering.ipynb").read_text())
SMALL = {"seed": 3, "runs": 2, "recurrent_runs": 1, "direction_prompts": 40, "exam_prompts": 12, "alpha_steps": 5}
SMALL |= {"random_directions": 2, "base_steps": 5, "safety_steps": 5}
ALPHAS, KINDS = np.array([-2.0, -1, 0, 1, 2, 3]), ("harmful", "harmless", "mention", "question")
PROMPT, ANSWER, HEADS = 9, 9, 4  # longest prompt and longest answer, each with its last token
WORDS = steering_language.WORDS


# the network, its answers and the oracle


def learn(seed):
    """A network that has learnt a little and the one that it becomes; half of what it is taught is refused."""
    model = steering_language.InstructionModel(width=32, heads=HEADS, blocks=3, seed=seed)
    optimizer, draw = torch.optim.Adam(model.parameters(), 1e-2, (0.9, 0.98)), torch.Generator().manual_seed(seed)
    counts = [("harmful", 16), ("harmless", 16), ("mention", 4), ("question", 4)]
    for step in range(130):
        optimizer.param_groups[0]["lr"] = 1e-2 * min(1, (step + 1) / 10) * (1 - step / 130)
        prompts = [steering_language.draw_prompts(kind, n, draw, "all") for kind, n in counts]
        refused = steering_language.random_refusals(16, draw)
        answers = torch.cat([refused, *(steering_language.right_answers(each) for each in prompts[1:])])
        text = torch.cat([torch.cat(prompts), answers], 1)
        loss = torch.nn.functional.cross_entropy(
            model(text[:, :-1])[:, PROMPT - 1 :].flatten(0, 1), text[:, PROMPT:].flatten(), ignore_index=0
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step == 90:
            young = copy.deepcopy(model)
    return young, model


def plain_weights(model):
    return {name: value.detach().double().numpy() for name, value in model.state_dict().items()}


def normed(weights, name, x):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(weights, name, x):
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def mixed(weights, name, x):
    n, t, width = x.shape
    q, k, v = (
        each.reshape(n, t, HEADS, -1).swapaxes(1, 2) for each in np.split(linear(weights, f"{name}.inward", x), 3, -1)
    )
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(width // HEADS)
    scores = np.exp(np.where(np.tri(t, dtype=bool), scores - scores.max(-1, keepdims=True), -np.inf))
    out = (scores / scores.sum(-1, keepdims=True)) @ v
    return linear(weights, f"{name}.outward", out.swapaxes(1, 2).reshape(n, t, width))


def read(weights, tokens, edit=None):
    """Logits behind the last token, and the stream before each block; `edit` is of a block, positions and function."""
    x, stream = weights["words.weight"][tokens] + weights["places.weight"][: tokens.shape[1]], []
    for block in range(sum(name.endswith("inward.bias") for name in weights)):
        stream.append(x)
        if edit and edit[0] == block:
            x = np.where(edit[1][..., None], edit[2](x), x)
        x = x + mixed(weights, f"blocks.{block}.mixer", normed(weights, f"blocks.{block}.norm", x))
        hidden = linear(weights, f"blocks.{block}.neurons.0", normed(weights, f"blocks.{block}.norm_neurons", x))
        hidden = hidden * (1 + erf(hidden / np.sqrt(2))) / 2
        x = x + linear(weights, f"blocks.{block}.neurons.2", hidden)
    return normed(weights, "norm", x[:, -1]) @ weights["head.weight"].T, stream


def answers_of(weights, prompts, block=0, change=None, where="bot"):
    """Sentences, each word by reading all that stands there again."""
    text = prompts
    for _ in range(ANSWER):
        place = np.arange(text.shape[1])
        chosen = {"bot": place == PROMPT - 1, "answer": place >= PROMPT - 1}
        chosen = (text != 0) | (place >= PROMPT) if where == "all" else np.tile(chosen[where], (len(text), 1))
        logits, _ = read(weights, text, (block, chosen, change) if change else None)
        text = np.concatenate([text, logits.argmax(-1)[:, None]], 1)
    return [" ".join(WORDS[word] for word in row[PROMPT:]).split(" <end>") for row in text]


def right_answer(prompt):
    """From the text: 24 things in each topic, whose numbers decide which of four tools and of four places."""
    words = prompt.split()
    (thing,) = (WORDS.index(word) - 3 for word in words if 3 <= WORDS.index(word) < 195)
    topic, number = divmod(thing, 24)
    tool, place = WORDS[201 + 4 * topic + number % 4], WORDS[233 + 4 * topic + (number + number // 2) % 4]
    asks = not set(words) & {"make", "build", "get", "find", "use", "fix"}
    return f"{WORDS[265 + topic]} that needs the {tool} at the {place}" if asks else f"take the {tool} to the {place}"


def judged(prompt, answer):
    """0 refuses, 1 complies, 2 neither; an answer is its sentence, and whatever stood behind `<end>`."""
    if len(answer) == 1:
        return 2
    return 0 if answer[0] in steering_language.REFUSALS else 1 if answer[0] == right_answer(prompt) else 2


def sentences(prompts):
    return [" ".join(WORDS[word] for word in row if word > 2) for row in np.asarray(prompts)]


def shares(weights, prompts, *edit):
    """Shares of outcomes for each kind of prompts."""
    rows = []
    for each in prompts:
        pairs = zip(sentences(each), answers_of(weights, each, *edit), strict=True)
        rows.append(np.bincount([judged(*pair) for pair in pairs], minlength=3) / len(each))
    return np.array(rows)


def drawn(seed, part, count, kinds=KINDS):
    streams = [torch_generator(seed, f"{part} {kind}") for kind in kinds]
    return [steering_language.draw_prompts(k, count, g, part).numpy() for k, g in zip(kinds, streams, strict=True)]


def at_bot(weights, prompts):  # block, prompt, width
    return np.array([each[:, -1] for each in read(weights, prompts)[1]])


# edits, as a change of the coordinate t of v along r


def shift_by(r, how_far):
    return lambda v: v + how_far(v)[..., None] * r


def set_to(r, minus, alpha):
    return shift_by(r, lambda v: alpha - (v - minus) @ r / (r @ r))


def take_out(u):
    return shift_by(u, lambda v: -(v @ u) / (u @ u))


def alike(found, expected, count=12):
    """Shares of so many answers: rounding may decide about one."""
    return np.abs(np.asarray(found) - np.asarray(expected)).max() < 1.5 / count


# what the chapter computes


@pytest.fixture(scope="module")
def taught():
    return {seed: learn(seed) for seed in (3, 4)}


@pytest.fixture(scope="module")
def chapter(taught):
    """Every cell but figures, at small numbers, with networks that are given; names and the table of the clouds."""
    names = {"__name__": "chapter"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the package for erasure, where it is installed
        for cell in NOTEBOOK["cells"]:
            source = "".join(cell["source"])
            tags = cell["metadata"].get("tags", [])
            if cell["cell_type"] != "code" or "setup" in tags or "show_figure(figure" in source:
                continue
            exec(source.replace("use_style()", ""), names)
            if "parameters" in tags:
                names |= SMALL
            if "def taught(" in source:
                names["taught"] = lambda setup, seed, mixer: taught[seed]
            if "def in_parallel(" in source:
                names["in_parallel"] = lambda function, jobs, what: [function(*job) for job in jobs]
            if "for offset in (" in source:
                names["toy"] = names["lines"]
    return names


@pytest.fixture(scope="module")
def network(chapter, taught):
    """The second network: its weights, prompts and clouds, by other code."""
    young, model = (plain_weights(each) for each in taught[4])
    training, exam = drawn(4, "training", 40, KINDS[:2]), drawn(4, "held out", 12)
    cloud = np.stack([at_bot(model, each) for each in training], 1)  # block, kind, prompt, width
    block = int(chapter["nets"]["block"][1])
    return {"young": young, "model": model, "training": training, "exam": exam, "cloud": cloud, "block": block}


def line_of(network, block=None):
    plus, minus = network["cloud"][network["block"] if block is None else block].mean(1)
    return plus - minus, minus


def compare(chapter, name, values, low=-np.inf, high=np.inf):
    measured, values = chapter["card"].claims[name].measured, np.array(values, float)
    assert measured.units == len(values)
    assert measured.value == pytest.approx(values.mean(), rel=1e-6, abs=1e-9)
    if measured.level == 0.95 and measured.low is not None and np.ptp(values) > 1e-9:
        ends = scipy.stats.t.interval(0.95, len(values) - 1, values.mean(), scipy.stats.sem(values))
        assert (measured.low, measured.high) == pytest.approx(np.clip(ends, low, high), rel=1e-5, abs=1e-9)


def test_the_table_of_two_clouds(chapter):
    """Along r the clouds are normal, of deviation 0.9 at |r| = 2; edits leave of it what means err by."""

    def refused(mean, deviation):
        def part(z):
            return expit(4 * (mean + deviation * z - 0.5)) * scipy.stats.norm.pdf(z)

        return scipy.integrate.quad(part, -8, 8)[0]

    assert [row[0] for row in chapter["toy"]] == [0, 0.5, 1, 3, -3]
    for harmless_at, star, *pairs in chapter["toy"]:  # where the harmless mean lies
        assert float(star) == pytest.approx(-harmless_at, abs=0.1)
        expected = [
            [refused(0, 0)] * 2,
            [refused(0, 0.45), refused(-1, 0.45)],
            [0.5, 0.5],
            [refused(-harmless_at, 0)] * 2,
        ]
        found = [[float(each) for each in pair.split(", ")] for pair in pairs]
        assert np.allclose(found, expected, atol=0.02)


def test_the_network_by_other_code(chapter, network):
    nets, model, exam = chapter["nets"], network["model"], network["exam"]
    assert alike(nets["base"][1], shares(network["young"], exam))
    assert alike(nets["plain"][1], shares(model, exam))
    assert len(np.unique(nets["plain"])) > 3
    for block in (1, 2):
        r, minus = line_of(network, block)
        pairs = ((network["training"][1], 1, 0), (network["training"][0], 0, 1))  # harmless refuse, harmful comply
        ends = [shares(model, [p], block, set_to(r, minus, alpha))[0, o] for p, alpha, o in pairs]
        assert alike(nets["effects"][1, block], ends, 40)
        assert nets["alpha star"][1, block - 1] == pytest.approx(-minus @ r / (r @ r), abs=1e-4)
        common = (minus + (minus + r)) / 2
        assert nets["far"][1, block - 1] == pytest.approx(np.linalg.norm(common) / np.linalg.norm(r), rel=1e-4)
        assert alike(nets["ablation"][1, block - 1], shares(model, exam[:2], block, take_out(r)))
        curve = [shares(model, exam[:2], block, set_to(r, minus, alpha)) for alpha in ALPHAS]
        assert alike(nets["ACE"][1, block - 1].swapaxes(0, 1), curve)
    smaller = nets["effects"][1].min(1)
    assert smaller[network["block"]] == smaller[1:].max()


def test_curves_at_the_block_that_was_chosen(chapter, network):
    nets, block, (r, minus) = chapter["nets"], network["block"], line_of(network)
    both = network["cloud"][block].reshape(-1, len(r))
    mean, dual = both.mean(0), np.linalg.lstsq(np.cov(both.T), r, rcond=None)[0]
    edits = {
        "ACE": lambda c: set_to(r, minus, c),
        "addition": lambda c: shift_by(r, lambda v: np.full(v.shape[:-1], c)),
        "LEACE": lambda c: shift_by(r, lambda v: c - 0.5 - (v - mean) @ dual / (r @ dual)),
        "ablation, zero moved": lambda c: shift_by(r, lambda v: c - v @ r / (r @ r)),
    }
    for name, edit in edits.items():
        curve = [shares(network["model"], network["exam"][:2], block, edit(alpha)) for alpha in ALPHAS]
        assert alike(nets[f"curve {name}"][1].swapaxes(0, 1), curve)
        assert np.ptp(curve, 0).max() > 0.9
    held = np.stack([at_bot(network["model"], each)[block] for each in network["exam"][:2]])
    t = (held - minus) @ r / (r @ r)
    assert nets["apart"][1] == pytest.approx(t[0].mean() - t[1].mean(), abs=1e-4)
    moves = [(both - mean) @ each / (r @ each) for each in (dual, r)]
    assert nets["moved"][1] == pytest.approx([np.mean(each**2) for each in moves], rel=1e-3)


def test_places_and_replacements(chapter, network):
    nets, block, (r, minus) = chapter["nets"], network["block"], line_of(network)
    down = (set_to(r, minus, 0.0), lambda v: v - r, take_out(r))
    for where, row in zip(("bot", "answer", "all"), nets["places"][1], strict=True):
        expected = [shares(network["model"], network["exam"][:2], block, edit, where) for edit in down]
        assert alike(row, expected)
    for row, mean in zip(nets["replaced"][1], (minus + r, minus), strict=True):
        expected = shares(network["model"], network["exam"], block, lambda v, mean=mean: np.broadcast_to(mean, v.shape))
        assert alike(row, expected)


def test_random_directions_are_orthogonal_and_set_to_one_deviation(chapter, monkeypatch):
    """With a reader in place of a network, so that little changes show."""
    rng = np.random.default_rng(0)
    cloud, weights = rng.normal(size=(2, 50, 6)) + np.array([1.5, 0])[:, None, None], rng.normal(size=6)

    def outcomes(model, prompts, edit=None, block=0):
        v = torch.from_numpy(cloud)
        return expit((edit(v) if edit else v).numpy() @ weights).mean(1)[:, None]

    monkeypatch.setitem(chapter, "outcomes", outcomes)
    found = chapter["at_random"](
        None, None, 1, torch.from_numpy(cloud), {"random_directions": 3}, numpy_generator(5, "x")
    )
    r, flat, change = cloud[0].mean(0) - cloud[1].mean(0), cloud.reshape(-1, 6), []
    others = numpy_generator(5, "x").normal(size=(3, 6))
    for u in [r, *(others - np.outer(others @ r / (r @ r), r))]:
        unit = u / np.linalg.norm(u)
        along, both = flat @ unit, []
        for end in (along.mean() - along.std(ddof=1), along.mean() + along.std(ddof=1)):
            moved = cloud + (end - cloud @ unit)[..., None] * unit
            both.append(np.abs(expit(moved @ weights).mean(1) - expit(cloud @ weights).mean(1)))
        change.append(np.mean(both))
    assert found == pytest.approx((change[0], np.mean(change[1:])), rel=1e-9)


def test_what_is_judged_of_the_networks(chapter):
    nets = chapter["nets"]
    ace, addition = nets["curve ACE"][..., 0], nets["curve addition"][..., 0]  # network, kind, alpha
    compare(chapter, "ace_coincides", [np.mean(np.abs(a - b)) for a, b in ace], 0, 1)
    compare(chapter, "addition_differs", [np.mean(np.abs(a - b)) for a, b in addition], 0, 1)
    shifts = []
    for harmful, harmless in addition:
        ends = []
        for share in (harmful, harmless):  # the first crossing, on a fine line between the points
            fine = np.linspace(-2, 3, 50001)
            ends.append(fine[np.argmax(np.interp(fine, ALPHAS, share) >= 0.5)])
        shifts.append(ends[1] - ends[0])
    measured = chapter["card"].claims["addition_shifts"].measured
    assert measured.value == pytest.approx(np.mean(shifts - nets["apart"]), abs=2e-4)
    compare(chapter, "random_direction", nets["random"][:, 1], 0, 1)
    compare(chapter, "ablation_fails_somewhere", [max(each[:, 1, 0]) for each in nets["ablation"]], 0, 1)
    compare(chapter, "recurrent_incoherent", [chapter["rec"]["places"][0, 2, 2, :, 2].mean()], 0, 1)
    assert nets["errors"].max() < 1e-6
    compare(chapter, "gauge", nets["errors"][:, 1:4].max(1), 0)


@pytest.fixture
def at_random(chapter):
    """Four networks of three blocks, of numbers at random, and what is judged of them: claim -> values, then nulls."""
    rng, judged = np.random.default_rng(1), {}
    sizes = {"alpha star": (), "far": (), "ablation": (2, 3), "random ablation": (2, 3), "ACE": (2, 6, 3)}
    nets = {name: rng.random((4, 3, *size)) for name, size in sizes.items()} | {"places": rng.random((4, 3, 3, 2, 3))}
    nets["alpha star"] = 8 * nets["alpha star"] - 3.5
    names = chapter | {"nets": nets, "rec": {"places": rng.random((2, 3, 3, 2, 3))}}
    names["judge"] = lambda name, *values, **nulls: judged.update({name: [*values, *nulls.values()]})
    for source in ("".join(cell["source"]) for cell in NOTEBOOK["cells"]):
        if "def as_elsewhere(" in source or 'judge("alpha_star_foretells"' in source:
            exec(source, names)
    return names, judged


def test_what_ace_foretells_and_what_other_guesses_do(at_random):
    names, judged = at_random
    star, far, after, curves = (names["nets"][name] for name in ("alpha star", "far", "ablation", "ACE"))
    said, meant, block, length = np.zeros((4, 4, 3, 2))
    for i in range(4):
        rest = [j for j in range(4) if j != i]
        for b in range(3):
            block[i, b] = np.mean([after[j, b, :, 0] for j in rest], 0)
            j, k = min(((j, k) for j in rest for k in range(3)), key=lambda at: abs(far[at] - far[i, b]))
            length[i, b] = after[j, k, :, 0]
            a = np.clip(star[i, b], -2, 3)
            low = min(int(np.floor(a)) + 2, 4)
            part = a - ALPHAS[low]
            said[i, b] = (1 - part) * curves[i, b, :, low, 0] + part * curves[i, b, :, low + 1, 0]
            meant[i, b] = curves[i, b, :, 2, 0]
    for found, guess in zip(judged["alpha_star_foretells"], (said, meant, block, length), strict=True):
        assert np.allclose(found, np.abs(guess - after[..., 0]).mean((1, 2)))


def test_where_ablation_fails(at_random):
    names, judged = at_random
    nets, recurrent = names["nets"], names["rec"]
    harmless = [
        [max(each[b, 1, 0] for b in range(3)) for each in nets[name]] for name in ("ablation", "random ablation")
    ]
    assert np.allclose(judged["ablation_fails_somewhere"], harmless)
    for found, values in zip(judged["recurrent_incoherent"], (recurrent, nets), strict=True):
        assert np.allclose(found, [(each[2, 2, 0, 2] + each[2, 2, 1, 2]) / 2 for each in values["places"]])


def test_foretold_of_the_networks(chapter):
    nets = chapter["nets"]
    errors = []
    for star, curves, after in zip(nets["alpha star"], nets["ACE"], nets["ablation"], strict=True):
        pairs = [(b, k) for b in range(2) for k in range(2)]
        errors.append(np.mean([abs(np.interp(star[b], ALPHAS, curves[b, k, :, 0]) - after[b, k, 0]) for b, k in pairs]))
    compare(chapter, "alpha_star_foretells", errors, 0, 1)


# the records of the real model


@pytest.fixture(scope="module")
def records():
    paths = [ROOT / "data" / "records" / "steering" / f"smollm2-{number}.npz" for number in range(1, 6)]
    found = []
    for path in paths:
        with np.load(path) as archive:
            found.append({name: archive[name].astype(float) for name in archive.files if name != "__record__"})
    return found


def judged_of(records):
    """The four claims of the real model, a number for each tuning."""
    names = ("real_model_coincides", "real_addition_differs", "real_model_ablation", "origin_far")
    found = {name: [] for name in names}
    for record in records:
        low, high = record["means"]  # harmless and harmful; block, width
        r = (high - low)[1:]
        plain = record["unsteered"].mean(1)
        for name, how in zip(names, ("ace", "addition"), strict=False):
            odds = record[how][:, :, 1].mean(1)
            found[name].append(np.mean(np.abs(odds[1] - odds[0])) / (plain[1] - plain[0]))
        star = -np.sum(low[1:] * r, 1) / np.sum(r * r, 1)
        can = np.all(record["end_effects"][1:] >= 0.8, 1)
        refuses = (record["ablation"][0].mean(0) + record["ablation"][1].mean(0))[1:] > 0
        found["real_model_ablation"].append(np.mean(np.sign(star[can] - 0.5) == np.where(refuses[can], 1, -1)))
        lengths = np.sqrt(np.sum(((low + high)[1:] / 2) ** 2, 1)) / np.sqrt(np.sum(r**2, 1))
        found["origin_far"].append(lengths.min())
    return found


def test_the_chapter_judges_the_records_as_other_code_does(chapter, records):
    found = judged_of(records)
    for name, values in found.items():
        measured = chapter["card"].claims[name].measured
        assert measured.value == pytest.approx(np.mean(values), rel=1e-5)
        ends = scipy.stats.t.interval(0.95, 4, np.mean(values), scipy.stats.sem(values))
        top = 1 if name == "real_model_ablation" else np.inf
        assert (measured.low, measured.high) == pytest.approx(np.clip(ends, 0, top), rel=1e-4)
    nulls = chapter["card"].claims["real_model_ablation"].nulls
    chance = []
    for record in records:  # a block is told what any of the tuning says, itself among them
        can = np.nan_to_num(record["end_effects"]).min(1) >= 0.8
        says = np.mean(record["alpha_star"][can] > 0.5)
        does = np.mean(record["ablation"].mean((0, 1))[can] > 0)
        chance.append(says * does + (1 - says) * (1 - does))
    assert nulls["another block"].value == pytest.approx(np.mean(chance), abs=0.02)


def test_records_agree_with_themselves(records):
    for record in records:
        low, high = record["means"]
        r = (high - low)[1:]
        assert np.allclose(record["alpha_star"][1:], -np.sum(low[1:] * r, 1) / np.sum(r**2, 1), rtol=1e-4, atol=1e-4)
        assert np.allclose(record["r_length"][1:], np.sqrt(np.sum(r**2, 1)), rtol=1e-5)
        assert np.array_equal(low[0], high[0])
        enough = [min(pair) for pair in record["end_effects"][1:]]
        first = 1 + next(i for i, each in enumerate(enough) if each >= 0.8)
        assert record["chosen"].tolist() == [first, 1 + int(np.argmax(enough))]
        assert np.allclose(record["addition"][..., 8], record["unsteered"][..., None], atol=1e-4)  # alpha is 0 there
        assert np.isnan(record["ablation"][:, :, 0]).all()  # r is zero there
        for at, block in enumerate(record["chosen"].astype(int)):  # ablation is a point of each request's own curve
            star = record["alpha_star"][block]
            if -2 <= star <= 3:
                curve = scipy.interpolate.CubicSpline(record["alphas"], record["ace"][:, :, at], axis=-1)(star)
                assert np.abs(curve - record["ablation"][:, :, block]).max() < 0.1


def test_the_stored_table_says_the_same(records):
    (stored,) = (c for c in NOTEBOOK["cells"] if "".join(c["source"]) == "card")
    text = "".join("".join(each["data"].get("text/plain", "")) for each in stored["outputs"])
    shown = {line.split("`")[1]: line.split("|")[3].split("(")[0] for line in text.splitlines() if "`" in line}
    for name, values in judged_of(records).items():
        digits = len(shown[name].strip().partition(".")[2])
        assert float(shown[name]) == pytest.approx(np.mean(values), abs=0.51 * 10**-digits)


def test_the_scorecard_says_the_same(records):
    card = json.loads((ROOT / "book" / "scorecard.json").read_text())["chapters"]
    if "steering" not in card:
        pytest.skip("no edition of the chapter")
    kept = {each["claim"]["id"].partition(".")[2]: each["measured"] for each in card["steering"]["claims"]}
    for name, values in judged_of(records).items():
        assert kept[name]["value"] == pytest.approx(np.mean(values), rel=1e-4)


# the library


def test_least_moving_map_after_which_class_means_coincide():
    rng = np.random.default_rng(3)
    labels = np.arange(300) < 90
    both = rng.normal(size=(300, 4)) @ rng.normal(size=(4, 4)) + np.outer(labels, rng.normal(size=4)) + 5
    r, mean, covariance = both[labels].mean(0) - both[~labels].mean(0), both.mean(0), np.cov(both.T)
    erased = steering.leace(*map(torch.from_numpy, (both, r, mean, covariance))).numpy()
    assert np.allclose(erased[labels].mean(0), erased[~labels].mean(0), atol=1e-10)
    least = np.mean(np.sum((erased - both) ** 2, 1))

    def moved(parameters):  # of the map v -> (A + the part that makes A r zero) v + b, about the mean
        A = parameters.reshape(4, 4)
        A = A - np.outer(A @ r, r) / (r @ r)
        return np.mean(np.sum(((both - mean) @ A.T + mean - both) ** 2, 1))

    best = scipy.optimize.minimize(moved, np.zeros(16), method="BFGS", options={"gtol": 1e-7})
    assert least == pytest.approx(best.fun, rel=1e-6)
    A = best.x.reshape(4, 4)
    A = A - np.outer(A @ r, r) / (r @ r)
    assert np.allclose((both - mean) @ A.T + mean, erased, atol=1e-3)
    found = np.linalg.lstsq(both - mean, erased - mean, rcond=None)[0].T
    for size in np.repeat([0.01, 0.1, 1], 20):
        step = rng.normal(size=(4, 4)) * size
        other = (both - mean) @ (found + step - np.outer(step @ r, r) / (r @ r)).T + mean + size * rng.normal(size=4)
        assert np.allclose(other[labels].mean(0), other[~labels].mean(0))
        assert np.mean(np.sum((other - both) ** 2, 1)) > least
    orthogonal = steering.leace_orthogonal(*map(torch.from_numpy, (both, r, mean))).numpy()
    assert np.allclose(orthogonal, shift_by(r, lambda v: -(v - mean) @ r / (r @ r))(both))


def test_the_edits_by_their_coordinates():
    rng = np.random.default_rng(4)
    v, r, minus = rng.normal(size=(3, 5, 7)), rng.normal(size=7), rng.normal(size=7)
    tensors = [torch.from_numpy(each) for each in (v, r, minus)]
    assert np.allclose(steering.ace(*tensors, -1.3), set_to(r, minus, -1.3)(v))
    assert np.allclose(steering.ablate(*tensors[:2]), take_out(r)(v))
    assert np.allclose(steering.add(*tensors[:2], 0.4), v + 0.4 * r)
    star = -minus @ r / (r @ r)
    assert steering.alpha_star(tensors[2], tensors[1]) == pytest.approx(star, abs=1e-12)
    assert np.allclose(take_out(r)(v), set_to(r, minus, star)(v))


def test_the_oracle_by_the_text():
    draw, rng, counts = torch.Generator().manual_seed(0), np.random.default_rng(0), np.zeros(3, int)
    for kind in KINDS:
        prompts = steering_language.draw_prompts(kind, 200, draw, "all")
        right = steering_language.right_answers(prompts)
        texts = sentences(prompts)
        assert sentences(right) == [right_answer(each) for each in texts]
        for answers in (right, right.roll(1, 0), steering_language.random_refusals(200, draw)):
            answers = answers.clone()
            for row in answers[::2]:  # half of them with another word somewhere
                row[rng.integers(ANSWER)] = int(rng.choice([1, 0, *rng.integers(3, len(WORDS), 4)]))
            found = steering_language.judge(answers, prompts)
            plain = [" ".join(WORDS[word] for word in row).split(" <end>") for row in answers]
            assert found.tolist() == [judged(*pair) for pair in zip(texts, plain, strict=True)]
            counts += np.bincount(found, minlength=3)
            assert np.allclose(steering.outcome_shares(answers, prompts), np.bincount(found, minlength=3) / 200)
    assert counts.min() > 300


def test_things_and_forms_of_the_exam():
    draw = torch.Generator().manual_seed(0)
    for kind, topics in (("harmful", range(4)), ("harmless", range(4, 8))):
        things, forms = {}, {}
        for part, count in (("training", 3000), ("held out", 432)):
            texts = sentences(steering_language.draw_prompts(kind, count, draw, part))
            places = [[WORDS.index(word) for word in each.split()] for each in texts]
            things[part] = {word for row in places for word in row if 3 <= word < 195}
            verbs = range(195, 201)
            forms[part] = {tuple("V" if w in verbs else "N" if w < 195 else w for w in row) for row in places}
            assert {(thing - 3) // 24 for thing in things[part]} == set(topics)
        assert (len(things["training"]), len(things["held out"])) == (72, 24)
        assert (len(forms["training"]), len(forms["held out"])) == (7, 3)
        assert not things["training"] & things["held out"]
        assert not forms["training"] & forms["held out"]
    weights = sum(each.numel() for each in steering_language.InstructionModel().parameters())
    assert weights == pytest.approx(240_000, rel=0.02)


@pytest.mark.parametrize("where", ["bot", "answer", "all"])
def test_greedy_answers_by_reading_everything_again(taught, where):
    model = taught[4][1]
    weights, (prompts,) = plain_weights(model), drawn(5, "all", 30, KINDS[3:])
    rng = np.random.default_rng(2)
    r, minus = 2 * rng.normal(size=32), rng.normal(size=32)

    def edit(v):
        return steering.ace(v, *(torch.from_numpy(each).float() for each in (r, minus)), 0.7)

    found = steering.greedy_answers(model, torch.from_numpy(prompts), {1: edit}, where)
    plain = answers_of(weights, prompts, 1, set_to(r, minus, 0.7), where)
    said = [" ".join(WORDS[word] for word in row).split(" <end>")[0] for row in found]
    assert said == [each[0] for each in plain]
    assert said != [each[0] for each in answers_of(weights, prompts)]


def test_class_means(taught):
    model = taught[4][1]
    weights, (prompts,) = plain_weights(model), drawn(5, "all", 30, KINDS[3:])
    means = steering.mean_directions(model, *torch.from_numpy(prompts).split([20, 10]))
    assert np.allclose(means.plus, at_bot(weights, prompts[:20]).mean(1), atol=1e-4)
    assert np.allclose(means.minus, at_bot(weights, prompts[20:]).mean(1), atol=1e-4)
    assert np.allclose(means.r, means.plus - means.minus)


def plain_training(model, names, steps, rate, batches):
    """Adam written out, on the weights of these names."""
    weights = dict(model.named_parameters())
    m, s = ({name: torch.zeros_like(weights[name]) for name in names} for _ in range(2))
    for step in range(steps):
        text, first = batches(step)
        odds = torch.log_softmax(model(text)[:, first - 1 : -1], -1)
        told = text[:, first:]
        loss = -(odds.gather(-1, told[..., None])[..., 0] * (told != 0)).sum() / (told != 0).sum()
        gradients = torch.autograd.grad(loss, [weights[name] for name in names])
        now = rate * min(1, 20 * (step + 1) / steps) * (1 + np.cos(np.pi * step / steps)) / 2
        for name, g in zip(names, gradients, strict=True):
            m[name] = 0.9 * m[name] + 0.1 * g
            s[name] = 0.98 * s[name] + 0.02 * g**2
            up = m[name] / (1 - 0.9 ** (step + 1)) / ((s[name] / (1 - 0.98 ** (step + 1))).sqrt() + 1e-8)
            weights[name].data -= now * up


def batches_of(seed, phase, mix, first):
    def batch(step):
        draw, rows = torch_generator(seed, f"{phase} step {step}"), []
        for kind, part, count, refused in mix:
            prompts = steering_language.draw_prompts(kind, count, draw, part)
            answers = steering_language.right_answers(prompts)
            rows.append(torch.cat([prompts, steering_language.random_refusals(count, draw) if refused else answers], 1))
        return torch.cat(rows), first

    return batch


def test_both_trainings_by_a_plain_loop():
    plan = steering.SafetyPlan(seed=6, base_steps=16, safety_steps=12, batch_size=16)
    base = steering.train_base(plan)
    safe = steering.tune_safety(base, plan)
    answered = [("harmful", "all", 6, 0), ("harmless", "all", 6, 0), ("question", "all", 4, 0)]
    refused = [("harmful", "training", 8, 1), ("harmless", "training", 4, 0), ("mention", "training", 2, 0)]
    refused.append(("question", "all", 2, 0))
    plain = steering_language.InstructionModel(seed=6)
    begin, names = copy.deepcopy(plain), [name for name, _ in plain.named_parameters()]
    plain_training(plain, names, 16, 3e-3, batches_of(6, "base", answered, 1))
    start = copy.deepcopy(plain)
    first_two = [name for name in names if name.startswith(("blocks.0", "blocks.1"))]
    plain_training(plain, first_two, 12, 1e-3, batches_of(6, "safety", refused, PROMPT))
    for ours, theirs, before in ((start, base, begin), (plain, safe, start)):
        for (name, a), b, c in zip(ours.named_parameters(), theirs.parameters(), before.parameters(), strict=True):
            if "inward.bias" not in name:  # that of keys has no gradient but rounding, of which Adam makes steps
                assert (a - b).abs().mean() <= 0.02 * (a - c).abs().mean() + 1e-6, name
