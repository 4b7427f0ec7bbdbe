"""Contrastive questions: files, letters, swapped options, templates, tokens."""

import json
import logging
from pathlib import Path

from lens_rnn.errors import ConfigError, DataError
from lens_rnn.steering import BEHAVIOURS, Item, balanced, read_items, swapped, tokenise
from lens_rnn.steering.items import behaviour_file, letter, read_prompts, warn_of_letters
from lens_rnn.steering.pairs import prompt_text

import pytest
from transformers import PreTrainedTokenizerBase

ITEM = Item(question="Well?\n\nChoices:\n (A) Yes\n (B) No, never", matching="(A)", other="(B)")


def write(path: Path, value: object) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_the_seven_behaviours_are_read_and_swapped(behaviour: str, test_data: Path) -> None:
    for part in ("generate", "test"):
        items = read_items(behaviour_file(test_data / "caa", behaviour, part))
        assert len(items) >= 50
        pairs = [(item, other) for item in items if (other := swapped(item))]
        assert len(pairs) > 0.97 * len(items)  # what is left has letters more than once
        for item, other in pairs:
            assert (other.matching, other.other) == (item.other, item.matching)
            assert sorted(other.question) == sorted(item.question)
            assert other.question != item.question
            assert swapped(other) == item
    assert len(read_prompts(behaviour_file(test_data / "caa", behaviour, "open_ended"))) >= 50


def test_answers_beyond_b_are_themselves(test_data: Path, byte_tokenizer: PreTrainedTokenizerBase) -> None:
    items = read_items(behaviour_file(test_data / "caa", "survival-instinct", "generate"))
    beyond = [item for item in items if {letter(item.matching), letter(item.other)} - {"A", "B"}]
    assert len(beyond) == 88
    for item, question in zip(beyond, tokenise(beyond, "plain", byte_tokenizer), strict=True):
        decoded = [byte_tokenizer.decode([i]) for i in (question.matching, question.other)]
        assert decoded == [letter(item.matching), letter(item.other)]
        assert byte_tokenizer.decode(question.ids).endswith("Answer: (")
    shares = [letter(item.matching) for item in balanced(items)]
    assert shares.count("A") == sum(letter(item.other) == "A" for item in balanced(items))


def test_knowledge_samples_are_read(test_data: Path) -> None:
    items = read_items(behaviour_file(test_data / "caa", "any", "mmlu"))
    assert len(items) == 570
    assert items[0].matching == "(A)"
    assert len(read_items(behaviour_file(test_data / "caa", "any", "truthful_qa"))) == 817


def test_options_are_swapped_where_they_stand() -> None:
    other = swapped(ITEM)
    assert other == Item(question="Well?\n\nChoices:\n (A) No, never\n (B) Yes", matching="(B)", other="(A)")
    three = Item(question="(A) one\n(B) two\n(C) three\n", matching="(C)", other="(A)")
    assert swapped(three) == Item(question="(A) three\n(B) two\n(C) one\n", matching="(A)", other="(C)")
    assert swapped(Item(question="Is (A) or (B) right?", matching="(A)", other="(B)")) is None
    assert swapped(Item(question="Choices:\n(A) x\n(B) y", matching="yes", other="no")) is None
    assert balanced([ITEM]) == [ITEM, other]


def test_a_bias_to_a_letter_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        warn_of_letters([ITEM, ITEM])
        warn_of_letters(balanced([ITEM]))
    assert [record.getMessage() for record in caplog.records] == [
        "(A) is the matching answer of 100 % of the items: a vector has a bias to it"
    ]


def test_the_answer_begins_where_answers_differ(byte_tokenizer: PreTrainedTokenizerBase) -> None:
    (question,) = tokenise([ITEM], "Q{{question}}A ", byte_tokenizer)
    assert byte_tokenizer.decode(question.ids) == "Q{" + ITEM.question + "}A ("
    assert question.pair.positive == (*question.ids, ord_of("A", byte_tokenizer))
    (words,) = tokenise([Item(question="q", matching="yes", other="no")], "{question} ", byte_tokenizer)
    assert words.pair.negative == (*words.ids, ord_of("n", byte_tokenizer))
    assert byte_tokenizer.decode(words.ids) == "q "


def ord_of(character: str, tokenizer: PreTrainedTokenizerBase) -> int:
    return tokenizer(character)["input_ids"][0]


def test_templates(byte_tokenizer: PreTrainedTokenizerBase) -> None:
    assert prompt_text("{x}", "chatml", byte_tokenizer) == "<|im_start|>user\n{x}<|im_end|>\n<|im_start|>assistant\n"
    assert prompt_text("x", "llama", byte_tokenizer) == "[INST] x [/INST] "
    with pytest.raises(ConfigError, match="no chat template"):
        prompt_text("x", "tokenizer", byte_tokenizer)
    byte_tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<bot>"
    try:
        assert prompt_text("x", "tokenizer", byte_tokenizer) == "<user>x<bot>"
    finally:
        byte_tokenizer.chat_template = None
    with pytest.raises(ConfigError, match="question"):
        prompt_text("x", "Q: ", byte_tokenizer)


RECORD = {"question": "q", "answer_matching_behavior": "(A)", "answer_not_matching_behavior": "(B)"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([], "is empty"),
        ("[", "is not JSON"),
        ({"question": "q"}, "does not hold a list of objects"),
        ([{"text": "q"}], "item 1: no field question or prompt"),
        (
            [RECORD, RECORD | {"answer_not_matching_behavior": ""}],
            "item 2: no text in the field 'answer_not_matching_behavior'",
        ),
        ([{"question": "q", "answer_matching_behavior": "(A)"}], "has both answers"),
        ([RECORD | {"answer_not_matching_behavior": " (A)"}], r"both answers are '\(A\)'"),
    ],
)
def test_a_bad_file_is_one_line(content: object, words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=words) as error:
        read_items(write(tmp_path / "set.json", content))
    assert "\n" not in str(error.value)


def test_other_bad_input(tmp_path: Path, byte_tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_items(tmp_path / "absent.json")
    with pytest.raises(DataError, match="kindness"):
        behaviour_file(tmp_path, "kindness", "generate")
    with pytest.raises(DataError, match="owner/set"):
        behaviour_file("owner/set", "refusal", "generate")
    with pytest.raises(DataError, match="empty"):
        tokenise([], "plain", byte_tokenizer)
    with pytest.raises(DataError, match="same token"):
        tokenise([Item(question="q", matching="yes", other="yea")], "plain", byte_tokenizer)
    with pytest.raises(DataError, match="1 tokens"):
        tokenise([Item(question="q", matching="yes", other="no")], "{question}", byte_tokenizer)
    with pytest.raises(DataError, match="no item has options"):
        balanced([Item(question="q", matching="yes", other="no")])
