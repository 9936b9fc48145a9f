"""The reference of the library, made from its docstrings, and the links between it and the chapters that call it.

A Sphinx extension. A page `api_ROOM.md` says ```` ```{room} ROOM ````: every name at the room's door follows, described
where it is defined and called as it is imported. Names of the library in a chapter's cells lead there, and from there
"Used in" leads to the first cell that calls each, found in the syntax trees of the notebooks.
"""

from __future__ import annotations

import ast
import doctest
import html
import importlib
import inspect
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args, get_origin

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.ext.autodoc.preserve_defaults import DefaultValue
from sphinx.util.docutils import SphinxDirective
from sphinx.util.inspect import stringify_signature

import descent
from descent_book.pages.claims import link_to, note_target
from descent_book.run.notebook import tags
from descent_book.run.project import pages
from descent_book.run.syntax import imports_in, path_of

_ROOM = re.compile(r"^```\{room\} (\w+)\n```$", re.MULTILINE)
_CODE = re.compile(r"(?<![`:\w])`([^`\n]+(?:\n[^`\n]+)?)`(?!`)|\|")  # `code` as the docstrings write it, and |x|
_CELL = re.compile(r'(<div class="cell_input[^>]*>.*?<pre>)(.*?)(</pre>)', re.DOTALL)
_PIECE = re.compile(r"<[^>]*>|&\w+;|&#\d+;|\n|\w+|[^<&\w\n]")
_MAGIC = re.compile(r"^(\s*)[%!].*$", re.MULTILINE)


# What the doors offer


@cache
def rooms() -> dict[str, dict[str, str]]:
    """Room -> public name -> the module of the room that defines it, in the order of the room's `__init__.pyi`."""
    found = {}
    for stub in sorted(Path(descent.__file__).parent.glob("*/__init__.pyi")):
        imports = [node for node in ast.parse(stub.read_text()).body if isinstance(node, ast.ImportFrom)]
        found[stub.parent.name] = {alias.name: str(node.module) for node in imports for alias in node.names}
    return found


@cache
def public_names() -> dict[str, str]:
    """Every public name -> its path through the door, such as `descent.spectra.gram_matrix`."""
    return {name: f"descent.{room}.{name}" for room, names in rooms().items() for name in names}


@cache
def _spellings() -> dict[str, str]:
    """What a docstring may call a public name: the name alone, or with its door, or with the module that defines it."""
    known = public_names()
    defined = {f"descent.{room}.{names[name]}.{name}": known[name] for room, names in rooms().items() for name in names}
    return defined | {path: path for path in known.values()} | known


def _address(app: Sphinx, page: str, path: str) -> str | None:
    """From a page to where `descent.ROOM.name` is described; None where the book has no such page."""
    described = f"api_{path.split('.')[1]}"
    return f"{app.builder.get_relative_uri(page, described)}#{path}" if described in app.env.all_docs else None


# The pages


def write_room(app: Sphinx, page: str, source: list[str]) -> None:
    """Put what a room offers where its page says ```{room} NAME```, and the rooms where one says ```{rooms}```."""
    words = {room: str(importlib.import_module(f"descent.{room}").__doc__) for room in rooms()}
    every = [f"- {{doc}}`api_{room}`: {text.splitlines()[0]}" for room, text in words.items()]
    source[0] = source[0].replace("```{rooms}\n```", "\n".join(every))
    source[0] = _ROOM.sub(lambda found: "\n".join(_room(found[1])), source[0])


def _room(room: str) -> Iterator[str]:
    if room not in rooms():
        raise ValueError(f"room {room!r}: expected one of {', '.join(rooms())}")
    names = rooms()[room]
    summary = [".. autosummary::", "   :nosignatures:", "", *(f"   {name}" for name in names)]
    yield from _rst(f".. automodule:: descent.{room}", "", *summary)
    for module in dict.fromkeys(names.values()):
        defining = importlib.import_module(f"descent.{room}.{module}")
        words = inspect.getdoc(defining) or module
        yield from [f"## {heading_of(words)}", "", *_rst(*_literal(words).splitlines())]
        for name in [name for name, origin in names.items() if origin == module]:
            yield from _rst(*_described(f"descent.{room}.{name}", getattr(defining, name)))


def heading_of(docstring: str) -> str:
    """The first words of a module's docstring, up to a sign of punctuation: `Loss surfaces` of `Loss surfaces: ...`."""
    return re.split(r"[:;,(]|\.(?=\s+[A-Z]|\s*$)", " ".join(docstring.split()), maxsplit=1)[0].strip()


def _described(path: str, thing: object) -> list[str]:
    if inspect.isclass(thing) and not issubclass(thing, Exception):
        return [f".. autoclass:: {path}", "   :members:", "   :exclude-members: model_config"]
    kind = "exception" if inspect.isclass(thing) else "function" if inspect.isroutine(thing) else "data"
    return [f".. auto{kind}:: {path}"]


def _rst(*lines: str) -> list[str]:
    return ["````{eval-rst}", *lines, "````", ""]


# From the docstrings' plain English to what autodoc reads


def _literal(text: str) -> str:
    """`name` as a link where the library offers it, other `code` as code."""

    def written(found: re.Match[str]) -> str:
        if found[0] == "|":
            return r"\|"
        code = " ".join(found[1].split())
        path = _spellings().get(code.removesuffix("()"))
        return f":py:obj:`{path.rpartition('.')[2]} <{path}>`" if path else f"``{code}``"

    return _CODE.sub(written, text)


def _imports_of(docstring: str, thing: object) -> list[str]:
    """The imports that the examples of a docstring need, which as tests run among the names of their module."""
    known = vars(inspect.getmodule(thing) or object)
    tree = ast.parse("".join(example.source for example in doctest.DocTestParser().get_examples(docstring)))
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    used -= {local for local, _ in imports_in(tree.body, "")}
    lines = set()
    for name in used & set(known):
        value, path = known[name], _spellings().get(name, "")
        if inspect.ismodule(value):
            parent, _, last = value.__name__.rpartition(".")
            plain = f"import {value.__name__}" + ("" if value.__name__ == name else f" as {name}")
            lines.add(f"from {parent} import {name}" if parent and last == name else plain)
        elif origin := path.rpartition(".")[0] or getattr(value, "__module__", ""):
            lines.add(f"from {origin} import {name}")
    return sorted(lines, key=lambda line: (line.split()[1].startswith("descent"), line))


def write_docstring(app: Sphinx, what: str, name: str, *rest: Any) -> None:
    """Code and links for backticks; at the end of what a door offers, where it is defined and used.

    The arguments are those of the event `autodoc-process-docstring`; the last of them are the lines, changed in place.
    """
    lines: list[str] = rest[-1]
    whole = "\n".join(lines)
    blocks = [block if ">>>" in block else _literal(block) for block in re.split(r"(\n[ ]*\n)", whole)]
    imports = "".join(f"\\1>>> {line}\n" for line in _imports_of(whole, rest[0]))
    lines[:] = re.sub(r"(?m)^([ ]*)(?=>>>)", imports + r"\1", "".join(blocks), count=1).splitlines()
    if name in public_names().values():
        lines += ["", f".. used-in:: {name}", ""]


def write_signature(app: Sphinx, what: str, name: str, thing: Any, *rest: Any) -> tuple[str, str] | None:
    """The signature as the source writes its types; the arguments are those of `autodoc-process-signature`."""
    if what not in ("function", "method", "class"):
        return None
    try:
        signature = inspect.signature(thing)
    except (TypeError, ValueError):
        return None
    if what == "method" and inspect.isfunction(thing):
        signature = signature.replace(parameters=list(signature.parameters.values())[1:])
    aliases = _aliases(inspect.getmodule(thing))
    parameters = [
        each.replace(annotation=_expanded(each.annotation, aliases), default=_typed(each, thing))
        for each in signature.parameters.values()
    ]
    result = inspect.Signature.empty if what == "class" else _expanded(signature.return_annotation, aliases)
    text = stringify_signature(signature.replace(parameters=parameters, return_annotation=result))
    before, _, after = text.partition(" -> ") if what != "class" else (text, "", "")
    return before, after


def _aliases(module: Any) -> Mapping[str, ast.expr]:
    """The types that a module, or one that it imports from, gives a name: `Matrix = NDArray[np.float64]`."""
    body = ast.parse(inspect.getsource(module)).body
    taken = [node for node in body if isinstance(node, ast.ImportFrom) and str(node.module).startswith("descent.")]
    known = {
        name: value for node in taken for name, value in _aliases(importlib.import_module(str(node.module))).items()
    }
    assigned = [node for node in body if isinstance(node, ast.Assign)]
    typed = [node for node in assigned if isinstance(node.value, (ast.Subscript, ast.BinOp))]
    types = {ast.unparse(node.targets[0]): node.value for node in typed}
    return known | {name: value for name, value in types.items() if re.fullmatch("[A-Z]+[a-z]\\w*", name)}


def _expanded(annotation: Any, aliases: Mapping[str, ast.expr]) -> Any:
    class Expand(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.expr:
            return self.visit(aliases[node.id]) if node.id in aliases else node

    if not isinstance(annotation, str):  # of a pydantic model, whose bounds are in words beside it
        return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
    return ast.unparse(Expand().visit(ast.parse(annotation, mode="eval")))


def _typed(parameter: inspect.Parameter, owner: Any) -> Any:
    """The default of a parameter as a reader would type it, where that is not its `repr`."""
    default = parameter.default
    if repr(default) == "<factory>":  # of a field of a dataclass or of a pydantic model
        fields = getattr(owner, "model_fields", None) or owner.__dataclass_fields__
        factory = fields[parameter.name].default_factory
        return DefaultValue({dict: "{}", list: "[]"}.get(factory, f"{factory.__name__}()"))
    if inspect.isroutine(default) or (inspect.isclass(default) and default is not inspect.Parameter.empty):
        return DefaultValue(default.__name__)
    return str(default) if isinstance(default, Path) else default


def link_type(app: Sphinx, env: BuildEnvironment, node: Any, shown: nodes.Element) -> nodes.Element | None:
    """A type in a signature: a link where a door offers it, plain text where it is another library's."""
    if node.get("refdomain") != "py":
        return None
    path = public_names().get(node["reftarget"].rpartition(".")[2])
    address = path and _address(app, node["refdoc"], path)
    return nodes.reference("", "", shown, refuri=address, internal=True) if address else shown


# What the chapters call


class Use(NamedTuple):
    """A name of the library in a cell: its path, the line (from 1) and column of its last word, whether an import."""

    path: str
    line: int
    column: int
    imported: bool = False


class _Names(ast.NodeVisitor):
    """The uses in one cell; a name that a function or a comprehension binds for itself is not the library's."""

    def __init__(self, known: Mapping[str, str]) -> None:
        self.known, self.own, self.uses = known, set[str](), list[Use]()

    def note(self, node: ast.Name | ast.Attribute) -> None:
        first, *rest = path_of(node) or [""]
        path = ".".join([self.known.get(first, ""), *rest])
        if path in public_names().values() and first not in self.own and isinstance(node.ctx, ast.Load):
            word = rest[-1] if rest else first
            self.uses.append(Use(path, node.end_lineno or 0, (node.end_col_offset or 0) - len(word.encode())))
        self.generic_visit(node)

    visit_Name = visit_Attribute = note  # noqa: N815

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for alias in node.names:
            if (path := f"{node.module}.{alias.name}") in public_names().values():
                self.uses.append(Use(path, alias.lineno, alias.col_offset, imported=True))

    def scope(self, node: Any) -> None:
        before, inside = self.own, list(ast.walk(node))
        bound = {leaf.id for leaf in inside if isinstance(leaf, ast.Name) and isinstance(leaf.ctx, ast.Store)}
        self.own = before | bound | {leaf.arg for leaf in inside if isinstance(leaf, ast.arg)}
        self.generic_visit(node)
        self.own = before

    visit_FunctionDef = visit_AsyncFunctionDef = visit_Lambda = scope  # noqa: N815
    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = scope  # noqa: N815


def _tree(source: str) -> ast.Module:
    try:
        return ast.parse(_MAGIC.sub(r"\1pass", source))
    except SyntaxError:  # a cell in another language
        return ast.Module([], [])


def imported_names(sources: Sequence[str]) -> dict[str, str]:
    """What the cells of a notebook import of the library: local name -> path."""
    imports = imports_in([_tree(source) for source in sources], "")
    paths = {local: f"{module}.{name}".rstrip(".") for local, (module, name) in imports if local}
    return {local: path for local, path in paths.items() if path.split(".")[0] == "descent"}


def uses(source: str, known: Mapping[str, str]) -> list[Use]:
    """The uses in one cell of the names that its notebook has imported, in no particular order."""
    names = _Names(known)
    names.visit(_tree(source))
    return names.uses


class Caller(NamedTuple):
    """A notebook: its title, what it imports of the library, and the first cell that uses each path."""

    title: str
    known: dict[str, str]
    first: dict[str, int]


@cache
def read_caller(notebook: Path) -> Caller:
    """What a notebook uses, nothing if there is none; cells that the page leaves out do not count."""
    if not notebook.is_file():
        return Caller("", {}, {})
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    sources = {n: "".join(cell["source"]) for n, cell in enumerate(cells) if cell["cell_type"] == "code"}
    known = imported_names(list(sources.values()))
    first: dict[str, int] = {}
    for number, source in sources.items():
        if not {"remove-cell", "remove-input"} & set(tags(cells[number])):
            for use in [use for use in uses(source, known) if not use.imported]:
                first.setdefault(use.path, number)
    return Caller("".join(cells[0]["source"]).splitlines()[0].lstrip("# "), known, first)


def _label(path: str, page: str) -> str:
    return f"use of {path} in {page}".lower()


def mark_uses(app: Sphinx, doctree: nodes.document) -> None:
    """Make the first cell of a chapter that uses a name a target."""
    first = read_caller(Path(app.srcdir) / f"{app.env.docname}.ipynb").first
    for cell in doctree.findall(nodes.container):
        mine = [path for path, number in first.items() if number == cell.get("cell_index")]
        if mine and cell.get("nb_element") == "cell_code":
            cell["ids"].append(anchor := nodes.make_id(f"uses-{mine[0]}"))
            for path in mine:
                note_target(app.env, _label(path, app.env.docname), app.env.docname, anchor)


class UsedInDirective(SphinxDirective):
    """{used-in}: where a name is defined, and the chapters that use it, each a link to the first cell that does."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """One paragraph."""
        path, source = self.arguments[0], Path(self.env.srcdir)
        room, name = path.split(".")[1:]
        file = f"lib/descent/{room}/{rooms()[room][name].replace('.', '/')}.py"
        theme = self.config.html_theme_options
        address = f"{theme.get('repository_url', '')}/blob/{theme.get('repository_branch', 'main')}/{file}"
        text = nodes.paragraph("", "Defined in ", classes=["used-in"])
        text += nodes.reference("", file, refuri=address, internal=False)
        callers = {page: read_caller(source / f"{page}.ipynb") for page in pages(source)}
        users = [(page, caller) for page, caller in callers.items() if path in caller.first]
        for number, (page, caller) in enumerate(users):
            text += nodes.Text(", " if number else ". Used in: ")
            text += link_to(_label(path, page), self.env.docname, nodes.inline(text=caller.title))
        return [text]


def link_code(app: Sphinx, page: str, template: str, context: Any, doctree: nodes.document | None) -> None:
    """Names of the library in a chapter's cells become links to their description."""
    known = read_caller(Path(app.srcdir) / f"{page}.ipynb").known

    def linked(found: re.Match[str]) -> str:
        source = html.unescape(re.sub(r"<[^>]*>", "", found[2]))
        targets = {(use.line, use.column): _address(app, page, use.path) for use in uses(source, known)}
        return found[1] + with_links(found[2], targets) + found[3]

    context["body"] = _CELL.sub(linked, context.get("body", ""))


def with_links(code: str, targets: Mapping[tuple[int, int], str | None]) -> str:
    """Highlighted code with a link around each word at one of the places, which count lines from 1 and UTF-8 bytes."""
    line, column, written = 1, 0, []
    for piece in _PIECE.findall(code):
        target = targets.get((line, column)) if piece[0] not in "<&\n" else None
        written.append(f'<a class="api" href="{target}">{piece}</a>' if target else piece)
        if piece == "\n":
            line, column = line + 1, 0
        elif not piece.startswith("<"):
            column += len(html.unescape(piece).encode())
    return "".join(written)


SETTINGS = {
    "add_function_parentheses": False,
    "html_domain_indices": False,  # the rooms are listed by the page above them
    "napoleon_numpy_docstring": False,
    "napoleon_custom_sections": [("Attributes", "params_style")],
    "napoleon_use_rtype": False,
    "python_maximum_signature_line_length": 60,
    "toc_object_entries_show_parents": "hide",
}


def setup(app: Sphinx) -> None:
    """Register with Sphinx."""
    for extension in ("autodoc", "autosummary", "napoleon"):
        app.setup_extension(f"sphinx.ext.{extension}")
    app.connect("config-inited", lambda app, config: config.__dict__.update(SETTINGS))
    app.add_css_file("api.css")
    app.add_directive("used-in", UsedInDirective)
    app.connect("source-read", write_room)
    app.connect("autodoc-process-docstring", write_docstring, priority=400)  # before napoleon
    app.connect("autodoc-process-signature", write_signature)
    app.connect("missing-reference", link_type)
    app.connect("doctree-read", mark_uses, priority=650)
    app.connect("html-page-context", link_code, priority=600)  # once the marks of plain names are gone
