"""The scorecard of one chapter: each registered claim judged by one line, and kept."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from descent.checkout import chapter_file
from descent.repro.claims import JudgedClaim, read_mapping, registered_claims
from descent.repro.files import check_writable, write_json
from descent.repro.records import open_chapter
from descent.repro.tables import estimate_text, interval_text, markdown_table, nulls_text

PLACES = ("results_dir", "figures_dir", "scheduler", "published")
FREE = ("preset", "seed", *PLACES)  # parameters that make no preset another


class Scorecard:
    """The claims of one chapter at one preset. In a notebook it shows itself as a table.

    Args:
        chapter: its name; its claims are registered in `notebooks/claims/<chapter>.yml`.
        settings: the chapter's parameters, with a field `preset`.
        parameters: where the notebook holds them, `globals()`; one that is changed after `settings` is noticed.
        folder: that holds `claims/` and `presets/`; None for the checkout's, or what was installed with the library.

    Attributes:
        preset: the preset's name; `custom` where one value is not the preset's, other than the seed and where to write.
        claims: what was judged, by name.

    Raises:
        ValueError: the chapter has no claims registered, or they are refused; or nothing can be written where
            `results_dir` or `figures_dir` says; or `parameters` hold a scorecard that took other ones, so that what was
            measured with those could be judged at this preset.
    """

    def __init__(
        self,
        chapter: str,
        settings: BaseModel,
        parameters: Mapping[str, Any] | None = None,
        folder: str | Path | None = None,
    ) -> None:
        self.chapter, self.settings, self.parameters = chapter, settings, parameters or {}
        self.registered = registered_claims(chapter, Path(folder) / "claims" if folder else None)
        self.changed = _changed(chapter, settings, Path(folder) if folder else None)
        self.preset = "custom" if self.changed else str(settings.model_dump()["preset"])
        self.claims: dict[str, JudgedClaim] = {}
        fields = type(settings).model_fields
        self._taken = {name: copy.deepcopy(value) for name, value in self.parameters.items() if name in fields}
        self._refuse_measured_before()
        for name in ("results_dir", "figures_dir"):
            if given := getattr(settings, name, ""):
                check_writable(name, given)
        open_chapter(chapter)

    def judge(
        self, name: str, values: Any, null: Any = None, of: Callable[[NDArray[np.float64]], float] | None = None
    ) -> JudgedClaim:
        """The verdict on a registered claim; a cell that runs again judges it again.

        Args:
            name: of the claim.
            values: one number per unit, 0 or 1 for a share; for nested units one array per group.
            null: the same measured on the null; or a mapping from the name of each null to its values.
            of: a function of the joined rows of the groups, where the statistic is none of the registered ones.

        Raises:
            ValueError: no such claim is registered, a value is not finite, or a parameter was changed after `settings`.
        """
        self._refuse_changed()
        if name not in self.registered:
            raise ValueError(f"claim {name!r} is not registered; expected one of {', '.join(self.registered)}")
        claim = self.registered[name]
        self.claims.pop(name, None)  # a verdict of values that are refused now must not stay
        given = {} if null is None else dict(null) if isinstance(null, Mapping) else {"null": null}
        try:
            nulls = {str(kind): claim.measure(each, of) for kind, each in given.items()}
            measured = claim.measure(values, of)
        except (ValueError, TypeError, LookupError, ArithmeticError, RuntimeError) as error:
            raise ValueError(f"{claim.id}: {error}") from error
        self.claims[name] = JudgedClaim(claim=claim, preset=self.preset, measured=measured, nulls=nulls)
        return self.claims[name]

    def _refuse_measured_before(self) -> None:
        older = [
            each for each in self.parameters.values() if isinstance(each, Scorecard) and each.chapter == self.chapter
        ]
        for name, then in [pair for each in older if self.preset != "custom" for pair in each._taken.items()]:
            now = self.parameters.get(name)
            if name not in PLACES and repr(now) != repr(then):
                why = f"{name} was {then!r} in this notebook and is {now!r} now"
                raise ValueError(f"{why}: values of both may stand in it; restart the kernel and run every cell")

    def _refuse_changed(self) -> None:
        for name, then in self._taken.items():
            now = self.parameters.get(name, then)
            if repr(now) != repr(then):
                why = f"{name}={now!r} was changed after `settings` took {then!r}"
                raise ValueError(f"{why}; run the cell of `settings` and every cell below it")

    def verdict(self, name: str) -> str:
        """What was measured of a claim, what is accepted, and the verdict, as Markdown for a reading.

        Raises:
            ValueError: the claim was not judged.
        """
        (judged,) = self.only(name).claims
        if judged.verdict == "not judged at this preset":
            return f"`{name}`: *{judged.verdict}*"
        accepted = interval_text(judged.claim.region(judged.preset))
        return f"`{name}`: {estimate_text(judged.measured)}, accepted {accepted}, *{judged.verdict}*"

    def only(self, *names: str) -> ClaimsTable:
        """The rows of these claims, to be shown beside their figures.

        Raises:
            ValueError: one of them was not judged.
        """
        if bad := [name for name in names if name not in self.claims]:
            raise ValueError(f"claim {bad[0]!r}: expected one of {', '.join(self.claims) or 'none'}")
        return ClaimsTable([self.claims[name] for name in names])

    def judged(self) -> list[JudgedClaim]:
        """Every registered claim in the order of the file; those that this preset does not judge say so.

        Raises:
            ValueError: a claim that is registered for this preset was not judged.
        """
        missing = [
            name
            for name, claim in self.registered.items()
            if name not in self.claims and self.preset in claim.judged_at and not claim.not_testable
        ]
        if missing:
            raise ValueError(
                f"{self.chapter}: registered for preset {self.preset} and not judged: {', '.join(missing)}"
            )
        return [
            self.claims.get(name) or JudgedClaim(claim=claim, preset=self.preset)
            for name, claim in self.registered.items()
        ]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values: chapter, preset, claims."""
        return {"chapter": self.chapter, "preset": self.preset, "claims": [each.as_dict() for each in self.judged()]}

    def save(self, folder: str | Path) -> None:
        """Write `folder/claims.json`, atomically; if `folder` is empty, nothing is kept.

        Raises:
            ValueError: a claim was not judged, or a parameter was changed after `settings`.
        """
        self._refuse_changed()
        saved = self.as_dict()
        if str(folder):
            write_json(Path(folder) / "claims.json", saved)

    def __repr__(self) -> str:
        why = f"Preset `custom`: {'; '.join(self.changed)}.\n\n" if self.changed else ""
        return why + repr(ClaimsTable(self.judged()))

    _repr_markdown_ = __repr__


class ClaimsTable:
    """Judged claims as a table of name, verdict, what was measured, what is accepted, and the null."""

    def __init__(self, claims: Sequence[JudgedClaim]) -> None:
        self.claims = claims

    def __repr__(self) -> str:
        rows = [
            (
                f"`{each.claim.name}`",
                each.verdict,
                estimate_text(each.measured),
                interval_text(each.claim.region(each.preset)),
                nulls_text(each.nulls),
            )
            for each in self.claims
        ]
        return markdown_table(("claim", "verdict", "measured", "accepted", "null"), rows)

    _repr_markdown_ = __repr__


def _plain(value: Any) -> Any:
    """A parameter as JSON would have it, so that a list equals the tuple that was made of it."""
    return [_plain(each) for each in value] if isinstance(value, (list, tuple)) else value


def _changed(chapter: str, settings: BaseModel, folder: Path | None) -> list[str]:
    """What makes these settings another than the preset that they name: `epochs=3 is not the preset's 5`."""
    given = settings.model_dump(mode="json")
    places = {
        preset: folder / file if folder else chapter_file(file)
        for preset in dict.fromkeys(("quick", str(given["preset"])))
        for file in [f"presets/{preset}/{chapter}.yml"]
    }
    if missing := [preset for preset, place in places.items() if preset != Path(preset).name or not place.is_file()]:
        return [f"there is no preset {missing[0]!r}"]
    values = {name: value for place in places.values() for name, value in read_mapping(place).items()}
    if unknown := sorted(values.keys() - given.keys()):
        raise ValueError(f"presets of {chapter}: {unknown[0]!r} is no parameter; expected some of {', '.join(given)}")
    # as the settings take it: 1e-3 is a text in YAML
    values = type(settings)(**{**given, **values}).model_dump(mode="json")
    return [
        f"{name}={value!r} is not the preset's {values.get(name)!r}"
        for name, value in given.items()
        if name not in FREE and _plain(value) != _plain(values.get(name))
    ]
