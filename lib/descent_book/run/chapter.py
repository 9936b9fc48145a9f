"""A chapter's notebook, parsed once: its parameters, their limits and meanings, its presets and its key.

Nothing of the notebook is executed but the class definitions of its `settings` cell.
"""

from __future__ import annotations

import ast
import difflib
import json
import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import BaseModel, ValidationError

from descent_book.run.keys import Key, counted_sources, key_of
from descent_book.run.notebook import tags
from descent_book.run.project import NEUTRAL_PARAMETERS, RefusedError, notebook_path

DEFAULT_PRESET = "quick"
# Parameters that mean the same in all chapters; a chapter's own table may say more of one of them.
COMMON = {
    "preset": "the name printed beside every result; it decides which claims are judged",
    "seed": "the one integer from which all randomness of the chapter follows",
    "results_dir": "a folder for the record of the measurements and the judged claims; empty for none",
    "figures_dir": "a folder in which each figure is also kept as PNG, SVG and PDF; empty for none",
}
_NAMES = re.compile(r"`(\w+)`")
_BAR = re.compile(r"(?<!\\)\|")  # between two cells of a table
_KINDS = {"integer": "integer", "number": "number", "string": "text", "boolean": "true or false"}


class Parameter(NamedTuple):
    """One parameter, every field as text; `values` has one for each preset, `quick` first, then by name."""

    name: str
    meaning: str
    accepted: str
    values: dict[str, str]


class Chapter:
    """A chapter of the book.

    Attributes:
        root: the project's folder.
        name: of the chapter; its notebook is `notebooks/<name>.ipynb`.
        path: of the notebook.
        notebook: the notebook's JSON as it stands in the file.
        cells: the notebook's cells, each with its source as one string.
        code: those of the cells that hold code.
    """

    def __init__(self, root: Path, name: str, notebook: Mapping[str, Any]) -> None:
        self.root, self.name, self.path = root, name, notebook_path(root, name)
        self.notebook = notebook
        self.cells: list[dict[str, Any]] = [{**cell, "source": "".join(cell["source"])} for cell in notebook["cells"]]
        self.code = [cell for cell in self.cells if cell["cell_type"] == "code"]

    @classmethod
    def read(cls, root: Path, name: str) -> Chapter:
        """The chapter `name` of the project at `root`.

        Raises:
            RefusedError: the file is not a notebook.
        """
        path = notebook_path(root, name)
        try:
            return cls(root, name, json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RefusedError(f"{path.name}: not a readable notebook ({error})") from error

    def tagged(self, tag: str) -> str:
        """The source of the one cell with this tag, without lines of IPython magic.

        Raises:
            RefusedError: no cell, or more than one, has the tag.
        """
        sources = [cell["source"] for cell in self.cells if tag in tags(cell)]
        if len(sources) != 1:
            raise RefusedError(f"{self.path.name}: {len(sources)} cells are tagged {tag!r}; expected exactly one")
        return "\n".join(line for line in sources[0].splitlines() if not line.lstrip().startswith(("%", "!")))

    @cached_property
    def defaults(self) -> dict[str, Any]:
        """The parameters with their values at preset `quick`, in the order of the `parameters` cell.

        Raises:
            RefusedError: the cell holds something other than `name = literal`.
        """
        values = {}
        for node in ast.parse(self.tagged("parameters")).body:
            if not (isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name)):
                raise RefusedError(f"{self.path.name}, parameters, line {node.lineno}: expected `name = literal`")
            name = node.targets[0].id
            try:
                values[name] = ast.literal_eval(node.value)
            except ValueError as error:
                message = f"{self.path.name}: {name} is not a literal; nothing may be computed there"
                raise RefusedError(message) from error
        return values

    @cached_property
    def settings(self) -> type[BaseModel]:
        """The notebook's `Settings`: its class definitions, executed with only those imports that they use.

        Raises:
            RefusedError: the `settings` cell defines no pydantic model called `Settings`.
        """
        classes = [node for node in ast.parse(self.tagged("settings")).body if isinstance(node, ast.ClassDef)]
        used = {leaf.id for node in classes for leaf in ast.walk(node) if isinstance(leaf, ast.Name)}
        body: list[ast.stmt] = [*_imports(self.tagged("imports"), used), *classes]
        module = ast.fix_missing_locations(ast.Module(body=body, type_ignores=[]))
        namespace: dict[str, Any] = {"__name__": f"settings_of_{self.name}"}
        exec(compile(module, self.path.name, "exec", dont_inherit=True), namespace)
        model = namespace.get("Settings")
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            raise RefusedError(f"{self.path.name}: the settings cell defines no pydantic model called `Settings`")
        return model

    @cached_property
    def presets(self) -> list[str]:
        """The names of its presets: `quick`, its defaults, and each `notebooks/presets/<preset>/<chapter>.yml`."""
        files = (self.root / "notebooks" / "presets").glob(f"*/{self.name}.yml")
        return sorted({DEFAULT_PRESET, *(file.parent.name for file in files)})

    def preset_values(self, preset: str) -> dict[str, Any]:
        """The parameters that a preset sets.

        Raises:
            RefusedError: there is no such preset, or its file is not a flat mapping that names its own preset.
        """
        if preset not in self.presets:
            raise RefusedError(f"{self.name} has no preset {preset!r}{nearest_choice(preset, self.presets)}")
        file = self.root / "notebooks" / "presets" / preset / f"{self.name}.yml"
        if not file.is_file():
            return {"preset": preset}
        where = file.relative_to(self.root)
        try:
            values = yaml.safe_load(file.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise RefusedError(f"{where}: not YAML: {' '.join(str(error).split())}") from error
        if not isinstance(values, dict) or values.get("preset") != preset:
            raise RefusedError(f"{where}: expected `name: value` lines, one of them `preset: {preset}`")
        return values

    def resolve(self, preset: str, given: Mapping[str, str]) -> dict[str, Any]:
        """Every parameter: the defaults, then the preset's values, then those given; validated, with types mended.

        A parameter given on top of a preset makes the preset `custom`, unless it only says where to write or is the
        seed.

        Raises:
            RefusedError: a name that the notebook does not have, or a value that its `Settings` refuse.
        """
        chosen = self.preset_values(preset)
        self._refuse_unknown(chosen, f"presets/{preset}/{self.name}.yml")
        self._refuse_unknown(given, self.name)
        if "preset" in given:
            raise RefusedError(
                "preset is not a parameter to give with -p; use --preset NAME (make edition PRESET=NAME)"
            )
        changed = {name: _literal(text, self.defaults[name]) for name, text in given.items()}
        if set(changed) - {"seed", *NEUTRAL_PARAMETERS}:
            chosen["preset"] = "custom"
        merged = {**self.defaults, **chosen, **changed}
        try:
            return self.settings(**merged).model_dump(mode="json")
        except ValidationError as error:
            raise RefusedError(f"{self.name}: {_complaint(error, merged, self.defaults)}") from error

    def _refuse_unknown(self, names: Iterable[str], where: str) -> None:
        for name in names:
            if name not in self.defaults:
                raise RefusedError(f"{where}: no parameter {name!r}{nearest_choice(str(name), self.defaults)}")

    def key(self, parameters: Mapping[str, Any], library: Path) -> Key:
        """What a run with all these `parameters` depends on, where the package `descent` is in the folder `library`.

        Outputs, words, captions, and where to write or to compute do not count.

        Raises:
            RefusedError: the chapter's code asks the library for what it does not have.
        """
        counted = {name: value for name, value in parameters.items() if name not in NEUTRAL_PARAMETERS}
        try:
            return key_of(self.root, library, self.name, counted_sources(self.notebook), counted)
        except ValueError as error:
            raise RefusedError(f"{self.name}: {error}") from error

    @cached_property
    def meanings(self) -> dict[str, str]:
        """Parameter -> unit and reason, from the table under `| parameter`; a row may be of several and names them."""
        meanings = dict(COMMON)
        for cell in [cell for cell in self.cells if cell["cell_type"] == "markdown"]:
            lines = [line.strip().strip("|") for line in cell["source"].splitlines() if line.startswith("|")]
            rows = [[each.strip().replace(r"\|", "|") for each in _BAR.split(line)] for line in lines]
            if rows and rows[0][0] == "parameter":
                for first, meaning, *_ in rows[2:]:
                    names = _NAMES.findall(first)
                    meanings |= dict.fromkeys(names, f"{first}: {meaning}" if len(names) > 1 else meaning)
        return meanings

    def parameters(self) -> list[Parameter]:
        """The parameters in the order of the parameters cell; `meaning` is empty where no table has one.

        Raises:
            RefusedError: the notebook's declarations cannot be read, or a preset is refused.
        """
        limits = self.settings.model_json_schema()["properties"]
        presets = sorted(self.presets, key=lambda preset: (preset != DEFAULT_PRESET, preset))
        values = {preset: self.resolve(preset, {}) for preset in presets}
        return [
            Parameter(
                name,
                self.meanings.get(name, ""),
                accepted(limits[name]),
                {preset: _written(values[preset][name]) for preset in presets},
            )
            for name in self.defaults
        ]


def nearest_choice(name: str, choices: Iterable[str]) -> str:
    """`; the nearest valid one is 'epochs'. Valid: dataset, epochs` for an error message."""
    known = sorted(choices)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"; the nearest valid one is {close[0]!r}" if close else ""
    return f"{hint}. Valid: {', '.join(known) or 'none'}"


def _imports(source: str, used: set[str]) -> list[ast.stmt]:
    """The import statements of `source`, cut down to the names in `used`."""
    kept: list[ast.stmt] = []
    for node in ast.parse(source).body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            node.names = [name for name in node.names if (name.asname or name.name).split(".")[0] in used]
            if node.names:
                kept.append(node)
    return kept


def _literal(text: str, default: object) -> object:
    """A value given on the command line: a Python literal where it reads as one, else the text itself.

    Where the notebook's own value is text, it stays text.
    """
    if isinstance(default, str):
        return text
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _complaint(error: ValidationError, merged: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """The first thing that is wrong, with the parameter's name and the nearest value that would do."""
    first = error.errors()[0]
    own = first["type"] in ("value_error", "assertion_error")  # a sentence of the chapter's
    reason = first["msg"].partition(", ")[2] if own else f"{first['msg'][0].lower()}{first['msg'][1:]}"
    if not first["loc"]:
        return reason
    name = str(first["loc"][0])
    entry = f"entry {first['loc'][1] + 1}: " if len(first["loc"]) > 1 and isinstance(first["loc"][1], int) else ""
    message = f"{name}={merged.get(name)!r}: {entry}{reason}"
    context = first.get("ctx", {})
    bound = next((context[key] for key in ("ge", "le") if key in context), None)
    if bound is not None:
        return f"{message}; the nearest valid value is {bound!r}"
    if first["type"] == "literal_error":
        choices = [choice.strip("' ") for choice in str(context["expected"]).replace(" or ", ",").split(",")]
        return f"{message}{nearest_choice(str(first['input']), choices)}"
    return f"{message}; the notebook's own value is {defaults[name]!r}" if name in defaults else message


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


def _written(value: object) -> str:
    """A value as the chapter's parameters cell would have it; an empty text as nothing."""
    return f"`{value!r}`" if value != "" else ""
