"""The library's imports descend: a module uses only modules of lower layers, so that each can be read by itself."""

import ast
from pathlib import Path

import pytest

LIBRARY = Path(__file__).parents[1] / "lib" / "descent"
LAYERS = [
    "devices",
    "vectors seeding records idx cifar project precision dependencies operations fourier superposition toy_theory "
    "printable browser agreement",
    "fetching locks colab outputs feature_geometry toy_steps",
    "datasets models resnets surfaces ensembles checks lanczos stores spectra clusters allocator transformers",
    "training capture curvature eigen density paths critical kernel directions checkpoints folding path_shape scripts",
    "escape style execution landscape resnet_training grokking induction toy_models",
    "grok_measures surface_shape surface_export surface_plots plots scenes scorecard chapters pool assembly "
    "feature_plots",
    "book book_claims book_download print_pages parameters new_chapter repository sweeps grok_times tally",
    "edition book_pdf book_parameters book_links book_promises landscape_records grokking_records",
]
LAYER = {name: layer for layer, names in enumerate(LAYERS) for name in names.split()}
SOURCES = {path.stem: path for path in sorted(LIBRARY.rglob("*.py")) if path.name != "__init__.py"}


def imports(source: str) -> set[str]:
    """The modules of this library that a source imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import hides where a name comes from"
            if node.module == "descent":
                found |= {alias.name for alias in node.names}
            elif (node.module or "").startswith("descent."):
                found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("descent.")}
    return found


def not_descending(name: str, source: str) -> list[str]:
    return [f"{name} -> {other}" for other in sorted(imports(source)) if LAYER[other] >= LAYER[name]]


def test_every_module_has_a_layer_and_every_layer_its_modules():
    named = [name for names in LAYERS for name in names.split()]
    assert len(named) == len(set(named))
    assert set(SOURCES) - set(named) == set(), "modules without a layer: give them one in this file and say why"


@pytest.mark.parametrize("name", SOURCES)
def test_imports_descend(name):
    assert not_descending(name, SOURCES[name].read_text()) == []


@pytest.mark.parametrize(
    ("source", "wrong"),
    [
        ("from descent.edition import main", ["escape -> edition"]),
        ("def f():\n    from descent import plots", ["escape -> plots"]),
        ("import descent.execution", ["escape -> execution"]),
        ("from descent.capture import x\nimport torch", []),
    ],
)
def test_an_import_that_does_not_descend_is_found(source, wrong):
    assert not_descending("escape", source) == wrong


def test_sizes_stay_readable():
    lines = {name: len(path.read_text().splitlines()) for name, path in SOURCES.items()}
    assert {name: count for name, count in lines.items() if count > 250} == {}
    long = [
        f"{name}.{node.name}: {node.end_lineno - node.body[0].lineno + 1} lines, {len(node.args.args)} arguments"
        for name, path in SOURCES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
        and (
            node.end_lineno - node.body[0].lineno + 1 > 40
            or len([a for a in node.args.args if a.arg not in ("self", "cls")]) > 5
        )
    ]
    assert long == []
