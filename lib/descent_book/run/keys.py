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
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from descent_book.run.definitions import Library
from descent_book.run.meaning import Definition, Outside, sha

NOT_COUNTED = ("setup", "parameters")  # cells that install, and literals that stand among the parameters
# packages that decide no number and draw nothing, by the name that code imports; the pins of all others count
HARMLESS = frozenset(
    {"IPython", "cloudpickle", "cycler", "dask", "distributed", "filelock", "joblib", "lazy_loader", "PIL", "pooch",
     "pydantic", "pyevtk", "safetensors", "threadpoolctl", "tqdm"}
)  # fmt: skip
PACKAGES = {"mpl_toolkits": "matplotlib", "sklearn": "scikit-learn"}
ALWAYS = ("numpy", "scipy", "torch")


@dataclass(frozen=True)
class Key:
    """What a chapter's results depend on."""

    digest: str  # of everything below; SHA-256
    definitions: Mapping[str, str]  # for each definition of the library that is reached, a digest of its own text
    effects: Mapping[str, str]  # the same of what runs when a reached module is imported, and does more than bind names
    code: str  # a digest of the chapter's cells
    data: Mapping[str, str]  # SHA-256 of each committed record and weight
    pins: Sequence[str]  # the lines of `requirements.txt`
    parameters: Mapping[str, Any]  # as they are noted in the edition

    def noted(self) -> dict[str, Any]:
        """What an edition keeps of it, beside digest and parameters, to say later which part differs."""
        return {name: part for name, part in asdict(self).items() if name not in ("digest", "parameters")}


def key_of(
    root: Path, library: Library | Path, chapter: str, sources: Sequence[str], parameters: Mapping[str, Any]
) -> Key:
    """The key of a chapter.

    Args:
        root: a checkout, whose records, weights and `requirements.txt` count.
        library: the package `descent` whose definitions count, or its folder.
        chapter: its name; records of this name count whether or not the code names them, and so does what is registered
            of its claims and decides a verdict.
        sources: its code cells, as `counted_sources` gives them.
        parameters: all of them, less those that only say where to write or to compute.

    Raises:
        ValueError: the code asks the library for a name that it does not have, or hides what it takes.
    """
    library = library if isinstance(library, Library) else Library(library)
    cells = [statement for source in sources for statement in _statements(chapter, source)]
    notebook = library.add(name := f"notebooks.{chapter}", cells)
    imported = [library.imported(*origin) for origins in notebook.imports.values() for origin in origins]
    reached, outside = library.reached([Definition(name, ""), *imported])
    digests = library.digests(reached)
    own = {each: library.meaning(each).own_digest for each in reached}
    taken = [digests[each] for each in imported if isinstance(each, Definition)]
    effects = {each: digests[each] for each in reached if each.is_effect}
    in_order: dict[str, list[str]] = {}  # the order of a module's effects counts, where the module stands does not
    for each in sorted(effects, key=lambda effect: int(effect.name.split()[1])):
        in_order.setdefault(each.module, []).append(effects[each])
    # which of several places a name of the notebook comes from, where it has more than one
    mixed = {
        local: [target.path if isinstance(target, Outside) else digests[target] for target in targets]
        for local, origins in notebook.imports.items()
        if (len(origins) > 1 or local in notebook.bindings)
        and (targets := [library.imported(*origin) for origin in origins])
    }
    given = {value for value in parameters.values() if isinstance(value, str)}
    data = _data_named(root, library, reached, {chapter, *given})
    data |= _registered(root, chapter)
    pins = _pins(root / "requirements.txt", {path.partition(".")[0] for path in outside})
    code = digests[Definition(name, "")]
    parts = [code, sorted({*taken}), mixed, sorted(in_order.values()), dict(sorted(parameters.items())), data, pins]
    return Key(
        digest=hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest(),
        definitions={str(each): text for each, text in own.items() if each.module != name and not each.is_effect},
        effects={str(each): own[each] for each in effects},
        code=own[Definition(name, "")],
        data=data,
        pins=pins,
        parameters=dict(parameters),
    )


def counted_sources(notebook: Mapping[str, Any]) -> list[str]:
    """The code cells of a notebook that count: all but those tagged with one of `NOT_COUNTED`."""
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    counted = [cell for cell in cells if not {*cell["metadata"].get("tags", [])} & {*NOT_COUNTED}]
    return ["".join(cell["source"]) for cell in counted]


def _statements(chapter: str, source: str) -> list[ast.stmt]:
    """The statements of a cell and a mark of its end, for outputs belong to cells; none of one that only imports.

    A line of IPython's own counts by its text.
    """
    try:
        found = ast.parse(source).body
    except SyntaxError:
        plain = re.sub(r"^(\s*)([%!].*)$", lambda m: f"{m[1]}ipython({m[2]!r})", source, flags=re.MULTILINE)
        try:
            found = ast.parse(plain).body
        except SyntaxError as error:
            raise ValueError(f"{chapter}: not Python ({error.msg})") from error
    imports = all(isinstance(statement, (ast.Import, ast.ImportFrom)) for statement in found)
    return found if imports else [*found, ast.Expr(ast.Name("<end of cell>", ast.Load()))]


def _data_named(root: Path, library: Library, reached: Sequence[Definition], given: set[str]) -> dict[str, str]:
    """SHA-256 of the committed records and weights whose folder the code, or what it reaches, or a text given, names.

    A folder of records is named by its own name, by a pattern, or by the beginning of an f-string, wherever that
    stands; that of the weights where "data" is named too, be it elsewhere, and a folder inside it where its own name
    stands as well. A file of the library that is no code counts where its name stands.
    """
    named = set().union(*(_texts(library, each) for each in reached), given)
    patterns = [text if "*" in text else f"{text}*" for text in named if "*" in text or text.endswith(("-", "_"))]
    patterns = [pattern for pattern in patterns if pattern.strip("*?-_")]
    folders = [
        folder
        for folder in sorted((root / "data" / "records").glob("*"))
        if folder.name in named or any(fnmatchcase(folder.name, pattern) for pattern in patterns)
    ]
    files = {file.relative_to(root / "data"): file for folder in folders for file in folder.rglob("*")}
    if {"data", "checkpoints"} <= named:
        weights = [w.relative_to(root / "data") for w in (root / "data" / "checkpoints").rglob("*")]
        files |= {path: root / "data" / path for path in weights if {*path.parts[:-1]} <= named}
    files |= {f.relative_to(library.folder.parent): f for f in library.folder.rglob("*") if f.name in named}
    return {
        path.as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for path, file in sorted(files.items())
        if file.is_file() and file.suffix not in (".py", ".pyi", ".pyc") and not any(p[0] == "." for p in path.parts)
    }


def _registered(root: Path, chapter: str) -> dict[str, str]:
    """A digest of what decides the verdict on each claim of a chapter."""
    if not (root / "notebooks" / "claims" / f"{chapter}.yml").is_file():
        return {}
    from descent_book.run.scorecard import decisive  # here, for it imports numpy

    return {f"claim {name}": sha(repr(fields)) for name, fields in decisive(root, chapter).items()}


def _texts(library: Library, definition: Definition) -> set[str]:
    """The members of every path that stands as text in a definition, and in the constants that it names."""
    found = set(library.meaning(definition).texts)
    for target in library.meaning(definition).targets:
        if isinstance(target, Definition) and target.name:
            bound = library.statements(target)
            constant = all(isinstance(each, (ast.Assign, ast.AnnAssign)) for each in bound)
            found |= library.meaning(target).texts if constant else set()
            found |= {"data"} if target.name == "data_folder" else set()
    return found


def _pins(requirements: Path, imported: set[str]) -> list[str]:
    """The pins of the packages among those imported that may decide a number, without the comments behind them."""
    counted = {PACKAGES.get(name, name) for name in {*imported, *ALWAYS} - HARMLESS}
    wanted = {name.lower().replace("_", "-") for name in counted}
    lines = requirements.read_text(encoding="utf-8").splitlines() if requirements.is_file() else []
    return sorted(line.split("#")[0].strip() for line in lines if re.split("[^A-Za-z0-9_.-]", line)[0] in wanted)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two keys that are not equal, in words.

    A definition is known by its own name, whichever module it stands in; one that was only renamed differs in nothing.
    Of each key is given what `Key.noted` gives, with its `parameters` where these may differ.
    """
    was, is_now = (_by_name(known["definitions"]) for known in (before, now))
    texts = (set(before["definitions"].values()), set(now["definitions"].values()))
    changed = sorted(name for name in was.keys() & is_now.keys() if was[name] != is_now[name])
    gone = sorted(name for name in was.keys() - is_now.keys() if not was[name] <= texts[1])
    new = sorted(name for name in is_now.keys() - was.keys() if not is_now[name] <= texts[0])
    found = [*(f"{name} differs" for name in changed), *(f"{name} is no longer reached" for name in gone)]
    found += [f"{name} is new" for name in new]
    moved = set(before["effects"].values()) ^ set(now["effects"].values())
    effects = [*before["effects"].items(), *now["effects"].items()]
    modules = {path.rpartition(".")[0] for path, text in effects if text in moved}
    found += [f"what {module} does when it is imported differs" for module in sorted(modules)]
    for kind, sentence in (("data", "the data {} differ"), ("parameters", "parameter {} differs")):
        one, other = before.get(kind, {}), now.get(kind, {})
        names = sorted({*one, *other})
        found += [
            sentence.format(name) for name in names if (name in one, one.get(name)) != (name in other, other.get(name))
        ]
    found += [f"pin {line}" for line in sorted(set(before["pins"]) ^ set(now["pins"]))]
    if before["code"] != now["code"]:
        found.append("the chapter's own code differs")
    return found or ["which of the definitions calls which differs"]


def in_short(found: Sequence[str], most: int = 5) -> list[str]:
    """`differences`, those of a kind together, of each kind at most `most` by name: `f, g and 3 more differ`."""
    kinds = {"differs": "differ", "is no longer reached": "are no longer reached", "is new": "are new"}
    said = []
    for one, several in kinds.items():
        names = [each.partition(" ")[0] for each in found if each.partition(" ")[2] == one]
        rest = f" and {len(names) - most} more" if len(names) > most else ""
        said += [f"{', '.join(names[:most])}{rest} {one if len(names) == 1 else several}"] if names else []
    return said + [each for each in found if each.partition(" ")[2] not in kinds]


def _by_name(definitions: Mapping[str, str]) -> dict[str, set[str]]:
    grouped: dict[str, set[str]] = {}
    for path, digest in definitions.items():
        grouped.setdefault(path.rpartition(".")[2], set()).add(digest)
    return grouped
