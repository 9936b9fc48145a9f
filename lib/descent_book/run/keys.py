"""When a chapter is run again: a key made of what its results depend on, and of nothing else.

A key is a digest over the chapter's code as `descent_book.run.definitions` reads it, the parameters, the effects that
importing the reached modules has, the committed records and weights that the code names, and the pins of the numeric
packages. Words, captions, the set-up cell and where an imported name comes from are no part of it.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from descent_book.run.definitions import Canonical, Definition, Library, Outside, Target

NOT_COUNTED = ("setup", "parameters")  # cells that install, and literals that stand among the parameters
# packages that compute or draw, by the name that code imports; the pins of all others decide no number
NUMERIC = {
    "einops": "einops", "matplotlib": "matplotlib",
    "mpl_toolkits": "matplotlib", "numpy": "numpy", "plotly": "plotly", "scipy": "scipy",
    "sklearn": "scikit-learn", "statsmodels": "statsmodels",
    "torch": "torch",
}  # fmt: skip
ALWAYS = ("numpy", "scipy", "torch")


@dataclass(frozen=True)
class Key:
    """What a chapter's results depend on.

    Attributes:
        digest: of everything below; SHA-256.
        definitions: for each definition of the library that is reached, a digest of its own text.
        code: a digest of the chapter's cells.
        effects: digests of what the reached modules do when they are imported.
        data: SHA-256 of each committed record and weight.
        pins: the lines of `requirements.txt`.
        parameters: as they are noted in the edition.
    """

    digest: str
    definitions: Mapping[str, str]
    code: str
    effects: Sequence[str]
    data: Mapping[str, str]
    pins: Sequence[str]
    parameters: Mapping[str, Any]

    def noted(self) -> dict[str, Any]:
        """What an edition keeps of it, to say later which part differs."""
        return {
            "definitions": dict(self.definitions),
            "code": self.code,
            "effects": list(self.effects),
            "data": dict(self.data),
            "pins": list(self.pins),
        }


def key_of(
    root: Path, library_folder: Path, chapter: str, sources: Sequence[str], parameters: Mapping[str, Any]
) -> Key:
    """The key of a chapter.

    Args:
        root: a checkout, whose records, weights and `requirements.txt` count.
        library_folder: the folder of the package `descent` whose definitions count.
        chapter: its name; records of this name count whether or not the code names them.
        sources: its code cells less those tagged with one of `NOT_COUNTED`; lines of IPython magic are passed over.
        parameters: all of them, less those that only say where to write or to compute.

    Raises:
        ValueError: the code asks the library for a name that it does not have, or hides what it takes.
    """
    library = Library(library_folder)
    plain = "\n".join(re.sub(r"^(\s*)[%!].*$", r"\1pass", source, flags=re.MULTILINE) for source in sources)
    try:
        notebook = library.read(f"notebooks.{chapter}", tree := ast.parse(plain).body)
    except SyntaxError as error:
        raise ValueError(f"{chapter}: not Python ({error.msg})") from error
    named: list[Target] = [library.imported(*origin) for origin in notebook.imports.values()]

    def written(target: Target) -> str:
        if isinstance(target, Outside):
            named.append(target)
            return target.path
        if target.module == notebook.name:
            return target.name
        named.append(target)
        return f"<{library.digest(target)}>"

    cells = [text for statement in tree if (text := Canonical(library, notebook, written).text(statement, ""))]
    # a name that the notebook both imports and binds stands for its own above: what it imported is added here
    cells += [
        written(library.imported(*notebook.imports[n])) for n in sorted(set(notebook.imports) & set(notebook.bindings))
    ]
    definitions, outside = library.reached(named)
    modules = {definition.module for definition in definitions} | set(notebook.runs)
    effects = library.effects(modules)
    data = _data_named(root, chapter, plain, library, definitions)
    pins = _pins(root / "requirements.txt", {path.partition(".")[0] for path in outside})
    code = hashlib.sha256("\n".join(cells).encode()).hexdigest()
    parts = [cells, dict(sorted(parameters.items())), effects, data, pins]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    own = {str(definition): library.own_digest(definition) for definition in definitions}
    return Key(digest, own, code, effects, data, pins, dict(parameters))


def _texts(node: ast.AST) -> set[str]:
    return {leaf.value for leaf in ast.walk(node) if isinstance(leaf, ast.Constant) and isinstance(leaf.value, str)}


def _data_named(
    root: Path, chapter: str, code: str, library: Library, definitions: Sequence[Definition]
) -> dict[str, str]:
    """SHA-256 of the committed records and weights whose folder the code, or what it reaches, names.

    A folder of records is named by its own name, wherever that stands; that of the weights beside "data".
    """
    statements = [*ast.parse(code).body, *(s for definition in definitions for s in library.statements(definition))]
    texts = [_texts(statement) for statement in statements]
    named = set().union(*texts)
    counted = [f for f in sorted((root / "data" / "records").glob("*")) if f.name in named or f.name == chapter]
    if any({"data", "checkpoints"} <= each for each in texts):
        counted.append(root / "data" / "checkpoints")
    return {
        file.relative_to(root / "data").as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for folder in counted
        for file in sorted(folder.rglob("*"))
        if file.is_file() and not any(p[0] == "." or p == "__pycache__" for p in file.relative_to(folder).parts)
    }


def _pins(requirements: Path, imported: set[str]) -> list[str]:
    """The pins of the numeric packages among those imported, without the comments behind them."""
    wanted = {NUMERIC[name] for name in {*imported, *ALWAYS} if name in NUMERIC}
    lines = requirements.read_text(encoding="utf-8").splitlines() if requirements.is_file() else []
    return sorted(line.split("#")[0].strip() for line in lines if line.partition("==")[0] in wanted)


def differences(before: Mapping[str, Any], now: Key) -> list[str]:
    """What differs between what an edition noted of its key and the key of today's sources, in words.

    A definition is known by its own name, whichever module it stands in; one that was only renamed differs in nothing.
    """
    was, is_now = (_by_name(known) for known in (before["definitions"], now.definitions))
    texts = (set(before["definitions"].values()), set(now.definitions.values()))
    changed = sorted(name for name in was.keys() & is_now.keys() if was[name] != is_now[name])
    gone = sorted(name for name in was.keys() - is_now.keys() if not was[name] <= texts[1])
    new = sorted(name for name in is_now.keys() - was.keys() if not is_now[name] <= texts[0])
    found = [*(f"{name} differs" for name in changed), *(f"{name} is no longer reached" for name in gone)]
    found += [f"{name} is new" for name in new]
    data = {**before["data"], **now.data}
    found += [f"data/{name} differs" for name in sorted(data) if before["data"].get(name) != now.data.get(name)]
    found += [f"pin {line}" for line in sorted(set(before["pins"]) ^ set(now.pins))]
    if sorted(before["effects"]) != sorted(now.effects):
        found.append("what a reached module does when it is imported differs")
    if not found and before["code"] != now.code:
        found.append("the chapter's own code differs")
    return found or ["the parameters differ"]


def _by_name(definitions: Mapping[str, str]) -> dict[str, set[str]]:
    grouped: dict[str, set[str]] = {}
    for path, digest in definitions.items():
        grouped.setdefault(path.rpartition(".")[2], set()).add(digest)
    return grouped
