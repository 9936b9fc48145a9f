"""Verdicts against cases worked out on paper, and registrations that are refused by file, claim and field."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel, ValidationError

from descent.repro.claims import Claim, registered_claims
from descent.repro.estimates import Estimate
from descent.repro.scorecard import Scorecard
from descent.repro.tables import estimate_text, interval_text, number_text


def claim(**changes: Any) -> Claim:
    fields = dict(
        id="chapter.count", kind="replication", cite="baker2022gradientsvd", source="92.5 ± 11.6", unit="training run",
        sentence="On 400 steps, 92.5 values lie above a tenth", accepted=(80.9, 104.1), null="Gaussian rows",
        accepted_from="the source's mean and deviation", judged_at={"quick": None, "paper": None},
    )  # fmt: skip
    return Claim(**{**fields, **changes})


def verdict(given: Claim, values: Any, null: Any = 1e6, preset: str = "paper") -> str:
    nulls = {} if null is None else {"null": given.measure(null)}
    return given.verdict(preset, given.measure(values), nulls)[0]


# the interval of five values m - 1, m - 1/2, m, m + 1/2, m + 1 is m ± 0.98, by t(0.975; 4) = 2.776 and s = 0.79
def five(mean: float) -> list[float]:
    return [mean - 1, mean - 0.5, mean, mean + 0.5, mean + 1]


@pytest.mark.parametrize(
    ("mean", "said"),
    [
        (92, "reproduced"),
        (81.9, "reproduced"),  # 80.92 to 82.88
        (81.8, "inconclusive"),  # 80.82 to 82.78: the mean lies inside, the interval does not
        (80.0, "inconclusive"),
        (79.9, "not reproduced"),  # up to 80.88
        (103.1, "reproduced"),
        (103.2, "inconclusive"),
        (105.1, "not reproduced"),
    ],
)
def test_the_whole_interval_decides(mean: float, said: str) -> None:
    assert verdict(claim(), five(mean)) == said
    words = {"reproduced": "supported", "not reproduced": "not supported"}
    assert verdict(claim(kind="finding"), five(mean)) == words.get(said, said)


@pytest.mark.parametrize(("accepted", "said"), [((None, 93), "reproduced"), ((93, None), "not reproduced")])
def test_an_open_end_does_not_count(accepted: tuple[float | None, float | None], said: str) -> None:
    assert verdict(claim(accepted=accepted), five(92)) == said


def test_a_claim_that_its_null_passes_is_not_distinguished() -> None:
    assert verdict(claim(), five(92), null=five(100)) == "not distinguished"
    assert verdict(claim(), five(92), null=[100, 500, 100, 500, 100]) == "reproduced"  # its mean is 260
    assert verdict(claim(), five(92), null=[-300, 480, 92]) == "not distinguished"  # a mean inside, however wide
    assert verdict(claim(), five(92), null=90.0) == "not distinguished"
    assert verdict(claim(), five(60), null=five(100)) == "not reproduced"


def test_a_null_that_is_registered_and_not_measured_leaves_it_open() -> None:
    judged = claim().verdict("paper", claim().measure(five(92)), {})
    assert judged == ("inconclusive", "the null that is registered was not measured in this run")


def test_any_of_several_nulls_may_win() -> None:
    nulls = {"Gaussian": claim().measure(five(400)), "shuffled": claim().measure(five(92))}
    assert claim().verdict("paper", claim().measure(five(92)), nulls)[1] == "the null (shuffled) lies inside, too"


def test_one_value_only_indicates() -> None:
    assert verdict(claim(), 92.0) == "indicated"
    assert verdict(claim(), 10.0) == "not indicated"
    assert verdict(claim(), 92.0, null=93.0) == "not distinguished"


@pytest.mark.promise("R14")
def test_few_units_at_paper_only_indicate_and_so_does_a_claim_that_says_so() -> None:
    four = [91.9, 92.0, 92.0, 92.1]
    assert verdict(claim(), four) == "indicated"
    assert verdict(claim(), four, preset="quick") == "reproduced"
    assert verdict(claim(), [x - 80 for x in four]) == "not indicated"
    assert verdict(claim(single=True), five(92)) == "indicated"


def test_a_check_holds_where_every_value_does() -> None:
    check = claim(kind="check", null="", accepted=(10, 10))
    assert verdict(check, [10, 10, 10], None) == "holds"
    assert verdict(check, [10, 10, 11], None) == "fails"
    assert verdict(claim(kind="check", accepted=(0, 10)), [0, 4, 10.1], None) == "fails"


def test_a_share_of_six_of_six_is_judged_by_wilsons_interval() -> None:
    # 61 % to 100 %
    assert verdict(claim(statistic="share", accepted=(0.6, None)), [1] * 6, null=[0] * 6) == "reproduced"
    assert verdict(claim(statistic="share", accepted=(0.62, None)), [1] * 6, null=[0] * 6) == "inconclusive"


def test_nested_units_are_not_counted_as_independent() -> None:
    groups = [np.full(50, value) for value in (78.0, 88.0, 92.0, 96.0, 106.0)]
    assert verdict(claim(accepted=(88, 96)), groups) == "inconclusive"
    assert verdict(claim(accepted=(88, 96)), np.concatenate(groups)) == "reproduced"


def test_a_claim_of_absence_is_judged_by_two_one_sided_tests() -> None:
    absence = claim(accepted=(-1, 1), smallest_effect="a count of one")
    assert absence.level == 0.9
    # five(0.2): 90 % interval 0.2 ± 0.754, 95 % interval 0.2 ± 0.982
    assert verdict(absence, five(0.2)) == "reproduced"
    assert verdict(claim(accepted=(-1, 1)), five(0.2)) == "inconclusive"


def test_an_equivalence_test_at_its_margin_is_wrong_in_five_of_a_hundred_cases() -> None:
    absence = claim(accepted=(-1, 1), smallest_effect="a difference of one")
    generator = np.random.default_rng(0)
    cases = generator.normal(1.0, 0.3, size=(10_000, 10))  # the true difference is the margin
    wrong = np.mean([absence.verdict("paper", absence.measure(x), {"n": absence.measure(9.0)})[0] == "reproduced"
                     for x in cases])  # fmt: skip
    assert abs(wrong - 0.05) < 4 * np.sqrt(0.05 * 0.95 / 10_000)


def test_a_claim_of_another_preset_is_not_judged_whatever_is_measured() -> None:
    assert verdict(claim(judged_at={"paper": None}), five(92), preset="quick") == "not judged at this preset"
    assert claim().verdict("custom", None, {})[0] == "not judged at this preset"


def test_a_preset_may_have_a_region_of_its_own() -> None:
    own = claim(judged_at={"quick": {"accepted": (0, 10), "from": "half as many rows"}, "paper": None})
    assert (own.region("quick"), own.region("paper")) == ((0, 10), (80.9, 104.1))
    assert verdict(own, five(5), preset="quick") == "reproduced"
    assert own.region_from("quick") == "half as many rows"


def test_what_cannot_be_tested_here_says_why() -> None:
    untestable = claim(null="", not_testable="the source used 8,192 images a batch; a GPU would be needed")
    assert untestable.verdict("paper", None, {})[0] == "not testable here"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"accepted": (None, None)}, "a region open at both ends cannot be missed"),
        ({"accepted": (2, 1)}, "expected the lower bound first"),
        ({"accepted": (float("nan"), 1)}, "finite"),
        ({"judged_at": {"quick": {"accepted": (None, None), "from": "words"}}}, "open at both ends"),
        ({"accepted": (0, None), "smallest_effect": "one"}, "a claim of absence needs both bounds"),
        ({"id": "count"}, "String should match pattern"),
        ({"cite": ""}, "a replication names its source"),
        ({"null": ""}, "a replication names the control that could win"),
        ({"null": "", "kind": "finding"}, "a finding names the control that could win"),
        ({"unit": ""}, "at least 3 characters"),
        ({"kind": "guess"}, "Input should be 'replication', 'finding' or 'check'"),
        ({"extra": 1}, "Extra inputs are not permitted"),
    ],
)
def test_a_claim_that_could_not_be_false_or_found_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        claim(**changes)


REGISTERED = """count:
  kind: replication
  cite: baker2022
  sentence: Some 90 values lie above a tenth
  source: "92.5"
  unit: training run
  accepted: [80, 104]
  from: the source's deviation
  null: Gaussian rows
  judged_at: {quick: , paper: }
  amended: [{date: 2026-11-26, reason: the mean alone decided before}]
later:
  kind: check
  sentence: Values that fall as 1/n
  source: algebra
  unit: length of the series
  accepted: [10, 10]
  from: by algebra
  judged_at: {paper: }
"""


class Settings(BaseModel):
    preset: str = "quick"
    seed: int = 0
    epochs: int = 2
    sizes: list[int] = [1, 2]
    results_dir: str = ""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for file, text in {
        "claims/chapter.yml": REGISTERED,
        "presets/quick/chapter.yml": "preset: quick\nseed: 0\nepochs: 2\nsizes: [1, 2]\n",
        "presets/paper/chapter.yml": "preset: paper\nepochs: 20\n",
    }.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
    return tmp_path


def test_a_registration_is_read_in_its_order_with_its_history(folder: Path) -> None:
    found = registered_claims("chapter", folder / "claims")
    assert list(found) == ["count", "later"]
    assert found["count"].null == "Gaussian rows"  # `null` as a name is no null of YAML
    assert str(found["count"].amended[0].date) == "2026-11-26"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("unit: training run", "unit: 3", r"chapter\.yml: count: unit: Input should be a valid string"),
        ("  from: by algebra\n", "", r"chapter\.yml: later: from: Field required"),
        ("  from: by algebra\n", "  frm: by algebra\n", r"chapter\.yml: later: from: Field required"),
        ("later:", "count:", r"chapter\.yml: cannot be read: 'count' stands there twice"),
        (
            "  unit: training run\n",
            "  unit: training run\n  unit: seed\n",
            r"chapter\.yml: .*'unit' stands there twice",
        ),
        ("  unit: training run\n", "  <<: {unit: seed}\n", r"chapter\.yml: .*merge keys \(<<\) are not read"),
        ("  unit: training run\n", "  unit: training run\n  id: other.thing\n", "chapter.yml: count: id: the ch"),
        ("2026-11-26", "2026-02-30", r"chapter\.yml: cannot be read: day is out of range"),
        ("count:\n", "count: 3\nother:\n", r"chapter\.yml: count: "),
        (REGISTERED, "[1, 2]", r"chapter\.yml: expected lines `name: value`"),
        (
            "date: 2026-11-26",
            "date: 0",
            r"chapter\.yml: count: amended\.0\.date: .*expected a date, such as 2026-01-31",
        ),
        ("[80, 104]", "[no, yes]", r"chapter\.yml: count: accepted: .*expected two numbers in brackets"),
        ("[80, 104]", "!!set {80, 104}", r"chapter\.yml: count: accepted: .*expected two numbers in brackets"),
        (REGISTERED, "a: [", r"chapter\.yml: cannot be read"),
        ("date: 2026-11-26", "date: lately", r"chapter\.yml: count: amended\.0\.date: Input should be a valid date"),
    ],
)
def test_a_registration_is_refused_by_file_claim_and_field(folder: Path, old: str, new: str, said: str) -> None:
    file = folder / "claims" / "chapter.yml"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(ValueError, match=said):
        registered_claims("chapter", folder / "claims")


def test_a_chapter_without_a_registration_is_refused_by_the_files_name(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"other\.yml: no such file can be read"):
        registered_claims("other", folder / "claims")


def test_a_scorecard_keeps_the_order_of_the_registration_and_writes_plain_json(folder: Path) -> None:
    card = Scorecard("chapter", Settings(), folder=folder)
    card.judge("later", [10, 11])
    card.judge("count", five(92), null=five(400))
    card.save(folder / "results")
    saved = json.loads((folder / "results" / "claims.json").read_text())
    assert saved == card.as_dict()
    assert [(each["id"], each["verdict"]) for each in saved["claims"]] == [
        ("chapter.count", "reproduced"),
        ("chapter.later", "not judged at this preset"),
    ]
    assert set(saved["claims"][0]) == {"id", "preset", "measured", "nulls", "verdict"}
    assert Estimate(**saved["claims"][0]["nulls"]["null"]).value == 400


def test_an_empty_folder_means_do_not_keep(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "here").mkdir()
    monkeypatch.chdir(folder / "here")
    card = Scorecard("chapter", Settings(), folder=folder)
    card.judge("count", 90, null=1)
    card.save("")
    assert list((folder / "here").iterdir()) == []


def test_a_cell_that_judges_may_run_again(folder: Path) -> None:
    card = Scorecard("chapter", Settings(), folder=folder)
    card.judge("count", 10, null=1)
    card.judge("count", 90, null=1)
    assert [each.verdict for each in card.judged()] == ["indicated", "not judged at this preset"]


def test_a_claim_that_was_forgotten_or_is_not_registered_is_refused(folder: Path) -> None:
    card = Scorecard("chapter", Settings(), folder=folder)
    with pytest.raises(ValueError, match="chapter: registered for preset quick and not judged: count"):
        card.save(folder)
    with pytest.raises(ValueError, match="claim 'counts' is not registered; expected one of count, later"):
        card.judge("counts", 1)
    with pytest.raises(ValueError, match="claim 'count': expected one of none"):
        card.only("count")


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], float("inf")])
def test_values_that_are_no_numbers_are_refused_by_the_claims_name(folder: Path, values: Any) -> None:
    card = Scorecard("chapter", Settings(), folder=folder)
    with pytest.raises(ValueError, match=r"chapter\.count: values=.*: expected finite numbers"):
        card.judge("count", values, null=1)
    with pytest.raises(ValueError, match=r"chapter\.count: values=.*: expected finite numbers"):
        card.judge("count", 90, null=values)
    assert card.claims == {}


def test_a_parameter_that_was_changed_after_the_settings_is_noticed(folder: Path) -> None:
    parameters = {"preset": "quick", "seed": 0, "epochs": 2, "sizes": (1, 2), "other": 1}
    card = Scorecard("chapter", Settings(), parameters, folder)
    card.judge("count", 90, null=1)
    parameters["epochs"] = 3
    for action in (lambda: card.judge("count", 90, null=1), lambda: card.save("")):
        with pytest.raises(
            ValueError, match="epochs=3 was changed after `settings` took 2; run the cell of `settings` and every cell"
        ):
            action()


@pytest.mark.parametrize("changed", [{"epochs": 3}, {"sizes": (1,)}, {"seed": 1}, {"preset": "paper", "epochs": 20}])
def test_a_preset_does_not_judge_what_another_was_run_for_in_one_notebook(
    folder: Path, changed: dict[str, Any]
) -> None:
    """The parameters are set back and `settings` runs again: values of the run before still have their names."""
    usual = {"preset": "quick", "seed": 0, "epochs": 2, "sizes": (1, 2), "results_dir": ""}
    cells: dict[str, Any] = {**usual, **changed}
    cells["card"] = Scorecard("chapter", Settings(**cells), cells, folder)
    cells |= usual
    (name, was), *_ = ((name, value) for name, value in changed.items())
    sentence = (
        rf"{name} was {re.escape(repr(was))} in this notebook and is {re.escape(repr(usual[name]))} now: .*restart"
    )
    with pytest.raises(ValueError, match=sentence):
        Scorecard("chapter", Settings(**usual), cells, folder)
    with pytest.raises(ValueError, match=r"was changed after `settings` took .*; run the cell of `settings` and every"):
        cells["card"].judge("count", five(92), null=1)
    cells["epochs"] = 7  # no preset's: nothing is judged, so that a reader may go on trying values
    assert Scorecard("chapter", Settings(epochs=7), cells, folder).preset == "custom"
    assert Scorecard("chapter", Settings(**usual), usual, folder).preset == "quick", "another namespace"


def test_the_settings_may_run_twice_and_results_go_elsewhere(folder: Path, tmp_path: Path) -> None:
    cells: dict[str, Any] = {"preset": "quick", "seed": 0, "epochs": 2, "sizes": (1, 2), "results_dir": ""}
    for place in ("", "", str(tmp_path / "r")):
        cells["results_dir"] = place
        cells["card"] = Scorecard("chapter", Settings(**cells), cells, folder)
        assert cells["card"].preset == "quick"


@pytest.mark.parametrize("preset", ["quick/", "./quick", "../quick", "a/../quick", ""])
def test_a_path_is_no_preset(folder: Path, preset: str) -> None:
    card = Scorecard("chapter", Settings(preset=preset), folder=folder)
    assert (card.preset, card.changed) == ("custom", [f"there is no preset {preset!r}"])


@pytest.mark.parametrize("changed", [{"epochs": 3}, {"sizes": [1]}, {"preset": "paper"}, {"preset": "mine"}])
def test_one_value_that_is_not_the_presets_makes_it_custom(folder: Path, changed: dict[str, Any]) -> None:
    card = Scorecard("chapter", Settings(**changed), folder=folder)
    assert card.preset == "custom"
    card.judge("count", five(92), null=1)
    assert card.claims["count"].verdict == "not judged at this preset"
    assert repr(card).startswith("Preset `custom`: ")


@pytest.mark.parametrize("given", [{}, {"seed": 7}, {"results_dir": "x"}, {"preset": "paper", "epochs": 20}])
def test_a_preset_with_its_own_values_keeps_its_name(folder: Path, given: dict[str, Any]) -> None:
    card = Scorecard("chapter", Settings(**given), folder=folder)
    assert card.preset == given.get("preset", "quick")


def test_the_table_says_what_was_measured_and_accepted(folder: Path) -> None:
    card = Scorecard("chapter", Settings(), folder=folder)
    card.judge("count", five(92), null={"Gaussian": five(400), "shuffled": 401.0})
    lines = card._repr_markdown_().splitlines()
    assert (
        lines[2]
        == "| `count` | reproduced | 92.0 (91.0 to 93.0) | 80 to 104 | Gaussian 400.0 (399.0 to 401.0); shuffled 401 |"
    )
    assert repr(card.only("count")) == "\n".join(lines[:3])


@pytest.mark.parametrize(
    ("value", "spread", "text"),
    [
        (92.51, 23.2, "93"),
        (0.12345, 0.0123, "0.123"),
        (1.0, 0.5, "1.00"),
        (92.5, 0.0, "92.5"),
        (1234.6, 0.0, "1235"),
        (0.00012345, 0.0, "0.000123"),
        (-3.14159, 0.0, "-3.14"),
    ],
)
def test_numbers_are_rounded_to_their_spread(value: float, spread: float, text: str) -> None:
    assert number_text(value, spread) == text


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        ((80.9, 104.1), "80.9 to 104.1"),
        ((None, 0.5), "at most 0.5"),
        ((0.99, None), "at least 0.99"),
        ((10, 10), "exactly 10"),
        ((-1e-7, 0), "-1e-07 to 0"),
    ],
)
def test_regions_in_words(interval: tuple[float | None, float | None], text: str) -> None:
    assert interval_text(interval) == text


def test_an_estimate_in_words() -> None:
    assert estimate_text(None) == "-"
    assert estimate_text(Estimate(value=3, low=None, high=None, units=1, level=0.95)) == "3"


@pytest.mark.parametrize("accepted", [(1, None), (1, 1), (None, 0)])
def test_a_share_that_no_interval_could_confirm_is_refused(accepted: tuple[float | None, float | None]) -> None:
    with pytest.raises(ValidationError, match="no interval of a share lies there, whatever is measured"):
        claim(statistic="share", accepted=accepted)


@pytest.mark.parametrize("judged_at", [{}, {"custom": None}])
def test_a_claim_is_judged_at_some_preset(judged_at: dict[str, None]) -> None:
    with pytest.raises(ValidationError, match="expected presets, at least one; only a check holds at `custom`"):
        claim(judged_at=judged_at)


def test_too_few_units_for_a_share_are_said_to_be_too_few() -> None:
    given = claim(statistic="share", accepted=(0.8, None))
    found = given.verdict("paper", given.measure([1] * 6), {"null": given.measure([0] * 6)})
    assert found == ("inconclusive", "6 units are too few: all of them would give 0.61 to 1")
    assert verdict(given, [1] * 16, [0] * 16) == "reproduced"


def test_an_interval_goes_no_farther_than_what_is_possible() -> None:
    values, narrow = [1.0, 0.97, 1.0, 0.99, 1.0, 1.0], {"accepted": (0.95, 1), "null": "another"}
    assert verdict(claim(**narrow), values, 0) == "inconclusive"  # to 1.006
    assert verdict(claim(**narrow, possible=(0, 1)), values, 0) == "reproduced"


def test_a_refused_judgement_leaves_no_verdict_of_earlier_values(folder: Path) -> None:
    card = Scorecard("chapter", Settings(), folder=folder)
    card.judge("count", five(92), null=five(400))
    for values in ([90, float("nan")], {1: 2}.values(), [10**400]):
        with pytest.raises(ValueError, match=r"chapter\.count: values="):
            card.judge("count", values, null=five(400))
        with pytest.raises(ValueError, match="registered for preset quick and not judged: count"):
            card.save(folder / "results")


def test_a_reading_says_what_is_accepted(folder: Path) -> None:
    card = Scorecard("chapter", Settings(), folder=folder)
    card.judge("count", five(92), null=five(400))
    assert card.verdict("count") == "`count`: 92.0 (91.0 to 93.0), accepted 80 to 104, *reproduced*"
    with pytest.raises(ValueError, match="claim 'later': expected one of count"):
        card.verdict("later")


def test_a_preset_is_compared_as_the_settings_take_it(folder: Path) -> None:
    class Rates(Settings):
        rate: float = 0.001

    preset = folder / "presets/quick/chapter.yml"
    preset.write_text(preset.read_text() + "rate: 1e-3\n")  # a text in YAML 1.1
    assert Scorecard("chapter", Rates(), folder=folder).preset == "quick"
    preset.write_text(preset.read_text() + "epoch: 2\n")
    with pytest.raises(ValueError, match="presets of chapter: 'epoch' is no parameter; expected some of preset"):
        Scorecard("chapter", Rates(), folder=folder)


def test_parameters_that_the_settings_convert_are_not_called_changed(folder: Path) -> None:
    parameters = {"epochs": "2", "sizes": np.array([1, 2]), "seed": 0}
    settings = Settings(epochs="2", sizes=[1, 2])
    card = Scorecard("chapter", settings, parameters, folder=folder)
    card.judge("count", five(92), null=five(400))
    parameters["sizes"][0] = 5
    with pytest.raises(ValueError, match=r"sizes=array\(\[5, 2\]\) was changed after `settings` took array"):
        card.judge("count", five(92), null=five(400))
