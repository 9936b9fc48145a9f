"""Fifty truncations and fifty turned bits of every kind of file that is read."""

from collections.abc import Callable
from pathlib import Path

import pytest
from damage import KINDS, flips, outcomes, truncations

COUNT = 50


@pytest.mark.promise("R4")
@pytest.mark.parametrize("name", KINDS)
def test_fifty_cuts_and_fifty_turned_bits(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    monkeypatch.setenv("DESCENT_DATA", str(tmp_path))
    kind = KINDS[name](tmp_path)
    for said, damage in (("cut short", truncations), ("with one bit turned", flips)):
        count = outcomes(kind, damage, COUNT)
        assert sum(count) == COUNT
        record_property(f"{name}, {said}: refused by name, of {COUNT}", count.refused)
        record_property(f"{name}, {said}: read to the same content, of {COUNT}", count.unharmed)
