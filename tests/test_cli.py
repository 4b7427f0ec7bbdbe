"""The command line that every script shares: flags and files become a configuration, and every error one line."""

import errno
import importlib.metadata
import logging
import os
import re
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from lens_rnn import cli, flags, versions
from lens_rnn.activity import doing
from lens_rnn.errors import ConfigError, ModelError
from tests.scripts.launch import run_in_process

import numba
import pytest
import torch


@dataclass(frozen=True, kw_only=True)
class Config:
    """Do the thing."""

    steps: int = 3
    """How many steps."""
    rate: float | None = None
    """How fast."""
    loss: Literal["kl", "ce"] = "kl"
    """What to minimise."""
    name: str = "mamba"
    """What to call it."""
    output: Path | None = None
    """Where to write."""
    micro_batch_size: int | None = None
    """Sequences at a time: lower it where memory runs out; what is computed stays the same."""
    overwrite: bool = False
    """Replace what is there."""
    labels: tuple[str, ...] = ()
    """Names."""
    limits: tuple[float, float] = (0.0, 1.0)
    """From, to."""
    level: Literal[1, 2] = 1
    """How much."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"steps is {self.steps}; it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Demanding:
    """Needs to be told."""

    results: flags.Positional[tuple[str, ...]] = ()
    """What to read."""
    output: Path
    """Where to write."""
    seen: tuple[int, ...] = field(default_factory=lambda: (1,))
    """Made anew each time."""

    def __post_init__(self) -> None:
        if not self.results:
            raise ConfigError("there is no result")


def refusal(*arguments: str, config_type: type = Config) -> str:
    """The message of the ConfigError that parsing ends in, which must be one line."""
    with pytest.raises(ConfigError) as caught:
        flags.parse(config_type, list(arguments))
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def yaml(tmp_path: Path) -> Callable[[str], str]:
    """Writes a configuration file and gives its name."""

    def write(text: str) -> str:
        (tmp_path / "config.yaml").write_text(text)
        return str(tmp_path / "config.yaml")

    return write


# --- flags ------------------------------------------------------------------------------------------------------------


def test_without_arguments_a_configuration_is_its_defaults() -> None:
    assert flags.parse(Config, []) == Config()


def test_flags_set_fields_of_every_type() -> None:
    words = (
        "--steps 5 --rate 1e-3 --loss ce --name rwkv --output a/b --micro-batch-size 2 --overwrite --labels x y "
        "--limits 0.5 2"
    )
    assert flags.parse(Config, words.split()) == Config(
        steps=5,
        rate=1e-3,
        loss="ce",
        name="rwkv",
        output=Path("a/b"),
        micro_batch_size=2,
        overwrite=True,
        labels=("x", "y"),
        limits=(0.5, 2.0),
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "many"], "--steps is 'many'; it must be a whole number"),
        (["--steps", "2.5"], "--steps is '2.5'; it must be a whole number"),
        (["--steps"], "--steps: expected one argument"),
        (["--rate", "fast"], "--rate is 'fast'; it must be a number or null"),
        (["--rate", "--steps", "4"], "--rate: expected one argument"),
        (["--limits", "1"], "--limits: expected 2 arguments"),
        (["--limits", "1", "two"], "--limits is ['1', 'two']; it must be a list, each a number"),
        (["--loss", "mse"], "--loss is 'mse'; it must be one of kl, ce"),
        (["--level", "3"], "--level is '3'; it must be one of 1, 2"),
        (["--micro-batch-size", "x"], "--micro-batch-size is 'x'; it must be a whole number or null"),
        (["--stepps", "4"], "unknown: --stepps 4; did you mean --steps?"),
        (["--stepps=4"], "unknown: --stepps=4; did you mean --steps?"),
        (["--step", "4"], "unknown: --step 4; did you mean --steps?"),  # no flag is abbreviated
        (["--nothing-like-it"], "unknown: --nothing-like-it"),
        (["stray"], "unknown: stray"),
        (["--overwrite", "maybe"], "unknown: maybe"),
        (["--overwrite=maybe"], "--overwrite"),
        (["--steps", "0"], "steps is 0; it must be at least 1"),
    ],
)
def test_what_cannot_be_parsed_is_one_line_that_names_the_flag(arguments: list[str], message: str) -> None:
    assert message in refusal(*arguments)


def test_what_is_required_and_missing_is_named() -> None:
    assert refusal("a", config_type=Demanding) == "missing: --output; see --help"


def test_numbers_may_be_negative_and_what_is_optional_none() -> None:
    words = ["--limits", "-.5", "-1e-3", "--rate", "None", "--output", "None"]
    assert flags.parse(Config, words) == Config(limits=(-0.5, -1e-3))
    assert flags.parse(Config, ["--rate", "2", "--rate", "-1e-3"]) == Config(rate=-1e-3), "the last one counts"


@pytest.mark.parametrize("words", ["a b --output x", "--output x a b", "a --output x b"])
def test_what_has_no_flag_may_stand_anywhere(words: str) -> None:
    assert flags.parse(Demanding, words.split()) == Demanding(results=("a", "b"), output=Path("x"))


def test_a_long_value_is_repeated_whole_in_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    path = "/a/long/path" * 20
    assert refusal(path) == f"unknown: {path}"


def test_help_shows_every_field_and_how_to_use_a_file(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    for flag in ("--help", "-h"):
        with pytest.raises(SystemExit) as stopped:
            flags.parse(Config, [flag])
        assert stopped.value.code == 0
        shown = capsys.readouterr().out
        for words in (
            "Do the thing.",
            "--config FILE.yaml",
            "--no-overwrite",
            "--micro-batch-size",
            "How many steps.",
            "(default: 3)",
            "{kl,ce}",
        ):
            assert words in shown
    monkeypatch.setenv("COLUMNS", "60")
    with pytest.raises(SystemExit):
        flags.parse(Config, ["--help"])
    assert capsys.readouterr().out.count("\n") > shown.count("\n"), "help is fitted to the terminal"


def test_help_has_what_other_classes_bring_under_their_first_lines(capsys: pytest.CaptureFixture[str]) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Both(Talkative, Config):
        """Do both things."""

        share: str = "90 %"
        """How much, in %."""

    with pytest.raises(SystemExit):
        flags.parse(Both, ["--help"])
    options, do_the_thing, can_say_more = re.split(r"\n\n(?=Do the thing:|Can say more:)", capsys.readouterr().out)
    assert "Do both things." in options
    assert "How much, in %. (default: 90 %)" in options
    assert "--steps" in do_the_thing
    assert "--verbose" in can_say_more
    assert "--steps" not in options + can_say_more


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [lambda name: ["--config", name], lambda name: [f"--config={name}"]])
def test_a_file_sets_fields_and_the_command_line_wins(
    yaml: Callable[[str], str], form: Callable[[str], list[str]]
) -> None:
    words = form(yaml("steps: 7\nname: from the file\nmicro-batch-size: 4\noverwrite: true\nlabels: [a, b]\n"))
    from_file = Config(steps=7, name="from the file", micro_batch_size=4, overwrite=True, labels=("a", "b"))
    assert flags.parse(Config, words) == from_file
    expected = Config(steps=9, name="from the file", micro_batch_size=4, overwrite=False, labels=("c",))
    more = ["--steps", "9", "--no-overwrite", "--labels", "c"]
    assert flags.parse(Config, [*words, *more]) == flags.parse(Config, [*more, *words]) == expected


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("output: some/folder", "output", Path("some/folder")),
        ("output: null", "output", None),
        ("output:", "output", None),
        ("rate: 2", "rate", 2.0),
        ("rate: 1e-3", "rate", 1e-3),  # YAML 1.1 calls this text
        ("rate: 1.5", "rate", 1.5),
        ("steps: 10_000", "steps", 10_000),
        ("loss: ce", "loss", "ce"),
        ("name: '123'", "name", "123"),
        ("limits: [0, 1e-1]", "limits", (0.0, 0.1)),
        ("labels: []", "labels", ()),
        ("overwrite: yes", "overwrite", True),
        ("", "steps", 3),
        ("# nothing\n", "steps", 3),
    ],
)
def test_a_file_gives_each_field_its_own_type(yaml: Callable[[str], str], text: str, field: str, value: object) -> None:
    got = getattr(flags.parse(Config, ["--config", yaml(text)]), field)
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: seven", "steps is 'seven'; it must be a whole number"),
        ("steps: 2.5", "steps is 2.5; it must be a whole number"),
        ("steps: '7'", "steps is '7'; it must be a whole number"),
        ("steps: true", "steps is True; it must be a whole number"),
        ("steps: null", "steps is None; it must be a whole number"),
        ("steps: [1, 2]", "steps is [1, 2]; it must be a whole number"),
        ("steps: {a: 1}", "steps is {'a': 1}; it must be a whole number"),
        ("rate: fast", "rate is 'fast'; it must be a number or null"),
        ("rate: false", "rate is False; it must be a number or null"),
        ("loss: mse", "loss is 'mse'; it must be one of kl, ce"),
        ("loss: 1", "loss is 1; it must be one of kl, ce"),
        ("level: 3", "level is 3; it must be one of 1, 2"),
        ("level: true", "level is True; it must be one of 1, 2"),
        ("name: 123", "name is 123; it must be text, in quotes"),
        ("name: 2024-01-01", "it must be text, in quotes"),
        ("name: no", "name is False; it must be text, in quotes"),
        ("output: 3", "output is 3; it must be a path or null"),
        ("overwrite: 1", "overwrite is 1; it must be true or false"),
        ("overwrite: 'false'", "overwrite is 'false'; it must be true or false"),
        ("labels: a", "labels is 'a'; it must be a list, each text, in quotes"),
        ("labels: [1]", "labels is [1]; it must be a list, each text, in quotes"),
        ("limits: [1]", "limits is [1]; it must be a list, each a number"),
        ("micro-batch-size: x", "micro_batch_size is 'x'; it must be a whole number or null"),
        ("stepps: 7\nlosss: ce", "has unknown settings: losss, stepps"),
        ("1: 2", "has unknown settings: 1"),
        ("config: other.yaml", "has unknown settings: config"),
        ("a: b: c", "is not YAML: mapping values are not allowed here"),
        ("steps: [1", "is not YAML"),
        ("steps: !!python/object/apply:os.getpid []", "is not YAML"),
        ("\x00", "is not YAML"),
        ("[" * 2000, "is not YAML"),
        ("- steps", "must hold `name: value` lines"),
        ("[]", "must hold `name: value` lines"),
        ("false", "must hold `name: value` lines"),
        ("0", "must hold `name: value` lines"),
        ("just text", "must hold `name: value` lines"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_by_name(yaml: Callable[[str], str], text: str, message: str) -> None:
    name = yaml(text)
    refused = refusal("--config", name)
    assert refused.startswith(name)
    assert message in refused


def test_a_setting_that_its_class_refuses_is_refused_from_a_file_too(yaml: Callable[[str], str]) -> None:
    assert refusal("--config", yaml("steps: 0")) == "steps is 0; it must be at least 1"
    assert flags.parse(Config, ["--config", yaml("steps: 0"), "--steps", "1"]) == Config(steps=1), (
        "what counts is the outcome"
    )


def test_a_file_may_leave_out_what_the_command_line_says(yaml: Callable[[str], str]) -> None:
    assert flags.parse(Demanding, ["--config", yaml("output: x"), "a", "b"]) == Demanding(
        results=("a", "b"), output=Path("x")
    )
    assert flags.parse(Demanding, ["--config", yaml("output: x\nresults: [c]")]) == Demanding(
        results=("c",), output=Path("x")
    )
    assert refusal("--config", yaml("output: x"), config_type=Demanding) == "there is no result"
    assert refusal("--config", yaml("results: [c]"), config_type=Demanding).startswith("missing: --output;")


@pytest.mark.parametrize("words", [["--config"], ["--config", "--steps", "4"], ["--steps", "4", "--config"]])
def test_config_without_a_name_is_refused(words: list[str]) -> None:
    assert "--config: expected one argument" in refusal(*words)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    assert refusal("--config", str(tmp_path / "no.yaml")) == f"no such configuration file: {tmp_path / 'no.yaml'}"
    assert "cannot be read" in refusal("--config=")
    assert refusal("--config", str(tmp_path)) == f"the configuration file {tmp_path} cannot be read: Is a directory"
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9")
    assert refusal("--config", str(tmp_path / "latin.yaml")).startswith(f"{tmp_path / 'latin.yaml'} is not YAML")


@pytest.mark.parametrize(
    "config",
    [
        Config(),
        Config(
            rate=1e-5, loss="ce", output=Path("a folder/b"), micro_batch_size=1, labels=("x", "on"), limits=(0.0, 1e30)
        ),
        Config(name="café: 10 # not a comment", labels=("1e3", "null", "")),
    ],
)
def test_a_saved_configuration_is_read_back(tmp_path: Path, config: Config) -> None:
    cli.save_config(config, tmp_path / "new" / "run.yaml")
    begun_anew = replace(config, overwrite=False)  # how a run was begun is not for the next one to repeat
    assert flags.parse(Config, ["--config", str(tmp_path / "new" / "run.yaml")]) == begun_anew


def test_a_saved_configuration_does_not_repeat_how_its_run_was_begun(tmp_path: Path) -> None:
    cli.save_config(Config(steps=8, overwrite=True), tmp_path / "run.yaml")
    assert (tmp_path / "run.yaml").read_text().startswith(cli.MARK)
    assert flags.parse(Config, ["--config", str(tmp_path / "run.yaml")]) == Config(steps=8)


def test_plain_values_are_ready_for_json() -> None:
    assert cli.plain(Config(output=Path("a/b")))["output"] == "a/b"
    assert cli.plain(Config())["output"] is None
    assert list(cli.plain(Config())) == list(Config.__dataclass_fields__)


# --- running ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def outcome(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[Any, str, str]]:
    """Runs a main with command-line words; gives exit code, stdout and stderr."""

    def run(main: Callable[[Config], None], *words: str) -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "argv", ["script.py", *words])
        with pytest.raises(SystemExit) as stopped:
            cli.run(main, Config)
        shown = capsys.readouterr()
        return stopped.value.code, shown.out, shown.err

    return run


def raising(error: BaseException) -> Callable[[Config], None]:
    def main(config: Config) -> None:
        raise error

    return main


def test_a_run_that_ends_well_exits_with_0(outcome: Callable[..., tuple[Any, str, str]]) -> None:
    assert outcome(lambda config: sys.stdout.write(f"{config.steps} steps"), "--steps", "8") == (0, "8 steps", "")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ModelError("no such model; name another"), "no such model; name another"),
        (ConfigError("two\n  lines"), "two lines"),
        (OSError(errno.ENOSPC, "No space left on device", "/out/params.pt"), "No space left on device: /out/params.pt"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", Path("/out")), "Permission denied: /out"),
        (OSError("the disk is gone"), "the disk is gone"),
        (OSError(), "OSError"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB.\nMore."),
            "out of memory (CUDA out of memory); lower --micro-batch-size",
        ),
    ],
)
def test_what_cannot_be_handled_is_one_line_and_exit_code_2(
    outcome: Callable[..., tuple[Any, str, str]], error: BaseException, message: str
) -> None:
    assert outcome(raising(error)) == (2, "", f"error: {message}\n")


def test_a_bad_command_line_is_one_line_and_exit_code_2(outcome: Callable[..., tuple[Any, str, str]]) -> None:
    code, out, err = outcome(raising(AssertionError("main must not be called")), "--steps", "many")
    assert (code, out) == (2, "")
    assert err.startswith("error: --steps is 'many'")
    assert err.count("\n") == 1


def test_an_interruption_exits_with_130(outcome: Callable[..., tuple[Any, str, str]]) -> None:
    code, out, err = outcome(raising(KeyboardInterrupt()))
    assert (code, out) == (130, "")
    assert err.startswith("interrupted")
    assert err.count("\n") == 1


# --- what nobody foresaw ----------------------------------------------------------------------------------------------

LAST_LINE = re.compile(
    r"error: (\w+) while (.+): torch (\S+), transformers (\S+), numba (\S+), lens-rnn (\S+); "
    r"(.+?)(; --verbose shows more)?"
)


@dataclass(frozen=True)
class Talkative:
    """Can say more."""

    verbose: bool = False
    """Say more."""


@pytest.mark.parametrize("error", [ZeroDivisionError("none"), KeyError("cache"), MemoryError(), RecursionError("deep")])
def test_what_nobody_foresaw_is_a_traceback_and_a_last_line_and_exit_code_1(
    outcome: Callable[..., tuple[Any, str, str]], error: Exception
) -> None:
    def main(config: Config) -> None:
        doing("fitting, step 31 of 64")
        raise error

    code, out, err = outcome(main)
    assert (code, out) == (1, "")
    assert err.startswith("Traceback (most recent call last):\n")
    *_, told, last = err.splitlines()
    assert told == traceback.format_exception_only(error)[-1].strip()
    kind, activity, *packages, _, more = LAST_LINE.fullmatch(last).groups()
    assert (kind, activity, more) == (type(error).__name__, "fitting, step 31 of 64", None), "Config has no --verbose"
    assert packages == [importlib.metadata.version(name) for name in ("torch", "transformers", "numba", "lens-rnn")]


def test_the_last_line_says_whether_the_packages_are_those_that_were_tested(
    outcome: Callable[..., tuple[Any, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "TESTED", {"torch": ("1.0", "99")})
    assert "; all within what was tested" in outcome(raising(TypeError()))[2].splitlines()[-1]
    monkeypatch.setattr(versions, "TESTED", {"torch": ("1.0", "99"), "numba": ("0.1", "0.2"), "pytest": ("98", "99")})
    newer, older = "numba is newer than what was tested (0.1 to 0.2)", "pytest is older than what was tested (98 to 99)"
    assert outcome(raising(TypeError()))[2].splitlines()[-1].endswith(f"; {newer}; {older}")


@pytest.mark.parametrize(("words", "more"), [([], "; --verbose shows more"), (["--verbose"], None)])
def test_verbose_is_recommended_where_it_shows_more(
    words: list[str],
    more: str | None,
    quiet_again: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def main(config: Talkative) -> None:
        cli.log_to_terminal(config.verbose)
        raise TypeError

    monkeypatch.setattr(sys, "argv", ["script.py", *words])
    with pytest.raises(SystemExit) as stopped:
        cli.run(main, Talkative)
    assert stopped.value.code == 1
    assert LAST_LINE.fullmatch(capsys.readouterr().err.splitlines()[-1]).groups()[-1] == more


def test_an_error_before_the_work_says_so(
    outcome: Callable[..., tuple[Any, str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert " while starting: " in outcome(raising(TypeError()))[2]
    monkeypatch.setattr(cli, "parse", lambda *_: raising(TypeError())(Config()))
    assert " while reading the command line: " in outcome(raising(AssertionError("main must not be called")))[2]


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_script_exits_with_1_on_what_nobody_foresaw(processes: str) -> None:
    """As one of several processes, too, which leaves without the interpreter's teardown."""
    script = (
        "from tests.test_cli import Config; from lens_rnn import cli\ndef main(_): print('said'); {}['cache_params']"
    )
    done = run_by_itself(script, WORLD_SIZE=processes)
    assert (done.returncode, done.stdout) == (1, "said\n")
    *_, told, last = done.stderr.splitlines()
    assert told == "KeyError: 'cache_params'"
    assert LAST_LINE.fullmatch(last)


def test_a_script_says_what_it_was_doing(
    tmp_path: Path, quiet_again: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def predict(*_: object, **settings: object) -> None:
        raise KeyError("cache_params")

    def last_line() -> str:
        assert run_in_process("eval/trajectory.py", monkeypatch, "--output", tmp_path / "new") == 1
        return capsys.readouterr().err.splitlines()[-1]

    monkeypatch.setattr("lens_rnn.evaluation.trajectory.predict", predict)
    assert last_line().startswith("error: KeyError while reading the text: ")
    monkeypatch.setattr("lens_rnn.run.load_model", predict)
    assert last_line().startswith("error: KeyError while loading the model: ")
    assert not (tmp_path / "new").exists()


def test_a_script_that_ends_with_an_exit_code_keeps_it(outcome: Callable[..., tuple[Any, str, str]]) -> None:
    assert outcome(raising(SystemExit(7))) == (7, "", "")


# --- threads and messages ---------------------------------------------------------------------------------------------


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Pretends that this machine has so many cores; numbers of threads are as before afterwards."""
    before = torch.get_num_threads(), numba.get_num_threads()

    def pretend(number: int) -> None:
        monkeypatch.setattr(cli.os, "sched_getaffinity", lambda _: set(range(number)))

    yield pretend
    torch.set_num_threads(before[0])
    numba.set_num_threads(before[1])


@pytest.mark.parametrize(
    ("number", "processes", "asked", "expected"),
    [(2, 1, None, 2), (2, 2, None, 1), (7, 2, None, 3), (2, 4, None, 1), (1, 1, None, 1), (2, 1, 1, 1), (2, 2, 3, 3)],
)
def test_threads_are_the_cores_divided_by_the_processes_unless_asked_for(
    cores: Callable[[int], None], number: int, processes: int, asked: int | None, expected: int
) -> None:
    cores(number)
    torch.set_num_threads(6)
    assert cli.set_threads(asked, processes) == expected
    assert torch.get_num_threads() == expected
    assert numba.get_num_threads() == min(expected, numba.config.NUMBA_NUM_THREADS)


def test_a_launcher_that_asks_for_one_thread_is_not_listened_to(
    cores: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    cores(2)
    assert cli.set_threads(None) == 2


@pytest.fixture
def quiet_again() -> Iterator[None]:
    """The library's and transformers' loudness are as before afterwards."""
    from transformers.utils import logging as chatter

    library = logging.getLogger("lens_rnn")
    before = library.level, chatter.get_verbosity()
    chatter.set_verbosity_warning()
    yield
    library.setLevel(before[0])
    chatter.set_verbosity(before[1])
    chatter.enable_progress_bar()


@pytest.mark.parametrize(("verbose", "level"), [(False, logging.INFO), (True, logging.DEBUG)])
def test_messages_of_the_library_are_shown(verbose: bool, level: int, quiet_again: None) -> None:
    from transformers.utils import logging as chatter

    cli.log_to_terminal(verbose)
    assert logging.getLogger("lens_rnn").level == level
    assert chatter.get_verbosity() == (logging.INFO if verbose else logging.ERROR)


def test_verbose_shows_versions_and_activities_and_other_libraries_but_not_their_debugging() -> None:
    script = (
        "import logging; from tests.test_cli import Config, doing; from lens_rnn import cli\n"
        "def main(_):\n    cli.log_to_terminal(verbose=True)\n    doing('reading the text')\n"
        "    for say in (logging.getLogger('numba').debug, logging.getLogger('numba').info): say('a thought')"
    )
    done = run_by_itself(script)
    assert done.returncode == 0, done.stderr
    told = [line.split(" ", 2)[2] for line in done.stderr.splitlines()]  # what follows date and time
    assert told[0] == f"lens_rnn: {versions.describe('lens-rnn', *versions.TESTED)}"
    assert told[1:] == ["lens_rnn.activity: reading the text", "numba: a thought"]


def run_by_itself(script: str, **variables: str) -> subprocess.CompletedProcess:
    """Run lines that define a main(config) as a script in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), **variables}
    words = [sys.executable, "-c", f"{script}\ncli.run(main, Config)"]
    return subprocess.run(words, capture_output=True, text=True, env=environment)


def test_one_of_several_processes_exits_with_its_code_and_its_words() -> None:
    """It leaves without the interpreter's teardown, which must lose neither."""
    script = (
        "from tests.test_cli import Config; from lens_rnn import cli, errors\ndef main(_): print('said'); raise "
        "errors.DataError('no text')"
    )
    done = run_by_itself(script, WORLD_SIZE="2")
    assert (done.returncode, done.stdout, done.stderr.splitlines()[-1]) == (2, "said\n", "error: no text")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--name", " -1"), {"name": " -1"}),  # a leading space makes another token
        (("--name", "-1"), {"name": "-1"}),
        (("--name=-x",), {"name": "-x"}),
        (("--rate", "-.5"), {"rate": -0.5}),
    ],
)
def test_values_are_taken_as_they_are(words: tuple[str, ...], expected: dict) -> None:
    parsed = flags.parse(Config, list(words))
    assert {name: getattr(parsed, name) for name in expected} == expected


def test_underscores_in_flags_and_words_after_two_dashes() -> None:
    assert flags.parse(Demanding, ["--output", "x", "--", "-a", "--b"]).results == ("-a", "--b")
    with pytest.raises(ConfigError, match="whole number"):
        flags.parse(Config, ["--steps", "1" + "0" * 5000])
