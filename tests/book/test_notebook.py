"""Outputs and words that a notebook's source and its executed copy lend each other."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from descent_book.run.notebook import (
    as_text,
    cleaned,
    code_sources,
    read_executed,
    seal,
    with_checked_outputs,
    with_words_of,
)


def code(name: str, source: str, *tags: str, outputs: Any = (), count: int | None = None) -> dict[str, Any]:
    return {
        "id": name,
        "cell_type": "code",
        "metadata": {"tags": list(tags)},
        "source": source,
        "outputs": list(outputs),
        "execution_count": count,
    }


def words(name: str, source: str) -> dict[str, Any]:
    return {"id": name, "cell_type": "markdown", "metadata": {"tags": []}, "source": source}


SOURCE = {
    "cells": [
        words("w", "old"),
        code("s", "install()", "setup"),
        code("p", "epochs = 1", "parameters"),
        code("c", "print(epochs)", "nbval-check-output"),
    ]
}
EXECUTED = {
    "metadata": {"descent": {"key": "k"}},
    "cells": [
        *deepcopy(SOURCE["cells"][:3]),
        code("injected-parameters", "epochs = 9", "injected-parameters", count=3),
        code("c", "print(epochs)", "nbval-check-output", outputs=["9"], count=4),
    ],
}


def test_a_figure_is_one_line_of_the_text_and_the_rest_as_editors_lay_it_out(tmp_path: Path) -> None:
    figure = {"data": [{"x": [1, 2], "name": "β"}], "layout": {}}
    output = {"output_type": "display_data", "data": {"application/x+json": figure, "text/plain": ["a\n", "b"]}}
    notebook = seal({**deepcopy(EXECUTED), "cells": [code("f", "draw()", outputs=[output, output]), words("w", "β")]})
    text = as_text(notebook)
    line = '      "application/x+json": {"data":[{"x":[1,2],"name":"β"}],"layout":{}},'
    assert text.splitlines().count(line) == 2
    (tmp_path / "chapter.ipynb").write_text(text, encoding="utf-8")
    assert read_executed(tmp_path / "chapter.ipynb") == notebook
    del notebook["cells"][0]["outputs"][:]
    assert as_text(notebook) == json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
    with pytest.raises(ValueError, match="Out of range float values"):
        as_text({"cells": [code("n", "", outputs=[{"data": {"application/x+json": {"x": float("nan")}}}])]})


def test_checked_outputs_are_stored_and_all_others_stripped() -> None:
    source = {
        "cells": [
            code("a", "1", outputs=["old"], count=9),
            code("b", "2", "nbval-check-output", outputs=["old"], count=9),
            words("c", "text"),
        ]
    }
    source["metadata"] = {"language_info": {"name": "python"}}
    executed = deepcopy(source)
    executed["metadata"]["descent"] = {"provenance": {"machine": "x86_64", "cpu_capability": "AVX2", "threads": 1}}
    for cell in executed["cells"][:2]:
        cell.update(outputs=["new"], execution_count=3)
    stored = with_checked_outputs(source, executed)
    assert stored["metadata"] == {"language_info": {"name": "python"}, "checked_on": "x86_64 AVX2"}
    assert [(cell.get("outputs"), cell.get("execution_count")) for cell in stored["cells"]] == [
        ([], None),
        (["new"], 3),
        (None, None),
    ]


def test_new_words_captions_and_setup_are_taken_and_outputs_kept() -> None:
    source = deepcopy(SOURCE)
    source["cells"].insert(1, words("n", "new"))
    source["cells"][0]["source"] = "other"
    source["cells"][2]["source"] = "install(more)"
    source["cells"][4]["metadata"]["mystnb"] = {"figure": {"caption": "better"}}
    told = with_words_of(source, deepcopy(EXECUTED))
    assert [cell["id"] for cell in told["cells"]] == ["w", "n", "s", "p", "injected-parameters", "c"]
    assert [cell["source"] for cell in told["cells"][:3]] == ["other", "new", "install(more)"]
    assert told["cells"][4] == EXECUTED["cells"][3]
    assert told["cells"][5]["metadata"]["mystnb"]["figure"]["caption"] == "better"
    assert (told["cells"][5]["outputs"], told["cells"][5]["execution_count"]) == (["9"], 4)
    assert told["metadata"] == EXECUTED["metadata"]
    assert with_words_of(SOURCE, deepcopy(EXECUTED)) == EXECUTED


@pytest.mark.parametrize("change", ["edited", "added", "removed"])
def test_other_code_is_refused(change: str) -> None:
    source = deepcopy(SOURCE)
    if change == "edited":
        source["cells"][3]["source"] = "print(epochs + 1)"
    elif change == "added":
        source["cells"].append(code("d", "print(2)"))
    else:
        del source["cells"][3]
    with pytest.raises(ValueError, match=r"(its code has changed since|number of code cells than when) it was run"):
        with_words_of(source, deepcopy(EXECUTED))


def test_lines_and_text_are_the_same_source() -> None:
    assert code_sources({"cells": [code("a", "x\ny")]}) == code_sources(
        {"cells": [{**code("a", ""), "source": ["x\n", "y"]}]}
    )


def test_a_warning_that_depends_on_the_moment_is_not_published() -> None:
    replaced = "<env>/x.py:7: UserWarning: A worker stopped while some jobs were given.\n  warnings.warn(\n"
    other = "<env>/y.py:7: UserWarning: A number is large.\n  warnings.warn(\n"
    stderr = [{"name": "stderr", "output_type": "stream", "text": text} for text in
              (replaced, [*replaced.splitlines(True), *other.splitlines(True)], other)]  # fmt: skip
    printed = {"name": "stdout", "output_type": "stream", "text": replaced}
    notebook = {"metadata": {}, "cells": [code("c", "work()", outputs=[*stderr, printed])]}
    assert [output["text"] for output in cleaned(notebook, {})["cells"][0]["outputs"]] == [other, other, replaced]


def test_progress_bars_are_not_published_and_what_is_said_beside_them_is() -> None:
    bars = ["\rrun 5:   0%|          | 0/15000 [00:00<?, ?step/s]", "\n", "\r 12%|█▏  | 3/25 [00:01<00:10, 2.1it/s]\n"]
    said = "\rwork: 100%|███| 1.2k/1.2k [00:01<00:00]\nUserWarning: 5% | of all [sic]\n"
    texts = [*bars, bars[0].splitlines(keepends=True), said]
    stderr = [{"name": "stderr", "output_type": "stream", "text": text} for text in texts]
    printed = {"name": "stdout", "output_type": "stream", "text": bars[0]}
    notebook = {"metadata": {}, "cells": [code("c", "work()", outputs=[*stderr, printed])]}
    left = [output["text"] for output in cleaned(notebook, {})["cells"][0]["outputs"]]
    assert left == ["UserWarning: 5% | of all [sic]\n", bars[0]]
