"""Run every benchmark, print the table, keep it as benchmarks/results.json with the machine's description.

python benchmarks/run.py [name ...]
"""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import asdict
from pathlib import Path

from descent.repro.files import write_json
from measure import Result, machine

HERE = Path(__file__).parent
NAMES = sorted(path.stem for path in HERE.glob("*.py") if path.stem not in ("run", "measure"))


def table(results: list[Result]) -> str:
    """A row per variant, under a heading per task."""
    lines: list[str] = []
    for before, result in zip([None, *results], results, strict=False):
        if before is None or before.task != result.task:
            lines.append(f"\n{result.task}")
        figures = "  ".join(f"{name} {value:.3g}" for name, value in result.figures.items())
        lines.append(f"  {result.variant:48s} {figures}")
    return "\n".join(lines)


def main(wanted: list[str]) -> int:
    if bad := [name for name in wanted if name not in NAMES]:
        print(f"benchmark {bad[0]!r}: expected one of {', '.join(NAMES)}", file=sys.stderr)
        return 2
    path = HERE / "results.json"
    kept = json.loads(path.read_text())["benchmarks"] if path.exists() else {}
    for name in wanted or NAMES:
        results = importlib.import_module(name).run()
        print(table(results))
        rows = [asdict(result) for result in results]
        for row in rows:  # JSON has no NaN: what was not measured is null
            row["figures"] = {key: value if value == value else None for key, value in row["figures"].items()}
        kept[name] = {"machine": machine(), "results": rows}
        write_json(path, {"benchmarks": kept})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
