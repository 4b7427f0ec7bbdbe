"""Which versions of other packages are installed, and whether the tests have passed with them."""

from importlib import metadata

from packaging.version import InvalidVersion, Version

TESTED: dict[str, tuple[str, str]] = {
    "torch": ("2.13", "2.13.0"),
    "transformers": ("5.23.0", "5.24.0"),
    "tuned-lens": ("0.2.0", "0.2.0"),
    "accelerate": ("1.13", "1.15.0"),
    "datasets": ("4.0", "5.2.0"),
    "huggingface_hub": ("1.31", "2.4.0"),
    "safetensors": ("0.8", "0.8.0"),
    "tokenizers": ("0.23.1", "0.23.3"),
    "numba": ("0.62", "0.68.1"),
    "numpy": ("2.0", "2.4.6"),
    "peft": ("0.18", "0.21.2"),
    "gradio": ("6.31", "6.31.0"),
}
"""The lowest and the highest version that the tests passed with: those of pyproject.toml and of constraints.txt, and
tests/test_versions.py compares them."""


def installed(name: str) -> str | None:
    """The version of a package that is installed; None if it is not."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def outside(*names: str) -> list[str]:
    """A phrase for each of these packages of `TESTED`, by default all, whose installed version was not tested."""
    phrases = []
    for name in names or TESTED:
        version = installed(name)
        if version is None:
            continue
        lowest, highest = map(Version, TESTED[name])
        try:
            public = Version(Version(version).public)  # 2.13.0+cpu is 2.13.0
        except InvalidVersion:
            phrases.append(f"{name} is not what was tested ({_range(name)})")
            continue
        if not lowest <= public <= highest:
            phrases.append(f"{name} is {'older' if public < lowest else 'newer'} than what was tested ({_range(name)})")
    return phrases


def describe(*names: str) -> str:
    """The versions of packages, with what was tested: "transformers 5.24.0 (tested with 5.23.0 to 5.24.0)"."""
    return ", ".join(_described(name) for name in names)


def _described(name: str) -> str:
    version = installed(name)
    if version is None:
        return f"{name}, which is not installed"
    return f"{name} {version} (tested with {_range(name)})" if name in TESTED else f"{name} {version}"


def _range(name: str) -> str:
    lowest, highest = TESTED[name]
    return highest if Version(lowest) == Version(highest) else f"{lowest} to {highest}"
