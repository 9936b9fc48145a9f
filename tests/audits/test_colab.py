"""Every chapter as a reader opens it in Colab: alone in an empty folder, with Colab's own torch and numpy.

`make colab-simulated`, or CHAPTER=saddles for one. Needs the package index, as the set-up cell does; the library comes
from this checkout's HEAD.
"""

from collections.abc import Callable
from pathlib import Path

import colab_machine
import pytest

from descent import checkout
from descent_book.run import project

ROOT = checkout.project_root()
COLABS_OWN = ("torch", "numpy", "scipy", "matplotlib", "plotly", "scikit-learn", "pandas", "ipykernel", "ipython")


@pytest.fixture(scope="session")
def base() -> Path:
    return colab_machine.image(ROOT)


@pytest.fixture(scope="session")
def variables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return colab_machine.git_rules(ROOT, tmp_path_factory.mktemp("git"))


@pytest.mark.promise("R13")
@pytest.mark.parametrize("chapter", project.chapters(ROOT))
def test_a_chapter_runs_beside_colabs_own_packages(
    chapter: str,
    base: Path,
    variables: dict[str, str],
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    measured = colab_machine.run(project.notebook_path(ROOT, chapter), base, tmp_path, variables)
    changed = {
        name: (version, measured.after.get(name))
        for name, version in measured.before.items()
        if measured.after.get(name) != version
    }
    assert changed == {}, "the set-up cell changed a package that Colab owns"
    added = sorted(set(measured.after) - set(measured.before))
    assert "anatomy-of-descent" in added
    assert set(COLABS_OWN) <= set(measured.before)
    assert list((tmp_path / "content").iterdir()) == [], "a run with its defaults leaves no file behind"
    record_property(f"{chapter} at quick, seconds to the first figure", round(measured.first_figure, 1))
    record_property(f"{chapter} at quick, seconds in all", round(measured.total, 1))
    record_property(f"{chapter}, packages that the set-up cell adds", ", ".join(added))
    for name in ("torch", "numpy"):
        record_property(f"{name}, which the set-up cell leaves alone", measured.after[name])
