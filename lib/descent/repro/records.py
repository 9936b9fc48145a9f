"""Records of what was measured, with settings and provenance, and figures; each is written whole or not at all."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from descent.repro.files import atomic_path
from descent.repro.numbers import as_real, refuse_masks

FIGURE_FORMATS = ("png", "svg", "pdf")
_LICENCE = "MIT licence"
_OPEN = {"chapter": ""}
_OF_THE_FORMAT = ("__record__", "file", "allow_pickle", "")
_LONGEST = 10_000  # letters of an entry's name, of up to four bytes each; an archive counts them with 16 bits
_PACKAGES = ("anatomy-of-descent", "torch", "numpy", "scipy", "scikit-learn")

DECIDES = ("lib", "notebooks", "data/records", "data/checkpoints", "requirements.txt")  # of a checkout


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(folder: Path, *arguments: str) -> str | None:
    """What a command of git says in a folder, whatever repository the environment names; None outside a checkout."""
    # without --no-optional-locks, `status` refreshes the index; killed then, it leaves a lock that stops every commit
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True, env=environment)
        return done.stdout.rstrip()
    except (OSError, subprocess.CalledProcessError):
        return None


def uncommitted(root: Path) -> list[str]:
    """The files below `root`, new ones included, that may decide a result and are not as committed; [] without git."""
    changed = _git(root, "status", "--porcelain", "--untracked-files=all", "--", *DECIDES)
    return [line[3:] for line in (changed or "").splitlines()]


def _commit() -> str | None:
    """The commit of this library's checkout, with `+` where `uncommitted` files are in it; None outside a checkout.

    A repository around an installed library, such as one that holds its environment, does not know this file.
    """
    here = Path(__file__).parent
    if _git(here, "ls-files", "--full-name", "records.py") != "lib/descent/repro/records.py":
        return None
    commit, root = _git(here, "rev-parse", "--short=12", "HEAD"), _git(here, "rev-parse", "--show-toplevel")
    return commit and root and commit + ("+" if uncommitted(Path(root)) else "")


def provenance(seed: int | None = None) -> dict[str, str | int | None]:
    """Versions, commit, seed, device and threads; without times and paths, so that equal runs give equal text."""
    import torch  # here, for it takes two seconds, and a build that executes nothing does not need it

    from descent.repro.machine import device_name

    return {
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
        "commit": _commit(),
        "machine": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "device": device_name(),
        "threads": torch.get_num_threads(),
        "seed": seed,
    }


@dataclass(frozen=True)
class Record:
    """What one measurement gave, with its settings and provenance.

    Attributes:
        name: what was measured, such as `gradient_svd`.
        values: named arrays; the docstring of the measurement states their shapes and units.
        settings: the parameters of the run, as plain JSON values.
        provenance: what the function `provenance` returns.

    Example:
        >>> import tempfile
        >>> record = Record("lengths", {"length": np.array([1.5, 2.0])}, {"seed": 0})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     record.save(f"{folder}/lengths.npz")
        ...     loaded = Record.load(f"{folder}/lengths.npz")
        >>> loaded.values["length"], loaded.settings
        (array([1.5, 2. ]), {'seed': 0})
    """

    name: str
    values: Mapping[str, NDArray[Any]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def save(self, path: str | Path) -> None:
        """Write as `.npz`, atomically; equal records give equal bytes.

        Raises:
            ValueError: an array holds Python objects or is masked, its name is too long or one that the file format
                uses itself, or a setting is no plain value; numbers and arrays of numpy and paths become plain.
        """
        for key, value in self.values.items():
            unusable = (
                not isinstance(key, str) or key in _OF_THE_FORMAT or not key.isprintable() or key.endswith(".npy")
            )
            if unusable or len(key) > _LONGEST:
                raise ValueError(f"{self.name}: an entry may not be called {key!r:.99}: the file format uses that name")
            refuse_masks(value, f"{self.name}: {key!r}")
            if np.asarray(value).dtype.hasobject:
                raise ValueError(f"{self.name}: {key!r} holds Python objects; expected numbers or text")
        if len(set(map(str, self.settings))) < len(self.settings):
            raise ValueError(f"{self.name}: two of the settings {list(self.settings)} have one name in JSON")
        settings = {key: json.loads(_as_json(key, value)) for key, value in self.settings.items()}
        meta = json.dumps({"name": self.name, "settings": settings, "provenance": dict(self.provenance)})
        arrays: dict[str, Any] = {"__record__": np.array(meta), **self.values}
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, **arrays)

    @classmethod
    def load(cls, path: str | Path, remake: str = "make records", /, **expected: object) -> Record:
        """Read what `save` wrote, and refuse what was made from something else than expected.

        Args:
            path: of the file.
            remake: the command that makes it again, which every refusal names.
            expected: settings that it must have, such as the SHA-256 of the weights that it was measured on.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged (the archive holds a checksum of each array), is no record, or one of its
                settings is not as expected; the message gives both values.

        Example:
            >>> import tempfile
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     Record("lengths", {}, {"weights_sha256": "0713"}).save(f"{folder}/lengths.npz")
            ...     try:
            ...         Record.load(f"{folder}/lengths.npz", "make lengths", weights_sha256="9b0f")
            ...     except ValueError as error:
            ...         print(str(error).removeprefix(folder))
            /lengths.npz: made from weights_sha256='0713', expected '9b0f'; make it again: make lengths
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path}: no such record; to make it: {remake}")
        with open(path, "rb") as file:
            try:
                with np.load(file, allow_pickle=False) as archive:
                    meta = json.loads(str(archive["__record__"]))
                    name, settings, origin = str(meta["name"]), dict(meta["settings"]), dict(meta["provenance"])
                    values = {key: archive[key] for key in archive.files if key != "__record__"}
                    entries = archive.zip.infolist()
                    # a damaged length of a name or comment hides an array, or those after it
                    if len(set(archive.zip.namelist())) < len(entries) or any(entry.comment for entry in entries):
                        raise ValueError("its table of contents is damaged")
            except Exception as error:  # a flipped bit may also ask for a password or an unknown compression
                raise ValueError(f"{path}: damaged, or no record ({error}); make it again: {remake}") from error
        for key, value in expected.items():
            if not agrees(settings, key, value):
                kept = repr(settings[key]) if key in settings else "nothing"
                raise ValueError(f"{path}: made from {key}={kept}, expected {value!r}; make it again: {remake}")
        return cls(name, values, settings, origin)


def _as_json(name: object, value: object) -> str:
    """A setting as JSON, in which numbers and arrays of numpy, and paths, are plain values."""

    def plain(other: Any) -> Any:
        return other.tolist() if isinstance(other, (np.generic, np.ndarray)) else os.fspath(other)

    try:
        return json.dumps(value, sort_keys=True, default=plain)
    except (TypeError, ValueError) as error:
        raise ValueError(f"setting {name!r}: expected numbers, texts, lists or the like ({error})") from error


def agrees(settings: Mapping[str, Any], name: str, expected: object) -> bool:
    """Whether settings have this value, as JSON would keep it: a tuple is a list there, and NaN equals itself."""
    return name in settings and _as_json(name, settings[name]) == _as_json(name, expected)


def record_path(root: Path, chapter: str, name: str) -> Path:
    """Where the committed record `name` of a chapter lies in a project whose folder is `root`."""
    return root / "data" / "records" / chapter / f"{name}.npz"


def find_record(path: Path, /, **settings: object) -> Record | None:
    """The record at `path` if there is one with these settings; None where there is none, or one of another set-up.

    Where a record of this set-up must be there, `Record.load` refuses another by name.

    Raises:
        ValueError: the file is damaged.
    """
    record = Record.load(path) if path.is_file() else None
    if record is None or not all(agrees(record.settings, *each) for each in settings.items()):
        return None
    return record


def relative_difference(kept: ArrayLike, anew: ArrayLike, scale: float | None = None) -> NDArray[np.float64]:
    """How far kept numbers are from the same ones computed again: |kept - anew| / |anew|, of one shape, `(...)`.

    It is 0 where both are NaN or equal, and infinite where only one is finite. A `scale` takes the place of |anew|.

    Raises:
        ValueError: other than real numbers, a mask, two shapes, or a negative scale.

    Example:
        >>> relative_difference([1.0, 0.0, np.nan, np.inf], [2.0, 0.0, np.nan, 1.0])
        array([0.5, 0. , 0. , inf])
    """
    before, now = (as_real(*each).astype(float) for each in ((kept, "kept"), (anew, "anew")))
    if before.shape != now.shape:
        raise ValueError(f"kept of shape {before.shape}, anew of {now.shape}: expected one shape")
    if scale is not None and scale < 0:
        raise ValueError(f"scale={scale}: expected none below zero")
    with np.errstate(invalid="ignore", divide="ignore"):
        relative = np.abs(before - now) / (np.abs(now) if scale is None else scale)
    relative = np.where(np.isinf(now) | (scale == np.inf), np.inf, relative)
    same = (before == now) | (np.isnan(before) & np.isnan(now))
    result: NDArray[np.float64] = np.where(same, 0, np.where(np.isfinite(relative), relative, np.inf))
    return result


def open_chapter(name: str) -> None:
    """Name the chapter that this process runs, for the metadata of its figures; `Scorecard` does."""
    _OPEN["chapter"] = name


def _figure_metadata(name: str, chapter: str) -> dict[str, dict[str, str | None]]:
    """Suffix -> title, book and chapter, version and licence, by the names of each format; no date, no place."""
    title = f"{chapter}: {name}" if chapter else name
    source = "Anatomy of Descent" + (f", chapter {chapter}" if chapter else "")
    made_by = " ".join(filter(None, [_PACKAGES[0], _version(_PACKAGES[0])]))
    return {
        ".png": {"Title": title, "Source": source, "Copyright": _LICENCE, "Software": made_by},
        ".svg": {"Title": title, "Source": source, "Rights": _LICENCE, "Creator": made_by, "Date": None},
        ".pdf": {"Title": title, "Subject": source, "Keywords": _LICENCE, "Creator": made_by, "CreationDate": None},
    }


def save_figure(figure: Any, folder: str | Path, name: str, chapter: str | None = None) -> list[Path]:
    """Write a matplotlib figure as `folder/name.{png,svg,pdf}`, each atomically, at 200 dots per inch.

    Each file says inside what it is: title, book and chapter, version of the library, licence; equal figures give
    equal bytes.

    Args:
        figure: of matplotlib.
        folder: made where it is missing.
        name: of the files, without suffix.
        chapter: that draws it; None for that of the `Scorecard` which this process opened last.

    Returns:
        The three paths. If `folder` is empty, nothing is written and the list is empty.
    """
    if not str(folder):
        return []
    from matplotlib import rc_context  # here: most of who keeps records draws nothing

    described = _figure_metadata(name, _OPEN["chapter"] if chapter is None else chapter)
    paths = [Path(folder) / f"{name}.{suffix}" for suffix in FIGURE_FORMATS]
    for path in paths:
        with atomic_path(path) as temporary, rc_context({"svg.hashsalt": name}):
            about = described[path.suffix]
            figure.savefig(temporary, format=path.suffix[1:], bbox_inches="tight", dpi=200, metadata=about)
    return paths
