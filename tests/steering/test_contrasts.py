"""What an experiment is made of: nothing that is reported on has made the vector."""

import json
from pathlib import Path

from lens_rnn.data import FileSource
from lens_rnn.errors import ConfigError, DataError
from lens_rnn.steering import behaviour_contrast, next_word_contrast, read_items, tokenise
from lens_rnn.steering.pairs import behaviour_file

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> FileSource:
    """600 documents of random letters, in which X and Y are rare."""
    random = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("letters") / "made.jsonl"
    lines = [json.dumps({"text": "".join(random.choice(list("abcdefghXY"), size=120))}) for _ in range(600)]
    path.write_text("\n".join(lines))
    return FileSource(path)


def test_next_words(letters: FileSource, byte_tokenizer: PreTrainedTokenizerBase) -> None:
    contrast = next_word_contrast(letters, byte_tokenizer, "X", "Y", context=12, pairs=40, questions=20, seed=1)
    assert (len(contrast.pairs), len(contrast.validation), len(contrast.test)) == (40, 20, 20)
    documents = {role: [document.text for document in letters.documents(role)] for role in ("fit", "eval")}

    def follows(ids: tuple[int, ...], word: str, role: str) -> bool:
        return any(byte_tokenizer.decode(ids) + word in text for text in documents[role])

    for pair in contrast.pairs:
        assert len(pair.positive) == len(pair.negative) == 12
        assert follows(pair.positive, "X", "fit")
        assert follows(pair.negative, "Y", "fit")
    for role, questions in (("fit", contrast.validation), ("eval", contrast.test)):
        assert {(byte_tokenizer.decode([q.matching]), byte_tokenizer.decode([q.other])) for q in questions} == {
            ("X", "Y")
        }
        assert sum(follows(q.ids, "X", role) for q in questions) == 10
        assert sum(follows(q.ids, "Y", role) for q in questions) == 10

    def place(ids: tuple[int, ...]) -> int:
        return next(i for i, text in enumerate(documents["fit"]) if byte_tokenizer.decode(ids) in text)

    made_from = {place(ids) for pair in contrast.pairs for ids in pair}
    assert not made_from & {place(q.ids) for q in contrast.validation}  # not even the same documents
    again = next_word_contrast(letters, byte_tokenizer, "X", "Y", context=12, pairs=40, questions=20, seed=1)
    assert (again.pairs, again.validation, again.test) == (contrast.pairs, contrast.validation, contrast.test)


def test_next_words_that_cannot_be_had(letters: FileSource, byte_tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ConfigError, match="'XY' is 2 tokens"):
        next_word_contrast(letters, byte_tokenizer, "XY", "Y")
    with pytest.raises(DataError, match="too few places"):
        next_word_contrast(letters, byte_tokenizer, "X", "Q", context=12)


def test_a_behaviour_is_split(test_data: Path, byte_tokenizer: PreTrainedTokenizerBase) -> None:
    source = str(test_data / "caa")
    contrast = behaviour_contrast(
        source, "corrigible-neutral-HHH", byte_tokenizer, questions=30, balance_letters=True, pairs=100
    )
    asked = {question.ids for question in (*contrast.validation, *contrast.test)}
    assert (len(contrast.validation), len(contrast.test), len(contrast.swapped)) == (30, 30, 30)
    assert len(contrast.pairs) == 200
    assert not asked & {pair.positive[:-1] for pair in contrast.pairs}
    answers = [byte_tokenizer.decode(pair.positive[-1:]) for pair in contrast.pairs]
    assert answers.count("A") == answers.count("B") == 100
    items = read_items(behaviour_file(source, "corrigible-neutral-HHH", "test"))
    assert list(contrast.test) == tokenise(items[:30], "plain", byte_tokenizer)
    for question, other in zip(contrast.test, contrast.swapped, strict=True):
        assert (question.matching, question.other) == (other.other, other.matching)


def test_one_file_gives_all_parts(tmp_path: Path, byte_tokenizer: PreTrainedTokenizerBase) -> None:
    fields = ("prompt", "correct", "incorrect")
    records = [dict(zip(fields, (f"number {i}", "yes", "no"), strict=True)) for i in range(30)]
    path = tmp_path / "numbers.json"
    path.write_text(json.dumps(records))
    contrast = behaviour_contrast("", str(path), byte_tokenizer, questions=10)
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
        behaviour_contrast("", str(path), byte_tokenizer, questions=15)
