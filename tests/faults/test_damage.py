"""Every kind of file that is read: cut short or with a bit turned, it is refused by name or does no harm."""

from pathlib import Path

import pytest
from damage import KINDS, Count, Kind, flips, outcomes, truncations

FEW = 6  # of each; `audits/test_every_damage.py` does fifty


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kind:
    monkeypatch.setenv("DESCENT_DATA", str(tmp_path))
    return KINDS[request.param](tmp_path)


@pytest.mark.promise("R4")
def test_a_damaged_file_is_refused_by_name_or_does_no_harm(kind: Kind) -> None:
    for damage in (truncations, flips):
        assert sum(outcomes(kind, damage, FEW)) == FEW


def test_a_reader_that_takes_anything_is_found(tmp_path: Path) -> None:
    path = tmp_path / "numbers"
    path.write_bytes(bytes(range(50)))
    trusting = Kind(path, path.read_bytes, ValueError, "")
    for damage in (truncations, flips):
        with pytest.raises(AssertionError, match=r"numbers, .*: other content was read and used"):
            outcomes(trusting, damage, 3)
    deaf = Kind(path, lambda: path.read_bytes()[:0], ValueError, "")
    assert outcomes(deaf, flips, 3) == Count(refused=0, unharmed=3)


def test_a_refusal_that_does_not_name_the_file_or_the_remedy_is_found(tmp_path: Path) -> None:
    path = tmp_path / "numbers"
    path.write_bytes(whole := bytes(50))

    def refusing(message: str) -> Kind:
        def read() -> bytes:
            if path.read_bytes() != whole:
                raise ValueError(message)
            return whole

        return Kind(path, read, ValueError, "make it again")

    with pytest.raises(AssertionError, match="the file is not named: it is damaged"):
        outcomes(refusing("it is damaged; make it again"), flips, 3)
    with pytest.raises(AssertionError, match="it is not said what to do"):
        outcomes(refusing(f"{path} is damaged"), flips, 3)
    assert outcomes(refusing(f"{path} is damaged; make it again"), flips, 3) == Count(refused=3, unharmed=0)
