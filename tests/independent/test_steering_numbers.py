"""Numbers of `steering` again, by other code: its cells run here with two small networks, and its records are read.

The network, its answers, the oracle, the edits and all that is judged are written out with NumPy and SciPy from the
chapter's words; of the library come prompts, seeds of streams and what is tested. To train networks as the chapter does
takes longer than this file may: those it is given here have learnt for two seconds.
"""

import copy
import json
import warnings
from importlib.util import find_spec
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
    """Logits behind the last token, and the stream before each block; `edit` is of blocks, positions and function."""
    x, stream = weights["words.weight"][tokens] + weights["places.weight"][: tokens.shape[1]], []
    for block in range(sum(name.endswith("inward.bias") for name in weights)):
        stream.append(x)
        if edit and block in np.atleast_1d(edit[0]):
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


def cells_with(*texts):
    """Sources of the cells that hold these texts, one cell for each."""
    sources = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    for text in texts:
        (source,) = (each for each in sources if text in each)
        yield source


@pytest.fixture(scope="module")
def chapter(taught):
    """Every cell but figures, at small numbers, with networks that are given; `lines` of tables, and what is read."""
    names, tables, read_out = {"__name__": "chapter", "find_spec": find_spec}, {}, []
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
            if "import Markdown" in source:
                names["Markdown"] = lambda text: read_out.append(" ".join(text.split()))
            if "lines" in names:
                tables[source] = names.pop("lines")
    names |= {"tables": tables, "read out": read_out}
    return names  # itself, so that another function can be put into it


def table(chapter, text):
    """Lines of the table whose cell holds this text."""
    (source,) = cells_with(text)
    return chapter["tables"][source]


def says(chapter, begin, *parts):
    """Whether the reading that begins so says these parts, in this order."""
    (text,) = (each for each in chapter["read out"] if begin in each)
    for part in parts:
        assert part in text, (part, text)
        text = text.partition(part)[2]


def percent(values):
    return f"{100 * np.mean(values):.0f} %"


def plain_number(values, digits=2):
    return f"{np.mean(values):.{digits}f}".replace("-", "−")


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
    if name == "ablation_fails_somewhere":  # a share p of n: ends are where (x - p)^2 is z^2 x (1 - x) / n
        p, z2 = values.mean(), scipy.stats.norm.ppf(0.975) ** 2 / len(values)
        ends = np.sort(np.roots([1 + z2, -2 * p - z2, p * p]))
        assert (measured.low, measured.high) == pytest.approx(ends, abs=1e-6)
    elif measured.level == 0.95 and measured.low is not None and np.ptp(values) > 1e-9:
        ends = scipy.stats.t.interval(0.95, len(values) - 1, values.mean(), scipy.stats.sem(values))
        assert (measured.low, measured.high) == pytest.approx(np.clip(ends, low, high), rel=1e-5, abs=1e-9)


def test_the_table_of_two_clouds(chapter):
    """Along r the clouds are normal; edits leave of it what they do not see, and errors of the means."""
    wide = 0.3 * np.sqrt(1 + 0.7**2)  # deviation of the coordinate: |r| is 2, and two numbers add up

    def refused(mean, deviation):
        def part(z):
            return expit(4 * (mean + deviation * z - 0.5)) * scipy.stats.norm.pdf(z)

        return scipy.integrate.quad(part, -8, 8)[0]

    lines = table(chapter, "for offset in (")
    assert [row[0] for row in lines] == [0, 0.5, 1, 3, -3]
    for harmless_at, star, *pairs in lines:  # where the harmless mean lies
        assert float(star) == pytest.approx(-harmless_at, abs=0.08)
        expected = [
            [refused(1, wide), refused(0, wide)],
            [refused(0, 0)] * 2,
            [refused(0, wide), refused(-1, wide)],
            [0.5, 0.5],
            [refused(-harmless_at, 0)] * 2,
        ]
        found = [[float(each) for each in pair.split(", ")] for pair in pairs]
        assert np.allclose(found, expected, atol=0.015)
        assert pairs[:4] == lines[0][2:6]  # only ablation's change


def test_the_clouds_and_what_edits_leave_of_them(chapter):
    pair = chapter["clouds"](3, 40_000, np.random.default_rng(1))
    r, minus, methods = chapter["methods_of"]([torch.from_numpy(each) for each in pair])
    for t_mean, v in zip((1, 0), pair, strict=True):
        assert np.allclose(v.mean(0), np.eye(64)[0] * 2 * (3 + t_mean), atol=0.02)
        covariance = 0.36 * np.eye(64)
        covariance[:2, :2] = 0.36 * np.array([[1.49, 0.7], [0.7, 1]])
        assert np.allclose(np.cov(v.T), covariance, atol=0.015)
        left = {
            name: (method(torch.from_numpy(v), 0.5).numpy() - minus.numpy()) @ r.numpy() / float(r @ r)
            for name, method in methods.items()
        }
        assert np.allclose(left["ACE"], 0.5)
        assert np.allclose(left["ablation"], -3, atol=0.02)
        assert (left["addition"].mean(), left["addition"].std()) == pytest.approx((t_mean + 0.5, 0.366), abs=0.01)
        assert np.std(left["LEACE"] - (0.5 + 0.35 * v[:, 1])) < 0.02  # the other number, of deviation 0.21, and no more


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
        seen = [each[:12] for each in network["training"]]  # what foretells comes from training prompts
        curve = [shares(model, seen, block, set_to(r, minus, alpha)) for alpha in ALPHAS]
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
        "ablation, zero moved": lambda c: set_to(r, minus, c),  # in the gauge in which zero lies at c
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
    assert nets["places"].shape == (2, 4, 3, 2, 3)
    for row, (at, where) in zip(nets["places"][1], places_of(block), strict=True):
        assert alike(row, [shares(network["model"], network["exam"][:2], at, edit, where) for edit in down(r, minus)])
    for row, mean in zip(nets["replaced"][1], (minus + r, minus), strict=True):
        expected = shares(network["model"], network["exam"], block, lambda v, mean=mean: np.broadcast_to(mean, v.shape))
        assert alike(row, expected)


def places_of(block):
    return [(block, "bot"), (block, "answer"), (block, "all"), (range(3), "all")]


def down(r, minus):
    return set_to(r, minus, 0.0), lambda v: v - r, take_out(r)


def test_answers_at_each_place(chapter, network, taught, monkeypatch):
    """Word by word, along a shorter direction, so that places differ."""
    monkeypatch.setitem(chapter, "outcome_shares", lambda answers, prompts: answers.numpy().copy())
    r, minus = (0.6 * each for each in line_of(network))
    prompts = {kind: torch.from_numpy(each) for kind, each in zip(KINDS, network["exam"][:2], strict=False)}
    tensors = [torch.from_numpy(each).float() for each in (r, minus)]
    found = chapter["by_place"](taught[4][1], prompts, 1, *tensors)  # place, edit, kind, prompt, word
    said = []
    for at, where in places_of(1):
        for edit in down(r, minus):
            said += [answers_of(network["model"], each, at, edit, where) for each in network["exam"][:2]]
    said = np.array([[answer[0] for answer in each] for each in said]).reshape(4, 3, 2, 12)
    texts = [" ".join(WORDS[word] for word in row).split(" <end>")[0] for row in found.reshape(-1, ANSWER)]
    assert np.mean(np.reshape(texts, said.shape) == said) > 0.97  # rounding may decide about a word
    assert min(np.mean(said[i] != said[j]) for i in range(4) for j in range(i)) > 0.1


def test_what_each_edit_keeps(chapter, network):
    nets, block, (r, minus) = chapter["nets"], network["block"], line_of(network)
    edits = (set_to(r, minus, 0.0), set_to(r, minus, 1.0), take_out(r))
    rows = [shares(network["model"], network["exam"], block, edit) for edit in edits]
    assert nets["kept"].shape == (2, 3, 4, 3)
    assert alike(nets["kept"][1], rows)
    assert not alike(rows[0], rows[1])
    lines = table(chapter, "harmful mean in its place")
    for line, each in zip(
        lines, [nets["plain"].mean(0), *nets["kept"].mean(0), *nets["replaced"].mean(0)], strict=True
    ):
        assert line[1:] == [f"{each[kind, outcome]:.2f}" for kind in range(4) for outcome in (0, 1)]


def test_where_the_answers_lie(chapter, network):
    """Coordinates of what stands before `<end>`, each read again behind its prompt; a mean over all such tokens."""
    block, (r, minus) = network["block"], line_of(network)
    for found, prompts in zip(chapter["nets"]["answers"][1], network["exam"], strict=False):
        at = []
        for prompt, (answer, *_) in zip(prompts, answers_of(network["model"], prompts), strict=True):
            words = [WORDS.index(word) for word in answer.split()]
            stream = read(network["model"], np.concatenate([prompt, words]).astype(int)[None])[1][block][0, PROMPT:]
            at += [(v - minus) @ r / (r @ r) for v, word in zip(stream, words, strict=True) if word > 1]
        assert found == pytest.approx(np.mean(at), abs=1e-4)


def test_directions_at_random_of_a_network(chapter, network):
    """The directions of the chapter's stream: first one to take out at each block, then those that are set."""
    nets, model, two, block = chapter["nets"], network["model"], network["exam"][:2], network["block"]
    rng = numpy_generator(4, "directions")
    for at in (1, 2):
        assert alike(nets["random ablation"][1, at - 1], shares(model, two, at, take_out(rng.normal(size=32))))
    (r, _), flat = line_of(network), network["cloud"][block].reshape(-1, 32)
    plain = shares(model, two)[:, 0]

    def moved(v):
        return shares(model, two, block, v)[:, 0]

    random, axis = sideways(rng.normal(size=(2, 32)), r), longest_across(flat, r)
    expected = changes(flat, plain, moved, (r, random, axis))
    for found, each, answers in zip(nets["random"][1], expected, (48, 96, 48, 96), strict=True):
        assert alike(found, each, answers)
    assert expected[0] > 0.3


def sideways(u, r):
    return u - np.outer(u @ r / (r @ r), r)


def longest_across(flat, r):
    return np.linalg.eigh(np.cov(sideways(flat, r).T))[1][:, -1]


def changes(flat, plain, moved, directions):
    """Mean changes along r, random directions and the longest axis at their deviations; random ones at |r|/2."""
    r, random, axis = directions

    def change(u, far=None):
        u = u / np.linalg.norm(u)
        far = np.std(flat @ u, ddof=1) if far is None else far
        ends = [(flat @ u).mean() - far, (flat @ u).mean() + far]
        return np.mean([np.abs(moved(set_to(u, 0 * u, end)) - plain) for end in ends])

    half = np.linalg.norm(r) / 2
    return [change(r), np.mean([*map(change, random)]), change(axis), np.mean([change(u, half) for u in random])]


def test_random_directions_are_orthogonal_and_set_to_what_is_said(chapter, monkeypatch):
    """With a reader in place of a network, so that little changes show."""
    rng = np.random.default_rng(0)
    cloud, weights = rng.normal(size=(2, 50, 6)) + np.array([1.5, 0])[:, None, None], rng.normal(size=6)
    cloud[..., 4] *= 3

    def outcomes(model, prompts, edit=None, block=0):
        v = torch.from_numpy(cloud)
        return expit((edit(v) if edit else v).numpy() @ weights).mean(1)[:, None]

    monkeypatch.setitem(chapter, "outcomes", outcomes)
    found = chapter["at_random"](
        None, None, 1, torch.from_numpy(cloud), {"random_directions": 3}, numpy_generator(5, "x")
    )
    r, flat = cloud[0].mean(0) - cloud[1].mean(0), cloud.reshape(-1, 6)
    random = sideways(numpy_generator(5, "x").normal(size=(3, 6)), r)
    plain = expit(cloud @ weights).mean(1)
    expected = changes(
        flat, plain, lambda edit: expit(edit(cloud) @ weights).mean(1), (r, random, longest_across(flat, r))
    )
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", ["ACE", "addition", "ablation", "LEACE"])
def test_identities_find_an_edit_that_does_not_keep_them(chapter, network, monkeypatch, name):
    cloud = torch.from_numpy(network["cloud"][network["block"]])
    v = cloud.reshape(-1, cloud.shape[-1])
    errors, _ = chapter["identities"](cloud, v)
    assert max(errors) < 1e-9
    wrong = {
        "ACE": ("ace", lambda v, r, minus, alpha: steering.ablate(v, r) + alpha * r, (0, 1)),  # from zero on
        "addition": ("add", lambda v, r, alpha: v * (1 + alpha), (2,)),
        "ablation": ("ablate", lambda v, r: v - v.mean(-1, keepdim=True), (0, 3)),
        "LEACE": ("leace_orthogonal", lambda v, r, mean: steering.ablate(v, r) + 0.1 * (v - mean), (4,)),
    }[name]
    monkeypatch.setitem(chapter, wrong[0], wrong[1])
    errors, _ = chapter["identities"](cloud, v)
    assert [at for at, error in enumerate(errors) if error > 1e-3] == list(wrong[2])


def crossing(share):
    """The first crossing of one half, on a fine line between the points; an end of the range where there is none."""
    fine = np.linspace(-2, 3, 50001)
    above = np.interp(fine, ALPHAS, share) >= 0.5
    return fine[np.argmax(above)] if above.any() else fine[-1]


def test_half_way_points(chapter):
    rng = np.random.default_rng(2)
    curves = [*rng.random((40, 6)), [0.2] * 6, [0.7] * 6, [0, 0, 0, 0, 0, 1], [0, 1, 0, 1, 0, 1], [0.5, 0, 0, 0, 1, 1]]
    for share in np.array(curves):
        assert chapter["half_way"](share) == pytest.approx(crossing(share), abs=2e-4)
    assert chapter["half_way"](np.array([0, 0, 0.25, 0.75, 1, 1])) == pytest.approx(0.5)


def test_what_is_judged_of_the_networks(chapter):
    nets = chapter["nets"]
    ace, addition = nets["curve ACE"][..., 0], nets["curve addition"][..., 0]  # network, kind, alpha
    compare(chapter, "ace_coincides", [np.mean(np.abs(a - b)) for a, b in ace], 0, 1)
    compare(chapter, "addition_differs", [np.mean(np.abs(a - b)) for a, b in addition], 0, 1)
    shifts = []
    for harmful, harmless in addition:
        ends = []
        for share in (harmful, harmless):
            ends.append(crossing(share))
        shifts.append(ends[1] - ends[0])
    measured = chapter["card"].claims["addition_shifts"].measured
    assert measured.value == pytest.approx(np.mean(shifts - nets["apart"]), abs=2e-4)
    compare(chapter, "random_direction", nets["random"][:, 1], 0, 1)
    assert chapter["card"].claims["random_direction"].nulls["the direction itself"].value == pytest.approx(
        nets["random"][:, 0].mean()
    )
    compare(chapter, "ablation_fails_somewhere", [any(each[:, 1, 0] >= 0.5) for each in nets["ablation"]], 0, 1)
    compare(chapter, "recurrent_incoherent", [chapter["rec"]["places"][0, 2, 2, :, 2].mean()], 0, 1)
    assert nets["errors"].max() < 1e-6
    compare(chapter, "gauge", nets["errors"][:, 1:4].max(1), 0)


@pytest.fixture(params=[4, 1])
def at_random(chapter, request):
    """Networks of three blocks, of numbers at random, and what is judged of them: claim -> name -> values."""
    count, rng, judged = request.param, np.random.default_rng(1), {}
    sizes = {"alpha star": (), "far": (), "ablation": (2, 3), "random ablation": (2, 3), "ACE": (2, 6, 3)}
    nets = {name: rng.random((count, 3, *size)) for name, size in sizes.items()}
    nets["alpha star"] = 8 * nets["alpha star"] - 3.5
    nets["ablation"][0, :, 1, 0] *= 0.4  # one network in which harmless prompts are left alone
    nets["random ablation"][-1, 1, 1, 0] = 0.5  # at least half
    nets["places"] = rng.random((count, 4, 3, 2, 3))
    names = chapter | {"nets": nets, "rec": {"places": rng.random((2, 4, 3, 2, 3))}}
    names["judge"] = lambda name, values, **nulls: judged.update({name: {"itself": values} | nulls})
    for source in cells_with("def as_elsewhere(", 'judge("alpha_star_foretells"'):
        exec(source, names)
    return names, judged


def test_what_ace_foretells_and_what_other_guesses_do(at_random):
    """Of others the nearest: the same block of all other networks; in one that is alone, the blocks beside it."""
    names, judged = at_random
    star, far, after, curves = (names["nets"][name] for name in ("alpha star", "far", "ablation", "ACE"))
    said, meant, block, length = np.zeros((4, len(star), 3, 2))
    beside = {0: [1], 1: [0, 2], 2: [1]}
    for i in range(len(star)):
        rest = [j for j in range(len(star)) if j != i]
        for b in range(3):
            near = [after[j, b, :, 0] for j in rest] or [after[i, c, :, 0] for c in beside[b]]
            block[i, b] = sum(near) / len(near)
            pairs = [(j, k) for j in rest for k in range(3)] or [(i, k) for k in range(3) if k != b]
            j, k = min(pairs, key=lambda at: abs(far[at] - far[i, b]))
            length[i, b] = after[j, k, :, 0]
            a = np.clip(star[i, b], -2, 3)
            low = min(int(np.floor(a)) + 2, 4)
            part = a - ALPHAS[low]
            said[i, b] = (1 - part) * curves[i, b, :, low, 0] + part * curves[i, b, :, low + 1, 0]
            meant[i, b] = curves[i, b, :, 2, 0]
    guesses = {"itself": said, "ACE_at_0": meant, "the_block": block, "the_ratio_of_lengths": length}
    assert judged["alpha_star_foretells"].keys() == guesses.keys()
    for name, guess in guesses.items():
        assert np.allclose(judged["alpha_star_foretells"][name], np.abs(guess - after[..., 0]).mean((1, 2)))


def test_where_ablation_fails(at_random):
    names, judged = at_random
    nets, recurrent = names["nets"], names["rec"]
    for name, what in (("ablation", "itself"), ("random ablation", "a_random_direction")):
        fails = [any(each[b, 1, 0] >= 0.5 for b in range(3)) for each in nets[name]]
        assert np.ravel(judged["ablation_fails_somewhere"][what]).astype(float).tolist() == fails
    assert not judged["ablation_fails_somewhere"]["itself"][0]
    for name, values in (("itself", recurrent), ("transformers", nets)):
        expected = [(each[2, 2, 0, 2] + each[2, 2, 1, 2]) / 2 for each in values["places"]]
        assert np.allclose(judged["recurrent_incoherent"][name], expected)


def test_foretold_of_the_networks(chapter):
    nets = chapter["nets"]
    errors = []
    for star, curves, after in zip(nets["alpha star"], nets["ACE"], nets["ablation"], strict=True):
        pairs = [(b, k) for b in range(2) for k in range(2)]
        errors.append(np.mean([abs(np.interp(star[b], ALPHAS, curves[b, k, :, 0]) - after[b, k, 0]) for b, k in pairs]))
    compare(chapter, "alpha_star_foretells", errors, 0, 1)


def test_lines_of_each_block(chapter):
    nets, lines = chapter["nets"], table(chapter, "for kind, values in")
    assert len(lines) == 4  # two blocks of transformers and of recurrent networks, which are transformers here
    for line, b in zip(lines, (1, 2), strict=False):
        kinds = [nets["ablation"][:, b - 1, kind, outcome] for outcome in (0, 2) for kind in (0, 1)]
        ends = [nets["effects"][:, b, end] for end in (0, 1)]
        rows = [*ends, nets["far"][:, b - 1], nets["alpha star"][:, b - 1], *kinds]
        assert line == [f"transformer, block {b}", *map(plain_number, rows)]


def test_what_is_read_of_the_networks(chapter):
    nets = chapter["nets"]
    each = zip(nets["alpha star"], nets["block"], nets["ablation"], strict=True)
    stars, after = zip(*((star[b - 1], ablated[b - 1, :, 0]) for star, b, ablated in each), strict=True)
    left = [percent(each) for each in np.transpose(after)]
    far = [percent(nets["places"][:, 3, 2, kind, 0]) for kind in (0, 1)]
    part = f"ablation leaves {left[0]} of harmful and {left[1]} of harmless requests refused;"
    other = f"{far[0]} and {far[1]}, with {percent(nets['places'][:, 3, 2, :, 2])} incoherent"
    says(chapter, "There is a block at which ablation", part, "at all blocks and positions", other)
    worst = [max(blocks[:, 1, 0]) for blocks in nets["ablation"]]
    part = f"in {sum(each >= 0.5 for each in worst)} of 2 networks"
    span = f"the largest share is {percent(min(worst))} to {percent(max(worst))}"
    says(chapter, "There is a block at which ablation", part, span)
    answers = nets["answers"]
    moved = [np.abs(answers).mean(), np.mean([np.abs(a - star) for a, star in zip(answers, stars, strict=True)])]
    at = [plain_number(answers[:, kind]) for kind in (0, 1)]
    parts = [f"have coordinates of {at[0]} (to harmful requests) and {at[1]} on average"]
    parts.append(f"moves their mean by {plain_number(moved[0])}, ablation by {plain_number(moved[1])} and")
    says(chapter, "The answers' own tokens", *parts)
    kept, swapped, places = nets["kept"], nets["replaced"], nets["places"]
    parts = [f"harmful requests are complied with in {percent(swapped[:, 1, 0, 1])}"]
    parts += [f"harmless ones refuse in {percent(swapped[:, 0, 1, 0])}"]
    ways = [*(percent(each[:, 3, 1]) for each in (swapped[:, 1], kept[:, 0], kept[:, 1], kept[:, 2]))]
    parts += [f"in its place {ways[0]} are answered rightly, under ACE at 0 {ways[1]}"]
    parts += [f"under ACE at 1 {ways[2]} and under ablation {ways[3]}; of mentions {percent(swapped[:, 1, 2, 1])}"]
    parts += [f"at most {100 * places.mean(0)[0, :, :, 2].max():.1f} % of *requests* incoherent"]
    parts += [f"ACE at α = 0 leaves {percent(places[:, 2, 0, :, 2])}"]
    parts += [f"−1 {percent(places[:, 2, 1, :, 2])} and ablation {percent(places[:, 2, 2, :, 2])}."]
    parts += [f"and ablation {percent(places[:, 3, 2, :, 2])}; to ACE that is not fair"]
    says(chapter, "Requests do not need the rest", *parts)
    change = [plain_number(nets["random"][:, at], 3) for at in (1, 3, 2)]
    parts = [f"changes refusal by {change[0]}", f"along r by {plain_number(nets['random'][:, 0])}"]
    says(chapter, "After its first training", *parts, f"change {change[1]}, and", f"own deviation, {change[2]}")


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


def seen_of(records):
    """For each tuning: the blocks at which refusal can be set, what zero says there and what ablation does."""
    rows = []
    for record in records:
        can = [b for b, pair in enumerate(record["end_effects"]) if pair[0] >= 0.8 and pair[1] >= 0.8]
        says_so = {b: record["alpha_star"][b] > 0.5 for b in can}
        does = {b: np.concatenate(record["ablation"][..., b]).mean() > 0 for b in range(1, 30)}
        rows.append((can, says_so, does))
    return rows


def rivals_of(records):
    """Shares of blocks that other rules have right, a number for each tuning, under the names of the nulls."""
    rows = seen_of(records)
    found = {"another block": [], "what most do": [], "the block in other tunings": []}
    for i, (can, says_so, does) in enumerate(rows):
        rest = [rows[j] for j in range(5) if j != i]
        votes = [other[2][b] for other in rest for b in other[0]]
        rules = (
            [says_so[a] == does[b] for a in can for b in can if a != b],
            [does[b] == (2 * sum(votes) > len(votes)) for b in can],
            [does[b] == (sum(other[2][b] for other in rest) > 2) for b in can],
        )
        for values, right in zip(found.values(), rules, strict=True):
            values.append(np.mean(right))
    return found


def test_what_else_might_foretell_the_real_model(chapter, records):
    found, nulls = rivals_of(records), chapter["card"].claims["real_model_ablation"].nulls
    assert nulls.keys() == found.keys()
    for name, values in found.items():  # of rolls, 200 are drawn
        assert nulls[name].value == pytest.approx(np.mean(values), abs=0.02 if name == "another block" else 1e-9)

    class Shift:  # in place of a generator: each roll that may be drawn, one after the other
        def __init__(self, at):
            self.at, self.ranges = at, []

        def integers(self, low, high):
            self.ranges.append((low, high))
            return low + self.at % (high - low)

    shifts = [Shift(at) for at in range(29)]
    told = np.array([chapter["told_of_another"](each) for each in shifts])
    sizes = [len(can) for can, _, _ in seen_of(records)]
    assert shifts[0].ranges == [(1, size) for size in sizes]
    assert [told[: size - 1, i].mean() for i, size in enumerate(sizes)] == pytest.approx(found["another block"])


def test_each_request_and_the_first_block(chapter, records):
    """Ranks by the U of Mann and Whitney: of two requests, how often the harmful one is the more refused."""
    ranks, plain, gaps = [], [], {"ace": [], "addition": []}
    for record in records:
        at = record["alphas"].tolist().index(0.5)
        low, high = record["ace"][..., at]  # harmless, harmful; request, block
        ranks.append([scipy.stats.mannwhitneyu(high[:, k], low[:, k]).statistic / 48**2 for k in (0, 1)])
        low, high = record["unsteered"]
        plain.append(scipy.stats.mannwhitneyu(high, low).statistic / 48**2)
        for name, values in gaps.items():
            steered = record[name].sum(1)[:, 0] / 48
            values.append(np.abs(steered[0] - steered[1]).sum() / 21 / (high.mean() - low.mean()))
    assert np.allclose(chapter["ranks"], ranks, atol=2 / 48**2)  # ties, of float32
    assert np.allclose(chapter["plain_rank"], plain, atol=2 / 48**2)
    for name, values in gaps.items():
        assert np.allclose(chapter["first_gap"][name], values, rtol=1e-5)
    first, chosen = (percent([pair[k] for pair in ranks]) for k in (0, 1))
    parts = [", ".join(map(str, sorted({int(record["chosen"][0]) for record in records})))]
    parts = [f"({parts[0]}) the gaps are {plain_number(gaps['ace'])} and {plain_number(gaps['addition'])}."]
    parts += [f"in {percent(plain)} when not steered", f"in {first} at the first block and {chosen} at the chosen"]
    says(chapter, "Not steered, the mean log-odds", *parts)


def test_what_is_read_of_the_real_model(chapter, records):
    rows, between, everywhere, spread = seen_of(records), [], [], []
    for record, (can, _, does) in zip(records, rows, strict=True):
        star = record["alpha_star"]
        between += [(star[b] > 0.5) == does[b] for b in can if 0 < star[b] < 1]
        assert all((star[b] > 0.5) == does[b] for b in can if not 0 < star[b] < 1)  # only between is it in danger
        everywhere.append(np.mean([(star[b] > 0.5) == does[b] for b in range(1, 30)]))
        harmless, harmful = record["ablation"].mean(1)
        spreads = [harmless[b] > 0 for b in can]
        spread.append(np.mean(spreads))
        assert [harmful[b] > 0 for b in can if harmless[b] <= 0] == [False] * spreads.count(False)
        assert sorted(spreads, reverse=True) == spreads  # the last blocks are those at which refusal goes
    assert np.allclose(chapter["spread"], spread)
    stars = [record["alpha_star"][b] for record, row in zip(records, rows, strict=True) for b in row[0]]
    parts = [f"at both ends at {np.mean([len(row[0]) for row in rows]):.0f} of 29 blocks"]
    parts += [f"in the mean of their log-odds, at {percent(spread)} of the blocks"]
    parts += [
        f"in {percent(judged_of(records)['real_model_ablation'])}",
    ]
    parts += [f"right {sum(between)} times of {len(between)}", f"right in {percent(everywhere)}."]
    parts += [f"½ − α*; and α* is {plain_number(min(stars))} to {plain_number(max(stars))} at"]
    says(chapter, "Not steered, the mean log-odds", *parts)


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
    (line,) = (line for line in text.splitlines() if "`real_model_ablation`" in line)
    for name, values in rivals_of(records).items():
        shown = line.partition(f"{name} ")[2].split()[0]
        error = 0.02 if name == "another block" else 0.51 * 10 ** -len(shown.partition(".")[2])
        assert float(shown) == pytest.approx(np.mean(values), abs=error)


def test_the_scorecard_says_the_same(records):
    card = json.loads((ROOT / "book" / "scorecard.json").read_text())["chapters"]
    if "steering" not in card:
        pytest.skip("no edition of the chapter")
    kept = {each["claim"]["id"].partition(".")[2]: each["measured"] for each in card["steering"]["claims"]}
    for name, values in judged_of(records).items():
        assert kept[name]["value"] == pytest.approx(np.mean(values), rel=1e-4)
        assert kept[name]["units"] == 5
    (nulls,) = (each["nulls"] for each in card["steering"]["claims"] if "real_model_ablation" in each["claim"]["id"])
    if "the block in other tunings" in nulls:  # an edition from before that null drew rolls by none, too
        for name, values in rivals_of(records).items():
            error = 0.02 if name == "another block" else 1e-4
            assert nulls[name]["value"] == pytest.approx(np.mean(values), abs=error)


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
