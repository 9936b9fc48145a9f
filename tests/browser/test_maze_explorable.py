"""A policy map that a page computes as cheese and walls are moved, in a real browser, against torch."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_explorables import page_with
from test_pages import Visit, browser  # noqa: F401  the fixture
from torch import Tensor

from descent.experiments.maze import MOVES, Mazes, at_states, reach_probability
from descent.experiments.maze_agents import PolicyMap, pack_int16, unpack_int16

pytestmark = pytest.mark.browser
SEVEN = """
.......
.##.#.#
....#.#
##.##..
.#...#.
.#.#.#.
...#...
"""
FIVE = """
.#...
...#.
.#.#.
.#.#.
.#...
"""
SHOWN = "document.querySelector('.explorable').maze"
# JavaScript: of each arrow, where it begins, with the cell that lies there, and its tip
ARROWS = """[...document.querySelectorAll('.maze-arrows path')].map(arrow => {
  const [x, y, , , , , tipX, tipY] = arrow.getAttribute('d').match(/-?[0-9.e-]+/g).map(Number);
  const cell = [...document.querySelectorAll('[data-cell]')].find(each => {
    const [left, top, size] = ['x', 'y', 'width'].map(name => Number(each.getAttribute(name)));
    return left < x && x < left + size && top < y && y < top + size;
  }).dataset.cell;
  return [[x, y, cell], [tipX, tipY]];
})"""
OFF, SUBTRACTED, ADDED = "off", "subtracted at the cheese", "added twice where no cheese is"


def rows_of(drawing: str) -> list[list[int]]:
    return [[int(cell == ".") for cell in row] for row in drawing.split()]


class Agents:
    """Two random networks and a random pattern, as a page holds them and as torch computes them."""

    def __init__(self, drawing: str, width: int, blocks: int, layer: int, reach: int, block: int) -> None:
        torch.manual_seed(len(drawing))
        rows = rows_of(drawing)
        self.side, self.layer, self.reach, self.block = len(rows), layer, reach, block
        self.networks, packed = [], []
        for name in ("agent", "without a block"):
            network = PolicyMap(self.side, sizes=(width, blocks))
            for parameter in network.parameters():  # no symmetry, and policies that are far from uniform
                torch.nn.init.normal_(parameter, std=1.6 / max(1, parameter[0].numel()) ** 0.5)
            torch.nn.init.normal_(network.head.weight, std=0.4 / 2**blocks)  # the stream doubles in a block
            torch.nn.init.normal_(network.head.bias, std=0.3)
            packed.append((name, [pack_int16(parameter.detach()) for parameter in network.parameters()]))
            for parameter, entry in zip(network.parameters(), packed[-1][1], strict=True):
                parameter.data = torch.from_numpy(unpack_int16(entry))
            self.networks.append(network)
        pattern = pack_int16(torch.randn(width, 2 * reach + 1, 2 * reach + 1) * 2)
        self.pattern = torch.from_numpy(unpack_int16(pattern))
        self.data = {
            "kind": "maze", "side": self.side, "block": block, "free": rows, "cheese": [0, self.side - 1 - block],
            "networks": packed, "patch": [layer, pattern],
        }  # fmt: skip

    def logits(self, shown: dict[str, Any], network: int = 0, factor: float = 0) -> Tensor:
        """Logits `(4, side, side)` of what the page shows, by torch, float64."""
        seen = torch.zeros(1, 2, self.side, self.side, dtype=torch.float64)
        seen[0, 0] = torch.tensor(shown["free"]).view(self.side, self.side)
        if shown["cheese"] is not None:
            seen[0, 1].view(-1)[shown["cheese"]] = 1
        cell = shown["phantom"] if factor > 0 else shown["cheese"]
        add = {}
        if factor and cell is not None:
            around = torch.zeros(len(self.pattern), *[self.side + 2 * self.reach] * 2, dtype=torch.float64)
            row, column = divmod(int(cell), self.side)
            size = 2 * self.reach + 1
            around[:, row : row + size, column : column + size] = factor * self.pattern
            add = {self.layer: around[None, :, self.reach : -self.reach, self.reach : -self.reach]}
        with torch.no_grad():
            logits: Tensor = self.networks[network](seen, add)[0]
        return logits

    def outcome(self, shown: dict[str, Any], logits: Tensor) -> tuple[float, float]:
        """Probabilities that cheese and block are entered, the one before the other, within 200 steps."""
        mazes = Mazes.from_free(np.array(shown["free"], bool).reshape(1, self.side, self.side), False)
        policy = at_states(logits[None], mazes).softmax(-1)
        block = mazes.block(self.block)
        cheese = torch.eq(mazes.cells, -1 if shown["cheese"] is None else shown["cheese"])
        in_block = bool((cheese & block).any())
        start = int(mazes.start)
        taken = reach_probability(policy, mazes, cheese, 200, None if in_block else block)[0, start]
        entered = reach_probability(policy, mazes, block, 200, cheese)[0, start]
        return float(taken), 0.0 if in_block else float(entered)


class Board:
    """A page with a maze, and a reader's hands."""

    def __init__(self, browser: object, folder: Path, agents: Agents, width: int = 1300) -> None:  # noqa: F811
        self.visit, self.agents = Visit(browser, page_with(folder, agents.data), width), agents
        assert self.visit.until(SHOWN)
        self.page = self.visit.page
        self.board = self.page.get_by_role("application")
        self.cursor = (agents.side - 1) * agents.side
        self.board.scroll_into_view_if_needed()

    def middle(self, cell: int) -> tuple[float, float]:
        box = self.page.locator(f"[data-cell='{cell}']").bounding_box()
        return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def drag(self, cell: int, to: int) -> None:
        self.page.mouse.move(*self.middle(cell))
        self.page.mouse.down()
        self.page.mouse.move(*self.middle(to), steps=5)
        self.page.mouse.up()

    def go(self, cell: int) -> None:
        """Move the cursor by keys."""
        side = self.agents.side
        down, right = (cell // side - self.cursor // side), (cell % side - self.cursor % side)
        self.cursor = cell
        for count, keys in ((down, ("ArrowUp", "ArrowDown")), (right, ("ArrowLeft", "ArrowRight"))):
            for _ in range(abs(count)):
                self.page.keyboard.press(keys[count > 0])

    def choose(self, label: str, name: str) -> None:
        self.page.get_by_role("combobox", name=label).select_option(label=name)

    def check(self, network: int = 0, factor: float = 0) -> dict[str, Any]:
        """What is shown, after its logits and probabilities were found to be torch's."""
        shown: dict[str, Any] = self.page.evaluate(SHOWN)
        logits = self.agents.logits(shown, network, factor)
        page = np.array(shown["logits"]).reshape(logits.shape)
        np.testing.assert_allclose(page, logits.numpy(), rtol=0, atol=1e-9)
        outcome = self.agents.outcome(shown, logits)
        assert (shown["taken"], shown["entered"]) == pytest.approx(outcome, abs=1e-9)
        taken, entered = outcome
        all_three = [taken, entered, 1 - taken - entered]
        said = [float(each) for each in re.findall(r"\d\.\d{3}", self.said())]
        assert said == pytest.approx([entered] if shown["cheese"] is None else all_three[: len(said)], abs=6e-4)
        probable = logits.softmax(0).flatten(1) >= 0.1
        ends = {shown["cheese"]} | {cell for cell, free in enumerate(shown["free"]) if not free}
        wanted = {(cell, move) for move, cell in probable.nonzero().tolist() if cell not in ends}
        assert self.arrows() == wanted
        return shown

    def arrows(self) -> set[tuple[int, int]]:
        """The cell from which each arrow goes, and the number of its move."""
        found = set()
        for begin, tip in self.page.evaluate(ARROWS):
            across = (tip[0] - begin[0], tip[1] - begin[1])
            assert min(map(abs, across)) < 1e-9
            found.add((int(begin[2]), MOVES.index(tuple(int(np.sign(round(each, 6))) for each in across[::-1]))))
        return found

    def said(self) -> str:
        return str(self.page.locator(".explorable-said").first.inner_text())

    def happened(self) -> str:
        return str(self.page.locator(".maze-happened").inner_text())

    def close(self) -> None:
        over = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert self.page.evaluate(over) <= 0
        assert self.page.evaluate("document.querySelector('.explorable img').hidden")
        assert self.visit.faults == []
        self.page.close()


SIDES = {
    "side 7": lambda: Agents(SEVEN, 6, 4, layer=2, reach=2, block=3),
    "side 5": lambda: Agents(FIVE, 5, 2, layer=1, reach=1, block=2),
}


@pytest.mark.parametrize("width", [1300, 390])
@pytest.mark.parametrize("make", SIDES.values(), ids=SIDES)
def test_policy_and_outcome_are_torchs_whatever_is_moved(
    browser: object,  # noqa: F811
    tmp_path: Path,
    make: Callable[[], Agents],
    width: int,
) -> None:
    agents = make()
    board, side = Board(browser, tmp_path, agents, width), agents.side
    first = board.check()
    cheese, start, corner = side - 1 - agents.block, (side - 1) * side, side - 1
    assert first["cheese"] == cheese
    outside = [cell for cell, free in enumerate(first["free"]) if free and cell not in (cheese, start)]
    there = outside[len(outside) // 2]
    board.drag(cheese, there)
    moved = board.check()
    assert moved["cheese"] == there, "the cheese does not follow"
    assert moved["logits"] != first["logits"]
    board.choose("Pattern of the cheese", SUBTRACTED)
    assert board.check(factor=-1)["logits"] != moved["logits"]
    board.choose("Weights", "without a block")
    board.check(network=1, factor=-1)
    board.choose("Pattern of the cheese", ADDED)
    phantom = board.check(network=1, factor=2)["phantom"]
    assert phantom not in (None, there, start)
    board.choose("Weights", "agent")
    board.drag(int(phantom), cheese)  # to where the cheese lay, at the border
    assert board.check(factor=2)["phantom"] == cheese
    wall = first["free"].index(0)
    board.page.mouse.click(*board.middle(wall))
    assert board.check(factor=2)["free"][wall] == 1
    board.page.mouse.click(*board.middle(outside[0]))
    assert board.check(factor=2)["free"][outside[0]] == 0
    board.page.get_by_role("button", name="Take the cheese away").click()
    assert board.check(factor=2)["cheese"] is None
    board.choose("Pattern of the cheese", SUBTRACTED)
    assert "no cheese at which" in board.said()
    board.choose("Pattern of the cheese", OFF)
    assert board.check()["phantom"] is None
    board.page.get_by_role("button", name="Put the cheese back").click()
    assert board.check()["cheese"] == there
    board.drag(there, corner)
    assert "which lies in the block" in board.said()
    assert board.check()["cheese"] == corner
    board.page.get_by_role("button", name="Start again").click()
    assert board.check() == first
    board.close()


def test_keys_do_all_that_a_mouse_does(browser: object, tmp_path: Path) -> None:  # noqa: F811
    board = Board(browser, tmp_path, SIDES["side 7"]())
    page = board.page
    start, wall, there, other = 42, 36, 30, 27
    board.board.focus()
    board.go(wall)
    assert board.happened() == "Row 6, column 2: wall."
    page.keyboard.press("Space")
    assert board.happened() == "There is no wall in row 6, column 2 now."
    assert board.check()["free"][wall] == 1
    board.go(there)
    page.keyboard.press("Enter")
    assert board.check()["cheese"] == there
    page.keyboard.press("Shift+Enter")
    assert "lies in row 5, column 3" in board.happened()
    board.choose("Pattern of the cheese", ADDED)
    board.board.focus()
    board.go(other)
    page.keyboard.press("Shift+Enter")
    assert board.check(factor=2)["phantom"] == other
    for cell, reason in (
        (other, "the added pattern lies"),
        (there, "the cheese lies"),
        (6, "the corner"),
        (start, "the start"),
    ):
        board.go(cell)
        page.keyboard.press("Space")
        assert board.happened().lower().startswith(reason)
        assert board.check(factor=2)["free"][cell] == 1
    board.close()


def test_a_cheese_or_block_behind_walls_is_said_to_be_out_of_reach(browser: object, tmp_path: Path) -> None:  # noqa: F811
    board = Board(browser, tmp_path, SIDES["side 5"]())
    for cell in (15, 21):  # the start's way up, and to its right, where a wall is
        board.page.mouse.click(*board.middle(cell))
    assert "cannot" not in board.said()
    board.page.mouse.click(*board.middle(22))
    shown = board.check()
    assert shown["taken"] == shown["entered"] == 0
    assert "The cheese cannot be reached. The block cannot be reached." in board.said()
    board.page.mouse.click(*board.middle(22))
    assert "cannot" not in board.said()
    board.check()
    board.close()


def test_a_finger_drags_the_cheese_and_opens_a_wall(browser: object, tmp_path: Path) -> None:  # noqa: F811
    board = Board(browser, tmp_path, SIDES["side 7"](), 390)
    fingers = board.page.context.new_cdp_session(board.page)

    def touch(kind: str, *cells: int) -> None:
        points = [dict(zip("xy", board.middle(cell), strict=True)) for cell in cells]
        fingers.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    above = board.page.evaluate("scrollY")
    touch("touchStart", 3)
    for cell in (10, 17, 16, 23, 30):  # down, through a wall
        touch("touchMove", cell)
    touch("touchEnd")
    assert board.check()["cheese"] == 30
    assert board.page.evaluate("scrollY") == above, "the page scrolled with the finger"
    touch("touchStart", 8)
    touch("touchEnd")
    assert board.visit.until(f"{SHOWN}.free[8] === 1")
    board.check()
    board.close()


def test_it_may_open_without_cheese(browser: object, tmp_path: Path) -> None:  # noqa: F811
    agents = SIDES["side 5"]()
    agents.data["cheese"] = None
    board = Board(browser, tmp_path, agents)
    assert board.check()["cheese"] is None
    board.page.get_by_role("button", name="Put the cheese back").click()
    assert board.check()["cheese"] not in (None, 20)
    board.close()


def test_the_walk_follows_the_most_probable_moves(browser: object, tmp_path: Path) -> None:  # noqa: F811
    board = Board(browser, tmp_path, SIDES["side 7"]())
    shown = board.check()
    mazes = Mazes.from_free(np.array(shown["free"], bool).reshape(1, 7, 7))
    best = at_states(board.agents.logits(shown)[None], mazes)[0].argmax(-1)
    walk = [int(mazes.start)]
    while mazes.cells[0, walk[-1]] != shown["cheese"] and len(walk) <= 60:
        after = int(mazes.next_state[0, walk[-1], best[walk[-1]]])
        if after in walk:
            break
        walk.append(after)
    assert shown["walk"] == mazes.cells[0, walk].tolist()
    assert len(board.page.locator(".maze-walk").get_attribute("points").split()) == len(walk)
    board.close()
