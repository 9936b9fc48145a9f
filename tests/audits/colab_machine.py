"""A machine as Colab gives it, simulated: its packages at its versions, its module, an empty folder, one notebook.

The set-up cell runs as it stands: pip asks the index for what Colab lacks, and git is told to look for the
repository's address on this machine.
"""

import asyncio
import hashlib
import os
import subprocess
import sys
import sysconfig
import time
import venv
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

from descent_book.run import address

IMAGE = Path(__file__).with_name("colab-image.txt")
STUB = 'raise RuntimeError("a chapter asks for what only a reader may grant: Drive, files or a sign-in")\n'
SECONDS = 1800  # a cell may take


class Measured(NamedTuple):
    """What one run gave; `before` and `after` are name -> version of all that can be imported."""

    before: dict[str, str]
    after: dict[str, str]
    first_figure: float
    total: float
    notebook: Any


def folder_of_packages(environment: Path) -> Path:
    scheme = {"base": str(environment), "platbase": str(environment)}
    return Path(sysconfig.get_path("purelib", "venv", scheme))


def python_of(environment: Path) -> Path:
    return environment / "bin" / "python"


def image(root: Path) -> Path:
    """The environment of `colab-image.txt` under `root/_build`, installed on first use and kept."""
    digest = hashlib.sha256(IMAGE.read_bytes() + sys.version.encode()).hexdigest()[:12]
    place = root / "_build" / "colab" / digest
    if not (place / "ready").is_file():
        venv.create(place, with_pip=True, clear=True)
        flags = os.environ.get("PIP_FLAGS", "").split()
        command = [python_of(place), "-m", "pip", "install", "--quiet", *flags, "--requirement", IMAGE]
        subprocess.run(command, check=True)
        google = folder_of_packages(place) / "google" / "colab"
        google.mkdir(parents=True)
        (google / "__init__.py").touch()
        for name in ("auth", "drive", "files", "userdata"):
            (google / f"{name}.py").write_text(STUB)
        (place / "ready").touch()
    return place


def machine(base: Path, folder: Path) -> Path:
    """A new environment that sees the packages of `base` and cannot change them, as a reader's sees Colab's own."""
    venv.create(folder, with_pip=True)
    (folder_of_packages(folder) / "image.pth").write_text(f"{folder_of_packages(base)}\n")
    return folder


def packages(environment: Path, base: Path) -> dict[str, str]:
    """Name -> version of everything that can be imported; what the environment itself has hides what `base` has."""
    places = [str(folder_of_packages(each)) for each in (base, environment)]
    return {dist.name.lower(): dist.version for place in places for dist in distributions(path=[place])}


def git_rules(root: Path, folder: Path) -> dict[str, str]:
    """Variables by which git finds the repository's address in a bare copy of this checkout, its HEAD under the tag."""
    copy = folder / "repository.git"
    subprocess.run(["git", "clone", "--quiet", "--bare", root, copy], check=True)
    head = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    repository = address.configured_repository(root)
    update = ["update-ref", f"refs/tags/{repository.tag}", head.stdout.strip()]
    subprocess.run(["git", "-C", copy, *update], check=True)
    return {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{copy.as_uri()}.insteadOf",
        "GIT_CONFIG_VALUE_0": repository.url,
    }


def run(notebook: Path, base: Path, folder: Path, variables: dict[str, str]) -> Measured:
    """Run a chapter in a new machine and an empty folder below `folder`, which stays empty but for what it writes."""
    computer, desk = machine(base, folder / "machine"), folder / "content"
    desk.mkdir()
    before = packages(computer, base)
    source = nbformat.read(notebook, as_version=4)
    start, figures = time.monotonic(), []

    def executed(cell: Any, **_: Any) -> None:
        shown = [output.get("data", {}) for output in cell.get("outputs", [])]
        if any("image/png" in data or "Plotly.newPlot" in data.get("text/html", "") for data in shown):
            figures.append(time.monotonic() - start)

    manager = AsyncKernelManager(kernel_name="python3")
    launch = [str(python_of(computer)), "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=40"]
    launch.append("--IPKernelApp.exec_lines=import google.colab")
    manager._kernel_spec = KernelSpec(argv=launch, display_name="Python 3", language="python")
    client = NotebookClient(
        source, km=manager, timeout=SECONDS, resources={"metadata": {"path": str(desk)}}, on_cell_executed=executed
    )
    asyncio.run(_executed(client, manager, {**plain_environment(), **variables}))
    took = time.monotonic() - start
    return Measured(before, packages(computer, base), figures[0] if figures else float("nan"), took, source)


async def _executed(client: NotebookClient, manager: AsyncKernelManager, variables: dict[str, str]) -> None:
    """To the end of the notebook or to its first error; the kernel, which is not the client's own, ends with it."""
    try:
        await client.async_execute(env=variables)
    finally:
        await manager.shutdown_kernel(now=True)


def plain_environment() -> dict[str, str]:
    """This process's variables less those that would lead to this checkout, and Colab's own."""
    ours = ("PYTHON", "DESCENT", "VIRTUAL_ENV", "JUPYTER", "PYTEST")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    backend = "module://matplotlib_inline.backend_inline"
    return {**kept, "COLAB_RELEASE_TAG": "simulated", "MPLBACKEND": backend, "TQDM_DISABLE": "1"}
