"""What one definition says, as text, and what it refers to."""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from descent_book.run.syntax import Origin, arguments_of, bound_by, imports_in, path_of, says_nothing, scope_of

if TYPE_CHECKING:
    from descent_book.run.definitions import Library

_ANY_NAME = ("eval", "exec", "globals", "sys.modules")  # what uses these may use any name around it
_IMPORTERS = ("__import__", "importlib.import_module", "pkgutil.resolve_name", "runpy.run_module")
_HIDING = (*_IMPORTERS, "importlib.util.spec_from_file_location", "runpy.run_path")  # code that no name leads to
_NOTHING = ast.Constant(None)
_NOT_DUMPED = frozenset({"ctx", "kind", "type_comment", "type_ignores", "type_params"})


@dataclass(frozen=True, order=True)
class Definition:
    """A name at the top of a module of the library: `Definition("descent.spectra.gram", "spectrum")`.

    An empty `name` is the whole module, where code asks for a name that cannot be known before it runs; `statement 3`
    is what the module does at its fourth statement when it is imported.
    """

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}" if self.name else self.module

    @property
    def is_effect(self) -> bool:
        """Whether it is a statement that runs when its module is imported."""
        return self.name.startswith("statement ")


@dataclass(frozen=True)
class Outside:
    """Something that is not of the library: `Outside("torch.nn.functional")`."""

    path: str


Target = Definition | Outside


@dataclass
class Meaning:
    """What a definition says."""

    parts: list[str | Target] = field(default_factory=list)  # its text, with what it refers to in its places
    texts: set[str] = field(default_factory=set)  # the members of every path that stands in it as text
    runs: list[Origin] = field(default_factory=list)  # the origins that it imports by itself

    @cached_property
    def targets(self) -> list[Target]:
        """What it refers to, in the order of the text."""
        return [part for part in self.parts if not isinstance(part, str)]

    @cached_property
    def own_digest(self) -> str:
        """A digest of the text alone: it differs where this definition itself was changed. 16 hexadecimal digits."""
        written = [
            p if isinstance(p, str) else p.path if isinstance(p, Outside) else "<definition>" for p in self.parts
        ]
        return sha("".join(written))


class Writer:
    """Writes what statements say as text that is the same on every version of Python.

    Names are resolved as Python does it: those of a function or a comprehension hide those of the module. A class hides
    nothing: its statements may read a name of the module before they bind it, and its methods do not see what it binds.
    """

    def __init__(self, library: Library, definition: Definition) -> None:
        module = library.module(definition.module)
        assert module is not None
        self.library, self.module, self.definition = library, module, definition
        self.said = Meaning()
        self._modules_in = re.compile(rf"\b{re.escape(library.package)}(?:\.\w+)+")
        self._scopes: list[dict[str, list[Origin] | None]] = []
        self._in_class = False

    def write(self, node: object) -> None:
        """Add a node, a list of them, or a plain value to what is said."""
        match node:
            case list():
                for each in (each for each in node if not says_nothing(each)):
                    self.write(each)
                    self._add(", ")
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                self._function(node)
            case ast.ClassDef():
                self._class(node)
            case ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp():
                self._comprehension(node)
            case ast.Name():
                self._name(node)
            case ast.Attribute():
                self._attribute(node)
            case ast.Call() if self._called(node) in _IMPORTERS:
                self._import(node)
            case ast.Constant(value=str(text)):
                self._text(text)
            case ast.AnnAssign():
                self._annotated(node)
            case ast.AST() if not says_nothing(node):
                self._fields(node)
            case ast.AST():
                pass
            case _:
                self._add(ascii(node))

    def _add(self, *parts: str | Target) -> None:
        self.said.parts += parts

    def _fields(self, node: ast.AST, **other: object) -> None:
        """What is empty, or only types, is left out: versions of Python differ in whether they name it."""
        self._add(f"{type(node).__name__}(")
        for name, value in ast.iter_fields(node):
            value = other.get(name, value)
            if name in _NOT_DUMPED or value is None or (isinstance(value, list) and all(map(says_nothing, value))):
                continue
            self._add(f"{name}=" + "[" * isinstance(value, list))
            self.write(value)
            self._add("]" * isinstance(value, list) + ", ")
        self._add(")")

    def _own(self, name: str) -> str:
        """The name that the definition itself binds is left out."""
        return "<self>" if name == self.definition.name and not self._scopes and not self._in_class else name

    def _lookup(self, name: str) -> list[Target] | None:
        """What a name stands for: several where it is imported by turns; None for one of the function's own."""
        for scope in reversed(self._scopes):
            if name in scope:
                if (origins := scope[name]) is None:  # declared global
                    break
                return [self.library.imported(*origin) for origin in origins] or None
        target = self.library.resolve(self.module, name)
        return [] if target is None else [target]

    def _path(self, node: ast.expr) -> list[Target | None] | None:
        """What `a.b.c` stands for, as `_lookup` says of a name; None in it for what is no name of a module."""
        first, *rest = path_of(node) or [""]
        targets = self._lookup(first)
        return targets if targets is None else [self.library.through(target, rest) for target in targets]

    def _refer(self, name: str, targets: Sequence[Target]) -> None:
        """Add what a name of the source stands for; a name of the very module that is told as a whole stays."""
        for target in targets:
            if target == self.definition:
                self._add("<self>")
            elif isinstance(target, Definition) and target.module == self.module.name and self._is_whole:
                self._add(name)
            elif isinstance(target, Outside) and target.path in _HIDING:
                raise ValueError(f"{self.definition}: {target.path} hides what it imports; name a module in full")
            else:
                self._add(target)
            if isinstance(target, Outside) and target.path in _ANY_NAME and not self._is_whole:
                self._add(Definition(self.module.name, ""))

    @property
    def _is_whole(self) -> bool:
        return not self.definition.name

    def _name(self, node: ast.Name) -> None:
        self._add("Name(")
        targets = self._lookup(node.id) if isinstance(node.ctx, ast.Load) else None
        if targets == [] and node.id in (*_ANY_NAME, *_IMPORTERS):
            targets = [Outside(node.id)]
        self._refer(node.id, targets) if targets else self._add(self._own(node.id))
        self._add(")")

    def _attribute(self, node: ast.Attribute) -> None:
        """`module.name` is the definition itself; of something outside, the longer path."""
        found = self._path(node) or []
        if found and None not in found:
            self._add("Name(")
            self._refer(".".join(path_of(node)), [target for target in found if target is not None])
            self._add(")")
        else:
            self._fields(node)

    def _called(self, node: ast.Call) -> str:
        """The path of what is called, where that is not of the library."""
        found = self._path(node.func)
        unbound = "".join(path_of(node.func)[:1]) if found == [] else ""
        return next((each.path for each in found or [] if isinstance(each, Outside)), unbound)

    def _import(self, node: ast.Call) -> None:
        """A module imported by its name as text: one of the library as a whole, by `_text`."""
        name = node.args[0] if node.args else None
        if not (isinstance(name, ast.Constant) and isinstance(name.value, str) and not name.value.startswith(".")):
            raise ValueError(f"{self.definition}: `{ast.unparse(node)}` hides what it imports; write its full name")
        self._add("import(")
        self._refer(name.value, [self.library.imported(name.value, "")])
        self.write([*node.args[1:], *node.keywords])
        self._add(")")

    def _text(self, text: str) -> None:
        """A text that is a dotted name of the library, or imports one, may be used so: all of that module counts.

        Inside a longer text, such as the command in a message, only where the module stands is said: that is left out.
        """
        self.said.texts |= {text, *text.split("/")}
        known, dotted = self.library.module, self._modules_in.pattern
        self._add(ascii(self._modules_in.sub(lambda m: "<module>" if known(m[0]) else m[0], text)))
        imported = re.findall(rf"\bimport\s+({dotted})|\bfrom\s+({dotted})\s+import\b", text)
        for path in [text] if self._modules_in.fullmatch(text) else ["".join(pair) for pair in imported]:
            while "." in path and not known(path):
                path = path.rpartition(".")[0]
            self._refer("", [Definition(path, "")] if "." in path else [])

    def _annotated(self, node: ast.AnnAssign) -> None:
        """In a class an annotation makes a field; elsewhere it says nothing to Python."""
        if self._in_class:
            kind = node.annotation
            if isinstance(kind, ast.Constant) and isinstance(kind.value, str):
                kind = ast.parse(kind.value, mode="eval").body
            self._fields(node, annotation=kind)
        elif node.value is not None:
            self._fields(ast.Assign([node.target], node.value))

    def _class(self, node: ast.ClassDef) -> None:
        name, before, self._in_class = self._own(node.name), self._in_class, True
        self._fields(node, name=name)
        self._in_class = before

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> None:
        """A function without its annotations, unless an unknown decorator may read them; defaults are outside it."""
        known, body = node.args, node.body if isinstance(node.body, list) else [node.body]
        self._add(f"{type(node).__name__}(", self._own(getattr(node, "name", "")))
        for outer in (getattr(node, "decorator_list", []), known.defaults, known.kw_defaults):
            self._add("[")
            self.write(outer)
            self._add("]")
        if not self.library.is_plain(self.module, node):
            self.write([*(argument.annotation for argument in arguments_of(known)), getattr(node, "returns", None)])
        groups = (known.posonlyargs, known.args, known.kwonlyargs, [known.vararg], [known.kwarg])
        self._add(ascii([[argument.arg for argument in group if argument] for group in groups]))
        self.said.runs += [origin for _, origin in imports_in(body, self.module.package)]
        before, self._in_class = self._in_class, False
        with self._scope(scope_of(body, known, self.module.package)):
            self._add("[")
            self.write(body)
            self._add("])")
        self._in_class = before

    def _comprehension(self, node: ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp) -> None:
        """The first iterable is outside the comprehension's own names, all else is inside."""
        first, names = node.generators[0], bound_by(generator.target for generator in node.generators)
        self._add(f"{type(node).__name__} of ")
        self.write(first.iter)
        with self._scope({name: [] for name in names}):
            inner = ast.comprehension(first.target, _NOTHING, first.ifs, first.is_async)
            self._fields(node, generators=[inner, *node.generators[1:]])

    @contextmanager
    def _scope(self, names: dict[str, list[Origin] | None]) -> Iterator[None]:
        self._scopes.append(names)
        yield
        self._scopes.pop()


def sha(text: str) -> str:
    """SHA-256 of a text, its first 16 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
