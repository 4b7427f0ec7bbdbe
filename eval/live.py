"""Watch what each layer believes while the model writes, in the terminal.

    python eval/live.py
    python eval/live.py --text "class Queue:" --tokens 500 --temperature 0.7 --colour kl
    python eval/live.py --model checkpoints/tiny-rwkv4 --seed 3

A column is a token and what each layer says comes after it; the brighter, the surer. Ctrl-C stops it.
"""

import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

from lens_rnn import cli
from lens_rnn.errors import ConfigError
from lens_rnn.evaluation.live import Beliefs, Writing, layers_read, write_live
from lens_rnn.evaluation.tokens import token_reader, visible
from lens_rnn.lens import open_lens
from lens_rnn.ranges import whole
from lens_rnn.run import ModelConfig, check_text, inputs_read, load_configured_model, start_processes

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

_SCALE = {"entropy": 6.0, "kl": 3.0}  # nats, from which on a cell is dark
_CELL = 9  # characters


@dataclass(frozen=True, kw_only=True)
class Config(Writing, ModelConfig):
    """Watch what each layer believes while the model writes."""

    text: str = "import os\n\n\ndef "
    """What the model goes on from."""
    lens: str | None = None
    """Folder, file or Hub name of a lens of any kind, or "logit". Default: the one in lenses/ that was fitted last for
    the model, or the folder named like the model plus -lens, or else the logit lens."""
    colour: Literal["entropy", "kl"] = "entropy"
    """What the colour of a cell shows: how open the prediction is, or how far it is from the model's."""
    columns: Annotated[int | None, whole(1)] = None
    """Tokens shown at once. Default: what fits the terminal."""
    plain: bool = False
    """Print the text alone, as it comes, and nothing that moves: what is done where the output is no terminal."""
    verbose: bool = False
    """Show also the versions, what is being done, and what the libraries underneath say."""

    def __post_init__(self) -> None:
        Writing.__post_init__(self)
        check_text(self.text)
        if self.colour not in _SCALE:
            raise ConfigError(f"there is no colour {self.colour!r}; choose from {', '.join(_SCALE)}")


class Screen:
    """The last tokens as a table of layers, with the text below it."""

    def __init__(self, names: list[str], read: Callable[[int], str], colour: str, columns: int):
        """names: of the rows, the model's last. read: a token's text."""
        self.names, self.read, self.colour = names, read, colour
        self.shown: deque[Beliefs] = deque(maxlen=columns)
        self.text: deque[tuple[str, bool]] = deque(maxlen=400)

    def add(self, beliefs: Beliefs) -> None:
        self.shown.append(beliefs)
        self.text.append((self.read(beliefs.token), beliefs.is_written))

    def __rich__(self) -> Group:
        table = Table(box=None, padding=(0, 0), pad_edge=False, show_edge=False)
        table.add_column("", justify="right", style="dim")
        for beliefs in self.shown:
            name = escape(visible(self.read(beliefs.token), _CELL - 1))
            table.add_column(name, width=_CELL, no_wrap=True, header_style="bold" if beliefs.is_written else "dim")
        for row in range(len(self.names) - 1, -1, -1):
            cells = (self._cell(beliefs, row) for beliefs in self.shown)
            table.add_row(f"{self.names[row]} ", *cells)
        written = Text.assemble(*((text, "" if is_written else "dim") for text, is_written in self.text))
        return Group(table, Text(), written)

    def _cell(self, beliefs: Beliefs, row: int) -> Text:
        value = float(getattr(beliefs, self.colour)[row])
        sure = 1 - min(1.0, value / _SCALE[self.colour])
        red, green, blue = (round(dark + sure * (light - dark)) for dark, light in ((20, 130), (30, 210), (60, 235)))
        ink = "black" if sure > 0.5 else "white"
        word = visible(self.read(int(beliefs.likeliest[row])), _CELL - 1)
        return Text(f"{word:<{_CELL}}", style=f"{ink} on rgb({red},{green},{blue})")


def main(config: Config) -> None:
    cli.log_to_terminal(config.verbose)
    processes = start_processes(config)
    name = config.lens or config.default_lens or "logit"
    shown_name = name if config.lens or name != "logit" else None
    print(inputs_read(config.model, shown_name, text=f"{config.text[:60]!r}"), flush=True)
    adapter = load_configured_model(config, processes)
    lens = open_lens(adapter, name)
    read = token_reader(adapter.tokenizer)
    stream = write_live(adapter, lens, config.text, config)
    console = Console()
    moves = console.is_terminal and not config.plain
    names = [f"layer {layer}" for layer in layers_read(adapter, lens)] + ["model"]
    columns = config.columns or max(1, (console.width - 10) // _CELL)
    screen = Screen(names, read, config.colour, columns)
    written, began = 0, time.perf_counter()
    try:
        with Live(screen, console=console, auto_refresh=False, transient=False) if moves else _Nothing() as live:
            drawn_at = 0.0
            for beliefs in stream:
                written += beliefs.is_written
                screen.add(beliefs)
                if not moves:
                    print(read(beliefs.token), end="", flush=True)
                elif time.perf_counter() - drawn_at > 0.1:
                    live.refresh()
                    drawn_at = time.perf_counter()
            if moves:
                live.refresh()
    except KeyboardInterrupt:
        pass
    seconds = time.perf_counter() - began
    print(f"\n{written} tokens in {seconds:.1f} s, {written / seconds:.0f} a second, all layers read", file=sys.stderr)
    processes.finish()


class _Nothing:
    """Stands for the live display where nothing moves."""

    def __enter__(self) -> "_Nothing":
        return self

    def __exit__(self, *_: object) -> None: ...

    def refresh(self) -> None: ...


if __name__ == "__main__":
    cli.run(main, Config)
