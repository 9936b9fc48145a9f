import pytest
from small_project import write_project

from descent.checkout import project_root
from descent_book.run.chapter import COMMON, Chapter, accepted
from descent_book.run.project import chapters

ROOT = project_root()
NUMBER = {"type": "number"}


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "integer", "minimum": 1, "maximum": 10_000_000}, "integer, 1 to 10,000,000"),
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 0.1}, "number, above 0 and at most 0.1"),
        ({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}, "number, above 0 and below 1"),
        ({"type": "integer", "minimum": 8, "multipleOf": 4}, "integer, at least 8, a multiple of 4"),
        ({"type": "string"}, "text"),
        ({"type": "string", "minLength": 1}, "text, not empty"),
        ({"type": "boolean"}, "true or false"),
        ({"enum": ["digits", "mnist"], "type": "string"}, "`digits` or `mnist`"),
        ({"const": "filter", "type": "string"}, "`filter`"),
        ({"anyOf": [{"type": "integer"}, {"const": "all"}]}, "integer or `all`"),
        ({"type": "array", "items": NUMBER, "minItems": 2}, "list of 2 or more, each number"),
        ({"type": "array", "items": NUMBER, "minItems": 2, "maxItems": 2}, "list of 2, each number"),
        ({"type": "array", "items": NUMBER, "maxItems": 3}, "list of 0 to 3, each number"),
        ({"type": "array", "prefixItems": [NUMBER, NUMBER], "minItems": 2, "maxItems": 2}, "list of 2: number; number"),
    ],
)
def test_what_is_accepted_in_words(schema, words):
    assert accepted(schema) == words


def test_a_chapters_parameters_come_with_its_table_its_limits_and_its_presets(tmp_path):
    root = write_project(tmp_path, first="1")
    path = root / "notebooks/first.ipynb"
    table = "| parameter | unit | `quick` |\\n| --- | --- | --- |\\n| `epochs`, `sizes` | passes | 2 |"
    path.write_text(path.read_text().replace('"# first"', f'"# first\\n\\n{table}"'))
    (root / "notebooks/presets/paper").mkdir(parents=True)
    (root / "notebooks/presets/paper/first.yml").write_text("preset: paper\nepochs: 9\n")
    known = {row.name: row for row in Chapter.read(root, "first").parameters()}
    assert list(known)[:3] == ["preset", "seed", "dataset"]
    assert known["epochs"].meaning == known["sizes"].meaning == "`epochs`, `sizes`: passes"
    assert known["epochs"].accepted == "integer, 1 to 100"
    assert known["epochs"].values == {"quick": "`2`", "paper": "`9`"}
    assert known["seed"].meaning == COMMON["seed"]
    assert known["dataset"].meaning == ""
    assert known["results_dir"].values == {"quick": "", "paper": ""}


@pytest.mark.parametrize("chapter", chapters(ROOT))
def test_every_parameter_of_every_chapter_is_described_and_no_table_has_one_more(chapter):
    known = Chapter.read(ROOT, chapter)
    rows = known.parameters()
    assert [row.name for row in rows if not row.meaning] == []
    assert set(known.meanings) - set(COMMON) <= {row.name for row in rows}
    assert {row.name for row in rows} == set(known.settings.model_fields)
