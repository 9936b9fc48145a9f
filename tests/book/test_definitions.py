"""Which change of the sources changes a chapter's key: each trap on a package of a few lines."""

from pathlib import Path
from typing import NamedTuple

import pytest

from descent_book.run.keys import Key, differences, key_of

DOOR = "import lazy_loader\n__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)\n"


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in {"__init__.py": "", **files}.items():
        path = root / "descent" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def key(root: Path, cell: str) -> Key:
    return key_of(root, root / "descent", "chapter", [cell], {})


class Change(NamedTuple):
    """A package, the notebook's cell, and what an edit makes of `old` in the first file that has it."""

    cell: str
    files: dict[str, str]
    old: str
    new: str
    says: str = ""  # what differs, in words; where empty, only that something does


F = "from descent.a import f\nf()"
COUNTS = {
    "a constant two calls deep": Change(
        F,
        {
            "a.py": "from descent.b import g\ndef f(): return g()",
            "b.py": "from descent.c import h\ndef g(): return h()",
            "c.py": "def h(): return 0.5",
        },
        "0.5",
        "0.25",
        "h differs",
    ),
    "a default of a function": Change(F, {"a.py": "def f(x=1): return x"}, "x=1", "x=2", "f differs"),
    "the name of a parameter": Change(F, {"a.py": "def f(x=1): return 1"}, "x=1", "y=1"),
    "the name of a method": Change(
        "from descent.a import A", {"a.py": "class A:\n def run(self): return 1"}, "run", "go"
    ),
    "the name of a field": Change(
        "from descent.a import A", {"a.py": "class A:\n width: int = 1"}, "width", "breadth", "A differs"
    ),
    "the kind of a field": Change("from descent.a import A", {"a.py": "class A:\n x: int = 1"}, "int", "float"),
    "a class that a field names as text": Change(
        "from descent.a import A", {"a.py": "class A:\n x: 'B'\nclass B:\n y = 1"}, "y = 1", "y = 2", "B differs"
    ),
    "a constant of the module": Change(F, {"a.py": "SCALE = 2\ndef f(): return SCALE"}, "= 2", "= 3", "SCALE differs"),
    "an entry of a table": Change(
        "from descent.a import T\nT['x']()",
        {"a.py": "from descent.b import g\nT = {'x': g}", "b.py": "def g(): return 1"},
        "return 1",
        "return 2",
        "g differs",
    ),
    "a second binding of a name": Change(
        F, {"a.py": "def f(): return 1\ndef g(h): return lambda: h() + 1\nf = g(f)"}, "+ 1", "+ 2"
    ),
    "one of a tuple of names": Change(F, {"a.py": "A, B = 1, 2\ndef f(): return A"}, "= 1,", "= 3,"),
    "what a walrus binds": Change(F, {"a.py": "T = [(A := 1)]\ndef f(): return A"}, ":= 1", ":= 2"),
    # scopes
    "a global name under a local one of another function": Change(
        F, {"a.py": "g = 1\ndef h():\n g = 2\n return g\ndef f(): return g + h()"}, "g = 1", "g = 3"
    ),
    "a global name that a function declares": Change(
        F, {"a.py": "g = 1\ndef f():\n global g\n g = g + 1\n return g"}, "g = 1", "g = 3", "g differs"
    ),
    "a global name that an inner function declares past a local one": Change(
        F,
        {"a.py": "g = 1\ndef f():\n g = 2\n def inner():\n  global g\n  return g\n return inner()"},
        "g = 1",
        "g = 3",
        "g differs",
    ),
    "a global name that a class takes over": Change(
        "from descent.a import A", {"a.py": "def g(): return 1\nclass A:\n g = g"}, "return 1", "return 2", "g differs"
    ),
    "a global name inside a method of the same name": Change(
        "from descent.a import A",
        {"a.py": "def g(): return 1\nclass A:\n def g(self): return g()"},
        "return 1",
        "return 2",
        "g differs",
    ),
    "a global name inside a lambda of a class that binds it": Change(
        "from descent.a import A",
        {"a.py": "def g(): return 1\nclass A:\n g = staticmethod(lambda: g())"},
        "return 1",
        "return 2",
        "g differs",
    ),
    "a global name as the iterable of a comprehension that hides it": Change(
        F, {"a.py": "g = [1]\ndef f(): return [g for g in g]"}, "[1]", "[2]", "g differs"
    ),
    "a global name as the default of an argument that hides it": Change(
        F, {"a.py": "g = 1\ndef f(g=g): return g"}, "g = 1", "g = 2", "g differs"
    ),
    "a decorator": Change(
        F, {"a.py": "def g(h): return lambda: h() * 2\n@g\ndef f(): return 1"}, "* 2", "* 3", "g differs"
    ),
    "annotations that a decorator may read": Change(
        F, {"a.py": "from functools import singledispatch\n@singledispatch\ndef f(x: int): return 1"}, "int", "float"
    ),
    # imports
    "behind `import a.b as c`": Change(
        F,
        {"a.py": "import descent.b as c\ndef f(): return c.g()", "b.py": "def g(): return 1"},
        "return 1",
        "return 2",
        "g differs",
    ),
    "behind `import a.b`": Change(
        "import descent.a\ndescent.a.f()", {"a.py": "def f(): return 1"}, "return 1", "return 2", "f differs"
    ),
    "behind `from . import b`": Change(
        F,
        {"a.py": "from . import b\ndef f(): return b.g()", "b.py": "def g(): return 1"},
        "return 1",
        "return 2",
        "g differs",
    ),
    "behind `from . import b` in the package itself": Change(
        "from descent import b\nb.g()",
        {"__init__.py": "from . import b", "b.py": "def g(): return 1"},
        "return 1",
        "return 2",
        "g differs",
    ),
    "behind a relative import in a function of a package": Change(
        "from descent.r import f",
        {"r/__init__.py": "def f():\n from .b import g\n return g()", "r/b.py": "def g(): return 1"},
        "return 1",
        "return 2",
        "g differs",
    ),
    "behind an import inside a function": Change(
        F,
        {"a.py": "def f():\n from descent.b import g\n return g()", "b.py": "def g(): return 1"},
        "return 1",
        "return 2",
        "g differs",
    ),
    "behind a lazy door": Change(
        "from descent.r import g",
        {"r/__init__.py": DOOR, "r/__init__.pyi": "from .b import g as g", "r/b.py": "def g(): return 1"},
        "return 1",
        "return 2",
        "g differs",
    ),
    "behind a lazy door and another name": Change(
        "from descent.r import h",
        {"r/__init__.py": DOOR, "r/__init__.pyi": "from .b import g as h", "r/b.py": "def g(): return 1"},
        "return 1",
        "return 2",
        "g differs",
    ),
    "the first of two imports to try": Change(
        F,
        {
            "a.py": "try: from descent.b import g\nexcept ImportError: from descent.c import g\ndef f(): return g()",
            "b.py": "def g(): return 1",
            "c.py": "def g(): return 0",
        },
        "return 1",
        "return 2",
        "g differs",
    ),
    "the first of two imports to try inside a function": Change(
        F,
        {
            "a.py": "def f():\n try: from descent.b import g\n except ImportError: from descent.c import h as g\n g()",
            "b.py": "def g(): return 1",
            "c.py": "def h(): return 0",
        },
        "return 1",
        "return 2",
        "g differs",
    ),
    "an import with a fallback": Change(
        F,
        {
            "a.py": "try:\n from descent.b import g\nexcept ImportError:\n g = None\ndef f(): return g()",
            "b.py": "def g(): return 1",
        },
        "return 1",
        "return 2",
        "g differs",
    ),
    "an import that the notebook binds again": Change(
        "from descent.a import f\nf = f", {"a.py": "def f(): return 1"}, "return 1", "return 2", "f differs"
    ),
    "the other way of `if TYPE_CHECKING`": Change(
        F,
        {"a.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n X = 0\nelse:\n X = 1\ndef f(): return X"},
        "X = 1",
        "X = 2",
        "X differs",
    ),
    "the other way of `if __name__`": Change(
        F, {"a.py": "if __name__ == '__main__':\n pass\nelse:\n X = 1\ndef f(): return X"}, "X = 1", "X = 2"
    ),
    "what the notebook does as a program": Change(
        "if __name__ == '__main__':\n from descent.a import f\n f()", {"a.py": "def f(): return 1"}, "n 1", "n 2"
    ),
    # names that are known only when the code runs
    "a module asked by a name as text": Change(
        "import descent.a\ngetattr(descent.a, 'f' + '')()", {"a.py": "def f(): return 1"}, "return 1", "return 2"
    ),
    "a door asked by a name as text": Change(
        "from descent import r\ngetattr(r, 'g' + '')()",
        {"r/__init__.py": DOOR, "r/__init__.pyi": "from .b import g as g", "r/b.py": "def g(): return 1"},
        "return 1",
        "return 2",
    ),
    "`__dict__` of a module": Change(
        "import descent.a\ndescent.a.__dict__['f']()", {"a.py": "def f(): return 1"}, "return 1", "return 2"
    ),
    "a module imported by its name as text": Change(
        "import importlib\nimportlib.import_module('descent.a').f()",
        {"a.py": "def f(): return 1"},
        "return 1",
        "return 2",
    ),
    "a module run by its name as text": Change(
        "import sys, subprocess\nsubprocess.run([sys.executable, '-m', 'descent.a'])",
        {"a.py": "if __name__ == '__main__':\n print(1)"},
        "print(1)",
        "print(2)",
    ),
    "code as text": Change(
        "import sys, subprocess\nsubprocess.run([sys.executable, '-c', 'from descent.a import f; f()'])",
        {"a.py": "def f(): return 1"},
        "return 1",
        "return 2",
    ),
    "a name looked up in `globals()`": Change(
        F, {"a.py": "def g(): return 1\ndef f(): return globals()['g']()"}, "return 1", "return 2"
    ),
    "a name looked up in the notebook's `globals()`": Change(
        "from descent.a import f\nglobals()['f']()", {"a.py": "def f(): return 1"}, "return 1", "return 2", "f differs"
    ),
    "a name looked up in `sys.modules`": Change(
        F, {"a.py": "import sys\ndef g(): return 1\ndef f(): return sys.modules[__name__].g()"}, "return 1", "return 2"
    ),
    # functions that refer to each other in a circle
    "in a circle": Change(
        F, {"a.py": "def f(n=0): return n and g(n)\ndef g(n): return f(n - 1)"}, "n - 1", "n - 2", "g differs"
    ),
    "which member of a circle is called": Change(
        "from descent.a import f, g, h\nf() + g(1) + h(1)",
        {"a.py": "def f(n=0): return n and g(n)\ndef g(n): return f(n), 2\ndef h(n): return f(n), 3"},
        "n and g(n)",
        "n and h(n)",
    ),
    "outside of a circle": Change(
        F,
        {"a.py": "def f(n=0): return n and g(n)\ndef g(n): return f(n - h())\ndef h(): return 1"},
        "return 1",
        "return 2",
        "h differs",
    ),
}
NOTHING = {"a.py": "from descent.b import g\ndef f():\n 'Words.'\n return g()", "b.py": "def g(): return 1"}
COUNTS_NOT = {
    "a docstring": Change(F, NOTHING, "Words", "Other words"),
    "a comment": Change(F, NOTHING, "return g()", "return g()  # why"),
    "an annotation": Change(F, NOTHING, "f():", "f() -> int:"),
    "a plain decorator's annotation": Change(
        F, {"a.py": "from functools import cache\n@cache\ndef f(x: int = 1): return x"}, "int", "float"
    ),
    "the name of a function": Change(F, NOTHING | {"a.py": "import descent.b as b\ndef f(): return b.g()"}, "g", "gg"),
    "what is not reached": Change(
        F, {"a.py": "def f(): return 1\ndef g(): return 1"}, "g(): return 1", "g(): return 2"
    ),
    "a name of the module that a function hides": Change(F, {"a.py": "g = 1\ndef f(g=0): return g"}, "g = 1", "g = 2"),
    "a name of the module that a comprehension hides": Change(
        F, {"a.py": "g = 1\ndef f(): return [g for g in ()]"}, "g = 1", "g = 2"
    ),
    "a local annotation": Change(F, {"a.py": "def f():\n x = 1\n return x"}, "x = 1", "x: int = 1"),
    "what only its own run as a program does": Change(
        F, {"a.py": "def f(): return 1\nif __name__ == '__main__':\n f()"}, "\n f()", "\n print(f())"
    ),
    "where a message says a module stands": Change(
        F,
        {"a.py": "def f(): raise ValueError('make it: python -m descent.b')", "b.py": "", "c.py": ""},
        "descent.b",
        "descent.c",
    ),
    "a `pass`": Change(F, NOTHING, "'Words.'", "pass"),
}


def edited(tmp_path: Path, change: Change) -> tuple[Key, Key]:
    write(tmp_path, change.files)
    before = key(tmp_path, change.cell)
    name = next(name for name, text in change.files.items() if change.old in text)
    files = {**change.files, name: change.files[name].replace(change.old, change.new)}
    if change.old == "g" and change.new == "gg":  # a renaming is one of all its uses
        files = {name: text.replace("g()", "gg()") for name, text in change.files.items()}
    write(tmp_path, files)
    return before, key(tmp_path, change.cell)


@pytest.mark.parametrize("case", COUNTS)
def test_what_may_change_a_result_changes_the_key(case: str, tmp_path: Path) -> None:
    before, after = edited(tmp_path, COUNTS[case])
    assert before.digest != after.digest
    found = differences(before.noted(), after.noted())
    assert COUNTS[case].says in found or not COUNTS[case].says, found


@pytest.mark.parametrize("case", COUNTS_NOT)
def test_what_cannot_change_a_result_leaves_the_key(case: str, tmp_path: Path) -> None:
    before, after = edited(tmp_path, COUNTS_NOT[case])
    assert before.digest == after.digest


def test_a_definition_may_move_with_what_it_needs(tmp_path: Path) -> None:
    write(tmp_path / "one", {"a.py": "from descent.b import g\ndef f(): return g()", "b.py": "def g(): return 1"})
    write(
        tmp_path / "other",
        {"r/__init__.py": DOOR, "r/__init__.pyi": "from .new import h", "r/new.py": "K = 0\ndef h(): return 1"}
        | {"s.py": "import descent.r as r\ndef k(): return r.h()"},
    )
    moved = key(tmp_path / "other", "from descent.s import k\nk()")
    assert key(tmp_path / "one", F).digest == moved.digest


CALL = "import torch\ntorch.manual_seed(1)"
EFFECTS = {
    "a registering decorator": Change(
        F,
        {"a.py": "def f(): return 1", "__init__.py": "from descent.b import T\n@T.append\ndef g(): return 1"}
        | {"b.py": "T = []"},
        "g(): return 1",
        "g(): return 2",
    ),
    "an entry in another module's table": Change(
        F, {"a.py": "from descent.b import T\nT['x'] = 1\ndef f(): return 1", "b.py": "T = {}"}, "= 1", "= 2"
    ),
    "an attribute of another module": Change(
        F, {"a.py": "import descent.b as b\nb.X = 1\ndef f(): return 1", "b.py": "X = 0"}, "b.X = 1", "b.X = 2"
    ),
    "a call": Change(F, {"a.py": "import torch\ntorch.manual_seed(1)\ndef f(): return 1"}, "(1)", "(2)"),
    "a call whose value is kept": Change(
        F, {"a.py": "from descent.b import g\nX = g(1)\ndef f(): return 1", "b.py": "def g(x): pass"}, "(1)", "(2)"
    ),
    "a call in a default": Change(
        F, {"a.py": "from descent.b import g\ndef f(): return 1\ndef h(x=g(1)): pass", "b.py": "def g(x): pass"},
        "(1)", "(2)",
    ),
    "a call in the body of a class": Change(
        F, {"a.py": "from descent.b import g\ndef f(): return 1\nclass A:\n x = g(1)", "b.py": "def g(x): pass"},
        "(1)", "(2)",
    ),
    "a class whose base registers it": Change(
        F,
        {"a.py": "from descent.b import B\ndef f(): return 1\nclass A(B):\n x = 1",
         "b.py": "T = []\nclass B:\n def __init_subclass__(cls): T.append(cls)"},
        "x = 1", "x = 2",
    ),
    "an instance that registers itself": Change(
        F,
        {"a.py": "from descent.b import B\nX = B(1)\ndef f(): return 1",
         "b.py": "T = []\nclass B:\n def __init__(self, x): T.append(x)"},
        "B(1)", "B(2)",
    ),
    "a loop": Change(F, {"a.py": "T = {}\nfor n in (1, 2):\n T[n] = n\ndef f(): return 1"}, "(1, 2)", "(1, 3)"),
    "under a condition": Change(
        F, {"a.py": "import sys\nT = []\nif sys.argv: T += [1]\ndef f(): return 1"}, "[1]", "[2]"
    ),
    "of a module that is only imported": Change(
        F, {"a.py": "import descent.b\ndef f(): return 1", "b.py": CALL}, "(1)", "(2)"
    ),
    "of a module that a function only imports": Change(
        F, {"a.py": "def f():\n import descent.b\n return 1", "b.py": CALL}, "(1)", "(2)"
    ),
    "of a module behind a door, imported and not used": Change(
        F,
        {"a.py": "from descent.r import g\ndef f(): return 1", "r/__init__.py": DOOR,
         "r/__init__.pyi": "from .b import g", "r/b.py": "import torch\ntorch.manual_seed(1)\ndef g(): pass"},
        "(1)", "(2)",
    ),
    "of the package above": Change(
        "from descent.r.b import f", {"r/__init__.py": CALL, "r/b.py": "def f(): return 1"},
        "(1)", "(2)",
    ),
    "of a module that an effect runs": Change(
        F,
        {"a.py": "from descent.b import g\ng()\ndef f(): return 1", "b.py": "def g():\n import descent.c",
         "c.py": CALL},
        "(1)", "(2)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", EFFECTS)
def test_what_an_import_does_beyond_binding_names_counts(case: str, tmp_path: Path) -> None:
    before, after = edited(tmp_path, EFFECTS[case])
    assert before.digest != after.digest
    assert any("when it is imported differs" in each for each in differences(before.noted(), after.noted()))


def test_a_function_that_only_an_effect_calls_counts_by_its_name(tmp_path: Path) -> None:
    files = {"a.py": "from descent.b import g\nX = []\nX.append(g())\ndef f(): return 1", "b.py": "def g(): return 1"}
    before, after = edited(tmp_path, Change(F, files, "g(): return 1", "g(): return 2"))
    assert before.digest != after.digest
    assert differences(before.noted(), after.noted()) == ["g differs"]


PURE = """from __future__ import annotations
import re
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
A = 1
B, C = "a b".split()
D = Path("x").with_suffix(".y")
E = frozenset({1}) | {2}
G = re.compile("x")
H = lambda: print()
@dataclass(frozen=True)
class I:
    x: int = 1
    y: list = field(default_factory=list)
    @property
    def z(self): return self.x
J = I(2)
@cache
def k(x=(1, 2)): return x
L = partial(k, 1)
try:
    import json
except ImportError:
    json = None
def f(): return 1
"""


def test_statements_that_only_bind_names_are_no_effects(tmp_path: Path) -> None:
    write(tmp_path, {"a.py": PURE})
    assert key(tmp_path, F).effects == {}


REFUSED = {
    "a star": ("from descent.b import *\ndef f(): pass", "`from descent.b import *` hides what is used"),
    "a star of another package": ("from torch import *\ndef f(): pass", "`from torch import *` hides"),
    "a module's name put together": (
        "import importlib\ndef f(x): return importlib.import_module('descent.' + x)",
        "descent.a.f: `importlib.import_module('descent.' + x)` hides what it imports",
    ),
    "a module's name counted from here": (
        "from importlib import import_module\ndef f(x): return import_module('.b', 'descent')",
        "descent.a.f: `import_module('.b', 'descent')` hides what it imports",
    ),
    "an importer handed on": (
        "from importlib import import_module\ndef f(x): return map(import_module, x)",
        "descent.a.f: importlib.import_module hides what it imports",
    ),
    "a file run by its path": (
        "import runpy\ndef f(): return runpy.run_path('other.py')",
        "descent.a.f: runpy.run_path hides what it imports; name a module in full",
    ),
    "an importer of Python's own": ("def f(x): return __import__(x)", "descent.a.f: `__import__(x)` hides"),
    "a module that is not there": ("from descent.gone import g\ndef f(): return g()", "no module descent.gone"),
    "a name that is not there": ("from descent.b import g\ndef f(): return g()", "descent.b defines no 'g'"),
    "the machine": (
        "from descent_book.run import g\ndef f(): return g()",
        "descent_book.run is no part of the library",
    ),
    "no Python": ("def f(:", "a.py: not Python (invalid syntax, line 1)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_known_is_refused_by_name(case: str, tmp_path: Path) -> None:
    text, sentence = REFUSED[case]
    write(tmp_path, {"a.py": text, "b.py": ""})
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        key(tmp_path, F)
    assert sentence in str(caught.value)
