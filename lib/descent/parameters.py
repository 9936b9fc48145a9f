"""Every parameter of a chapter in words: what its table says, what its `Settings` accept, what its presets give it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from descent.chapters import DEFAULT_PRESET, cells, defaults, presets, resolve, settings_class
from descent.project import notebook_path

# Parameters that mean the same in all chapters; a chapter's own table may say more of one of them.
COMMON = {
    "preset": "the name printed beside every result; it decides which claims are judged",
    "seed": "the one integer from which all randomness of the chapter follows",
    "results_dir": "a folder for the record of the measurements and the judged claims; empty for none",
    "figures_dir": "a folder in which each figure is also kept as PNG, SVG and PDF; empty for none",
}
_NAMES = re.compile(r"`(\w+)`")
_KINDS = {"integer": "integer", "number": "number", "string": "text", "boolean": "true or false"}


class Parameter(NamedTuple):
    """One parameter, every field as text; `values` has one for each preset, in the order of `presets`."""

    name: str
    meaning: str
    accepted: str
    values: dict[str, str]


def _rows(source: str) -> Iterator[list[str]]:
    """The cells of the rows of Markdown tables in a text."""
    for line in source.splitlines():
        if line.startswith("|"):
            yield [cell.strip() for cell in line.strip().strip("|").split("|")]


def meanings(notebook: Path) -> dict[str, str]:
    """Parameter -> unit and reason, from the table under `| parameter`; a row may name several, and then says so."""
    found = dict(COMMON)
    for cell in cells(notebook):
        rows = list(_rows(cell["source"])) if cell["cell_type"] == "markdown" else []
        if rows and rows[0][0] == "parameter":
            for first, meaning, *_ in rows[2:]:
                names = _NAMES.findall(first)
                found |= dict.fromkeys(names, f"{first}: {meaning}" if len(names) > 1 else meaning)
    return found


def accepted(schema: Mapping[str, Any]) -> str:
    """What a property of a JSON schema accepts: `integer, 1 to 20` or `list of 2, each number`."""
    if "anyOf" in schema:
        return " or ".join(accepted(each) for each in schema["anyOf"])
    if choices := schema.get("enum", [schema["const"]] if "const" in schema else []):
        return " or ".join(f"`{choice}`" for choice in choices)
    if schema["type"] == "array":
        return _list(schema)
    bounds = _bounds(schema)
    parts = [_KINDS[schema["type"]], *([bounds] if bounds else [])]
    if "multipleOf" in schema:
        parts.append(f"a multiple of {_number(schema['multipleOf'])}")
    if schema.get("minLength"):
        parts.append("not empty")
    return ", ".join(parts)


def _bounds(schema: Mapping[str, Any]) -> str:
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    if low is not None and high is not None:
        return f"{_number(low)} to {_number(high)}"
    words = {"at least": low, "above": above, "at most": high, "below": below}
    return " and ".join(f"{word} {_number(bound)}" for word, bound in words.items() if bound is not None)


def _number(value: float) -> str:
    return f"{int(value):,}" if value == int(value) else f"{value:g}"


def _list(schema: Mapping[str, Any]) -> str:
    fewest, most = schema.get("minItems", 0), schema.get("maxItems")
    count = f"{fewest}" if fewest == most else f"{fewest} or more" if most is None else f"{fewest} to {most}"
    if "prefixItems" in schema:
        return f"list of {count}: " + "; ".join(accepted(each) for each in schema["prefixItems"])
    return f"list of {count}, each {accepted(schema['items'])}"


def written(value: object) -> str:
    """A value as the chapter's parameters cell would have it; an empty text as nothing."""
    return f"`{value!r}`" if value != "" else ""


def documented(root: Path, chapter: str) -> list[Parameter]:
    """The parameters of a chapter, in the order of its parameters cell; `meaning` is empty where no table has one.

    Raises:
        RefusedError: the notebook's declarations cannot be read, or a preset is refused.
    """
    notebook = notebook_path(root, chapter)
    about, schema = meanings(notebook), settings_class(notebook).model_json_schema()
    limits = {name: _resolved(field, schema.get("$defs", {})) for name, field in schema["properties"].items()}
    names = sorted(presets(root, chapter), key=lambda name: (name != DEFAULT_PRESET, name))
    values = {preset: resolve(root, chapter, preset, {}) for preset in names}
    return [
        Parameter(name, about.get(name, ""), accepted(limits[name]), {p: written(v[name]) for p, v in values.items()})
        for name in defaults(notebook)
    ]


def _resolved(schema: Any, known: Mapping[str, Any]) -> Any:
    """A schema with its references to named definitions filled in."""
    if isinstance(schema, list):
        return [_resolved(each, known) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _resolved(known[schema["$ref"].rsplit("/", 1)[1]], known)
    return {key: _resolved(value, known) for key, value in schema.items()}
