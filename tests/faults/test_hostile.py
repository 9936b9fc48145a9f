"""A file that carries code is refused and its code never runs; no source opens files in a way that would run it."""

import ast
import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from damage import SMALL, trained
from small_runs import newest_checkpoint
from sweep_tasks import POINTS

from descent.models.published_weights import DIGESTS, load_checkpoint
from descent.repro.files import sha256_of, write_json
from descent.repro.records import Record
from descent.repro.sweeps import Sweep, sweep

ROOT = Path(__file__).parents[2]


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.flag.touch, ()


def hostile(folder: Path, flag: Path) -> dict[str, bytes]:
    """Bytes that would make `flag` when unpickled, in every dress."""
    bare = folder / "bare.pt"
    torch.save({"run": "damage", "step": 10, "model": Bomb(flag)}, bare)
    objects, array = folder / "objects.npz", folder / "array.npy"
    np.savez(objects, __record__=np.array([Bomb(flag)], dtype=object), loss=np.array([Bomb(flag)], dtype=object))
    np.save(array, np.array([Bomb(flag)], dtype=object))
    meta = json.dumps({"name": "r", "settings": {}, "provenance": {}})
    mixed = folder / "mixed.npz"
    np.savez(mixed, __record__=np.array(meta), loss=np.array([Bomb(flag)], dtype=object))
    old = folder / "old.pt"
    torch.save({"model": Bomb(flag)}, old, _use_new_zipfile_serialization=False)
    found = {path.stem: path.read_bytes() for path in (bare, objects, array, mixed, old)}
    return {**found, "pickle": pickle.dumps(Bomb(flag))}


DRESSES = ["bare", "objects", "array", "mixed", "old", "pickle"]


@pytest.fixture(params=DRESSES)
def payload(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[bytes]:
    """One of them; that it works is shown last, when everything else has refused it."""
    flag, place = tmp_path / "executed", tmp_path / "made"
    place.mkdir()
    found = hostile(place, flag)
    assert list(found) == DRESSES
    yield found[request.param]
    assert not flag.exists(), "the code in the file was executed"
    pickle.loads(found["pickle"])  # noqa: S301 (our own: is the bomb live?)
    assert flag.exists()


@pytest.mark.promise("R5")
def test_weights_that_are_a_pickle_are_refused(payload: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"{SMALL.name}.safetensors"
    path.write_bytes(payload)
    write_json(tmp_path / DIGESTS, {path.name: sha256_of(path)})  # so that its digest is not what refuses it
    with pytest.raises(ValueError, match=f"{path}: no checkpoint of this book"):
        load_checkpoint(tmp_path, SMALL)


@pytest.mark.promise("R5")
def test_a_record_that_is_a_pickle_is_refused(payload: bytes, tmp_path: Path) -> None:
    (tmp_path / "r.npz").write_bytes(payload)
    with pytest.raises(ValueError, match=r"r\.npz: damaged, or no record"):
        Record.load(tmp_path / "r.npz")


@pytest.mark.promise("R5")
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_training_state_that_is_a_pickle_is_refused(payload: bytes, tmp_path: Path) -> None:
    trained(tmp_path / "run", 5)
    _, path = newest_checkpoint(tmp_path / "run")
    path.write_bytes(payload)
    path.with_suffix(".pt.sha256").write_text(sha256_of(path))
    with pytest.raises((pickle.UnpicklingError, RuntimeError, ValueError, KeyError)):
        trained(tmp_path / "run", 10)


def doubled(points: np.ndarray) -> dict[str, np.ndarray]:
    return {"doubled": 2 * points}


@pytest.mark.promise("R5")
def test_a_shard_that_is_a_pickle_is_computed_again(payload: bytes, tmp_path: Path) -> None:
    how = Sweep(folder=tmp_path / "shards", shard_size=10, workers=1)
    sweep(doubled, POINTS, how, "k")
    (tmp_path / "shards" / "shard-00001.npz").write_bytes(payload)
    assert np.array_equal(sweep(doubled, POINTS, how, "k")["doubled"], 2 * POINTS)


# ------------------------------------------------------------------------------------------------- how files are opened

# name of a call -> whether the keywords given to it make it safe
UNSAFE: dict[str, Callable[[dict[str, object]], bool]] = {
    "torch.load": lambda given: given.get("weights_only") is True,
    "numpy.load": lambda given: given.get("allow_pickle", False) is False,
    "numpy.lib.format.read_array": lambda given: given.get("allow_pickle", False) is False,
    "yaml.load": lambda given: False,
    **{f"{module}.{name}": lambda given: False for module in ("pickle", "cloudpickle", "dill", "marshal", "joblib",
       "shelve", "pandas") for name in ("load", "loads", "Unpickler", "open", "read_pickle")},
    **{f"torch.{name}": lambda given: False for name in ("hub.load", "jit.load", "package.PackageImporter")},
}  # fmt: skip
# A safe loader of our own, and what is unpickled in memory, a moment after the same process or its parent pickled it.
OWN = {
    ("lib/descent/repro/claims.py", "read_mapping"),  # a safe loader that refuses a name given twice
    ("lib/descent/repro/sweeps.py", "_stored"),  # the task, from a folder of this process made for this one sweep
    ("lib/descent/repro/sweeps.py", "_on_cluster"),
    ("benchmarks/landscape.py", "begin"),
    ("tests/faults/test_hostile.py", "payload"),
}


def opened(source: str) -> list[tuple[str, str]]:
    """The function and the name of each call, or mention as an argument, of UNSAFE in a source."""
    tree, names = ast.parse(source), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name.split(".")[0]: alias.name if alias.asname else alias.name.split(".")[0]
                      for alias in node.names}  # fmt: skip
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}

    def full(node: ast.AST) -> str:
        if isinstance(node, ast.Attribute):
            return f"{full(node.value)}.{node.attr}"
        return names.get(node.id, "") if isinstance(node, ast.Name) else ""

    found: list[tuple[str, str]] = []

    def look(node: ast.AST, function: str, called: bool = False) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            function = node.name
        if isinstance(node, ast.Call) and (name := full(node.func)) in UNSAFE:
            given = {keyword.arg: getattr(keyword.value, "value", None) for keyword in node.keywords if keyword.arg}
            if None in [keyword.arg for keyword in node.keywords] or not UNSAFE[name](given):
                found.append((function, name))
        elif isinstance(node, ast.Name | ast.Attribute) and not called and full(node) in UNSAFE:
            found.append((function, full(node)))  # handed on, to be called elsewhere
        for child in ast.iter_child_nodes(node):
            look(child, function, called=isinstance(node, ast.Call) and child is node.func)

    look(tree, "")
    return found


def sources() -> dict[str, str]:
    """Every Python file of the project, and the code of every notebook, by path."""
    found = {}
    for folder in ("lib", "tests", "benchmarks", "notebooks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            found[path.relative_to(ROOT).as_posix()] = path.read_text()
        for path in sorted((ROOT / folder).rglob("*.ipynb")):
            cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
            lines = [line for cell in cells for line in [*"".join(cell["source"]).splitlines(), ""]]
            found[path.relative_to(ROOT).as_posix()] = "\n".join(
                line if not line.lstrip().startswith(("%", "!")) else line[: len(line) - len(line.lstrip())] + "pass"
                for line in lines
            )
    return found


@pytest.mark.promise("R5")
def test_no_source_opens_a_file_that_may_carry_code() -> None:
    found = {(path, function, name) for path, source in sources().items() for function, name in opened(source)}
    in_memory = {each for each in found if each[0].startswith("tests/") and each[2] == "pickle.loads"}
    assert all("pickle.loads(pickle.dumps(" in sources()[path] or (path, where) in OWN for path, where, _ in in_memory)
    assert {each for each in found - in_memory if each[:2] not in OWN} == set()
    assert len(sources()) > 100


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import torch\ntorch.load(p)", ["torch.load"]),
        ("import torch\ntorch.load(p, weights_only=False)", ["torch.load"]),
        ("import torch\ntorch.load(p, weights_only=safe)", ["torch.load"]),
        ("import torch\ntorch.load(p, **options)", ["torch.load"]),
        ("import torch as t\nt.load(p, weights_only=True)", []),
        ("from torch import load as read\nread(p)", ["torch.load"]),
        ("import numpy as np\nnp.load(p)", []),
        ("import numpy as np\nnp.load(p, allow_pickle=True)", ["numpy.load"]),
        ("import pickle\nwith open(p, 'rb') as f:\n    pickle.load(f)", ["pickle.load"]),
        ("def f():\n    from joblib import load\n    return load(p)", ["joblib.load"]),
        ("import cloudpickle\nsubmit(cloudpickle.loads, data)", ["cloudpickle.loads"]),
        ("import yaml\nyaml.load(f, yaml.Loader)", ["yaml.load"]),
        ("import yaml, json\nyaml.safe_load(f)\njson.load(f)", []),
        ("load(p)\nself.load(p)", []),
    ],
)
def test_an_unsafe_way_is_found(source: str, found: list[str]) -> None:
    assert [name for _, name in opened(source)] == found
