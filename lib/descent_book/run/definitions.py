"""What a chapter's code means: every definition that it reaches in the library, whatever its name and place.

The sources are parsed, never imported. A definition is the syntax tree of what binds a name at the top of a module,
without docstrings, comments and annotations of functions; each name in it that stands for another definition of the
library is replaced by that definition's digest (a Merkle tree). So moving a file, renaming a function or a class,
rewording a docstring and touching what is not reached change no digest; a constant deep in a function that is reached
changes the digest of all that lead to it.

A class's name is therefore no part of a digest either, although `repr` shows it: in this library a `repr` stands
in error messages and in the fingerprint by which an unfinished training is known, and decides no number.
"""

from __future__ import annotations

import ast
import builtins
import copy
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

# calls that a module may make when it is imported without any effect beyond the name that they are assigned to
_PURE_CALLS = frozenset(
    {"collections.namedtuple", "cycler.cycler", "functools.partial", "lazy_loader.attach", "lazy_loader.attach_stub",
     "logging.getLogger", "pathlib.Path", "re.compile", "threading.Lock", "typing.NewType", "typing.TypeVar"}
)  # fmt: skip
_PURE_DECORATORS = frozenset(
    {"abc.abstractmethod", "classmethod", "contextlib.contextmanager", "dataclasses.dataclass", "functools.cache",
     "functools.cached_property", "functools.lru_cache", "property", "staticmethod", "typing.overload",
     "typing.runtime_checkable"}
)  # fmt: skip
_NOT_DUMPED = frozenset({"ctx", "kind", "lineno", "type_comment", "type_ignores", "type_params"})
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


@dataclass(frozen=True, order=True)
class Definition:
    """A name at the top of a module of the library: `Definition("descent.spectra.gram", "spectrum")`.

    An empty `name` is the whole module, where code asks for a name that cannot be known before it runs.
    """

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}" if self.name else self.module


@dataclass(frozen=True)
class Outside:
    """Something that is not of the library: `Outside("torch.nn.functional")`."""

    path: str


Target = Definition | Outside


@dataclass
class Module:
    """A parsed module: what binds each of its names, what it imports, and what it does when imported.

    Attributes:
        bindings: the statements that bind a name, in their order.
        imports: for each imported name, the module and the name in it; no name for a module itself.
        statements: all that stand at its top, but imports, docstrings and what only its own run as a program does.
        runs: modules that an import of this one runs as well.
    """

    name: str
    bindings: dict[str, list[ast.stmt]] = field(default_factory=dict)
    imports: dict[str, tuple[str, str]] = field(default_factory=dict)
    statements: list[ast.stmt] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)


class Library:
    """The definitions of one package, read from its folder.

    Args:
        folder: of the package, such as `lib/descent`; its name is the package's.

    Raises:
        ValueError: from any method, where a module takes names that cannot be known (`import *`) or is no Python.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.package = folder, folder.name
        self._modules: dict[str, Module | None] = {}
        self._digests: dict[Definition, str] = {}

    def module(self, name: str) -> Module | None:
        """The module of this dotted name; None where the package has none."""
        if name not in self._modules:
            self._modules[name] = self._parsed(name)
        return self._modules[name]

    def _parsed(self, name: str) -> Module | None:
        first, *parts = name.split(".")
        if first != self.package:
            return None
        path = self.folder.joinpath(*parts)
        package = path.is_dir()
        stub = path / "__init__.pyi"  # of a lazy door: what it hands on
        files = [f for f in ([path / "__init__.py", stub] if package else [path.with_suffix(".py")]) if f.is_file()]
        if not files:
            return Module(name) if package else None
        module = Module(name)
        for file in files:
            try:
                tree = ast.parse(file.read_text(encoding="utf-8"))
            except SyntaxError as error:
                raise ValueError(f"{file}: not Python ({error.msg}, line {error.lineno})") from error
            self._read(module, tree.body, name if package else name.rpartition(".")[0], runs=file != stub)
        return module

    def read(self, name: str, body: Sequence[ast.stmt]) -> Module:
        """A module from its statements, such as those of a notebook."""
        module = Module(name)
        self._read(module, body, "", runs=True)
        return module

    def _read(self, module: Module, body: Iterable[ast.stmt], package: str, *, runs: bool) -> None:
        for statement in body:
            if isinstance(statement, ast.If) and _is_for_types_only(statement.test):
                for found in _imports_in(statement.body, package):
                    module.imports.setdefault(found[0], found[1:])
                self._read(module, statement.orelse, package, runs=runs)
                continue
            if isinstance(statement, ast.If) and _is_main(statement.test):
                continue
            for local, origin, wanted in _imports_in([statement], package):
                if wanted == "*":
                    raise ValueError(f"{module.name}: `from {origin} import *` hides what is used; import names")
                module.imports[local] = (origin, wanted)
                if runs and origin.partition(".")[0] == self.package:
                    module.runs += [origin, f"{origin}.{wanted}"] if wanted else [origin]
            if isinstance(statement, (ast.Import, ast.ImportFrom)) or _is_docstring(statement):
                continue
            for bound in _bound_by(statement):
                module.bindings.setdefault(bound, []).append(statement)
            module.statements.append(statement)

    def _has_effect(self, module: Module, statement: ast.stmt) -> bool:
        """Whether importing the module does more, at this statement, than bind names."""
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            decorators = [d.func if isinstance(d, ast.Call) else d for d in statement.decorator_list]
            return any(self._called(module, decorator) not in _PURE_DECORATORS for decorator in decorators)
        if isinstance(statement, ast.Try):
            inner = [*statement.body, *statement.orelse, *(s for h in statement.handlers for s in h.body)]
            imports = (ast.Import, ast.ImportFrom, ast.Pass)
            return any(
                not isinstance(s, imports) and self._has_effect(module, s) for s in [*inner, *statement.finalbody]
            )
        if isinstance(statement, (ast.Assign, ast.AnnAssign)):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            leaves = [leaf for target in targets for leaf in ast.walk(target) if isinstance(leaf, ast.expr)]
            plain = all(isinstance(leaf, (ast.Name, ast.Tuple, ast.List, ast.Starred)) for leaf in leaves)
            return not plain or any(not self._is_pure(module, call) for call in _calls_at_once(statement.value))
        return type(statement).__name__ not in ("Pass", "TypeAlias")

    def _is_pure(self, module: Module, call: ast.Call) -> bool:
        """Whether a call does nothing but give a value: a builtin, one of `_PURE_CALLS`, a class of the library."""
        called = self._called(module, call.func)
        if called in _PURE_CALLS or called.rpartition(".")[0] == "pathlib.Path":
            return True
        if isinstance(call.func, ast.Name):
            target = self.resolve(module, call.func.id)
            if isinstance(target, Definition):
                owner = self.module(target.module)
                bound = owner.bindings.get(target.name, []) if owner else []
                return bool(bound) and all(isinstance(statement, ast.ClassDef) for statement in bound)
            return target is None and hasattr(builtins, call.func.id) and call.func.id not in ("exec", "eval", "print")
        # a method of a literal or of a value that was itself made without effect: "a b".split(), Path(x).with_name(y)
        return isinstance(call.func, ast.Attribute) and (
            isinstance(call.func.value, ast.Constant)
            or (isinstance(call.func.value, ast.Call) and self._is_pure(module, call.func.value))
        )

    def _called(self, module: Module, node: ast.expr) -> str:
        """The dotted path of what is called, as far as it is known."""
        if isinstance(node, ast.Attribute):
            return f"{self._called(module, node.value)}.{node.attr}"
        if isinstance(node, ast.Name):
            target = self.resolve(module, node.id)
            return node.id if target is None else target.path if isinstance(target, Outside) else str(target)
        return ""

    def resolve(self, module: Module, name: str) -> Target | None:
        """What a name at the top of a module stands for; None for a builtin, or what nothing binds."""
        if name in module.bindings:
            return Definition(module.name, name)
        if name not in module.imports:
            return None
        return self.imported(*module.imports[name])

    def imported(self, origin: str, name: str) -> Target:
        """What `from origin import name` gives, or `import origin` where there is no name; doors are looked through.

        Raises:
            ValueError: the library has no such module, or the module has no such name.
        """
        if origin.partition(".")[0] != self.package:
            return Outside(f"{origin}.{name}" if name else origin)
        module = self.module(origin)
        if module is None:
            raise ValueError(f"the library has no module {origin}")
        if not name:
            return Definition(origin, "")
        if (target := self.resolve(module, name)) is not None and target != Definition(origin, ""):
            return target
        if self.module(f"{origin}.{name}") is not None:
            return Definition(f"{origin}.{name}", "")
        raise ValueError(f"{origin} defines no {name!r}")

    def statements(self, definition: Definition) -> list[ast.stmt]:
        """The statements that bind the name; of a whole module, all of its bindings."""
        module = self.module(definition.module)
        if module is None:
            raise ValueError(f"the library has no module {definition.module}")
        if definition.name:
            return module.bindings[definition.name]
        kept = {id(statement): statement for bound in module.bindings.values() for statement in bound}
        return list(kept.values())

    def references(self, definition: Definition) -> list[Target]:
        """What the definition itself refers to."""
        module = self.module(definition.module)
        assert module is not None
        found: list[Target] = []

        def noted(target: Target) -> str:
            found.append(target)
            return ""

        for statement in self.statements(definition):
            Canonical(self, module, noted).visit(copy.deepcopy(statement))
        if not definition.name:  # a door, asked for as a whole, hands on all its names
            found += [self.imported(*origin) for origin in module.imports.values()]
        return [target for target in dict.fromkeys(found) if target != definition]

    def digest(self, definition: Definition) -> str:
        """The Merkle digest of a definition, 16 hexadecimal digits."""
        if definition not in self._digests:
            for group in self._groups(definition):
                self._digest_group(group)
        return self._digests[definition]

    def _digest_group(self, group: Sequence[Definition]) -> None:
        """Definitions that refer to each other in a circle are known by their own text and that of all."""

        def within(target: Target) -> str:
            if isinstance(target, Outside):
                return target.path
            return "<circle>" if target in group else f"<{self._digests[target]}>"

        texts = {definition: self._text(definition, within) for definition in group}
        joint = "\n".join(sorted(texts.values()))
        for definition in group:
            text = texts[definition] if len(group) == 1 else f"{texts[definition]}\n{joint}"
            self._digests[definition] = hashlib.sha256(text.encode()).hexdigest()[:16]

    def _groups(self, start: Definition) -> Iterator[list[Definition]]:
        """Tarjan's strongly connected components of what is reached and has no digest yet, the innermost first."""
        order: dict[Definition, int] = {}
        lowest: dict[Definition, int] = {}
        stack: list[Definition] = []
        groups: list[list[Definition]] = []

        def visit(node: Definition) -> None:
            order[node] = lowest[node] = len(order)
            stack.append(node)
            for target in self.references(node):
                if isinstance(target, Outside) or target in self._digests:
                    continue
                if target not in order:
                    visit(target)
                    lowest[node] = min(lowest[node], lowest[target])
                elif target in stack:
                    lowest[node] = min(lowest[node], order[target])
            if lowest[node] == order[node]:
                at = stack.index(node)
                groups.append(stack[at:])
                del stack[at:]

        visit(start)
        return iter(groups)

    def own_digest(self, definition: Definition) -> str:
        """A digest of the definition's own text alone: it differs where this definition itself was changed."""
        text = self._text(definition, lambda target: target.path if isinstance(target, Outside) else "<definition>")
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _text(self, definition: Definition, write: Callable[[Target], str]) -> str:
        module = self.module(definition.module)
        assert module is not None

        def named(target: Target) -> str:
            return "<self>" if target == definition else write(target)

        shown = Canonical(self, module, named)
        return "\n".join(shown.text(statement, definition.name) for statement in self.statements(definition))

    def reached(self, starts: Iterable[Target]) -> tuple[list[Definition], set[str]]:
        """All definitions behind `starts`, sorted, and the paths outside the library that they name."""
        waiting, found, outside = list(starts), set(), set()
        while waiting:
            target = waiting.pop()
            if isinstance(target, Outside):
                outside.add(target.path)
            elif target not in found:
                found.add(target)
                waiting += self.references(target)
        return sorted(found), outside

    def effects(self, modules: Iterable[str]) -> list[str]:
        """Digests of the statements with effects in these modules and in all that importing them runs, sorted."""
        waiting, seen, found = list(modules), set(), set()
        while waiting:
            name = waiting.pop()
            if name in seen or (module := self.module(name)) is None:
                continue
            seen.add(name)
            waiting += [*module.runs, name.rpartition(".")[0]]
            for statement in module.statements:
                if not self._has_effect(module, statement):
                    continue
                shown = Canonical(self, module, lambda t: t.path if isinstance(t, Outside) else f"<{self.digest(t)}>")
                found.add(hashlib.sha256(shown.text(statement, "").encode()).hexdigest()[:16])
        return sorted(found)


class Canonical(ast.NodeTransformer):
    """A statement with all that has no meaning left out, and each global name replaced by what `write` gives for it.

    Names are resolved as Python does it: those of a function, a comprehension or a class hide those of the module.
    """

    def __init__(self, library: Library, module: Module, write: Callable[[Target], str]) -> None:
        self.library, self.module, self.write = library, module, write
        self._modules_in = re.compile(rf"\b{re.escape(library.package)}(?:\.\w+)+")
        self._scopes: list[set[str]] = []
        self._local_imports: list[dict[str, tuple[str, str]]] = []

    def text(self, statement: ast.stmt, own_name: str) -> str:
        """The dump of the statement; the name that it defines, `own_name`, is left out."""
        statement = copy.deepcopy(statement)
        for node in ast.walk(statement) if not isinstance(statement, (ast.FunctionDef, ast.ClassDef)) else [statement]:
            if isinstance(node, ast.Name) and node.id == own_name and isinstance(node.ctx, ast.Store):
                node.id = "<self>"
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and statement.name == own_name:
            statement.name = "<self>"
        seen = self.visit(statement)
        return "" if seen is None else dumped(seen)

    def _written(self, name: str) -> str | None:
        """What stands for a name: None for a local one, a builtin, or one that nothing binds."""
        for scope, imports in zip(reversed(self._scopes), reversed(self._local_imports), strict=True):
            if name in imports:
                return self.write(self.library.imported(*imports[name]))
            if name in scope:
                return None
        target = self.library.resolve(self.module, name)
        return None if target is None else self.write(target)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        """A name of the module becomes what it stands for."""
        if isinstance(node.ctx, ast.Load) and (text := self._written(node.id)) is not None:
            return ast.Name(text, node.ctx)
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        """`module.name` is the definition itself; of something outside, the longer path."""
        path = _path_of(node)
        if path and self._known(path[0]) and (target := self._through(path)) is not None:
            return ast.Name(self.write(target), node.ctx)
        self.generic_visit(node)
        return node

    def _known(self, name: str) -> bool:
        hidden = any(
            name in scope and name not in imports
            for scope, imports in zip(self._scopes, self._local_imports, strict=True)
        )
        return not hidden

    def _through(self, path: Sequence[str]) -> Target | None:
        """What a chain of attributes stands for, where all but its last member are modules."""
        local = next((imports[path[0]] for imports in reversed(self._local_imports) if path[0] in imports), None)
        target = self.library.imported(*local) if local else self.library.resolve(self.module, path[0])
        for number, name in enumerate(path[1:], 1):
            if isinstance(target, Definition) and not target.name:
                target = self.library.imported(target.module, name)
            elif isinstance(target, Outside) and number == len(path) - 1:
                return Outside(f"{target.path}.{name}")
            elif isinstance(target, Outside):
                target = Outside(f"{target.path}.{name}")
            else:
                return None
        return target

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        """A text that is a module's dotted name may be used to import it: all of that module counts.

        Inside a longer text, such as the command in a message, only where the module stands is said: that is left out.
        """
        if not isinstance(node.value, str):
            return node
        if self._modules_in.fullmatch(node.value) and self.library.module(node.value):
            return ast.Constant(self.write(Definition(node.value, "")))
        known = self.library.module
        return ast.Constant(self._modules_in.sub(lambda m: "<module>" if known(m[0]) else m[0], node.value))

    def visit_Import(self, node: ast.Import) -> ast.AST | None:
        """Where a name comes from is no part of what it means."""
        return None

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST | None:
        """Where a name comes from is no part of what it means."""
        return None

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        """Text that stands alone is a docstring, or a comment."""
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            return None
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        """In a class an annotation makes a field; elsewhere it says nothing to Python."""
        if self._in_class:
            return self.generic_visit(node)
        if node.value is None:
            return None
        return self.generic_visit(ast.Assign([node.target], node.value, lineno=0))

    _in_class = False

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        """Names of a class are seen by its own statements, not by its methods."""
        node.bases, node.keywords = [self.visit(b) for b in node.bases], [self.visit(k) for k in node.keywords]
        node.decorator_list = [self.visit(d) for d in node.decorator_list]
        before, self._in_class = self._in_class, True
        bound = {name for statement in node.body for name in _bound_by(statement)}
        body: list[ast.stmt] = []
        for statement in node.body:
            inner = isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef))
            # a default or decorator may name a field of the class; that it could be a global one too is kept as text
            with self._scope(set() if inner else bound, {}):
                seen = self.visit(statement)
            body += [] if seen is None else [seen]
        node.body, self._in_class = body or [ast.Pass()], before
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        """A function without its annotations; its arguments and what it binds hide the module's names."""
        return self._function(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        """As a function."""
        return self._function(node)

    def visit_Lambda(self, node: ast.Lambda) -> ast.AST:
        """A function of one expression."""
        arguments = node.args
        arguments.defaults = [self.visit(d) for d in arguments.defaults]
        arguments.kw_defaults = [d and self.visit(d) for d in arguments.kw_defaults]
        with self._scope(_argument_names(arguments), {}):
            node.body = self.visit(node.body)
        return node

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> ast.AST:
        before, self._in_class = self._in_class, False
        node.returns, node.decorator_list = None, [self.visit(d) for d in node.decorator_list]
        arguments = node.args
        arguments.defaults = [self.visit(d) for d in arguments.defaults]
        arguments.kw_defaults = [d and self.visit(d) for d in arguments.kw_defaults]
        for argument in _arguments(arguments):
            argument.annotation = None
        bound, imports = _bound_in(node.body, self.module.name.rpartition(".")[0])
        with self._scope(bound | _argument_names(arguments), imports):
            node.body = self._body(node.body)
        self._in_class = before
        return node

    def _body(self, statements: Sequence[ast.stmt]) -> list[ast.stmt]:
        seen = [self.visit(statement) for statement in statements]
        return [statement for statement in seen if statement is not None] or [ast.Pass()]

    def generic_visit(self, node: ast.AST) -> ast.AST:
        """A block that held nothing but imports or text still stands."""
        super().generic_visit(node)
        if getattr(node, "body", None) == []:
            node.body = [ast.Pass()]  # type: ignore[attr-defined]
        return node

    def _comprehension(self, node: ast.AST) -> ast.AST:
        """The first iterable is outside the comprehension's own names, all else is inside."""
        generators: list[ast.comprehension] = node.generators  # type: ignore[attr-defined]
        generators[0].iter = self.visit(generators[0].iter)
        names = {leaf.id for g in generators for leaf in ast.walk(g.target) if isinstance(leaf, ast.Name)}
        with self._scope(names, {}):
            for number, generator in enumerate(generators):
                if number:
                    generator.iter = self.visit(generator.iter)
                generator.target, generator.ifs = self.visit(generator.target), [self.visit(c) for c in generator.ifs]
            for part in ("elt", "key", "value"):
                if hasattr(node, part):
                    setattr(node, part, self.visit(getattr(node, part)))
        return node

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _comprehension  # noqa: N815

    @contextmanager
    def _scope(self, names: set[str], imports: dict[str, tuple[str, str]]) -> Iterator[None]:
        self._scopes.append(names)
        self._local_imports.append(imports)
        yield
        self._scopes.pop()
        self._local_imports.pop()


def dumped(node: object) -> str:
    """A syntax tree as text that is the same on every version of Python: what is empty, or only types, is left out."""
    if isinstance(node, ast.AST):
        fields = [(name, value) for name, value in ast.iter_fields(node) if name not in _NOT_DUMPED]
        parts = [f"{name}={dumped(value)}" for name, value in fields if value is not None and value != []]
        return f"{type(node).__name__}({', '.join(parts)})"
    return f"[{', '.join(map(dumped, node))}]" if isinstance(node, list) else repr(node)


def _path_of(node: ast.expr) -> list[str]:
    """`a.b.c` as ["a", "b", "c"]; empty where its root is not a name."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return [node.id, *reversed(parts)] if isinstance(node, ast.Name) else []


def _is_docstring(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _is_for_types_only(test: ast.expr) -> bool:
    return ast.unparse(test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def _is_main(test: ast.expr) -> bool:
    return ast.unparse(test) == "__name__ == '__main__'"


def _imports_in(statements: Iterable[ast.stmt], package: str) -> Iterator[tuple[str, str, str]]:
    """(local name, module, name in it) of every import that runs with these statements; functions' own are not."""
    for node in _at_once(statements):
        if isinstance(node, ast.Import):
            for alias in node.names:
                path = alias.name if alias.asname else alias.name.partition(".")[0]
                yield alias.asname or path, path, ""
                if not alias.asname and "." in alias.name:  # `import a.b` binds a, and makes a.b known
                    yield path, path, ""
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - (node.level - 1)]
                origin = ".".join([*above, origin]) if origin else ".".join(above)
            for alias in node.names:
                yield alias.asname or alias.name, origin, alias.name


def _at_once(nodes: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """All nodes that run with the statements themselves: not the bodies of functions, but those of classes."""
    waiting = list(nodes)
    while waiting:
        node = waiting.pop(0)
        yield node
        if isinstance(node, _FUNCTIONS):
            continue
        waiting[:0] = list(ast.iter_child_nodes(node))


def _calls_at_once(value: ast.expr | None) -> Iterator[ast.Call]:
    return (node for node in _at_once([value] if value else []) if isinstance(node, ast.Call))


def _arguments(arguments: ast.arguments) -> list[ast.arg]:
    plain = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return plain + [a for a in (arguments.vararg, arguments.kwarg) if a is not None]


def _argument_names(arguments: ast.arguments) -> set[str]:
    return {argument.arg for argument in _arguments(arguments)}


def _bound_by(statement: ast.stmt) -> list[str]:
    """The names that a statement binds in its own scope, imports aside."""
    names: list[str] = []
    waiting: list[ast.AST] = [statement]
    while waiting:
        node = waiting.pop(0)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.append(node.name)
            continue  # what stands inside is theirs
        if isinstance(node, ast.Lambda):
            continue
        if isinstance(node, _COMPREHENSIONS):  # its own names are not the scope's, but those of a walrus are
            names += [leaf.target.id for leaf in ast.walk(node) if isinstance(leaf, ast.NamedExpr)]
            continue
        if isinstance(node, ast.Name) and isinstance(node.ctx, (ast.Store, ast.Del)):
            names.append(node.id)
        elif isinstance(node, (ast.ExceptHandler, ast.MatchAs, ast.MatchStar)) and node.name:
            names.append(node.name)
        elif isinstance(node, ast.MatchMapping) and node.rest:
            names.append(node.rest)
        elif isinstance(node, ast.alias):
            continue
        waiting += list(ast.iter_child_nodes(node))
    return list(dict.fromkeys(names))


def _bound_in(body: Sequence[ast.stmt], package: str) -> tuple[set[str], dict[str, tuple[str, str]]]:
    """What a function's body binds, and which of that it imports; names that it declares global are the module's."""
    bound = {name for statement in body for name in _bound_by(statement)}
    shared = {name for node in _at_once(body) if isinstance(node, (ast.Global, ast.Nonlocal)) for name in node.names}
    imports = {local: (origin, name) for local, origin, name in _imports_in(body, package)}
    return (bound - shared) | set(imports), imports
