"""Bounds on the entries of lists, and conditions that no range can say, are refused before anything is computed.

Through the runner, and by the chapter's own `Settings`, as papermill and a reader meet them.
"""

from typing import Any

import pytest
from pydantic import ValidationError

from descent.checkout import project_root
from descent_book.run.chapter import Chapter
from descent_book.run.project import RefusedError, chapters

ROOT = project_root()
READ = {chapter: Chapter.read(ROOT, chapter) for chapter in chapters(ROOT)}
LARGER = "expected each to be larger than the one before"
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    # entries of lists
    ("gradient_svd", {"class_counts": [1, 2]}, "class_counts=[1, 2]: entry 1: input should be greater than"),
    ("gradient_svd", {"class_counts": [2, 11]}, "entry 2: input should be less than or equal to 10; the nearest valid"),
    ("gradient_svd", {"sample_sizes": [25, 1]}, "sample_sizes=[25, 1]: entry 2: input should be greater"),
    ("gradient_svd", {"sample_sizes": [0]}, "entry 1: input should be greater than or equal to 2"),
    ("gradient_svd", {"networks": [0, 32]}, "networks=[0, 32]: entry 1: input should be greater than or equal to 1"),
    ("grokking", {"fractions": [0.5, 1.0]}, "fractions=[0.5, 1.0]: entry 2: input should be less than 1"),
    ("grokking", {"fractions": [0.0, 0.5]}, "entry 1: input should be greater than 0"),
    ("grokking", {"decays": [0.0, 1.0, 2.0]}, "decays=[0.0, 1.0, 2.0]: entry 1: input should be greater than 0"),
    ("grokking", {"decays": [-1.0, 1.0, 2.0]}, "entry 1: input should be greater than 0"),
    ("grokking_basins", {"copy_sizes": [16, 25, 0, 16, 16]}, "entry 3: input should be greater than or equal to 1"),
    ("grokking_basins", {"copy_rates": [0.004, -0.1]}, "entry 2: input should be greater than or equal to 0"),
    ("resnet_landscape", {"planes": 1}, "planes=1: input should be greater than or equal to 2"),
    ("resnet_landscape", {"depths": [8, 9]}, "depths=[8, 9]: entry 2: input should be 8, 14, 20"),
    ("saddles", {"dimensions": [1]}, "dimensions=[1]: entry 1: input should be greater than or equal to 2"),
    ("saddles", {"dimensions": [2, -3]}, "entry 2: input should be greater than or equal to 2"),
    ("saddles", {"conditions": [0.5, 10.0]}, "conditions=[0.5, 10.0]: entry 1: input should be"),
    ("saddles", {"conditions": [1.0, float("inf")]}, "entry 2: input should be less than or equal to 1000000000"),
    ("saddles", {"distances": [0.1, 0.0]}, "distances=[0.1, 0.0]: entry 2: input should be greater than 0"),
    ("saddles", {"distances": [2.0, 0.1]}, "entry 1: input should be less than 1"),
    ("superposition", {"sparsest": 1.5}, "sparsest=1.5: input should be greater than or equal to 2"),
    ("superposition", {"ratios": [0.0, 2.0]}, "ratios=[0.0, 2.0]: entry 1: input should be greater than or equal to 1"),
    ("superposition", {"noises": [-0.1, 0.1]}, "noises=[-0.1, 0.1]: entry 1: input should be"),
    ("superposition", {"noises": [0.1, float("nan")]}, "entry 2: input should be"),
    ("superposition", {"uniform": [10, 1]}, "uniform=[10, 1]: entry 2: input should be greater than or equal to 2"),
    # arithmetic
    ("grokking", {"p": 6}, "p=6: expected a prime number"),
    ("grokking", {"p": 121}, "p=121: expected a prime number"),
    ("grokking_basins", {"p": 9}, "p=9: expected a prime number"),
    ("grokking_basins", {"p": 399}, "p=399: expected a prime number"),
    ("grokking", {"p": 5, "fraction": 0.01}, "fraction=0.01, fractions=[0.8], shares=[0.8]: p=5 leaves"),
    ("grokking", {"p": 5, "fractions": [0.01, 0.5]}, "fractions=[0.01, 0.5], shares=[0.8]: p=5 leaves no pair to show"),
    ("grokking_basins", {"p": 5, "fraction": 0.01}, "fraction=0.01: leaves none of the pairs of p=5 to be shown"),
    ("grokking", {"every": 1000, "limit": 400}, "every=1000: expected at most steps=440 and limit=400"),
    ("grokking", {"every": 200, "steps": 100}, "every=200: expected at most steps=100 and limit=100"),
    ("grokking", {"weight_decay": 0}, "weight_decay=0: input should be greater than 0"),
    ("grokking_basins", {"every": 1000}, "every=1000, steps=442: 1 kept weights, expected 8 or more"),
    ("grokking_basins", {"stride": 40}, "stride=40: expected less than the 34 kept weights"),
    ("grokking_basins", {"weight_decay": 0}, "weight_decay=0: input should be greater than 0"),
    ("grokking_basins", {"copy_steps": 100, "copy_every": 20}, "copy_every=20: expected 7 looks or more"),
    ("grokking_basins", {"copy_sizes": [16, 5, 2, 32, 32]}, "expected 2 symbols, 3 blocks of 2 or more"),
    ("grokking_basins", {"copy_sizes": [16, 25, 1, 32, 32]}, "expected 2 symbols, 3 blocks of 2 or more"),
    ("grokking_basins", {"copy_sizes": [16, 25, 6, 33, 32]}, "copy_sizes=[16, 25, 6, 33, 32]: expected 2 symbols"),
    ("grokking_basins", {"copy_rates": [0.0, 0.1]}, "copy_rates=[0.0, 0.1]: expected a learning rate"),
    ("gradient_svd", {"epochs": 1, "batch_size": 80}, "epochs=1, batch_size=80: 18 steps; expected at least 20"),
    ("gradient_svd", {"components": 100, "samples": 50}, "samples=50: a sample of 50, for components=100"),
    ("gradient_svd", {"epochs": 1, "batch_size": 75}, "epochs=1, batch_size=75, samples=200: a sample of 10,"),
    ("gradient_svd", {"networks": ["conv", "conv"]}, "networks=['conv', 'conv']: expected two widths or"),
    ("gradient_svd", {"networks": ["conv", 32]}, "expected two widths or more, rising, and 'conv' once"),
    ("resnet_landscape", {"grid_side": 6}, "grid_side=6: expected an odd number"),
    ("resnet_landscape", {"grid_side": 39}, "grid_side=39: expected one whose half is a multiple of 3, as 25, 37, 49"),
    ("resnet_landscape", {"depths": [8, 26], "scaling": "none"}, "scaling='none', depths=[8, 26]: expected at most 20"),
    ("resnet_landscape", {"width": 64}, "width=64, depths=[8, 14]: 1,223,744 weights in the smallest"),
    ("resnet_landscape", {"dataset": "cifar10", "width": 16, "depths": [20, 56], "images": 64}, "grid_side=7:"),
    ("resnet_landscape", {"curvature_images": 61}, "curvature_images=61: expected at most images=50"),
    ("resnet_landscape", {"dataset": "cifar10"}, "depths=[8, 14]: dataset='cifar10' has 16 and 20 with 56, 110"),
    ("resnet_landscape", {"dataset": "cifar10", "width": 16, "depths": [56, 110]}, "has 16 and 20 with 56, 110"),
    ("saddles", {"learning_rate": 0.1}, "learning_rate=0.1, momentum=0.9: expected a ratio to 1 - momentum of"),
    ("saddles", {"momentum": 0.1}, "learning_rate=0.001, momentum=0.1: expected a ratio"),
    ("saddles", {"side": 9}, "side=9: expected at most that of the images of dataset='digits'"),
    ("gradient_controls", {"amounts": [0.5, 0.9]}, "amounts=[0.5, 0.9]: expected 1, the null, to be the last"),
    ("gradient_controls", {"ranks": [1, 5, 10]}, "ranks=[1, 5, 10]: expected 5, 10 and 92 among them"),
    ("gradient_controls", {"gains": [10.0, 3.0]}, "gains=[10.0, 3.0]: expected each to be larger than the one before"),
    ("gradient_controls", {"sides": [2, 8]}, "sides=[2, 8]: expected at most 7 at dataset='digits'"),
    ("gradient_controls", {"samples": 200}, "samples=200: expected at most 120, half of steps=240"),
    ("gradient_controls", {"moments": 25}, "moments=25"),
    ("maze", {"block": 5, "rooms": 3}, "block=5: expected at most 3 at rooms=3"),
    ("maze", {"steps": 30}, "steps=30: expected a multiple of 20"),
    ("maze", {"mazes_a_step": 65}, "mazes_a_step=65: expected an even number"),
    ("steering", {"alpha_steps": 12}, "alpha_steps=12: expected a multiple of 5"),
    ("steering", {"exam_prompts": 145}, "exam_prompts=145"),
    ("superposition", {"uniform": [8, 8]}, "uniform=[8, 8]: expected more features than dimensions"),
    ("superposition", {"noises": [0.0, 0.2]}, "noises=[0.0, 0.2]: expected one above 0 and at most 0.1"),
    ("your_own_network", {"seed": 2**63}, "seed=9223372036854775808: input should be less than"),
    # order, and what stands twice: a chapter reads the first and the last entry as the smallest and the largest
    ("gradient_svd", {"class_counts": [10, 2]}, f"class_counts=[10, 2]: {LARGER}"),
    ("gradient_svd", {"class_counts": [2, 2]}, f"class_counts=[2, 2]: {LARGER}"),
    ("gradient_svd", {"networks": [512, 32]}, "networks=[512, 32]: expected two widths or more, rising"),
    ("gradient_svd", {"optimisers": ["SGD", "SGD"]}, "optimisers=['SGD', 'SGD']: expected each once"),
    ("gradient_svd", {"sample_sizes": [5, 5]}, "sample_sizes=[5, 5]: expected each once"),
    ("grokking", {"fractions": [0.5, 0.5]}, "fractions=[0.5, 0.5]: expected each once"),
    ("grokking", {"decays": [1.5, 1.5, 2.0]}, "decays=[1.5, 1.5, 2.0]: expected each once"),
    ("grokking", {"decays": [0.5, 2.0, 4.0]}, "decays=[0.5, 2.0, 4.0]: expected weight_decay=1.5 among them"),
    ("grokking", {"published": "absent.pth"}, "published='absent.pth': expected the path of a file, or ''"),
    ("grokking", {"tasks": ["s5", "s5"]}, "tasks=['s5', 's5']: expected each once"),
    ("resnet_landscape", {"depths": [8, 8]}, "depths=[8, 8]: expected each once"),
    ("saddles", {"dimensions": [2, 2]}, "dimensions=[2, 2]: expected each once"),
    ("saddles", {"conditions": [10.0, 10.0]}, f"conditions=[10.0, 10.0]: {LARGER}"),
    ("saddles", {"distances": [0.001, 0.01]}, "distances=[0.001, 0.01]: expected each to be smaller"),
    ("superposition", {"ratios": [2.0, 1.0]}, f"ratios=[2.0, 1.0]: {LARGER}"),
    # where to compute
    ("resnet_landscape", {"scheduler": "localhost"}, "scheduler='localhost': expected 'tcp://host:port', or ''"),
    ("resnet_landscape", {"scheduler": "tcp://host"}, "scheduler='tcp://host': expected 'tcp://host:port'"),
    ("resnet_landscape", {"scheduler": "host:8786"}, "scheduler='host:8786': expected 'tcp://host:port'"),
]  # fmt: skip
TAKEN: list[tuple[str, dict[str, Any]]] = [
    ("gradient_svd", {"class_counts": [2, 10], "sample_sizes": [2], "networks": [1, 4096, "conv"]}),
    ("gradient_svd", {"epochs": 1, "batch_size": 75, "components": 10}),
    ("grokking", {"p": 5, "every": 400, "limit": 400}),
    ("grokking", {"p": 401, "fractions": [0.99, 0.01], "decays": [10.0, 1.5, 0.001], "tasks": []}),
    ("gradient_controls", {"dataset": "mnist", "sides": [7, 27], "bottlenecks": [784], "ranks": [5, 10, 92, 120]}),
    ("maze", {"rooms": 8, "behaviour_rooms": 5, "block": 5, "controls": True, "sampled_updates": 1}),
    ("steering", {"runs": 8, "recurrent_runs": 5, "alpha_steps": 20, "exam_prompts": 144, "recheck": 48}),
    ("grokking_basins", {"p": 113, "every": 55, "stride": 7, "copy_sizes": [2, 6, 2, 4, 1]}),
    ("resnet_landscape", {"dataset": "cifar10", "width": 16, "depths": [110, 20], "grid_side": 13}),
    ("resnet_landscape", {"grid_side": 49, "depths": [14, 20], "scaling": "none", "width": 32}),
    ("resnet_landscape", {"planes": 100, "curvature_images": 50}),
    ("saddles", {"dimensions": [1000, 2], "conditions": [1.0, 1e9], "distances": [0.9, 1e-9], "side": 8}),
    ("saddles", {"dataset": "mnist", "side": 28}),
    ("superposition", {"uniform": [3, 2], "ratios": [1.0, 1000.0], "noises": [0.1, 1.0]}),
    ("your_own_network", {"seed": 2**63 - 1}),
]


def text(value: Any) -> str:
    return value if isinstance(value, str) else repr(value).replace("inf", "1e999")


@pytest.mark.promise("R8")
@pytest.mark.parametrize(("chapter", "given", "said"), REFUSED, ids=lambda value: str(value)[:50])
def test_what_cannot_be_measured_is_refused_by_name(chapter: str, given: dict[str, Any], said: str) -> None:
    known = READ[chapter]
    with pytest.raises(ValidationError) as own:
        known.settings(**{**known.defaults, **given})
    assert all(name in str(own.value) for name in list(given)[-1:])
    if "nan" not in repr(given):  # no literal: the command line cannot say it
        with pytest.raises(RefusedError) as refused:
            known.resolve("quick", {name: text(value) for name, value in given.items()})
        assert said in str(refused.value)
        assert str(refused.value).startswith(f"{chapter}: ")
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("chapter", "given"), TAKEN, ids=lambda value: str(value)[:50])
def test_what_lies_on_the_edge_is_taken(chapter: str, given: dict[str, Any]) -> None:
    resolved = READ[chapter].resolve("quick", {name: text(value) for name, value in given.items()})
    assert {name: resolved[name] for name in given} == given


@pytest.mark.parametrize("chapter", READ)
def test_every_entry_of_every_list_has_bounds_or_choices(chapter: str) -> None:
    def bounded(schema: dict[str, Any]) -> bool:
        if "anyOf" in schema:
            return all(map(bounded, schema["anyOf"]))
        low = {"minimum", "exclusiveMinimum"} & schema.keys()
        return bool({"enum", "const"} & schema.keys()) or bool(low)

    properties = READ[chapter].settings.model_json_schema()["properties"]
    lists = {name: schema["items"] for name, schema in properties.items() if schema["type"] == "array"}
    assert {name for name, items in lists.items() if not bounded(items)} == set()


@pytest.mark.parametrize("chapter", READ)
def test_presets_stand_by_their_own_rules(chapter: str) -> None:
    for preset in READ[chapter].presets:
        assert READ[chapter].resolve(preset, {})["preset"] == preset
