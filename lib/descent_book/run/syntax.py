"""What Python's own rules say of a syntax tree: which names a statement binds, what it imports, what runs at once."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
Origin = tuple[str, str]  # a module and a name in it; no name for the module itself


def says_nothing(node: object) -> bool:
    """Whether a statement means nothing where it stands: `pass`, an import, a text that stands alone."""
    alone = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return alone or isinstance(node, (ast.Import, ast.ImportFrom, ast.Pass))


def is_for_types_only(statement: ast.stmt) -> bool:
    """`if TYPE_CHECKING:`."""
    known = ("TYPE_CHECKING", "typing.TYPE_CHECKING")
    return isinstance(statement, ast.If) and ast.unparse(statement.test) in known


def is_main(statement: ast.stmt) -> bool:
    """`if __name__ == "__main__":`."""
    return isinstance(statement, ast.If) and ast.unparse(statement.test) == "__name__ == '__main__'"


def path_of(node: ast.expr) -> list[str]:
    """`a.b.c` as ["a", "b", "c"]; empty where its root is not a name."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return [node.id, *reversed(parts)] if isinstance(node, ast.Name) else []


def at_once(nodes: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """All nodes that run with the statements themselves: those inside classes, not those inside functions."""
    for node in nodes:
        yield node
        inside = isinstance(node, (*FUNCTIONS, ast.Lambda))
        yield from at_once(runs_when_defined(node) if inside else ast.iter_child_nodes(node))


def imports_in(statements: Iterable[ast.AST], package: str) -> Iterator[tuple[str, Origin]]:
    """(local name, origin) of every import that runs with these statements; no name where it only runs a module.

    Relative imports are counted from `package`, the one that the statements stand in.
    """
    for node in at_once(statements):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.partition(".")[0]
                yield alias.asname or first, (alias.name if alias.asname else first, "")
                if not alias.asname and "." in alias.name:  # `import a.b` binds a, and runs a.b
                    yield "", (alias.name, "")
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                parts = package.split(".")
                origin = ".".join([*parts[: len(parts) - node.level + 1], *([origin] if origin else [])])
            yield from ((alias.asname or alias.name, (origin, alias.name)) for alias in node.names)


def arguments_of(arguments: ast.arguments) -> list[ast.arg]:
    """All arguments of a function."""
    plain = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return plain + [each for each in (arguments.vararg, arguments.kwarg) if each is not None]


def bound_by(nodes: Iterable[ast.AST]) -> list[str]:
    """The names that statements bind in their own scope, imports aside."""
    names: list[str] = []
    waiting = list(nodes)
    while waiting:
        node = waiting.pop(0)
        if isinstance(node, (*FUNCTIONS, ast.ClassDef, ast.Lambda)):
            names += [] if isinstance(node, ast.Lambda) else [node.name]
            waiting += runs_when_defined(node)  # what stands inside is theirs
            continue
        if isinstance(node, COMPREHENSIONS):  # its own names are not the scope's, but those of a walrus are
            names += [leaf.target.id for leaf in ast.walk(node) if isinstance(leaf, ast.NamedExpr)]
            continue
        if isinstance(node, ast.Name) and isinstance(node.ctx, (ast.Store, ast.Del)):
            names.append(node.id)
        elif isinstance(node, (ast.ExceptHandler, ast.MatchAs, ast.MatchStar)) and node.name:
            names.append(node.name)
        elif isinstance(node, ast.MatchMapping) and node.rest:
            names.append(node.rest)
        waiting += list(ast.iter_child_nodes(node))
    return list(dict.fromkeys(names))


def runs_when_defined(node: ast.AST) -> list[ast.AST]:
    """What runs when a function, a lambda or a class is defined, its body aside."""
    found: list[ast.AST | None] = [*getattr(node, "decorator_list", [])]
    if isinstance(node, (*FUNCTIONS, ast.Lambda)):
        found += [*node.args.defaults, *node.args.kw_defaults]
    elif isinstance(node, ast.ClassDef):
        found += [*node.bases, *node.keywords]
    return [each for each in found if each is not None]


def scope_of(body: Sequence[ast.AST], arguments: ast.arguments, package: str) -> dict[str, list[Origin] | None]:
    """What each name of a function stands for there: the origins that it imports it from, none for a local name.

    A name that it declares global has None; one that it declares nonlocal is not in the answer.
    """
    scope: dict[str, list[Origin] | None] = {name: [] for name in bound_by(body)}
    for node in at_once(body):
        if isinstance(node, ast.Global):
            scope |= dict.fromkeys(node.names)
        elif isinstance(node, ast.Nonlocal):
            scope = {name: origins for name, origins in scope.items() if name not in node.names}
    scope |= {argument.arg: [] for argument in arguments_of(arguments)}
    for local, origin in imports_in(body, package):
        known = scope.setdefault(local, [])
        if known is not None:
            known.append(origin)
    return scope


@dataclass
class Module:
    """A parsed module: what binds each of its names, what it imports, and what it does when imported."""

    name: str
    package: str  # the one that its relative imports start from
    program: bool = False  # it is one, as a notebook is: what stands under `if __name__ == "__main__"` runs
    bindings: dict[str, list[ast.stmt]] = field(default_factory=dict)  # the statements that bind a name, in their order
    # the origins of each imported name, in their order; several where it depends on a condition
    imports: dict[str, list[Origin]] = field(default_factory=dict)
    # all that stand at its top, less imports, docstrings and what only its own run as a program does
    statements: list[ast.stmt] = field(default_factory=list)
    main: list[ast.stmt] = field(default_factory=list)  # what only its own run as a program does
    runs: list[Origin] = field(default_factory=list)  # the origins whose modules an import of this one runs as well

    def read(self, body: Iterable[ast.stmt], *, runs: bool = True) -> None:
        """Take in statements; `runs` is False for those of a stub, and for imports that only type checkers see."""
        for statement in body:
            if is_for_types_only(statement) or (is_main(statement) and not self.program):
                assert isinstance(statement, ast.If)
                self.main += statement.body if is_main(statement) else []
                self._import(statement.body, runs=False)
                self.read(statement.orelse, runs=runs)
                continue
            self._import([statement], runs=runs)
            shown = self.program and isinstance(statement, ast.Expr)  # a notebook shows what stands alone in a cell
            if shown or not says_nothing(statement):
                for name in bound_by([statement]):
                    self.bindings.setdefault(name, []).append(statement)
                self.statements.append(statement)

    def _import(self, body: Sequence[ast.stmt], *, runs: bool) -> None:
        for local, origin in imports_in(body, self.package):
            if origin[1] == "*":
                raise ValueError(f"{self.name}: `from {origin[0]} import *` hides what is used; import names")
            known = self.imports.setdefault(local, [])
            known += [origin] if local and origin not in known else []
            self.runs += [origin] if runs else []
