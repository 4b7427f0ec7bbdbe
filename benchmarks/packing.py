"""How fast text becomes packed blocks on disk, beside the tokenizers library alone on the same texts, and whether
memory stays flat meanwhile.

    python benchmarks/packing.py
    python benchmarks/packing.py --tokenizer FILE.json --tokens 100000000

The text is made on the way, from a seed: runs of lines of the Python standard library, about a thousand characters a
document. What making it takes is in every row, and timed by itself too.
"""

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

from lens_rnn import cli
from lens_rnn.data import DataConfig, Document, Role, Source, StdlibSource, TokenBlocks, load_blocks
from lens_rnn.ranges import whole

import numpy as np
from transformers import PreTrainedTokenizerFast

from common import report, timed

BATCH = 500  # documents given to the tokenizers library together
MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Config:
    """Tokens a second, and memory, of packing."""

    tokenizer: Path = Path("checkpoints/tiny-mamba/tokenizer.json")
    """A tokenizer.json."""
    end_of_text: str = "<|endoftext|>"
    """Its token between documents."""
    tokens: Annotated[int, whole(1000)] = 20_000_000
    every: Annotated[int, whole(1)] = 2_000_000
    """Tokens between two readings of the memory."""
    lines: Annotated[int, whole(1)] = 28
    """In a document."""
    output: Path | None = None
    """JSON file for the same figures."""


class MadeText(Source):
    """Text without end, made from a seed."""

    name = "made text"

    def __init__(self, lines: int):
        self.lines = lines
        self.stdlib = StdlibSource()
        self.text = "\n".join(document.text for document in self.stdlib.documents("fit")).splitlines(keepends=True)

    def identity(self, _: Role | None) -> dict[str, Any]:
        return {"lines": self.lines, "of": self.stdlib.identity("fit")}

    def documents(self, _: Role | None) -> Iterator[Document]:
        random = np.random.default_rng(0)
        while True:
            for start in random.integers(len(self.text) - self.lines, size=1000).tolist():
                text = "".join(self.text[start : start + self.lines])
                yield Document(text, text)


def resident() -> list[int]:
    """Bytes of this process's memory: all of it, and without pages of files, which the system takes back at will."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    sizes = {line[0]: int(line[1]) * 1024 for line in lines if line[-1] == "kB"}
    return [sizes["VmRSS:"], sizes["RssAnon:"]]


def watch(folder: Path, every: int, ended: threading.Event, readings: list[list[int]]) -> None:
    """Memory each time that `every` more tokens are on disk."""
    while not ended.wait(0.05):
        written = sum(path.stat().st_size for path in folder.glob("*/token_bytes.bin")) // 4  # of uint32
        if written >= every * (len(readings) + 1):
            readings.append([written, *resident()])


def main(config: Config) -> None:
    cli.log_to_terminal(verbose=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(config.tokenizer), eos_token=config.end_of_text)
    source = MadeText(config.lines)
    texts = [document.text for document in islice(source.documents("fit"), BATCH)]
    encodings = tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    documents = round(config.tokens * BATCH / sum(len(encoding) + 1 for encoding in encodings))
    seq_len = 100
    data = DataConfig(data="made", tokens=config.tokens, seq_len=seq_len)
    readings: list[list[int]] = []
    made: list[TokenBlocks] = []

    def library() -> None:
        stream = (document.text for document in islice(source.documents("fit"), documents))
        while batch := list(islice(stream, BATCH)):
            tokenizer.backend_tokenizer.encode_batch_fast(batch, add_special_tokens=False)

    def pack() -> None:
        made.append(load_blocks(data, "fit", tokenizer, source))

    def count() -> None:
        (blocks,) = made
        assert blocks.counts(len(tokenizer)).sum() == blocks.tokens.size
        assert blocks.n_bytes > 0

    with TemporaryDirectory() as cache:
        os.environ["LENS_RNN_CACHE"] = cache
        ended = threading.Event()
        watcher = threading.Thread(target=watch, args=(Path(cache), config.every, ended, readings))
        watcher.start()
        times = {
            "making the text": timed(lambda: sum(1 for _ in islice(source.documents("fit"), documents))),
            "the tokenizers library alone": timed(library),
            "packed, hashed, on disk": timed(pack),
        }
        ended.set()
        watcher.join()
        times["found in the cache, hashed"] = timed(lambda: load_blocks(data, "fit", tokenizer, source))
        times["tokens and bytes counted"] = timed(count)

    rows = [
        [
            name,
            f"{seconds['seconds']:.1f}",
            f"{seconds['cpu_seconds']:.1f}",
            f"{config.tokens / seconds['seconds'] / 1e6:.2f} M",
            f"{config.tokens / seconds['cpu_seconds'] / 1e6:.2f} M",
        ]
        for name, seconds in times.items()
    ]
    memory = [f"{tokens:,}: {total / MIB:.0f} ({own / MIB:.0f})" for tokens, total, own in readings]
    notes = [
        f"{config.tokens:,} tokens of {config.tokenizer}, from about {documents:,} documents of {config.lines} lines.",
        "Resident MiB (without pages of files) at so many tokens: " + "; ".join(memory),
    ]
    header = ["", "seconds", "processor seconds", "tokens a second", "tokens a processor second"]
    report("Packing", header, rows, notes, config.output, times=times, memory=readings)


if __name__ == "__main__":
    cli.run(main, Config)
