import json

import numpy as np
import pytest
from pydantic import ValidationError

from descent.repro.claims import Claim, Scorecard, interval_text, value_with_spread


def claim(interval=(80.9, 104.1), id="chapter.count", **changes):
    return Claim(id=id, **fields(interval, **changes))


def fields(interval=(80.9, 104.1), **changes):
    values = dict(
        cite="baker2022gradientsvd",
        sentence="On 400 steps, 92.5 values lie above a tenth",
        source="92.5 ± 11.6",
        interval=interval,
        interval_from="the source's mean and deviation",
        judged_at=("paper",),
    )
    return {**values, **changes}


@pytest.mark.parametrize(
    ("interval", "value", "verdict"),
    [
        ((80.9, 104.1), 80.9, "reproduced"),
        ((80.9, 104.1), 104.1, "reproduced"),
        ((80.9, 104.1), np.nextafter(80.9, 0), "not reproduced"),
        ((80.9, 104.1), np.nextafter(104.1, 200), "not reproduced"),
        ((None, 0.5), 0.5, "reproduced"),
        ((None, 0.5), -1e9, "reproduced"),
        ((None, 0.5), 0.51, "not reproduced"),
        ((0.99, None), 0.99, "reproduced"),
        ((0.99, None), 1e9, "reproduced"),
        ((0.99, None), 0.98, "not reproduced"),
        ((10, 10), 10, "reproduced"),
        ((10, 10), 11, "not reproduced"),
        ((0, None), 0, "reproduced"),
    ],
)
def test_the_interval_is_closed_and_an_open_end_does_not_count(interval, value, verdict):
    assert claim(interval).judge(value, "paper").verdict == verdict


def test_the_mean_over_seeds_is_judged_and_its_spread_is_the_sample_deviation():
    judged = claim().judge([70.0, 80.0, 102.0], "paper")
    assert (judged.measured, judged.seeds, judged.verdict) == (84.0, 3, "reproduced")
    assert judged.spread == pytest.approx(np.std([70, 80, 102], ddof=1))
    single = claim().judge(90, "paper")
    assert (single.measured, single.spread, single.seeds) == (90.0, 0.0, 1)


@pytest.mark.parametrize("value", [92.5, 1000.0])
def test_a_claim_is_not_judged_at_another_preset_whatever_is_measured(value):
    judged = claim().judge(value, "quick")
    assert (judged.verdict, judged.measured) == ("not judged at this preset", value)


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], float("inf")])
def test_values_that_are_no_numbers_are_refused(values):
    with pytest.raises(ValueError, match=r"chapter\.count: values=.*: expected finite numbers, one per seed"):
        claim().judge(values, "paper")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"interval": (None, None)}, "an interval open at both ends cannot be missed"),
        ({"interval": (2, 1)}, "expected the lower bound first"),
        ({"id": "count"}, "String should match pattern"),
        ({"cite": ""}, "at least 1 character"),
        ({"extra": 1}, "Extra inputs are not permitted"),
    ],
)
def test_a_claim_that_could_not_be_false_or_found_is_refused(changes, sentence):
    with pytest.raises(ValidationError, match=sentence):
        claim(**changes)


def test_a_scorecard_keeps_the_order_and_writes_plain_json(tmp_path):
    card = Scorecard("chapter", "paper")
    card.claim("count", [90, 100], **fields())
    card.claim("second", 2.0, **fields((None, 1)))
    card.save(tmp_path / "results")
    saved = json.loads((tmp_path / "results" / "claims.json").read_text())
    assert saved == card.as_dict()
    assert (saved["chapter"], saved["preset"]) == ("chapter", "paper")
    assert [found["id"] for found in saved["claims"]] == ["chapter.count", "chapter.second"]
    assert set(saved["claims"][0]) == {
        *("id", "cite", "sentence", "source", "interval", "interval_from", "judged_at"),
        *("preset", "measured", "spread", "seeds", "verdict"),
    }
    assert saved["claims"][1]["interval"] == [None, 1.0]
    assert saved["claims"][1]["verdict"] == "not reproduced"


def test_an_empty_folder_means_do_not_keep(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    card = Scorecard("chapter", "paper")
    card.claim("count", 90, **fields())
    card.save("")
    assert list(tmp_path.iterdir()) == []


def test_a_claim_judged_twice_is_refused():
    card = Scorecard("chapter", "paper")
    card.claim("count", 90, **fields())
    with pytest.raises(ValueError, match=r"id='chapter\.count' was judged before"):
        card.claim("count", 90, **fields())
    assert len(card.claims) == 1


@pytest.mark.parametrize(
    ("value", "spread", "text"),
    [
        (92.51, 11.6, "93 ± 12"),
        (0.12345, 0.0123, "0.12 ± 0.01"),
        (1.0, 0.5, "1.0 ± 0.5"),
        (92.5, 0.0, "92.5"),
        (1234.6, 0.0, "1235"),
        (0.00012345, 0.0, "0.000123"),
        (-3.14159, 0.0, "-3.14"),
    ],
)
def test_figures_are_rounded_to_their_spread(value, spread, text):
    assert value_with_spread(value, spread) == text


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        ((80.9, 104.1), "80.9 to 104"),
        ((None, 0.5), "at most 0.5"),
        ((0.99, None), "at least 0.99"),
        ((10, 10), "exactly 10"),
    ],
)
def test_intervals_in_words(interval, text):
    assert interval_text(interval) == text


def test_the_table_has_one_row_for_each_claim():
    card = Scorecard("chapter", "paper")
    card.claim("count", [90, 100], **fields())
    lines = card._repr_markdown_().splitlines()
    assert len(lines) == 3
    assert lines[2] == "| `count` | 92.5 ± 11.6 | 80.9 to 104 | 95 ± 7 | 2 | reproduced |"
    assert repr(card) == "\n".join(lines)
