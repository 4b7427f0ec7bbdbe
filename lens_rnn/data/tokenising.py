"""Documents to arrays of ids and bytes, on all cores, in order, with a bounded number of documents in memory."""

import multiprocessing
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from itertools import chain
from typing import NamedTuple

from lens_rnn.data.byte_counts import ByteCounter

import numpy as np
from transformers import PreTrainedTokenizerBase

GROUP = 500_000
"""Characters tokenised together: enough to keep the cores busy, and few enough that memory stays small."""
_MOST_WORKERS = 8  # groups at a time; a fast tokenizer spreads the documents of each over all cores besides


class Packed(NamedTuple):
    """Some documents, one after the other, each followed by the end of text."""

    ids: np.ndarray
    """(tokens,), the dtype asked for."""
    token_bytes: np.ndarray
    """(tokens,), uint32: UTF-8 bytes of the text of each; 0 for the end of text."""
    ends: np.ndarray
    """(documents,), int64: tokens up to the end of each document, its end of text included."""


class _Encoder:
    """What a worker does with a group of texts."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, end: int, dtype: np.dtype):
        self.tokenizer, self.end, self.dtype = tokenizer, end, dtype
        self.counter = ByteCounter(tokenizer)
        self.needs_offsets = False
        if tokenizer.is_fast:  # a call leaves the backend without padding and truncation, as the next ones need it
            tokenizer("", add_special_tokens=False)

    def __call__(self, texts: Sequence[str]) -> Packed:
        ids, counts = self._fast(texts) if self.tokenizer.is_fast else self._slow(texts)
        lengths = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
        ends = np.cumsum(lengths + 1)
        is_text = np.ones(ends[-1], dtype=bool)
        is_text[ends - 1] = False
        tokens = np.full(ends[-1], self.end, dtype=self.dtype)
        tokens[is_text] = np.fromiter(chain.from_iterable(ids), dtype=self.dtype, count=int(lengths.sum()))
        token_bytes = np.zeros(ends[-1], dtype=np.uint32)
        token_bytes[is_text] = np.concatenate(counts)
        return Packed(tokens, token_bytes, ends)

    def _fast(self, texts: Sequence[str]) -> tuple[list[list[int]], list[np.ndarray]]:
        """Ids and bytes of each text. The backend's own call: transformers' would compute offsets, always."""
        backend = self.tokenizer.backend_tokenizer
        has_offsets = self.needs_offsets  # read once: another thread may set it
        if has_offsets:
            encodings = backend.encode_batch(texts, add_special_tokens=False)
        else:
            encodings = backend.encode_batch_fast(texts, add_special_tokens=False)
        ids = [encoding.ids for encoding in encodings]
        counts = list(map(self.counter.spelled, texts, ids))
        if others := [i for i, sizes in enumerate(counts) if sizes is None]:
            if has_offsets:
                offsets = [encodings[i].offsets for i in others]
            else:
                again = backend.encode_batch([texts[i] for i in others], add_special_tokens=False)
                offsets = [encoding.offsets for encoding in again]
                self.needs_offsets = 2 * len(others) > len(texts)  # then the next group will need them too
            for i, pairs in zip(others, offsets, strict=True):
                counts[i] = self.counter.of_offsets(texts[i], [stop for _, stop in pairs])
        return ids, [sizes for sizes in counts if sizes is not None]

    def _slow(self, texts: Sequence[str]) -> tuple[list[list[int]], list[np.ndarray]]:
        ids = self.tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
        counts = []
        for text, of_text in zip(texts, ids["input_ids"], strict=True):
            sizes = self.counter.spelled(text, of_text)
            counts.append(self.counter.in_proportion(text, of_text) if sizes is None else sizes)
        return ids["input_ids"], counts


def tokenise(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, end: int, dtype: np.dtype, group: int = GROUP
) -> Generator[Packed, None, None]:
    """All texts, in order, about `group` characters of them at a time. A few groups are tokenised at once; the texts
    are read no further than those.

    end: the id of the end of text. dtype: of the ids.
    """
    workers = min(os.cpu_count() or 1, _MOST_WORKERS)
    encoder = _Encoder(tokenizer, end, dtype)
    if tokenizer.is_fast:  # it computes outside Python's lock
        yield from _in_order(ThreadPoolExecutor(workers, "tokenise"), encoder, _groups(texts, group), workers + 1)
        return
    # A forked process has the tokenizer as it is; where forking is not safe, it must be one that can be pickled.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    pool = ProcessPoolExecutor(workers, context, _start_worker, (encoder, os.getpid()))
    yield from _in_order(pool, _work, _groups(texts, group), workers + 1)


def _in_order(
    executor: Executor, work: Callable[[list[str]], Packed], groups: Iterator[list[str]], most: int
) -> Iterator[Packed]:
    """What `work` makes of each group, in their order, with at most `most` of them waiting."""
    waiting: deque[Future[Packed]] = deque()
    try:
        for texts in groups:
            waiting.append(executor.submit(work, texts))
            if len(waiting) == most:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        executor.shutdown(cancel_futures=True)


def _groups(texts: Iterable[str], most: int) -> Iterator[list[str]]:
    group: list[str] = []
    size = 0
    for text in texts:
        # JSON can hold half a surrogate pair, which is no character
        group.append(text if text.isascii() else text.encode("utf-8", "replace").decode())
        size += len(text)
        if size >= most:
            yield group
            group, size = [], 0
    if group:
        yield group


# --- processes of a tokenizer in Python -------------------------------------------------------------------------------

_worker: list[_Encoder] = []  # of this process


def _start_worker(encoder: _Encoder, parent: int) -> None:
    _worker[:] = [encoder]
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """A worker waits for work for ever, also from a process that was killed."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _work(texts: list[str]) -> Packed:
    return _worker[0](texts)
