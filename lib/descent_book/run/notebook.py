"""What a notebook's source and its executed copy lend each other: outputs one way, words the other."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from descent_book.run.agreement import processor

INJECTED = "injected-parameters"


def _tags(cell: Mapping[str, Any]) -> list[str]:
    found: list[str] = cell["metadata"].get("tags", [])
    return found


def _code(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [cell for cell in cells if cell["cell_type"] == "code" and INJECTED not in _tags(cell)]


def code_sources(notebook: Mapping[str, Any]) -> list[str]:
    """The code that decides a notebook's outputs, without comments, less the cells that install and import."""
    counted = [cell for cell in _code(notebook["cells"]) if not {"setup", "imports"} & set(_tags(cell))]
    return [_without_comments("".join(cell["source"])) for cell in counted]


def _without_comments(source: str) -> str:
    try:
        return ast.dump(ast.parse(source))
    except SyntaxError:  # a line of IPython magic
        return source


def _digest(notebook: Mapping[str, Any]) -> str:
    noted = {name: value for name, value in notebook["metadata"].get("descent", {}).items() if name != "sha256"}
    bare = {**notebook, "metadata": {**notebook["metadata"], "descent": noted}}
    return hashlib.sha256(json.dumps(bare, sort_keys=True).encode()).hexdigest()


def seal(executed: dict[str, Any]) -> dict[str, Any]:
    """An executed notebook with the SHA-256 of all that it says, however it is laid out, among the runner's notes.

    One without such notes stays as it is.
    """
    if "descent" in executed["metadata"]:
        executed["metadata"]["descent"]["sha256"] = _digest(executed)
    return executed


def as_text(executed: Mapping[str, Any]) -> str:
    """A notebook's JSON as editors lay it out, but each figure's own JSON is one line, a third shorter."""
    lines: dict[str, str] = {}

    def in_one_line(value: Any) -> Any:
        if isinstance(value, str | list):  # text and pictures
            return value
        line = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        mark = hashlib.sha256(line.encode()).hexdigest()
        lines[mark] = line
        return mark

    def shorter(output: Mapping[str, Any]) -> dict[str, Any]:
        return {**output, "data": {kind: in_one_line(value) for kind, value in output.get("data", {}).items()}}

    cells = [
        {**cell, "outputs": [shorter(output) if "data" in output else output for output in cell["outputs"]]}
        if "outputs" in cell
        else cell
        for cell in executed["cells"]
    ]
    text = json.dumps({**executed, "cells": cells}, indent=1, ensure_ascii=False, allow_nan=False)
    for mark, line in lines.items():
        text = text.replace(f'"{mark}"', line)
    return text + "\n"


def read_executed(path: Path) -> dict[str, Any]:
    """An executed notebook, proven to say what the runner wrote.

    Raises:
        OSError: there is none.
        ValueError: it is damaged, not sealed by the runner, or no notebook.
    """
    remedy = f"make it again: make edition CHAPTER={path.stem} (for the quick edition, PRESET=quick) FORCE=1"
    try:
        notebook: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        expected, found = notebook["metadata"].get("descent", {}).get("sha256"), _digest(notebook)
        if not isinstance(notebook["cells"], list):
            raise TypeError("its cells are no list")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged, or no notebook ({error}); {remedy}") from error
    if expected != found:
        raise ValueError(f"{path} is damaged: SHA-256 {found}, expected {expected}; {remedy}")
    return notebook


def with_checked_outputs(source: dict[str, Any], executed: Mapping[str, Any]) -> dict[str, Any]:
    """`source` with the outputs and counts that its cells tagged `nbval-check-output` have in `executed`.

    Its metadata say on which kind of processor they were made, as `checked_on`.
    """
    source["metadata"]["checked_on"] = processor(executed["metadata"]["descent"]["provenance"])
    ran = {cell["id"]: cell for cell in executed["cells"]}
    for cell in _code(source["cells"]):
        checked = "nbval-check-output" in _tags(cell)
        origin = ran[cell["id"]] if checked else {"outputs": [], "execution_count": None}
        cell.update(outputs=origin["outputs"], execution_count=origin["execution_count"])
    return source


def with_words_of(source: Mapping[str, Any], executed: dict[str, Any], current: bool = False) -> dict[str, Any]:
    """`executed` with the Markdown, captions and sources of `source`; outputs and injected parameters stay.

    Args:
        source: the chapter.
        executed: its executed copy.
        current: the key of the two is the same, so that names in the code may have changed, but nothing that it does.

    Raises:
        ValueError: the code of the two differs, so that the outputs may not be those of this source.
    """
    if len(_code(source["cells"])) != len(_code(executed["cells"])):
        raise ValueError("it has another number of code cells than when it was run")
    if not current and code_sources(source) != code_sources(executed):
        raise ValueError("its code has changed since it was run")
    ran, cells = iter(_code(executed["cells"])), []
    before = {cell["id"]: cell for cell in executed["cells"]}
    injected = [cell for cell in executed["cells"] if INJECTED in _tags(cell)]
    for cell in source["cells"]:
        origin = next(ran) if cell["cell_type"] == "code" else before.get(cell["id"], cell)
        metadata = {**cell["metadata"], "tags": _tags(cell)}  # as papermill leaves them
        cells.append({**origin, "id": cell["id"], "metadata": metadata, "source": cell["source"]})
        if "parameters" in _tags(cell):
            cells += injected
    return {**executed, "cells": cells}


def bring_words(source: Path, executed: Path, current: bool = False) -> bool:
    """Write `with_words_of` the notebook `source` into its executed copy; whether anything changed.

    Raises:
        ValueError: see `with_words_of` and `read_executed`; nothing is written.
    """
    from descent.repro.files import write_atomic

    before = json.dumps(found := read_executed(executed))
    after = seal(with_words_of(json.loads(source.read_text(encoding="utf-8")), found, current))
    if changed := json.dumps(after) != before:
        write_atomic(executed, as_text(after))
    return changed
