"""What every script shares: from the command line to `main`, errors that end in one line, threads, messages."""

import dataclasses
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_type_hints

from lens_rnn import versions
from lens_rnn.activity import doing, what_was_done
from lens_rnn.errors import LensRNNError
from lens_rnn.files import write_text
from lens_rnn.flags import parse

import torch
import yaml

Config = TypeVar("Config")
MARK = "# lens-rnn"
"""How a saved configuration begins, by which an output folder is known to be ours."""


def run(main: Callable[[Config], None], config_type: type[Config]) -> NoReturn:
    """Parse the command line into `config_type`, call main with it, and exit.

    Exit codes: 0 done; 1 an error that nobody foresaw, with its traceback and a last line about what was being done and
    with which versions; 2 the input cannot be handled, said in one line; 130 interrupted.
    """
    try:
        doing("reading the command line")
        config = parse(config_type, sys.argv[1:])
        doing("starting")
        main(config)
    except LensRNNError as error:
        _fail(str(error))
    except OSError as error:  # full disk, no permission: the message names the file
        _fail(
            f"{error.strerror or str(error) or type(error).__name__}{f': {error.filename}' if error.filename else ''}"
        )
    except torch.OutOfMemoryError as error:
        _fail(f"out of memory ({str(error).partition('. ')[0]}); lower --micro-batch-size")
    except KeyboardInterrupt:
        print("interrupted; what was checkpointed can be continued with --resume", file=sys.stderr)
        _leave(130)
    except Exception as error:  # none of the above: a mistake of ours, or a package that is not as it was
        sys.excepthook(type(error), error, error.__traceback__)
        print(_unforeseen(error, config_type), file=sys.stderr)
        _leave(1)
    _leave(0)


def save_config(config: Any, path: Path) -> None:
    """Write a configuration as YAML that `--config` reads, without how the run was begun: that is not for the next one
    to repeat."""
    begun = ("resume", "overwrite", "dry_run", "push_to_hub")
    settings = {name: value for name, value in plain(config).items() if name not in begun}
    text = f"{MARK}: settings of a run, which --config reads\n{yaml.safe_dump(settings, sort_keys=False)}"
    write_text(path, text)


def plain(config: Any) -> dict[str, Any]:
    """A configuration as JSON-ready values."""
    return {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(config).items()}


def set_threads(threads: int | None, local_processes: int = 1) -> int:
    """Use this many threads in torch and numba; by default the available cores divided by the processes on this
    machine.

    Launchers set OMP_NUM_THREADS=1 when they are not told otherwise, so the default must not be left to them.
    """
    import numba

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = threads or max(1, cores // local_processes)
    numba.set_num_threads(min(threads, vars(numba.config)["NUMBA_NUM_THREADS"]))
    # after numba, which starts all of its threads, and may share the OpenMP that counts them with torch
    torch.set_num_threads(threads)
    return threads


def log_to_terminal(verbose: bool) -> None:
    """Show the library's messages, without the chatter of what it stands on.

    verbose: show also the versions of what is installed, each activity as it begins, and what the libraries underneath
    say, with times. Their messages of level DEBUG stay hidden: numba's alone are tens of thousands of lines.
    """
    from transformers.utils import logging as chatter

    shape, level = ("%(asctime)s %(name)s: %(message)s", logging.INFO) if verbose else ("%(message)s", logging.WARNING)
    logging.basicConfig(format=shape, level=level, stream=sys.stderr)
    library = logging.getLogger("lens_rnn")
    library.setLevel(logging.DEBUG if verbose else logging.INFO)
    if verbose:
        library.debug("%s", versions.describe("lens-rnn", *versions.TESTED))
        chatter.set_verbosity_info()
    else:
        chatter.set_verbosity_error()
        chatter.disable_progress_bar()


def _fail(message: str) -> NoReturn:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    _leave(2)


def _unforeseen(error: Exception, config_type: type) -> str:
    """What an error's traceback leaves out: what was being done, and whether with the packages that were tested."""
    names = ("torch", "transformers", "numba", "lens-rnn")
    packages = ", ".join(f"{name} {versions.installed(name)}" for name in names)
    tested = "; ".join(versions.outside()) or "all within what was tested"
    verbose = logging.getLogger("lens_rnn").isEnabledFor(logging.DEBUG)
    more = "; --verbose shows more" if "verbose" in get_type_hints(config_type) and not verbose else ""
    return f"error: {type(error).__name__} while {what_was_done()}: {packages}; {tested}{more}"


def _leave(code: int) -> NoReturn:
    """Exit. As one of several processes, without the interpreter's teardown: it races with the communication library's
    threads, and about one run in fifty on gloo, all its work done, ended in "terminate called without an active
    exception".
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
