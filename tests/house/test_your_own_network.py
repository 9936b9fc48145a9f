"""The page for a network, a loop and data that are not the library's: what it uses, and how long it is."""

import ast
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from descent.curvature import extreme_eigenpairs, hessian
from descent.training import CapturePlan, GradientRecorder
from descent_book.run.chapter import Chapter

CELLS = Chapter.read(Path(__file__).parents[2], "your_own_network").cells
STEPS = {
    "1. Gradients": "GradientRecorder(",
    "2. The spectrum": "shuffled_null_rows(",
    "3. The curvature": "spectral_density(",
    "4. A loss surface": "loss_surface(",
}
CASES = ("AdamW", "closure", "Tied weights", "transformer", "regression")


def after(heading: str) -> list[str]:
    """The code cells below a heading, up to the next one."""
    title = re.compile(rf"^## .*{re.escape(heading)}", re.MULTILINE)
    (start,) = (n for n, cell in enumerate(CELLS) if title.search(cell["source"]))
    rest = CELLS[start + 1 :]
    end = next((n for n, cell in enumerate(rest) if re.search("^## ", cell["source"], re.MULTILINE)), len(rest))
    return [cell["source"] for cell in rest[:end] if cell["cell_type"] == "code"]


@pytest.mark.parametrize(("heading", "call"), STEPS.items())
def test_each_step_takes_less_than_ten_lines(heading: str, call: str) -> None:
    (cell,) = (source for source in after(heading) if call in source)
    assert sum(bool(line.strip()) for line in cell.splitlines()) < 10


@pytest.mark.parametrize("case", CASES)
def test_each_case_has_code_of_its_own(case: str) -> None:
    assert after(case)


def test_the_network_the_loop_and_the_data_are_not_the_librarys() -> None:
    (source,) = (cell["source"] for cell in CELLS if "imports" in cell["metadata"].get("tags", []))
    imports = [node for node in ast.parse(source).body if isinstance(node, ast.ImportFrom)]
    modules = {node.module: {alias.name for alias in node.names} for node in imports}
    rooms = {module: names for module, names in modules.items() if str(module).split(".")[0] == "descent"}
    assert all(str(module).count(".") == 1 for module in rooms), "a room is imported by its door"
    assert not {"descent.data", "descent.experiments"} & set(rooms)
    assert rooms["descent.models"] <= {"Layout", "flatten", "unflatten"}
    assert rooms["descent.training"] == {"CapturePlan", "GradientRecorder"}


def test_a_step_with_a_closure_is_recorded_as_the_page_says() -> None:
    """The gradient of (w1 + 2 w2)^2 at the weights before each step, where the optimiser takes several within it."""
    model, inputs = nn.Linear(2, 1, bias=False), torch.tensor([[1.0, 2.0]])
    nn.init.ones_(model.weight)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.05, max_iter=3)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(inputs).square().sum()
        loss.backward()
        return loss

    expected = []
    with GradientRecorder(model, optimizer, CapturePlan(range(3))) as recorder:
        for _ in range(3):
            expected.append(2 * model(inputs).item() * inputs.numpy()[0])
            optimizer.step(closure)
    assert expected[0] == pytest.approx([6, 12])
    assert recorder.stack().rows == pytest.approx(np.stack(expected), rel=1e-6)
    assert not np.allclose(expected[0], expected[1])


def test_a_tied_weight_counts_once_in_rows_and_curvature() -> None:
    """The loss (w^2 - 1)^2 of one weight in two places: gradient 4 w (w^2 - 1) and curvature 12 w^2 - 4 at w = 2."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
            self.second.weight = self.first.weight
            nn.init.constant_(self.first.weight, 2.0)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(inputs))

    model, one = Twice(), torch.ones(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    operator = hessian(model, lambda model, batch: (model(batch[0]) - batch[1]).square().mean(), [(one, one)])
    assert operator.shape == (1, 1)
    assert extreme_eigenpairs(operator, 1, "largest", np.random.default_rng(0)).values == pytest.approx([44])
    with GradientRecorder(model, optimizer, CapturePlan([0])) as recorder:
        nn.functional.mse_loss(model(one), one).backward()
        optimizer.step()
    assert recorder.stack().rows == pytest.approx(np.array([[24.0]]))
