"""What a chapter's code means: every definition that it reaches in the library, whatever its name and place.

The sources are parsed, never imported. A definition is the syntax tree of what binds a name at the top of a module,
without docstrings, comments and annotations of functions; each name in it that stands for another definition of the
library is replaced by that definition's digest (a Merkle tree). So moving a file, renaming a function or a class,
rewording a docstring and touching what is not reached change no digest; a constant deep in a function that is reached
changes the digest of all that lead to it. Where it cannot be known which definition is meant, more are taken than are
needed, never fewer; where it cannot be known at all, the code is refused.

The name of a function or a class is therefore no part of a digest, although `repr` shows it: in this library it stands
in error messages and in the fingerprint by which an unfinished training is known, and decides no number.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from descent_book.run.meaning import Definition, Meaning, Outside, Target, Writer, sha
from descent_book.run.syntax import Module, Origin, at_once, bound_by, path_of, runs_when_defined, says_nothing

# what may be called when a module is imported without any effect beyond the name that the value is given
_PURE_CALLS = frozenset(
    {"bool", "bytes", "collections.namedtuple", "complex", "cycler.cycler", "dataclasses.field", "dict", "enumerate",
     "float", "frozenset", "functools.partial", "int", "lazy_loader.attach_stub", "len", "list", "logging.getLogger",
     "object", "pathlib.Path", "pydantic.ConfigDict", "pydantic.Field", "range", "re.compile", "set", "slice", "str",
     "threading.Lock", "tuple", "typing.NewType", "typing.TypeVar", "zip"}
)  # fmt: skip
_PURE_DECORATORS = frozenset(
    {"abc.abstractmethod", "classmethod", "contextlib.contextmanager", "dataclasses.dataclass", "functools.cache",
     "functools.cached_property", "functools.lru_cache", "property", "pydantic.field_validator",
     "pydantic.model_validator", "staticmethod", "torch.enable_grad", "torch.inference_mode",
     "torch.nn.attention.sdpa_kernel", "torch.no_grad",
     "typing.overload", "typing.runtime_checkable"}
)  # fmt: skip
_MAKERS = ("__init__", "__new__", "__post_init__", "__set_name__", "__init_subclass__")


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
        self._meanings: dict[Definition, Meaning] = {}

    def module(self, name: str) -> Module | None:
        """The module of this dotted name; None where the package has none."""
        if name not in self._modules:
            self._modules[name] = self._parsed(name)
        return self._modules[name]

    def _parsed(self, name: str) -> Module | None:
        first, *parts = name.split(".")
        path = self.folder.joinpath(*parts)
        if first != self.package or not (path.is_dir() or path.with_suffix(".py").is_file()):
            return None
        stub = path / "__init__.pyi"  # of a lazy door: what it hands on
        files = [path / "__init__.py", stub] if path.is_dir() else [path.with_suffix(".py")]
        module = Module(name, name if path.is_dir() else name.rpartition(".")[0])
        for file in files:
            if file.is_file():
                try:
                    tree = ast.parse(file.read_text(encoding="utf-8"))
                except SyntaxError as error:
                    raise ValueError(f"{file}: not Python ({error.msg}, line {error.lineno})") from error
                module.read(tree.body, runs=file != stub)
        return module

    def add(self, name: str, body: Sequence[ast.stmt]) -> Module:
        """A program that uses the library, such as a notebook, from its statements; its imports go by no name."""
        self._modules[name] = module = Module(name, "", program=True)
        module.read(body)
        return module

    def resolve(self, module: Module, name: str) -> Target | None:
        """What a name at the top of a module stands for; None for a builtin, or what nothing binds.

        A name that is bound and imported, or imported from several places, is a definition made of them all.
        """
        origins = module.imports.get(name, [])
        if name in module.bindings or len(origins) > 1:
            return Definition(module.name, name)
        return self.imported(*origins[0]) if origins else None

    def imported(self, origin: str, name: str) -> Target:
        """What `from origin import name` gives, or `import origin` where there is no name; doors are looked through.

        Raises:
            ValueError: the library has no such module, or the module has no such name.
        """
        if origin.partition(".")[0] != self.package:
            if origin.startswith(f"{self.package}_"):
                raise ValueError(f"{origin} is no part of the library, and its code would count nowhere")
            return Outside(f"{origin}.{name}" if name else origin)
        module = self.module(origin)
        if module is None:
            raise ValueError(f"the library has no module {origin}")
        if not name or re.fullmatch("__[a-z]+__", name):  # `descent.plots.__dict__` may give any name
            return Definition(origin, "")
        itself = module.imports.get(name) == [(origin, name)]  # `from . import name` of a package
        if not itself and (target := self.resolve(module, name)) is not None:
            return target
        if self.module(f"{origin}.{name}") is not None:
            return Definition(f"{origin}.{name}", "")
        raise ValueError(f"{origin} defines no {name!r}")

    def statements(self, definition: Definition) -> list[ast.stmt]:
        """The statements that bind the name; of a whole module, all."""
        module = self.module(definition.module)
        if module is None:
            raise ValueError(f"the library has no module {definition.module}")
        if definition.is_effect:
            return [module.statements[int(definition.name.split()[1])]]
        return module.bindings.get(definition.name, []) if definition.name else [*module.statements, *module.main]

    def meaning(self, definition: Definition) -> Meaning:
        """What the definition says, and what it refers to."""
        if definition not in self._meanings:
            writer = Writer(self, definition)
            for statement in self.statements(definition):
                writer.write(statement.value if isinstance(statement, ast.Expr) else statement)
            imports, name = writer.module.imports, definition.name
            for local in (
                [] if writer.module.program else [name] if name in imports else [] if name else sorted(imports)
            ):
                writer.said.parts += ["" if name else local, *(self.imported(*each) for each in imports[local])]
            writer.said.runs += [] if name else [each for known in imports.values() for each in known]
            self._meanings[definition] = writer.said
        return self._meanings[definition]

    def reached(self, starts: Iterable[Target]) -> tuple[list[Definition], set[str]]:
        """All definitions behind `starts`, effects of their modules included, sorted; and the paths outside."""
        waiting, found, outside, modules = list(starts), set(), set(), set()
        while waiting:
            target = waiting.pop()
            if isinstance(target, Outside):
                outside.add(target.path)
            elif target not in found:
                found.add(target)
                said = self.meaning(target)
                waiting += said.targets
                running = [target.module, *(name for origin in said.runs for name in self._run_by(origin))]
                while running:
                    if (name := running.pop()) in modules or (module := self.module(name)) is None:
                        continue
                    modules.add(name)
                    running += [name.rpartition(".")[0], *(m for origin in module.runs for m in self._run_by(origin))]
                    if not module.program:
                        effects = [n for n, each in enumerate(module.statements) if not self.is_pure(module, each)]
                        waiting += [Definition(name, f"statement {number}") for number in effects]
        return sorted(found), outside

    def _run_by(self, origin: Origin) -> list[str]:
        """The modules of the library that an import runs: the one named, and the one that has the name in the end."""
        target = self.imported(*origin)
        return [origin[0], target.module] if isinstance(target, Definition) else []

    def digests(self, definitions: Sequence[Definition]) -> dict[Definition, str]:
        """The Merkle digest of each definition, 16 hexadecimal digits; all that these refer to is among `definitions`.

        In each round a definition's digest takes in what was known of its targets. Where nothing refers to itself in a
        circle the digests soon stay; in a circle as many rounds as there are definitions bring everything round.

        Two classes, or two values that can be told apart by their identity, may have the same digest, such as two empty
        exceptions. Then it matters which of them is meant, and their names count.
        """
        plain = self._settled({each: self.meaning(each).own_digest for each in definitions})
        counts = Counter(digest for each, digest in plain.items() if self._has_identity(each))
        twins = {each for each in plain if counts[plain[each]] > 1 and self._has_identity(each)}
        if not twins:
            return plain
        return self._settled(
            {each: self.meaning(each).own_digest + (f" {each.name}" if each in twins else "") for each in definitions}
        )

    def _has_identity(self, definition: Definition) -> bool:
        """Whether another definition of the same text would be another object: a class, a list, what a call gives."""
        made = (ast.Call, ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
        return not definition.is_effect and any(
            isinstance(each, ast.ClassDef)
            or (isinstance(each, (ast.Assign, ast.AnnAssign)) and any(isinstance(n, made) for n in ast.walk(each)))
            for each in (self.statements(definition) if definition.name else [])
        )

    def _settled(self, own: Mapping[Definition, str]) -> dict[Definition, str]:
        """The digest of each definition from its own and those of its targets, once no round changes any."""
        targets = {each: [t for t in self.meaning(each).targets if isinstance(t, Definition)] for each in own}
        users: dict[Definition, set[Definition]] = {each: set() for each in own}
        for each, known in targets.items():
            for target in known:
                users[target].add(each)
        found, due = dict.fromkeys(own, ""), set(own)
        for _ in range(len(own) + 1):
            new = {d: sha(" ".join([own[d], *(found[target] for target in targets[d])])) for d in due}
            due = {user for each, digest in new.items() if digest != found[each] for user in users[each]}
            found |= new
        return found

    def through(self, target: Target | None, names: Sequence[str]) -> Target | None:
        """What a chain of attributes stands for, where all but its last member are modules; None for any other."""
        for name in names:
            if isinstance(target, Outside):
                target = Outside(f"{target.path}.{name}")
            elif target is not None:
                target = None if target.name else self.imported(target.module, name)
        return target

    def _target(self, module: Module, node: ast.expr) -> Target | None:
        """What a path of names at the top of a module stands for; a builtin is outside."""
        first, *rest = path_of(node) or [""]
        builtin = Outside(first) if first and not rest else None
        return self.through(self.resolve(module, first), rest) or builtin

    def _is_one_of(self, known: frozenset[str], module: Module, node: ast.expr) -> bool:
        target = self._target(module, node)
        return isinstance(target, Outside) and target.path in known

    def is_plain(self, module: Module, node: ast.AST) -> bool:
        """Whether the decorators of a function or a class are all known to do nothing but wrap it."""
        decorators = [d.func if isinstance(d, ast.Call) else d for d in getattr(node, "decorator_list", [])]
        return all(self._is_one_of(_PURE_DECORATORS, module, decorator) for decorator in decorators)

    def is_pure(self, module: Module, node: ast.stmt) -> bool:
        """Whether importing the module does no more, at this statement, than bind names."""
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                inner = node.body if isinstance(node, ast.ClassDef) else []
                values = [value for value in runs_when_defined(node) if value not in node.decorator_list]
                values += [v for d in node.decorator_list if isinstance(d, ast.Call) for v in ast.iter_child_nodes(d)]
                known = self.is_plain(module, node) and not self._makes(module, node, ("__init_subclass__",))
            case ast.Assign() | ast.AnnAssign():
                places = node.targets if isinstance(node, ast.Assign) else [node.target]
                leaves = [leaf for place in places for leaf in ast.walk(place) if isinstance(leaf, ast.expr)]
                known = all(isinstance(leaf, (ast.Name, ast.Tuple, ast.List, ast.Starred)) for leaf in leaves)
                inner, values = [], [each for each in [node.value] if each]
            case ast.Try():
                inner = [*node.body, *node.orelse, *node.finalbody, *(s for h in node.handlers for s in h.body)]
                values, known = [], True
            case _:
                return says_nothing(node) or type(node).__name__ == "TypeAlias"
        calls = [each for each in at_once(values) if isinstance(each, ast.Call)]
        return (
            known and all(self._is_pure_call(module, c) for c in calls) and all(self.is_pure(module, s) for s in inner)
        )

    def _is_pure_call(self, module: Module, call: ast.Call) -> bool:
        """Whether a call does nothing but give a value: of `_PURE_CALLS`, or of a class without a making of its own."""
        target = self._target(module, call.func)
        if isinstance(target, Definition):
            bound, owner = self.statements(target), self.module(target.module)
            assert owner is not None
            return bool(bound) and not any(self._makes(owner, each, _MAKERS) for each in bound)
        # a method of a literal or of a new value of Python's own: "a b".split(), Path(x).with_name(y)
        value = call.func.value if isinstance(call.func, ast.Attribute) else None
        new = isinstance(value, ast.Call) and self._is_one_of(_PURE_CALLS, module, value.func)
        return new or isinstance(value, ast.Constant) or self._is_one_of(_PURE_CALLS, module, call.func)

    def _makes(self, module: Module, node: ast.stmt, makers: Sequence[str]) -> bool:
        """Whether a class, or one of the library that it derives from, has one of these methods; True for no class."""
        if not isinstance(node, ast.ClassDef):
            return makers == _MAKERS
        if any(each.arg == "metaclass" for each in node.keywords) or set(makers) & set(bound_by(node.body)):
            return True
        plain = [base.value if isinstance(base, ast.Subscript) else base for base in node.bases]  # A of A[int]
        bases = [self._target(module, base) for base in plain]
        known = [(self.module(base.module), base) for base in bases if isinstance(base, Definition)]
        return any(self._makes(m, statement, makers) for m, base in known if m for statement in self.statements(base))
