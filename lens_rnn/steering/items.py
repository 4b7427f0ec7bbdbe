"""Contrastive questions in words: read from files, their letters, and their options exchanged.

Format of contrastive activation addition (Rimsky et al. 2023, arXiv 2312.06681): a question with its choices, an answer
that matches the behaviour, "(A)" for instance, and one that does not.
"""

import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lens_rnn.errors import DataError

BEHAVIOURS = (
    "coordinate-other-ais",
    "corrigible-neutral-HHH",
    "hallucination",
    "myopic-reward",
    "refusal",
    "survival-instinct",
    "sycophancy",
)
"""The seven behaviours of contrastive activation addition."""

_FIELDS = (("question", "answer_matching_behavior", "answer_not_matching_behavior"), ("prompt", "correct", "incorrect"))
_LETTER = re.compile(r"\s*\(([A-Z])\)\s*")
_OPTION = re.compile(r"^ *\(([A-Z])\)", re.MULTILINE)

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Item:
    """A question and two answers to it, in words."""

    question: str
    matching: str
    """The answer that shows the behaviour: "(A)", or any text."""
    other: str
    """The answer that does not."""


def behaviour_file(source: str | Path, behaviour: str, part: str) -> Path:
    """A file of one behaviour: `part` "generate", "test" or "open_ended"; or of a capability sample, `part` "mmlu" or
    "truthful_qa".

    source: a folder with the folders generate and test, or the name of a data set on the Hub that has them.

    Raises DataError if it is not there.
    """
    name = {
        "generate": f"generate/{behaviour}.json",
        "test": f"test/{behaviour}.test_dataset_ab.json",
        "open_ended": f"test/{behaviour}.test_dataset_open_ended.json",
        "mmlu": "test/mmlu.mmlu.json",
        "truthful_qa": "test/truthfulqa.truthful_qa.json",
    }[part]
    folder = Path(source).expanduser()
    if folder.is_dir() or folder.is_absolute() or str(source).startswith((".", "~")):
        if not (folder / name).is_file():
            known = ", ".join(sorted(path.stem for path in (folder / "generate").glob("*.json"))) or "none"
            raise DataError(f"there is no {name} in {folder}; the behaviours there are: {known}")
        return folder / name
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(str(source), name, repo_type="dataset"))
    except Exception as error:  # offline, missing, private: each has its own exception types
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{source} is no folder here, and the Hub gives no {name} of that name ({reason})") from error


def read_items(path: Path) -> list[Item]:
    """The items of a JSON file: a list of objects with question, answer_matching_behavior and
    answer_not_matching_behavior, or with prompt, correct and incorrect.

    Raises DataError, naming the item, for a file that is no such list, an item without both answers or with the same
    one twice.
    """
    records = _records(path)
    fields = next((names for names in _FIELDS if names[0] in records[0]), None)
    if fields is None:
        raise DataError(
            f"{path}, item 1: no field {' or '.join(names[0] for names in _FIELDS)}; it is not a contrastive set"
        )
    items = []
    for number, record in enumerate(records, 1):
        values = [record.get(name) for name in fields]
        if absent := [name for name in fields if not isinstance(record.get(name), str) or not record[name].strip()]:
            raise DataError(
                f"{path}, item {number}: no text in the field {absent[0]!r}; a contrastive set has both answers for "
                "every item"
            )
        question, matching, other = map(str, values)
        if matching.strip() == other.strip():
            raise DataError(
                f"{path}, item {number}: both answers are {matching!r}; a contrastive set needs two different ones"
            )
        items.append(Item(question=question, matching=matching, other=other))
    return items


def read_prompts(path: Path) -> list[str]:
    """The questions of an open-ended test set. Raises DataError as `read_items` does."""
    prompts = [record.get("question") for record in _records(path)]
    if wrong := [number for number, prompt in enumerate(prompts, 1) if not isinstance(prompt, str)]:
        raise DataError(f"{path}, item {wrong[0]}: no text in the field 'question'")
    return list(map(str, prompts))


def _records(path: Path) -> list[dict[str, Any]]:
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error})") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON ({error})") from None
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise DataError(f"{path} does not hold a list of objects")
    if not records:
        raise DataError(f"{path} is empty; a contrastive set needs at least one item")
    return records


def letter(answer: str) -> str | None:
    """ "A" of "(A)"; None for an answer in words."""
    match = _LETTER.fullmatch(answer)
    return match[1] if match else None


def before_options(question: str) -> str:
    """A question's text up to its first option."""
    option = _OPTION.search(question)
    return question[: option.start()] if option else question


def swapped(item: Item) -> Item | None:
    """The item with the texts of its two options exchanged, so that each letter stands for the other answer. Further
    options stay.

    None where the options cannot be told apart: answers in words, or no line that starts with each letter.
    """
    letters = letter(item.matching), letter(item.other)
    starts = [(option[1], option.end()) for option in _OPTION.finditer(item.question)]
    names = [name for name, _ in starts]
    if None in letters or any(names.count(str(name)) != 1 for name in letters):
        return None
    ends = [*(option.start() for option in _OPTION.finditer(item.question)), len(item.question)][1:]
    spans = {name: (start, end) for (name, start), end in zip(starts, ends, strict=True)}
    (a, b), (c, d) = sorted(spans[str(name)] for name in letters)
    first, second = item.question[a:b], item.question[c:d]
    inner, tail = first[len(first.rstrip()) :], second[len(second.rstrip()) :]  # line ends stay where they are
    question = (
        item.question[:a] + second.rstrip() + inner + item.question[b:c] + first.rstrip() + tail + item.question[d:]
    )
    return Item(question=question, matching=item.other, other=item.matching)


def balanced(items: Sequence[Item]) -> list[Item]:
    """Every item beside itself with its options swapped: each letter is then as often right as wrong, and a vector
    carries no bias to it.

    Items that cannot be swapped are left out, with a warning that counts them. Raises DataError if none is left.
    """
    both = [(item, swapped(item)) for item in items]
    kept = [version for item, other in both if other is not None for version in (item, other)]
    if not kept:
        raise DataError("no item has options whose letters could be swapped; leave letters unbalanced")
    if left_out := sum(other is None for _, other in both):
        log.warning("%d of %d items have no two options to swap and are left out", left_out, len(items))
    return kept


def warn_of_letters(items: Sequence[Item]) -> None:
    """Say so where one letter is right so often that a vector will carry a bias to it."""
    letters = [name for item in items if (name := letter(item.matching))]
    for name in sorted(set(letters)):
        if letters.count(name) > 0.55 * len(items):
            share = 100 * letters.count(name) / len(items)
            log.warning("(%s) is the matching answer of %.0f %% of the items: a vector has a bias to it", name, share)
