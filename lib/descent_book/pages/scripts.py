"""The scripts that the pages load from other projects: MathJax and plotly.js, both from installed packages.

python -m descent_book.pages.scripts    let npm fetch the part of plotly.js that draws in three dimensions

The part has 1.8 MB and the whole 4.8 MB. A book that is built without the part looks the same and is heavier.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterable
from importlib.metadata import files
from importlib.resources import files as resources
from pathlib import Path
from tempfile import TemporaryDirectory

from descent.checkout import data_folder
from descent.data.fetching import DamagedDataError, MissingDataError
from descent.repro.files import atomic_path, sha256_of

ASSETS = Path(__file__).parent / "assets"  # the scripts and styles that are the book's own
NAME = "plotly.js-gl3d-dist-min"  # the part's package
WHOLE, PART = "plotly.min.js", "plotly-gl3d.min.js"
TIMEOUT_S = 120.0
# The kinds of traces that the part draws, as plotly.js documents its bundle gl3d.
TRACES = frozenset({"cone", "isosurface", "mesh3d", "scatter", "scatter3d", "streamtube", "surface", "volume"})
# SHA-256 of the package, for the plotly.js that an installed plotly brings
DIGESTS = {"4.1.1": "a2e13872f0102c1cf959955d5d62a534a2321e812ae34f120924b488a2cde057"}


def mathjax(name: str) -> Path:
    """A file or folder of MathJax 3, `name` as its package lays it out.

    Raises:
        FileNotFoundError: it is not installed.
    """
    for file in files("sphinx-mathjax-offline") or ():
        if file.match("static/mathjax/tex-chtml.js"):
            path = Path(str(file.locate())).parent / name
            if path.exists():
                return path
    raise FileNotFoundError(f"sphinx-mathjax-offline holds no {name}; install it again: pip install -e '.[book]'")


def whole_plotly() -> Path:
    """All of plotly.js, of the installed plotly."""
    return Path(str(resources("plotly") / "package_data" / WHOLE))


def plotly_version() -> str:
    """The version of plotly.js that the installed plotly brings; empty where the file does not say."""
    with open(whole_plotly(), encoding="utf-8") as stream:
        version = re.search(r"plotly\.js v(\d+\.\d+\.\d+)", stream.read(300))
    return version[1] if version else ""


def package(version: str) -> str:
    """The file of the part's package, as npm names it, in the data folder."""
    return f"{NAME}-{version}.tgz"


def part_of_plotly() -> bytes | None:
    """The part of plotly.js that draws in three dimensions; None where its package was not fetched for this version.

    Raises:
        DamagedDataError: the package is not the published one; the message says how to mend it.
    """
    version = plotly_version()
    path = data_folder() / package(version)
    if version not in DIGESTS or not path.is_file():
        return None
    if sha256_of(path) != DIGESTS[version]:
        raise DamagedDataError(
            f"{path} is damaged\nSHA-256 {sha256_of(path)}: expected {DIGESTS[version]}\n"
            f"to mend it: rm {path} && {sys.executable} -m descent_book.pages.scripts"
        )
    with tarfile.open(path) as archive:
        stream = archive.extractfile(f"package/{PART}")
        return stream.read() if stream else None  # it is there: the digest says so


def suffices(traces: Iterable[str]) -> bool:
    """Whether the part of plotly.js draws all these kinds of traces."""
    return TRACES.issuperset(traces)


def fetch() -> Path:
    """The part's package in the data folder, fetched by npm where it is absent.

    Raises:
        MissingDataError: this version of plotly.js has no known package, or npm is not there or does not give it.
        DamagedDataError: the package that is there, or that npm gave, is not the published one.
    """
    version = plotly_version()
    path = data_folder() / package(version)
    if version not in DIGESTS:
        known = ", ".join(DIGESTS)
        raise MissingDataError(f"plotly.js {version or 'of unknown version'}: expected {known}, whose part is known")
    if part_of_plotly() is not None:
        return path
    without = f"to do without: put {path.name} there, or build the book as it is: its pages load {WHOLE}"
    if (npm := shutil.which("npm")) is None:
        raise MissingDataError(f"{path.name} is not in {path.parent}, and there is no npm on the PATH\n{without}")
    with TemporaryDirectory() as folder, atomic_path(path) as temporary:
        command = [npm, "pack", "--silent", "--pack-destination", folder, f"{NAME}@{version}"]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
        given = Path(folder) / path.name
        if ran.returncode or not given.is_file():
            error = " ".join(ran.stderr.split())[-300:]
            raise MissingDataError(f"{path.name} is not in {path.parent}, and npm did not give it: {error}\n{without}")
        if (digest := sha256_of(given)) != DIGESTS[version]:
            raise DamagedDataError(f"{path.name} from npm: SHA-256 {digest}: expected {DIGESTS[version]}\n{without}")
        shutil.copyfile(given, temporary)
    return path


def main() -> None:
    """Fetch the part and print where it is."""
    try:
        print(f"{fetch()}: the next make html or make book uses it")
    except (ValueError, OSError, subprocess.TimeoutExpired) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
