"""A chapter's audit settings are refused by file and field."""

from pathlib import Path

import pytest
from audit_settings import audit_settings
from small_project import write_project

from descent_book.run.chapter import Chapter


def settings_of(root: Path, text: str) -> object:
    write_project(root, first="1")
    path = root / "notebooks/audits/first.yml"
    path.parent.mkdir()
    path.write_text(text)
    return audit_settings(Chapter.read(root, "first"))


def test_a_run_changes_its_parameter_alone_and_its_base_what_goes_together(tmp_path: Path) -> None:
    text = "small: {epochs: 1}\nother: {epochs: 3, seed: 1}\ntogether: {epochs: {sizes: [4]}}\n"
    audit = settings_of(tmp_path, text)
    assert audit.with_parameter("seed") == ({"epochs": 1}, {"epochs": 1, "seed": 1})
    assert audit.with_parameter("epochs") == ({"epochs": 1, "sizes": [4]}, {"epochs": 3, "sizes": [4]})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("small: {}\n", "other: Field required"),
        ("small: {}\nother: {}\nmore: 1\n", "more: Extra inputs are not permitted"),
        ("small: [1]\nother: {}\n", "small: Input should be a valid dictionary"),
        ("small: [\n", "not YAML: while parsing a flow node"),
        ("small: {epoch: 1}\nother: {}\n", "small.epoch: no such parameter; the nearest valid one is 'epochs'"),
        ("small: {}\nother: {epochs: 0}\n", "other.epochs=0: Input should be greater than or equal to 1"),
        (
            "small: {}\nother: {epochs: 3}\ntogether: {epochs: {sizes: 4}}\n",
            "together.sizes=4: Input should be a valid list",
        ),
        ("small: {}\nother: {}\ntogether: {epochs: {}}\n", "together.epochs=None: Input should be a valid integer"),
    ],
)
def test_what_is_wrong_is_named_with_its_file_and_field(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ValueError, match=r"^notebooks/audits/first\.yml: ") as caught:
        settings_of(tmp_path, text)
    assert said in str(caught.value)


def test_a_chapter_without_them_is_named(tmp_path: Path) -> None:
    write_project(tmp_path, first="1")
    with pytest.raises(ValueError, match=r"^notebooks/audits/first\.yml: not found; it holds the chapter's settings"):
        audit_settings(Chapter.read(tmp_path, "first"))
