"""Versions: what is said of them, and that pyproject.toml, constraints.txt and the table of what was tested agree.

.ci/run sets LENS_RNN_VERSIONS to say how this environment was installed: constrained, newest, or lowest.
"""

import importlib.metadata
import os
import re
import tomllib
from pathlib import Path

from lens_rnn import versions

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ENVIRONMENT = os.environ.get("LENS_RNN_VERSIONS")
RUN = ("rwkv", "elk", "viewer", "test", "browser", "dev")
"""The extras that CI installs; cuda is not one of them."""


def requirements(*extras: str) -> dict[str, Requirement]:
    """The packages that lens-rnn asks for itself, by normal name, with those of some extras."""
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]
    asked = map(Requirement, lines)
    return {canonicalize_name(each.name): each for each in asked if each.name != "lens-rnn"}


def lowest(requirement: Requirement) -> Version | None:
    bounds = [each.version for each in requirement.specifier if each.operator == ">="]
    return Version(bounds[0]) if bounds else None


def constraints() -> dict[str, Requirement]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    assert len({pin.name for pin in pins}) == len(pins), "one version for all Pythons"
    return {canonicalize_name(pin.name): pin for pin in pins}


def pinned(name: str) -> Version:
    (bound,) = constraints()[canonicalize_name(name)].specifier
    assert bound.operator == "=="
    return Version(bound.version)


# --- the files agree --------------------------------------------------------------------------------------------------


def test_what_was_tested_is_what_the_files_say() -> None:
    """TESTED of lens_rnn/versions.py is changed with a bound of pyproject.toml, and with a new constraints.txt."""
    bounds = requirements(*RUN)
    for name, (low, high) in versions.TESTED.items():
        assert Version(low) == lowest(bounds[canonicalize_name(name)]), name
        assert Version(high) == pinned(name), name


def test_constraints_are_exact_versions_of_all_that_is_asked_for() -> None:
    for name, requirement in requirements(*RUN).items():
        assert requirement.specifier.contains(pinned(name)), f"{name} of constraints.txt is outside {requirement}"


def test_constraints_name_no_place() -> None:
    """Neither an index nor a file, a hash or a build, all of which are one machine's."""
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        assert re.fullmatch(r"#.*|[a-z0-9-]+==[a-z0-9.]+( ; [^:/@]+)?", line), line


def test_every_requirement_has_a_lower_bound() -> None:
    without = {name for name, requirement in requirements(*RUN).items() if lowest(requirement) is None}
    assert without == {"types-pyyaml", "types-tqdm"}


@pytest.mark.skipif(ENVIRONMENT != "lowest", reason="for the environment of lowest versions")
def test_every_lower_bound_is_what_is_installed() -> None:
    bounds = {name: lowest(each) for name, each in requirements("rwkv", "elk", "test").items() if name != "torch"}
    assert {name: Version(importlib.metadata.version(name)) for name in bounds} == bounds


@pytest.mark.skipif(ENVIRONMENT != "constrained", reason="for the environment of constraints.txt")
def test_the_constrained_versions_are_what_is_installed() -> None:
    for name in requirements("rwkv", "elk", "test"):
        assert Version(Version(importlib.metadata.version(name)).public) == pinned(name), name


# --- what is said of them ---------------------------------------------------------------------------------------------


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Pretends that these packages are installed, and that they alone were tested, from 1.5.0 to 1.10.0."""
    packages: dict[str, str] = {}

    def version(name: str) -> str:
        try:
            return packages[name]
        except KeyError:
            raise importlib.metadata.PackageNotFoundError(name) from None

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(versions, "TESTED", {"wheel": ("1.5", "1.10.0"), "axle": ("1.10", "1.10.0")})
    return packages


@pytest.mark.parametrize(
    ("version", "phrases"),
    [
        ("1.5.0", []),
        ("1.9.1", []),
        ("1.10.0", []),
        ("1.10.0+cpu", []),
        ("1.10", []),
        ("1.10.0.post1", ["wheel is newer than what was tested (1.5 to 1.10.0)"]),
        ("1.11.0.dev0", ["wheel is newer than what was tested (1.5 to 1.10.0)"]),
        ("1.4.9", ["wheel is older than what was tested (1.5 to 1.10.0)"]),
        ("1.5.0rc1", ["wheel is older than what was tested (1.5 to 1.10.0)"]),
        ("home-made", ["wheel is not what was tested (1.5 to 1.10.0)"]),
    ],
)
def test_what_is_outside_of_what_was_tested(installed: dict[str, str], version: str, phrases: list[str]) -> None:
    installed["wheel"] = version
    assert versions.outside("wheel", "axle") == phrases


def test_by_default_everything_that_was_tested_is_compared(installed: dict[str, str]) -> None:
    installed["other"] = "3"
    assert versions.outside() == []
    installed.update(wheel="2", axle="1.9")
    assert versions.outside() == [
        "wheel is newer than what was tested (1.5 to 1.10.0)",
        "axle is older than what was tested (1.10.0)",
    ]


def test_a_description_names_version_and_what_was_tested(installed: dict[str, str]) -> None:
    installed.update(wheel="1.7+local", axle="1.10.0", other="3")
    assert versions.describe("wheel") == "wheel 1.7+local (tested with 1.5 to 1.10.0)"
    description = versions.describe("axle", "other", "spoke")
    assert description == "axle 1.10.0 (tested with 1.10.0), other 3, spoke, which is not installed"


def test_names_of_packages_are_found_as_they_are_written() -> None:
    assert versions.installed("huggingface_hub") == importlib.metadata.version("huggingface-hub")
    assert versions.installed("no-such-package-at-all") is None
