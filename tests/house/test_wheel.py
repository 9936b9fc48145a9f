"""The library as others have it: installed from its wheel with what a plain install brings, no checkout in sight."""

import json
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from descent.checkout import project_root

ROOT = project_root()
DOORS = sorted(path.parent.name for path in (ROOT / "lib" / "descent").glob("*/__init__.pyi"))
PAGE = ROOT / "notebooks" / "your_own_network.ipynb"
BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
START = """
import sys
from importlib.machinery import PathFinder
target, others, lacking, *sys.argv = {arguments!r}
class Plain(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in lacking else super().find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(PathFinder)] = Plain
sys.path.insert(0, target)
sys.path.append(others)
import descent
assert descent.__file__.startswith(target), descent.__file__
"""
OWN = """
import torch
from torch import nn
torch.manual_seed(0)
inputs, targets = torch.randn(64, 5), torch.randint(0, 3, (64,))
model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
def loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])
optimizer, batches, steps = torch.optim.AdamW(model.parameters()), [(inputs, targets)], 20
def train():
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model, (inputs, targets)).backward()
        optimizer.step()
"""
FIGURE = """
import numpy as np
from descent.plots import Labels, LinePanel, line_panels, show, use_style
use_style()
panel = LinePanel(Labels("step", "loss (nats)"), {"a network": (np.arange(3), np.ones(3))})
show(line_panels([panel], columns=1), alt="A level line, which stands for a network.")
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the content of the wheel, which is how an installer lays it out."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("lib", "notebooks", "data/records/steering"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run([sys.executable, "-c", BUILD, folder], cwd=source, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    shutil.rmtree(source)
    return folder / "site"


def asked(installed: Path) -> list[str]:
    (path,) = installed.glob("*.dist-info/METADATA")
    return re.findall(r"^Requires-Dist: ([^\n]*)$", path.read_text(encoding="utf-8"), re.MULTILINE)


def brought(stated: list[str], found: set[str] | None = None) -> set[str]:
    """The packages that these requirements bring, with all that those require, as far as they are installed here."""
    found = set() if found is None else found
    for requirement in map(Requirement, stated):
        name = canonicalize_name(requirement.name)
        if name not in found and (not requirement.marker or requirement.marker.evaluate({"extra": ""})):
            found.add(name)
            with suppress(PackageNotFoundError):  # CUDA's, beside a CPU build of torch
                brought(requires(name) or [], found)
    return found


def python(
    installed: Path, code: str, folder: Path, *arguments: str, bare: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run code in `folder`: nothing of this checkout can be imported nor, if `bare`, what the wheel does not need."""
    plain = {"anatomy-of-descent", *brought(asked(installed))}
    lacking = {
        name
        for name, owners in packages_distributions().items()
        if bare and not {canonicalize_name(owner) for owner in owners} & plain
    }
    given = [str(installed), sysconfig.get_path("purelib"), lacking, *arguments]
    command = [sys.executable, "-I", "-S", "-c", START.format(arguments=given) + code]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_every_file_of_the_packages_is_in_the_wheel(installed: Path) -> None:
    def files(folder: Path) -> set[str]:
        every = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
        return {path.as_posix() for path in every if not re.search(r"__pycache__|\.(egg|dist)-info", path.as_posix())}

    beside = {f"claims/{path.name}" for path in (ROOT / "notebooks/claims").glob("*.yml")}
    beside |= {f"presets/{path.parent.name}/{path.name}" for path in (ROOT / "notebooks/presets").glob("*/*.yml")}
    beside |= {f"data/records/steering/{path.name}" for path in (ROOT / "data/records/steering").glob("*.npz")}
    assert files(installed) == files(ROOT / "lib") | {f"descent_chapters/{name}" for name in beside}
    wanted = {"descent/py.typed", "descent_book/pages/assets/book.css", "descent_book/run/new_chapter.ipynb"}
    assert files(installed) >= wanted | {f"descent/{room}/__init__.pyi" for room in DOORS}
    assert list(installed.glob("*.dist-info/licenses/LICENSE"))


def test_records_that_a_chapter_needs_at_any_preset_are_read_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    code = """
from descent.experiments.refusal_records import SEEDS, RefusalTuning, read_refusal_record
for seed in SEEDS:
    assert read_refusal_record(None, RefusalTuning(seed)).values["alpha_star"].shape == (30,)
"""
    done = python(installed, code, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_wheel_asks_for_neither_torchvision_nor_the_book(installed: Path) -> None:
    plain = brought(asked(installed))
    assert plain >= {"torch", "numpy", "matplotlib"}
    assert plain.isdisjoint({"torchvision", "jupyter-book", "papermill", "distributed", "pytest", "pandas"})


def test_every_door_opens_and_a_figure_is_drawn(installed: Path, tmp_path: Path) -> None:
    doors = "".join(
        f"import descent.{room}\nfrom descent.{room} import *\nassert descent.{room}.__all__\n" for room in DOORS
    )
    done = python(installed, doors + FIGURE, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "image/png" in done.stdout or "Figure" in done.stdout or "A level line" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_readmes_lines_run_on_a_network_of_ones_own(installed: Path, tmp_path: Path) -> None:
    (lines,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    done = python(installed, OWN + lines + "print(values.shape, top.values.shape)", tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == "(20,) (3,)\n"


@pytest.mark.skipif(not PAGE.is_file(), reason="there is no such page")
def test_the_page_for_a_network_of_ones_own_runs(installed: Path, tmp_path: Path) -> None:
    written = []
    for cell in json.loads(PAGE.read_text(encoding="utf-8"))["cells"]:
        tags = cell["metadata"].get("tags", [])
        if cell["cell_type"] == "code" and "setup" not in tags:
            written.append("".join(cell["source"]))
        if "parameters" in tags:  # fewer, as papermill would ask for
            written.append("steps, points = 20, 3")
    script = tmp_path / "page.py"  # a file, for the workers that it starts
    script.write_text("\n".join(written), encoding="utf-8")
    run = "import runpy; runpy.run_path(sys.argv[0], run_name='__main__')"
    done = python(installed, run, tmp_path, str(script))
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_machine_names_what_a_plain_install_does_not_bring(installed: Path, tmp_path: Path) -> None:
    done = python(installed, "import descent_book", tmp_path)
    assert done.stderr.splitlines()[-1] == (
        "ModuleNotFoundError: descent_book needs more than the library: in a clone of the book, pip install '.[book]'"
    )


@pytest.mark.parametrize(
    "command",
    [
        "descent_book.run.edition run",
        "descent_book.run.edition build",
        "descent_book.run.edition words",
        "descent_book.run.edition store a_chapter",
        "descent_book.run.new_chapter a_chapter",
        "descent_book.run.address",
        "descent_book.pages.pdf",
    ],
)
def test_what_needs_the_book_says_so_in_one_line(command: str, installed: Path, tmp_path: Path) -> None:
    code = "import runpy; runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
    done = python(installed, code, tmp_path, *command.split(), bare=False)
    assert done.returncode in (1, 2)
    assert len(done.stderr.splitlines()) == 1, done.stderr[-3000:]
    assert "a clone of the book" in done.stderr
    assert list(tmp_path.iterdir()) == []
