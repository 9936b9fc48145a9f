"""Any parameter that a chapter's `Settings` accept is taken as it is; any other is refused by name, before any compute.

Both through the runner, and as papermill does it, which injects the values and runs the notebook's own cells.
"""

import math
import re
from typing import Annotated, Any

import pytest
from annotated_types import MultipleOf
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from descent.checkout import project_root
from descent_book.run.chapter import Chapter
from descent_book.run.project import NEUTRAL_PARAMETERS, RefusedError, chapters

ROOT = project_root()
CHAPTERS = chapters(ROOT)
READ = {chapter: Chapter.read(ROOT, chapter) for chapter in CHAPTERS}
SETTINGS = {name: chapter.settings for name, chapter in READ.items()}
OWN = {name: chapter.defaults for name, chapter in READ.items()}
quick = settings(
    derandomize=True, deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow]
)  # a busy machine is no fault
EVERY = pytest.mark.parametrize("chapter", CHAPTERS)


def accepted(chapter: str) -> st.SearchStrategy[tuple[str, Any]]:
    """A parameter of a chapter and a value within its type and range."""
    fields = {name: field for name, field in SETTINGS[chapter].model_fields.items() if name != "preset"}

    def values(name: str) -> st.SearchStrategy[tuple[str, Any]]:
        limits = [limit for limit in fields[name].metadata if not isinstance(limit, MultipleOf)]
        kind = Annotated[fields[name].annotation, *limits] if limits else fields[name].annotation
        steps = [limit.multiple_of for limit in fields[name].metadata if isinstance(limit, MultipleOf)]
        within = st.from_type(kind).filter(lambda value: all(value % step == 0 for step in steps))
        return st.tuples(st.just(name), within)

    return st.sampled_from(sorted(fields)).flatmap(values)


def wrong(chapter: str) -> st.SearchStrategy[tuple[str, Any]]:
    """A parameter of a chapter and a value that its `Settings` refuse: of another type, or out of range."""
    scalars = st.one_of(st.integers(-(10**12), 10**12), st.floats(), st.text(max_size=8), st.none(), st.booleans())
    values = st.one_of(
        scalars, st.lists(scalars, max_size=6), st.dictionaries(st.text(max_size=3), scalars, max_size=2)
    )
    pairs = st.tuples(st.sampled_from(sorted(set(OWN[chapter]) - {"preset"})), values)
    return pairs.filter(lambda pair: refuses(SETTINGS[chapter], {**OWN[chapter], pair[0]: pair[1]}))


def refuses(model: type[BaseModel], values: dict[str, Any]) -> bool:
    try:
        model(**values)
    except ValidationError:
        return True
    return False


def same(one: Any, other: Any) -> bool:
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float) and isinstance(other, float) and math.isnan(one):
        return math.isnan(other)
    return bool(one == other)


@pytest.mark.promise("R8")
@EVERY
def test_the_runner_takes_any_accepted_value_as_it_is(chapter: str) -> None:
    @quick
    @given(pair=accepted(chapter))
    def check(pair: tuple[str, Any]) -> None:
        name, value = pair
        assume(not refuses(SETTINGS[chapter], {**OWN[chapter], name: value}))  # what concerns several parameters
        assume("inf" not in repr(value) and "nan" not in repr(value))  # no literals; the ranges that allow them are few
        text = value if isinstance(OWN[chapter][name], str) else repr(value)
        found = READ[chapter].resolve("quick", {name: text})
        assert same(found[name], value)
        rest = {key: each for key, each in OWN[chapter].items() if key not in (name, "preset")}
        assert {key: found[key] for key in rest} == rest
        neutral = name in (*NEUTRAL_PARAMETERS, "seed")
        assert found["preset"] == ("quick" if neutral else "custom")

    check()


@pytest.mark.promise("R8")
@EVERY
def test_the_runner_refuses_any_other_value_by_name(chapter: str) -> None:
    @quick
    @given(pair=wrong(chapter))
    def check(pair: tuple[str, Any]) -> None:
        name, value = pair
        assume(not isinstance(OWN[chapter][name], str) or isinstance(value, str))  # a text stays a text
        text = value if isinstance(value, str) else repr(value)
        try:
            READ[chapter].resolve("quick", {name: text})
        except RefusedError as error:
            message = str(error)
            said = message.removeprefix(f"{chapter}: ").partition(": ")[0]
            assert f"{name}=" in said, message  # with others, where several decide it
            assert len(message.splitlines()) == 1 or "\n" in text
        else:  # what reads as another value once it is text, such as " 3" and 'inf'
            assert isinstance(value, str) or "inf" in text or "nan" in text

    check()


@pytest.mark.promise("R8")
@EVERY
def test_the_runner_refuses_any_other_name_with_the_nearest(chapter: str) -> None:
    @quick
    @given(name=st.sampled_from(sorted(OWN[chapter])), cut=st.integers(0, 30), extra=st.sampled_from("xz9"))
    def check(name: str, cut: int, extra: str) -> None:
        other = name[: cut % (len(name) + 1)] + extra + name[cut % (len(name) + 1) :]
        assume(other not in OWN[chapter])
        with pytest.raises(RefusedError) as caught:
            READ[chapter].resolve("quick", {other: "1"})
        assert f"{chapter}: no parameter {other!r}; the nearest valid one is '" in str(caught.value)
        assert name in str(caught.value)

    check()


def injected(chapter: str, name: str, value: Any) -> str:
    """What the chapter's own cells say of an injected value, as papermill would run them; "" where they take it.

    The cells up to `settings` are run, less imports that no class needs and `setup`, which installs.
    """
    scope: dict[str, Any] = {"Settings": SETTINGS[chapter], "__name__": "__main__"}
    exec(READ[chapter].tagged("parameters"), scope)
    scope[name] = value
    (cell,) = (each["source"] for each in READ[chapter].code if "settings = Settings(" in each["source"])
    build = cell.split("settings = Settings(")[1].split("\n")[0]
    try:
        exec(f"settings = Settings({build}", scope)
    except ValidationError as error:
        return str(error)
    return ""


@pytest.mark.promise("R8")
@EVERY
def test_the_notebook_itself_refuses_any_other_value_by_name(chapter: str) -> None:
    @quick
    @given(pair=wrong(chapter))
    def check(pair: tuple[str, Any]) -> None:
        said = injected(chapter, *pair)
        assert re.search(rf"\n({pair[0]}|.*\b{pair[0]}=)", said), said
        assert "input_value=" in said

    check()
    assert injected(chapter, "seed", -1).startswith("1 validation error for Settings\nseed\n  Input should be greater")
    assert injected(chapter, "seed", 3) == ""


@pytest.mark.promise("R8")
@EVERY
def test_nothing_is_computed_before_the_settings(chapter: str) -> None:
    """Papermill runs the cells in order: those before `settings` install, import and assign, and no more."""
    tags = [cell["metadata"].get("tags", []) for cell in READ[chapter].code]
    first = [next(iter({"setup", "imports", "parameters", "settings"} & set(each)), "") for each in tags[:4]]
    assert first == ["setup", "imports", "parameters", "settings"]
