"""What the audits need to know of a chapter, which stands beside it in `notebooks/audits/<chapter>.yml`."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from descent_book.run.chapter import Chapter, nearest_choice
from descent_book.run.scorecard import first_fault

# They say where to write, where to compute, or what the run is called; `test_parameters.py` checks what they do change.
RECORD_NOTHING = {
    "preset": "the name of the settings, which decides only which claims are judged",
    "results_dir": "where the record goes",
    "figures_dir": "where copies of the figures go",
    "published": "a file of other people, whose numbers are shown beside the run and not recorded",
    "recheck": "requests that are run again where a model's weights are there; a difference stops the chapter",
    "scheduler": "where the work is done; tests/house/test_scaling_out.py holds that the result is the same",
}


class AuditSettings(BaseModel, extra="forbid", frozen=True):
    """How a chapter is audited.

    Attributes:
        small: the cheapest settings at which the chapter still measures everything.
        other: one other value for every parameter that changes what the chapter records.
        together: what has to change with a parameter, in the run at `small` too.
        code_cells: how many the chapter may have at most, the cell of imports apart.
    """

    small: dict[str, Any]
    other: dict[str, Any]
    together: dict[str, dict[str, Any]] = {}
    code_cells: int = 26

    def with_parameter(self, parameter: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """The settings of two runs that differ in this parameter only."""
        base = {**self.small, **self.together.get(parameter, {})}
        return base, {**base, parameter: self.other[parameter]}


def audit_settings(chapter: Chapter) -> AuditSettings:
    """The chapter's own; each value in them is one that its `Settings` take.

    Raises:
        ValueError: the file is not there, or not YAML, or a name or a value in it is wrong; it names file and field.
    """
    path = chapter.root / "notebooks" / "audits" / f"{chapter.name}.yml"
    where = path.relative_to(chapter.root)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        settings = AuditSettings.model_validate(content)
    except FileNotFoundError as error:
        raise ValueError(f"{where}: not found; it holds the chapter's settings for audits: small, other") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{where}: not YAML: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        raise ValueError(f"{where}: {first_fault(error)}") from error
    _check("small", settings.small, chapter, where)
    _check("other", settings.other, chapter, where)
    for parameter, values in settings.together.items():
        _check("together", {parameter: settings.other.get(parameter), **values}, chapter, where)
    return settings


def _check(field: str, values: dict[str, Any], chapter: Chapter, where: Path) -> None:
    """Refuse names that the chapter does not have, and values that its `Settings` do not take one by one."""
    for name, value in values.items():
        if name not in chapter.defaults:
            raise ValueError(f"{where}: {field}.{name}: no such parameter{nearest_choice(name, chapter.defaults)}")
        try:
            chapter.settings(**{**chapter.defaults, name: value})
        except ValidationError as error:
            if first := next((each for each in error.errors() if each["loc"][:1] == (name,)), None):
                raise ValueError(f"{where}: {field}.{name}={value!r}: {first['msg']}") from error
