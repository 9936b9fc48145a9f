"""Executed notebooks: cleaned and sealed when they are kept, proven when they are read, compared between machines.

A notebook's source and its executed copy lend each other what changes without a run: the source gets checked outputs,
the copy gets words.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any
from urllib.parse import quote

from descent.repro.files import write_atomic
from descent_book.run.project import NEUTRAL_PARAMETERS

INJECTED = "injected-parameters"
UNJUDGED = "not judged at this preset"
RELATIVE = 0.5  # of the value, its spread or the bound that judges it, whichever is largest
_ROW = re.compile(
    r"(\| `[^`]+` \| [^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|"
)  # claim, verdict; measured; accepted; null
_NUMBER = re.compile(r"(?<![\w.])[-+]?[\d.]+(?:e[-+]?\d+)?")
_SMALLEST = 2.0**-23  # what float32 cannot tell from zero beside one
_ALIKE = ("x86_64 AVX2", "x86_64 AVX512")  # the second adds twice as many terms at a time as the first
# An output may be of millions of letters without a space or a line break. So each of these patterns begins at the start
# of a word or a line alone and reads on from there once: the time is linear in the length.
_SCRATCH_CELL = re.compile(r"""(?<![^\s"'<>=(])[^\s"'<>=(]*ipykernel_\d+/\d+\.py""")
_ENCODED = re.compile(r"(;base64,[\w+/=-]*)")  # a picture within HTML, in which letters may look like a folder
_LINES = re.compile(r"(?<=\n)|(?=\r)")  # as a terminal shows them
_REST_OF_BAR = re.compile(r"[^|]*\| [^\[]+\[[^\]]*\]\n?")
_OF_THE_MOMENT = re.compile(
    r"^(?>.*?UserWarning: A worker stopped while some jobs ).*\n +warnings\.warn\(\n", re.MULTILINE
)


def tags(cell: Mapping[str, Any]) -> list[str]:
    """The tags of a notebook's cell."""
    names: list[str] = cell["metadata"].get("tags", [])
    return names


def _code(notebook: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code" and INJECTED not in tags(cell)]


def code_sources(notebook: Mapping[str, Any]) -> list[str]:
    """The code that decides a notebook's outputs, without comments, less the cells that install and import."""
    counted = [cell for cell in _code(notebook) if not {"setup", "imports"} & set(tags(cell))]
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
    """An executed notebook with the SHA-256 of its whole content, however it is laid out, among the runner's notes.

    One without such notes stays as it is.
    """
    if "descent" in executed["metadata"]:
        executed["metadata"]["descent"]["sha256"] = _digest(executed)
    return executed


def as_text(executed: Mapping[str, Any]) -> str:
    """A notebook's JSON as editors lay it out, but each figure's own JSON is one line, which is a third shorter."""
    lines: dict[str, str] = {}

    def in_one_line(value: Any) -> Any:
        if isinstance(value, str | list):  # text and pictures
            return value
        line = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        mark = hashlib.sha256(line.encode()).hexdigest()
        lines[mark] = line
        return mark

    laid_out = deepcopy({**executed})
    for output in [each for cell in laid_out["cells"] for each in cell.get("outputs", []) if "data" in each]:
        output["data"] = {kind: in_one_line(value) for kind, value in output["data"].items()}
    text = json.dumps(laid_out, indent=1, ensure_ascii=False, allow_nan=False)
    for mark, line in lines.items():
        text = text.replace(f'"{mark}"', line)
    return text + "\n"


def remedy(path: Path) -> str:
    """What to do about an executed notebook that cannot be used, for an error message."""
    return f"make it again: make edition CHAPTER={path.stem} (for the quick edition, PRESET=quick) FORCE=1"


def read_executed(path: Path) -> dict[str, Any]:
    """An executed notebook whose content is proven to be what the runner wrote.

    Raises:
        OSError: there is none.
        ValueError: it is damaged, not sealed by the runner, or no notebook.
    """
    try:
        notebook: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        expected, digest = notebook["metadata"].get("descent", {}).get("sha256"), _digest(notebook)
        if not isinstance(notebook["cells"], list):
            raise TypeError("its cells are no list")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged, or no notebook ({error}); {remedy(path)}") from error
    if expected != digest:
        raise ValueError(f"{path} is damaged: SHA-256 {digest}, expected {expected}; {remedy(path)}")
    return notebook


def runner_notes(executed: Path) -> dict[str, Any]:
    """What the runner noted in an executed notebook: key, preset, claims, seconds; empty where there is none.

    Raises:
        ValueError: the notebook is damaged.
    """
    try:
        notes: dict[str, Any] = read_executed(executed)["metadata"].get("descent", {})
    except OSError:
        return {}
    return notes


def with_checked_outputs(source: Mapping[str, Any], executed: Mapping[str, Any]) -> dict[str, Any]:
    """`source` with the outputs and counts that its cells tagged `nbval-check-output` have in `executed`.

    Its metadata name the kind of processor on which the outputs were made, as `checked_on`.
    """
    ran, cells = {cell["id"]: cell for cell in executed["cells"]}, []
    for cell in source["cells"]:
        if cell["cell_type"] == "code":
            checked = "nbval-check-output" in tags(cell)
            origin = ran[cell["id"]] if checked else {"outputs": [], "execution_count": None}
            cell = {**cell, "outputs": origin["outputs"], "execution_count": origin["execution_count"]}
        cells.append(cell)
    made_on = processor(executed["metadata"]["descent"]["provenance"])
    return {**source, "cells": cells, "metadata": {**source["metadata"], "checked_on": made_on}}


def with_words_of(source: Mapping[str, Any], executed: dict[str, Any], current: bool = False) -> dict[str, Any]:
    """`executed` with the Markdown, captions and sources of `source`; outputs and injected parameters stay.

    Where the two are `current`, of the same key, names in the code may have changed, but nothing that it does.

    Raises:
        ValueError: the code of the two differs, so that the outputs may not be those of this source.
    """
    if len(_code(source)) != len(_code(executed)):
        raise ValueError("it has another number of code cells than when it was run")
    if not current and code_sources(source) != code_sources(executed):
        raise ValueError("its code has changed since it was run")
    ran, cells = iter(_code(executed)), []
    before = {cell["id"]: cell for cell in executed["cells"]}
    injected = [cell for cell in executed["cells"] if INJECTED in tags(cell)]
    for cell in source["cells"]:
        origin = next(ran) if cell["cell_type"] == "code" else before.get(cell["id"], cell)
        metadata = {**cell["metadata"], "tags": tags(cell)}  # as papermill leaves them
        cells.append({**origin, "id": cell["id"], "metadata": metadata, "source": cell["source"]})
        if "parameters" in tags(cell):
            cells += injected
    return {**executed, "cells": cells}


def bring_words(source: Mapping[str, Any], path: Path, current: bool = False) -> bool:
    """Write `with_words_of` the notebook `source` into its executed copy at `path`; whether anything changed.

    Raises:
        ValueError: see `with_words_of` and `read_executed`; nothing is written.
    """
    executed = read_executed(path)
    before = json.dumps(executed)
    after = seal(with_words_of(source, executed, current))
    if changed := json.dumps(after) != before:
        write_atomic(path, as_text(after))
    return changed


def cleaned(notebook: dict[str, Any], hidden: Mapping[str, str]) -> dict[str, Any]:
    """An executed notebook without traces of the time and place of its run, so that equal runs give equal files.

    papermill's metadata, timings and widget state go. The injected cell loses the parameters that only say where to
    write or to compute, and goes itself when it has no other. The folders named in `hidden` are replaced in text
    outputs. Progress bars go, and so does joblib's warning that it replaced a worker process, which depends on the
    moment.
    """
    notebook["metadata"] = {k: v for k, v in notebook["metadata"].items() if k in ("kernelspec", "language_info")}
    kept = []
    for cell in notebook["cells"]:
        cell["metadata"] = {k: v for k, v in cell["metadata"].items() if k not in ("papermill", "execution")}
        if INJECTED in tags(cell):
            cell["id"] = INJECTED
            lines = "".join(cell["source"]).splitlines(keepends=True)
            cell["source"] = [line for line in lines if line.split(" = ")[0] not in NEUTRAL_PARAMETERS]
            if not any("=" in line for line in cell["source"]):
                continue
        if "outputs" in cell:
            neutral = [_neutral(output, hidden) for output in cell["outputs"]]
            cell["outputs"] = [output for output in neutral if output.get("text") != ""]
        kept.append(cell)
    notebook["cells"] = kept
    return notebook


def _neutral(output: dict[str, Any], hidden: Mapping[str, str]) -> dict[str, Any]:
    """An output with the folders replaced in its text; images and plotly's data stay as they are."""
    data = {k: _replaced(v, hidden) if k.startswith("text/") else v for k, v in output.get("data", {}).items()}
    text: dict[str, Any] = {k: _replaced(output[k], hidden) for k in ("text", "traceback", "evalue") if k in output}
    if output.get("name") == "stderr":
        whole = "".join(text["text"])
        rest = _without_bars(_OF_THE_MOMENT.sub("", whole))
        if rest != whole or not rest.strip():  # a bar ends with a line break by itself
            text["text"] = rest if rest.strip() else ""
    return {**output, **text, **({"data": data} if "data" in output else {})}


def _without_bars(text: str) -> str:
    """A text without the progress bars that a chapter asked tqdm for by name: TQDM_DISABLE is only a default."""
    kept = []
    for line in _LINES.split(text):
        head, _, tail = line.rpartition("%|")
        bar = _REST_OF_BAR.match(tail) if head[-1:].isdecimal() else None
        kept.append(tail[bar.end() :] if bar else line)
    return "".join(kept)


def _replaced(text: Any, hidden: Mapping[str, str]) -> Any:
    if isinstance(text, list):
        return [_replaced(line, hidden) for line in text]
    parts = _ENCODED.split(text)
    for number in range(0, len(parts), 2):
        parts[number] = _SCRATCH_CELL.sub("<cell>", parts[number])
        for path, word in hidden.items():
            ways = "|".join(re.escape(way).replace("/", "/+").removesuffix("+") for way in {path, quote(path)})
            folder = rf"(?:(?<![\w/])|(?<=file://))(?=/[^/])(?:{ways})(?![\w-])"
            parts[number] = re.sub(folder, lambda _, word=word: word, parts[number])
    return "".join(parts)


def processor(provenance: Mapping[str, object]) -> str:
    """The kind of processor of a run, on which the last bits depend, such as `x86_64 AVX2`."""
    return f"{provenance['machine']} {provenance['cpu_capability']}"


def alike(one: str, other: str) -> bool:
    """Whether all measured values are comparable between two kinds of processor.

    Between others, such as one without vector instructions, a chaotic training ends elsewhere: a value on which no
    verdict is given is not compared then, one on which a verdict is given always is.
    """
    return one == other or {one, other} <= set(_ALIKE)


def distance(one: float, other: float, spread: float = 0.0, interval: Iterable[float | None] = ()) -> float:
    """How far two values lie apart, per the largest of their sizes, of `spread` and of what a claim compares them with.

    Promise R2 of the reproducibility page bounds it by `RELATIVE`.

    Args:
        one: a measured value, in the claim's unit, as all the others.
        other: the same one elsewhere.
        spread: the width of the interval, the larger one of the two.
        interval: of the claim. Of its bounds the smallest in size that is not zero counts: beside a bound of 0.05, 0
            and -0.006 are close, though no fraction of zero says so.
    """
    bounds = [abs(bound) for bound in interval if bound]
    return abs(one - other) / max(abs(one), abs(other), spread, min(bounds, default=0.0), _SMALLEST)


def comparable(verdict: str, both_alike: bool) -> bool:
    """Whether a measured value with this verdict is compared between processors that are alike or not."""
    return both_alike or verdict != UNJUDGED


def brought(measured: str, stored: str, both_alike: bool = True) -> str:
    """The table of claims `measured`, in which every row that agrees with the one in `stored` is that row.

    Rows agree when their measured values, where they are `comparable`, are within `RELATIVE` of one another and all
    else is equal, the verdict above all. A text of another shape comes back as it is.
    """
    lines, kept = measured.split("\n"), stored.split("\n")
    if len(lines) != len(kept):
        return measured
    pairs = zip(lines, kept, strict=True)
    return "\n".join(other if _agree(one, other, both_alike) else one for one, other in pairs)


def _agree(one: str, other: str, both_alike: bool) -> bool:
    rows = [_ROW.fullmatch(line) for line in (one, other)]
    if not all(rows):
        return False
    (head, value, accepted, nulls), (other_head, other_value, other_accepted, other_nulls) = (
        row.groups() for row in rows if row
    )
    if (head, accepted) != (other_head, other_accepted):
        return False
    if not comparable(head.rpartition(" | ")[2], both_alike):
        return True
    bounds = [float(word) for word in _NUMBER.findall(accepted)]
    found, stored = (_estimates(f"{text}; {null}") for text, null in ((value, nulls), (other_value, other_nulls)))
    return len(found) == len(stored) and all(
        len(mine) == len(theirs) and distance(mine[0], theirs[0], max(map(_width, (mine, theirs))), bounds) <= RELATIVE
        for mine, theirs in zip(found, stored, strict=True)
    )


def _estimates(text: str) -> list[list[float]]:
    """The numbers of each estimate: the value, then the ends of its interval where it has one."""
    found = [[float(number) for number in _NUMBER.findall(part)] for part in text.split(";")]
    return [numbers for numbers in found if numbers]


def _width(numbers: list[float]) -> float:
    return numbers[2] - numbers[1] if len(numbers) == 3 else 0.0
