"""One archive with everything for a machine without a network: wheels, assets, notebooks.

The wheels are for the platform and the Python version on which the bundle was made. install.sh
checks every sum first, then makes a virtual environment, fills the cache and copies the notebooks.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

from llmnb import LlmnbError, assets, files, models, profiles
from llmnb.runs import parameters as params
from llmnb.runs import records

SUMS = "SHA256SUMS"
INSTALL = records.TEMPLATES / "install.sh"


class BundleError(LlmnbError, RuntimeError):
    """A bundle that can't be made; the message says why, and what to do."""


def write_bundle(file: Path, profile: str, show: Callable[[str], None]) -> Path:
    """Write the archive with the profile's models and data; returns its path.

    The file appears when it is complete. Raises BundleError where this is no checkout or pip
    can't fetch a wheel, AssetError where an asset can't be fetched.
    """
    if not file.name.endswith(".tar"):
        raise BundleError(f"The archive is a .tar (wheels don't get smaller); got {file.name!r}.")
    root = Path(__file__).parents[2]
    if not (root / "pyproject.toml").is_file():
        raise BundleError("A bundle is made from a checkout of the repository, not from a wheel.")
    chosen = profiles.resolve(profile)
    if of_the_hub := [name for name in chosen.assets if name not in assets.ASSETS]:
        raise BundleError(
            f"{', '.join(of_the_hub)}: models of the Hub can't be packed. Choose a profile that "
            f"does without: --profile smoke or cpu."
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".llmnb-bundle-", dir=file.parent) as temporary:
        folder = Path(temporary, file.stem)
        (folder / "assets").mkdir(parents=True)
        show("fetching the wheels ...")
        _fetch_wheels(root, folder / "wheels")
        for name in chosen.assets:
            show(f"packing {name} ...")
            source = models.locate(name)
            shutil.copytree(source, folder / "assets" / source.name)
        (folder / "notebooks").mkdir()
        for path in params.notebooks_in(root / "notebooks"):
            shutil.copyfile(path, folder / "notebooks" / path.name)
        version = f"Python {sys.version_info[0]}.{sys.version_info[1]}"
        platform = f"{version} on {sysconfig.get_platform()}"
        script = INSTALL.read_text("utf-8")
        made_with = ".".join(map(str, sys.version_info[:3]))
        placeholders = {"PLATFORM": platform, "PROFILE": chosen.name, "MADE_WITH": made_with}
        for placeholder, value in placeholders.items():
            script = script.replace(placeholder, value)
        files.write_text(folder / "install.sh", script)
        (folder / "install.sh").chmod(0o755)
        sums = [f"{digest}  {name}\n" for name, digest in files.sums_of(folder).items()]
        files.write_text(folder / SUMS, "".join(sums))
        partial = Path(temporary, file.name)
        with tarfile.open(partial, "w") as archive:
            archive.add(folder, file.stem)
        os.replace(partial, file)
    return file


def _fetch_wheels(root: Path, folder: Path) -> None:
    """A wheel of this checkout and of all that it needs, in the versions that are installed here.

    pip builds those that have no wheel.
    """
    installed = {d.name: d.version for d in importlib.metadata.distributions()}
    pins = [f"{name}=={version}\n" for name, version in installed.items() if name != "llmnb"]
    constraints = folder.with_name("constraints.txt")
    files.write_text(constraints, "".join(pins))
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--disable-pip-version-check"]
    result = subprocess.run(
        [*pip, "-w", str(folder), "-c", str(constraints), str(root)],
        capture_output=True,
        text=True,
        errors="replace",
    )
    constraints.unlink()
    if result.returncode != 0:
        last = (result.stderr.strip() or "pip gave no reason").splitlines()[-1]
        raise BundleError(
            f"A wheel can't be fetched: {last} Is there a network? Where torch came from another "
            f"index, name it in PIP_EXTRA_INDEX_URL."
        )
