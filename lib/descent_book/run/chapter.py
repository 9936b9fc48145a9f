"""What a chapter's notebook declares: parameters, their limits and meanings, its presets. It is not run for that."""

from __future__ import annotations

import ast
import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import BaseModel, ValidationError

from descent_book.run.keys import NOT_COUNTED, Key, key_of
from descent_book.run.project import NEUTRAL_PARAMETERS, notebook_path

DEFAULT_PRESET = "quick"


class RefusedError(ValueError):
    """A parameter, preset or chapter that does not exist or may not have this value."""


def nearest_choice(name: str, choices: Iterable[str]) -> str:
    """`; the nearest valid one is 'epochs'. Valid: dataset, epochs` for an error message."""
    known = sorted(choices)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"; the nearest valid one is {close[0]!r}" if close else ""
    return f"{hint}. Valid: {', '.join(known) or 'none'}"


def cells(notebook: Path) -> list[dict[str, Any]]:
    """The cells of a notebook, each with its source as one string.

    Raises:
        RefusedError: the file is not a notebook.
    """
    try:
        found: list[dict[str, Any]] = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError, KeyError) as error:
        raise RefusedError(f"{notebook.name}: not a readable notebook ({error})") from error
    return [{**cell, "source": "".join(cell["source"])} for cell in found]


def tagged(notebook: Path, tag: str) -> str:
    """The source of the one cell with this tag; lines of IPython magic are left out.

    Raises:
        RefusedError: no cell, or more than one, has the tag.
    """
    sources = [cell["source"] for cell in cells(notebook) if tag in cell["metadata"].get("tags", [])]
    if len(sources) != 1:
        raise RefusedError(f"{notebook.name}: {len(sources)} cells are tagged {tag!r}; expected exactly one")
    return "\n".join(line for line in sources[0].splitlines() if not line.lstrip().startswith(("%", "!")))


def defaults(notebook: Path) -> dict[str, Any]:
    """The parameters of a notebook with their values at preset `quick`.

    Raises:
        RefusedError: the `parameters` cell holds something other than `name = literal`.
    """
    values = {}
    for node in ast.parse(tagged(notebook, "parameters")).body:
        if not (isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name)):
            raise RefusedError(f"{notebook.name}, parameters, line {node.lineno}: expected `name = literal`")
        try:
            values[node.targets[0].id] = ast.literal_eval(node.value)
        except ValueError as error:
            message = f"{notebook.name}: {node.targets[0].id} is not a literal; nothing may be computed there"
            raise RefusedError(message) from error
    return values


def settings_class(notebook: Path) -> type[BaseModel]:
    """The notebook's `Settings`: its class definitions, run with only those imports that they use.

    Raises:
        RefusedError: the `settings` cell defines no pydantic model called `Settings`.
    """
    classes = [node for node in ast.parse(tagged(notebook, "settings")).body if isinstance(node, ast.ClassDef)]
    used = {leaf.id for node in classes for leaf in ast.walk(node) if isinstance(leaf, ast.Name)}
    body: list[ast.stmt] = [*_imports(tagged(notebook, "imports"), used), *classes]
    module = ast.fix_missing_locations(ast.Module(body=body, type_ignores=[]))
    namespace: dict[str, Any] = {"__name__": f"settings_of_{notebook.stem}"}
    exec(compile(module, notebook.name, "exec", dont_inherit=True), namespace)
    model = namespace.get("Settings")
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        raise RefusedError(f"{notebook.name}: the settings cell defines no pydantic model called `Settings`")
    return model


def _imports(source: str, used: set[str]) -> list[ast.stmt]:
    """The import statements of `source`, cut down to the names in `used`."""
    kept: list[ast.stmt] = []
    for node in ast.parse(source).body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            node.names = [name for name in node.names if (name.asname or name.name).split(".")[0] in used]
            if node.names:
                kept.append(node)
    return kept


def presets(root: Path, chapter: str) -> list[str]:
    """The presets of a chapter: `quick`, its defaults, and each `notebooks/presets/<name>/<chapter>.yml`."""
    files = (root / "notebooks" / "presets").glob(f"*/{chapter}.yml")
    return sorted({DEFAULT_PRESET, *(file.parent.name for file in files)})


def preset_values(root: Path, chapter: str, preset: str) -> dict[str, Any]:
    """The parameters that a preset sets.

    Raises:
        RefusedError: the chapter has no such preset, or the file is not a flat mapping that names its own preset.
    """
    if preset not in (known := presets(root, chapter)):
        raise RefusedError(f"{chapter} has no preset {preset!r}{nearest_choice(preset, known)}")
    file = root / "notebooks" / "presets" / preset / f"{chapter}.yml"
    if not file.is_file():
        return {"preset": preset}
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise RefusedError(f"{file.relative_to(root)}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict) or values.get("preset") != preset:
        raise RefusedError(f"{file.relative_to(root)}: expected `name: value` lines, one of them `preset: {preset}`")
    return values


def literal(text: str, default: object) -> object:
    """A value given on the command line: a Python literal where it reads as one, else the text itself.

    Where the notebook's own value is text, it stays text.
    """
    if isinstance(default, str):
        return text
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def resolve(root: Path, chapter: str, preset: str, given: Mapping[str, str]) -> dict[str, Any]:
    """Every parameter of a chapter: its defaults, then the preset's, then those given; validated, with types mended.

    A parameter given on top of a preset makes the preset `custom`, unless it only says where to write or is the seed.

    Raises:
        RefusedError: a name that the notebook does not have, or a value that its `Settings` refuse.
    """
    notebook = notebook_path(root, chapter)
    values = defaults(notebook)
    chosen = preset_values(root, chapter, preset)
    _refuse_unknown(chosen, values, f"presets/{preset}/{chapter}.yml")
    _refuse_unknown(given, values, chapter)
    if "preset" in given:
        raise RefusedError("preset is not a parameter to give with -p; use --preset NAME (make edition PRESET=NAME)")
    changed = {name: literal(text, values[name]) for name, text in given.items()}
    if set(changed) - {"seed", *NEUTRAL_PARAMETERS}:
        chosen["preset"] = "custom"
    merged = {**values, **chosen, **changed}
    try:
        return settings_class(notebook)(**merged).model_dump(mode="json")
    except ValidationError as error:
        raise RefusedError(f"{chapter}: {_complaint(error, merged, values)}") from error


def _refuse_unknown(names: Iterable[str], known: Mapping[str, Any], where: str) -> None:
    for name in names:
        if name not in known:
            raise RefusedError(f"{where}: no parameter {name!r}{nearest_choice(str(name), known)}")


def _complaint(error: ValidationError, merged: Mapping[str, Any], values: Mapping[str, Any]) -> str:
    """The first thing that is wrong, with the parameter's name and the nearest value that would do."""
    first = error.errors()[0]
    reason = f"{first['msg'][0].lower()}{first['msg'][1:]}"
    if not first["loc"]:
        return reason
    name = str(first["loc"][0])
    message = f"{name}={merged.get(name)!r}: {reason}"
    context = first.get("ctx", {})
    bound = next((context[key] for key in ("ge", "le") if key in context), None)
    if bound is not None:
        return f"{message}; the nearest valid value is {bound!r}"
    if first["type"] == "literal_error":
        choices = [choice.strip("' ") for choice in str(context["expected"]).replace(" or ", ",").split(",")]
        return f"{message}{nearest_choice(str(first['input']), choices)}"
    return f"{message}; the notebook's own value is {values[name]!r}" if name in values else message


def chapter_key(root: Path, chapter: str, parameters: Mapping[str, Any], library: Path) -> Key:
    """What a run of the chapter depends on; outputs, words, captions, and where to write or to compute do not count.

    Raises:
        RefusedError: its code asks the library for what it does not have.
    """
    counted = {name: value for name, value in parameters.items() if name not in NEUTRAL_PARAMETERS}
    sources = [
        cell["source"]
        for cell in cells(notebook_path(root, chapter))
        if cell["cell_type"] == "code" and not set(cell["metadata"].get("tags", [])) & set(NOT_COUNTED)
    ]
    try:
        return key_of(root, library, chapter, sources, counted)
    except ValueError as error:
        raise RefusedError(f"{chapter}: {error}") from error


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


def documented_parameters(root: Path, chapter: str) -> list[Parameter]:
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
