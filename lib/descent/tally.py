"""What the executed chapters of an edition found: the runner's notes in each, and the scorecard of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from descent.outputs import read_executed


def described(notebook: Path) -> dict[str, Any]:
    """What the runner noted in an executed notebook: key, preset, claims, seconds; empty where there is none.

    Raises:
        ValueError: the notebook is damaged.
    """
    try:
        found: dict[str, Any] = read_executed(notebook)["metadata"].get("descent", {})
    except OSError:
        return {}
    return found


def collect(folder: Path, edition: str, names: Sequence[str]) -> dict[str, Any]:
    """The scorecard of an edition, from what the runner noted in its notebooks.

    Raises:
        ValueError: a notebook is damaged.
    """
    noted = {name: described(folder / f"{name}.ipynb") for name in names}
    keep = ("claims", "seconds", "provenance")
    return {"preset": edition, "chapters": {n: {k: note[k] for k in keep} for n, note in noted.items() if note}}


def summary(scorecard: Mapping[str, Any]) -> str:
    """The scorecard as lines of text: chapter.claim, what was measured, the verdict; and the totals."""
    from descent.scorecard import rounded

    claims = [claim for chapter in scorecard["chapters"].values() for claim in chapter["claims"]]
    rows = [(claim["id"], rounded(claim["measured"], claim["spread"]), claim["verdict"]) for claim in claims]
    widths = [max((len(row[i]) for row in rows), default=0) for i in (0, 1)]
    lines = [f"{name:<{widths[0]}}  {measured:>{widths[1]}}  {verdict}" for name, measured, verdict in rows]
    verdicts = [verdict for *_, verdict in rows]
    totals = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in sorted(set(verdicts), key=verdicts.count))
    return "\n".join([*lines, f"{len(rows)} claims at preset {scorecard['preset']}: {totals or 'none'}"])
