"""What a chapter sends to other processes can be sent from every Jupyter, Colab's among them.

A function of a notebook goes there with every name that it uses. In Colab's IPython a class defined in a cell keeps all
names of the notebook, the connections of its kernel among them, which no other process can have: `settings`, an
instance of such a class, must stay where it is, and what a function needs of it goes as a value of its own.
"""

import ast
import re

import pytest

from descent import checkout
from descent_book.run import project
from descent_book.run.chapter import cells

ROOT = checkout.project_root()
SENDERS = {"delayed", "sweep"}
KEPT = {"settings", "Settings"}


def names(tree: ast.AST) -> set[str]:
    return {leaf.id for leaf in ast.walk(tree) if isinstance(leaf, ast.Name) and isinstance(leaf.ctx, ast.Load)}


def senders(tree: ast.Module) -> set[str]:
    """The functions to which others are given for another process, `job = partial(delayed(f), 1)` among them."""
    made = [each for each in tree.body if isinstance(each, ast.Assign) and isinstance(each.value, ast.Call)]
    partial = [each for each in made if getattr(each.value.func, "id", "") == "partial" and SENDERS & names(each.value)]
    return SENDERS | {target.id for each in partial for target in each.targets if isinstance(target, ast.Name)}


def sent(source: str) -> dict[str, set[str]]:
    """Function of a notebook that goes to another process, itself or within another -> the names that it uses."""
    tree = ast.parse(source)
    own = {node.name: names(node) for node in tree.body if isinstance(node, ast.FunctionDef)}
    sending, due = senders(tree), set()
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        by = call.func.func if isinstance(call.func, ast.Call) else call.func
        if isinstance(by, ast.Name) and by.id in sending:
            given = [*call.args, *(keyword.value for keyword in call.keywords)]
            due |= {each.id for each in given if isinstance(each, ast.Name)} & set(own)
    found: dict[str, set[str]] = {}
    while due:
        name = due.pop()
        found[name] = own[name]
        due |= own[name] & set(own) - set(found)
    return found


@pytest.mark.parametrize("chapter", project.chapters(ROOT))
def test_no_function_takes_the_settings_to_another_process(chapter: str) -> None:
    code = [
        each["source"]
        for each in cells(project.notebook_path(ROOT, chapter))
        if each["cell_type"] == "code"
    ]
    source = "\n".join(re.sub(r"^(\s*)[%!].*$", r"\1pass", each, flags=re.MULTILINE) for each in code)
    assert {name: used & KEPT for name, used in sent(source).items() if used & KEPT} == {}


FUNCTION = "def f(x):\n    return settings.p + x\n"


@pytest.mark.parametrize(
    "source",
    [
        f"{FUNCTION}jobs = [delayed(f)(1)]",
        f"{FUNCTION}job = partial(delayed(f), 1)",
        f"{FUNCTION}def g(h):\n    return h()\njob = partial(delayed(g), 1)\njobs = [job(f, 2)]",
        f"{FUNCTION}def g(x):\n    return f(x)\njobs = [delayed(g)(1)]",
        f"{FUNCTION}def g(h):\n    return h()\njobs = [delayed(g)(f)]",
        f"{FUNCTION}def g(h):\n    return h()\njobs = [delayed(g)(h=f)]",
        f"{FUNCTION}sweep(f, 1)",
    ],
)
def test_a_function_that_takes_them_is_found(source: str) -> None:
    assert any(used & KEPT for used in sent(source).values())


def test_a_function_that_stays_may_use_them() -> None:
    assert sent(f"{FUNCTION}def g(x):\n    return x\njobs = [delayed(g)(f(settings.p))]") == {"g": {"x"}}
