"""What an experiment is made of: nothing that is reported on has made the vector."""

import json
from pathlib import Path

from lens_rnn.errors import ConfigError, DataError
from lens_rnn.steering import BEHAVIOURS, BehaviourConfig, behaviour_contrast, read_items, tokenise
from lens_rnn.steering.clusters import words_of
from lens_rnn.steering.items import behaviour_file

import pytest
from transformers import PreTrainedTokenizerBase


def test_a_behaviour_is_split(test_data: Path, byte_tokenizer: PreTrainedTokenizerBase) -> None:
    source = str(test_data / "caa")
    config = BehaviourConfig(questions=30, balance_letters=True, pairs=100)
    contrast = behaviour_contrast(source, "corrigible-neutral-HHH", byte_tokenizer, config)
    asked = {question.ids for question in (*contrast.validation, *contrast.test)}
    assert (len(contrast.validation), len(contrast.test), len(contrast.swapped)) == (30, 30, 30)
    assert len(contrast.pairs) == 200
    assert not asked & {pair.positive[:-1] for pair in contrast.pairs}
    answers = [byte_tokenizer.decode(pair.positive[-1:]) for pair in contrast.pairs]
    assert answers.count("A") == answers.count("B") == 100
    items = read_items(behaviour_file(source, "corrigible-neutral-HHH", "test"))
    expected = tokenise(items[:30], "plain", byte_tokenizer)
    assert [question.ids for question in contrast.test] == [question.ids for question in expected]
    assert [question.cluster for question in contrast.test] == [question.cluster for question in contrast.swapped]
    for question, other in zip(contrast.test, contrast.swapped, strict=True):
        assert (question.matching, question.other) == (other.other, other.matching)


def test_one_file_gives_all_parts(tmp_path: Path, byte_tokenizer: PreTrainedTokenizerBase) -> None:
    fields = ("prompt", "correct", "incorrect")
    records = [dict(zip(fields, (f"number {i}", "yes", "no"), strict=True)) for i in range(30)]
    path = tmp_path / "numbers.json"
    path.write_text(json.dumps(records))
    contrast = behaviour_contrast("", str(path), byte_tokenizer, BehaviourConfig(questions=10))
    parts = [
        {q.ids for q in contrast.validation},
        {q.ids for q in contrast.test},
        {pair.positive[:-1] for pair in contrast.pairs},
    ]
    assert [len(part) for part in parts] == [10, 10, 10]
    assert len(set.union(*parts)) == 30
    assert contrast.name == "numbers"
    assert contrast.swapped == ()
    with pytest.raises(DataError, match="31 are needed"):
        behaviour_contrast("", str(path), byte_tokenizer, BehaviourConfig(questions=15))
    with pytest.raises(ConfigError, match="questions is 0"):
        BehaviourConfig(questions=0)


def test_what_two_parts_ask_is_in_one_of_them(test_data: Path, byte_tokenizer: PreTrainedTokenizerBase) -> None:
    """Five questions of the published test sets stand in the generate sets too, with other options."""
    source, left_out = str(test_data / "caa"), {}
    for behaviour in BEHAVIOURS:
        contrast = behaviour_contrast(source, behaviour, byte_tokenizer)
        items = read_items(behaviour_file(source, behaviour, "test"))
        asked = {words_of(item) for item in read_items(behaviour_file(source, behaviour, "generate"))}
        assert list(contrast.left_out) == [item.question for item in items if words_of(item) in asked]
        assert len(contrast.test) == 50 - len(contrast.left_out)
        if contrast.left_out:
            left_out[behaviour] = len(contrast.left_out)
        texts = [byte_tokenizer.decode(pair.positive).split("(A)")[0] for pair in contrast.pairs]
        assert not set(texts) & {byte_tokenizer.decode(q.ids).split("(A)")[0] for q in contrast.validation}
    assert left_out == {"myopic-reward": 1, "refusal": 4}


def test_parts_that_ask_the_same_are_refused(tmp_path: Path, byte_tokenizer: PreTrainedTokenizerBase) -> None:
    path = tmp_path / "same.json"
    path.write_text(json.dumps([{"prompt": "one", "correct": "yes", "incorrect": "no"}] * 9))
    with pytest.raises(DataError, match="ask the same"):
        behaviour_contrast("", str(path), byte_tokenizer, BehaviourConfig(questions=3))
