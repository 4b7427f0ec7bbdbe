"""Contrastive questions in tokens: put into a template, tokenised; and the pairs of texts that a vector is made of."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from lens_rnn.errors import ConfigError, DataError
from lens_rnn.models import ModelAdapter
from lens_rnn.models.inputs import one_text, whole_numbers
from lens_rnn.steering.items import Item, letter

from transformers import PreTrainedTokenizerBase

QUESTION = "{question}"
TOKENIZERS_OWN = "tokenizer"
TEMPLATES: Mapping[str, str] = MappingProxyType(
    {
        "plain": "{question}\n\nAnswer: ",
        "chatml": "<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n",
        "llama": "[INST] {question} [/INST] ",
    }
)
"""What stands before an answer, by name. TOKENIZERS_OWN is one more: the chat template that comes with the
tokenizer."""


class Pair(NamedTuple):
    """Two texts, as token ids; a vector is what distinguishes the model's states at their last tokens."""

    positive: tuple[int, ...]
    negative: tuple[int, ...]


Text = str | Sequence[int]
"""A text, in words or as token ids."""


def tokenised_pairs(pairs: Sequence[tuple[Text, Text]], adapter: ModelAdapter) -> list[Pair]:
    """Pairs of texts, in words or as token ids, as token ids.

    Raises DataError for what is no pair of such texts, or has ids that the model does not have.
    """

    def ids(text: Text) -> tuple[int, ...]:
        numbers = whole_numbers(adapter.tokenizer(text)["input_ids"] if isinstance(text, str) else text, "token ids")
        if not len(numbers):
            raise DataError("a contrastive pair has a text without tokens; both sides need at least one")
        return tuple(one_text(adapter, numbers)[0].tolist())

    made = []
    for number, pair in enumerate(pairs, 1):
        if isinstance(pair, str) or len(pair) != 2 or not all(hasattr(text, "__len__") for text in pair):
            raise DataError(f"pair {number} is {pair!r:.60}; give a positive and a negative text")
        made.append(Pair(*map(ids, pair)))
    return made


class Question(NamedTuple):
    """What the model reads, and the two tokens between which it is asked to choose."""

    ids: tuple[int, ...]
    matching: int
    other: int
    cluster: str | None = None
    """What questions that are not independent share, a document or a stem; None for one by itself."""

    @property
    def pair(self) -> Pair:
        """The question answered in both ways."""
        return Pair((*self.ids, self.matching), (*self.ids, self.other))


def prompt_text(question: str, template: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The question in a template of TEMPLATES, the tokenizer's own, or a custom one that holds {question}.

    Raises ConfigError for a name that is unknown, a custom template without its placeholder, or a tokenizer without a
    chat template.
    """
    if template == TOKENIZERS_OWN:
        if not tokenizer.chat_template:
            raise ConfigError(
                f"the tokenizer {tokenizer.name_or_path} has no chat template; choose from {', '.join(TEMPLATES)}"
            )
        messages = [{"role": "user", "content": question}]
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    text = TEMPLATES.get(template, template)
    if QUESTION not in text:
        known = ", ".join((*TEMPLATES, TOKENIZERS_OWN))
        raise ConfigError(f"the template {template!r:.60} has no {QUESTION} in it, and is none of {known}")
    return text.replace(QUESTION, question)


def encode(text: str, template: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids; what a chat template has rendered holds its special tokens already."""
    return list(tokenizer(text, add_special_tokens=template != TOKENIZERS_OWN)["input_ids"])


def tokenise(items: Sequence[Item], template: str, tokenizer: PreTrainedTokenizerBase) -> list[Question]:
    """The questions as token ids. Of an answer "(A)" the parenthesis belongs to what is read, and the letter is what is
    chosen; of an answer in words, its first token.

    Raises DataError for no items, fewer than two tokens before the answer, or answers that begin with the same token;
    ConfigError as `prompt_text`.
    """
    if not items:
        raise DataError("the contrastive set is empty; give at least one item")
    return [_question(item, number, template, tokenizer) for number, item in enumerate(items, 1)]


def _question(item: Item, number: int, template: str, tokenizer: PreTrainedTokenizerBase) -> Question:
    answers = [letter(item.matching), letter(item.other)]
    text = prompt_text(item.question, template, tokenizer)
    if None not in answers:
        text += "("
    else:
        answers = [item.matching, item.other]
    ids = encode(text, template, tokenizer)
    matching, other = (_first_token(ids, text, str(answer), template, tokenizer) for answer in answers)
    if len(ids) < 2:
        raise DataError(
            f"item {number}: {len(ids)} tokens stand before the answer, and steering needs at least 2; use a longer "
            "template"
        )
    if matching == other:
        raise DataError(
            f"item {number}: the answers {item.matching!r} and {item.other!r} begin with the same token; rephrase them"
        )
    return Question(tuple(ids), matching, other)


def _first_token(ids: list[int], text: str, answer: str, template: str, tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that an answer begins with after ids: as it is in one text where ids stay the same there, else by
    itself."""
    together = encode(text + answer, template, tokenizer)
    if together[: len(ids)] == ids and len(together) > len(ids):
        return together[len(ids)]
    alone = tokenizer(answer, add_special_tokens=False)["input_ids"]
    if not alone:
        raise DataError(f"the answer {answer!r} has no tokens; give another")
    return int(alone[0])


def data_sha256(pairs: Sequence[Pair]) -> str:
    """Hash of the token ids that a vector is made from, in their order."""
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()
