"""Which versions of other packages are installed, and whether the tests have passed with them."""

from collections.abc import Iterable
from importlib import metadata

from packaging.version import InvalidVersion, Version

TESTED: dict[str, tuple[str, str]] = {
    "torch": ("2.13.0", "2.13.0"),
    "transformers": ("5.21.0", "5.24.0"),
    "tuned-lens": ("0.2.0", "0.2.0"),
    "accelerate": ("1.15.0", "1.15.0"),
    "datasets": ("5.2.0", "5.2.0"),
    "huggingface_hub": ("1.0.0", "1.0.0"),
    "numba": ("0.68.1", "0.68.1"),
    "numpy": ("2.4.6", "2.4.6"),
    "peft": ("0.21.2", "0.21.2"),
}
"""The lowest and the highest version that all tests passed with. The lowest is also pyproject.toml's bound, and the highest the one in
constraints.txt; a test compares them."""


def installed(name: str) -> str | None:
    """The version of a package that is installed; None if it is not."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def outside(names: Iterable[str] = TESTED) -> list[str]:
    """What is installed and was not tested: for each such package its name, and whether it is older or newer. Of a package that is not
    in `TESTED`, nothing is said.
    """
    found = []
    for name in names:
        version = installed(name)
        if version is None or name not in TESTED:
            continue
        lowest, highest = (Version(bound) for bound in TESTED[name])
        try:
            public = Version(Version(version).public)  # 2.13.0+cpu is 2.13.0
        except InvalidVersion:
            found.append(f"{name} {version} has not been tested ({_range(name)})")
            continue
        if not lowest <= public <= highest:
            found.append(f"{name} is {'older' if public < lowest else 'newer'} than what was tested ({_range(name)})")
    return found


def describe(*names: str) -> str:
    """The installed versions of packages, each with the versions that were tested: "transformers 5.24.0 (tested with 5.4.0 to 5.24.0)"."""
    return ", ".join(_described(name) for name in names)


def _described(name: str) -> str:
    version = installed(name)
    if version is None:
        return f"{name}, which is not installed"
    return f"{name} {version} (tested with {_range(name)})" if name in TESTED else f"{name} {version}"


def _range(name: str) -> str:
    lowest, highest = TESTED[name]
    return lowest if lowest == highest else f"{lowest} to {highest}"
