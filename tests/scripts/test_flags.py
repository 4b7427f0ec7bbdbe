"""Every number that a script takes has a range, and bad values of every flag end in one line and exit code 2."""

import dataclasses
import random
from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from lens_rnn import cli, flags
from lens_rnn.ranges import ranges_of
from tests.scripts.launch import ROOT, config_of

import pytest

SCRIPTS = sorted(
    str(path.relative_to(ROOT))
    for folder in ("train", "eval", "benchmarks")
    for path in (ROOT / folder).glob("*.py")
    if "cli.run(main, Config)" in path.read_text()
)
NUMBERS = ["nan", "-nan", "inf", "-inf", "1e400", "9" * 40, "-" + "9" * 40, "x", "", "1,5", "0x10", "1_0 0", "½"]
WORDS = ["nothing-of-this-name", "", "KL", "None ", "\N{LINE SEPARATOR}"]


def kinds(hint: Any) -> set[Any]:
    """The simple types that a field can have, of a tuple those of its entries."""
    if get_origin(hint) in (Union, UnionType, Annotated, tuple):
        inner = get_args(hint)[:1] if get_origin(hint) is Annotated else get_args(hint)
        return {kind for part in inner for kind in kinds(part)} - {NoneType, ...}
    return {hint}


def bad_values(hint: Any, allowed: Any) -> Iterator[str]:
    """Values that a field of this type and range must refuse."""
    for kind in kinds(hint):
        if kind in (int, float):
            yield from NUMBERS
            generator = random.Random(0)
            for _ in range(6):
                value = generator.choice([generator.uniform(-10, 2), generator.randint(-10, 1), 10.0**30])
                if kind is int and value != int(value):
                    yield str(value)
                elif not allowed.least <= value <= allowed.most:
                    yield repr(int(value)) if kind is int else repr(value)
        elif get_origin(kind) is Literal:
            yield from WORDS


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_number_has_a_range(script: str) -> None:
    config = config_of(script)
    hints = get_type_hints(config)
    numeric = {field.name for field in dataclasses.fields(config) if kinds(hints[field.name]) & {int, float}}
    assert numeric - ranges_of(config).keys() == set()


@pytest.mark.parametrize("script", SCRIPTS)
def test_bad_values_end_in_one_line(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(script)
    hints, ranges, tried = get_type_hints(config), ranges_of(config), 0
    required = {field.name: hints[field.name] for field in dataclasses.fields(config) if flags.is_required(field)}
    needed = [
        f"--{name}={get_args(hint)[0] if get_origin(hint) is Literal else 'x'}" for name, hint in required.items()
    ]

    def never(_: Any) -> None:
        raise AssertionError("main must not begin")

    for field in dataclasses.fields(config):
        for value in bad_values(hints[field.name], ranges.get(field.name)):
            flag = f"--{field.name.replace('_', '-')}"
            monkeypatch.setattr("sys.argv", [script, *needed, f"{flag}={value}"])
            with pytest.raises(SystemExit) as stop:
                cli.run(never, config)
            error = capsys.readouterr().err
            assert (stop.value.code, len(error.splitlines())) == (2, 1), (flag, value, error)
            assert error.startswith("error: "), (flag, value, error)
            assert field.name in error.replace("-", "_"), (flag, value, error)
            tried += 1
    assert tried > 0 or not any(kinds(hint) & {int, float} for hint in hints.values())
