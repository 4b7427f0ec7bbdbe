"""Contrasts of next words: places that are apart, of many documents, and nothing that is reported on has made the
vector."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

from lens_rnn.data import FileSource
from lens_rnn.errors import ConfigError, DataError
from lens_rnn.steering import Contrast, NextWordConfig, next_word_contrast

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

CONFIG = NextWordConfig(words=("X", "Y"), context=12, pairs=40, questions=20, places=2, seed=1)


def source_of(texts: list[str], path: Path) -> FileSource:
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return FileSource(path)


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> FileSource:
    """900 documents of random letters, in which X and Y are rare, behind a licence that all have. It is long enough for
    documents to be held out, where of less text the end would be."""
    random = np.random.default_rng(0)
    texts = ["abc" * 350 + "X" + "".join(random.choice(list("abcdefghXY"), size=120)) for _ in range(900)]
    return source_of(texts, tmp_path_factory.mktemp("letters") / "made.jsonl")


@pytest.fixture(scope="module")
def contrast(letters: FileSource, byte_tokenizer: PreTrainedTokenizerBase) -> Contrast:
    return next_word_contrast(letters, byte_tokenizer, CONFIG)


def test_next_words(letters: FileSource, byte_tokenizer: PreTrainedTokenizerBase, contrast: Contrast) -> None:
    assert (len(contrast.pairs), len(contrast.validation), len(contrast.test)) == (40, 20, 20)
    documents = {role: [document.text for document in letters.documents(role)] for role in ("fit", "eval")}

    def follows(ids: tuple[int, ...], word: str, role: str) -> bool:
        return any(byte_tokenizer.decode(ids) + word in text for text in documents[role])

    for pair in contrast.pairs:
        assert len(pair.positive) == len(pair.negative) == 12
        assert follows(pair.positive, "X", "fit")
        assert follows(pair.negative, "Y", "fit")
    for questions in (contrast.validation, contrast.test):
        assert {(byte_tokenizer.decode([q.matching]), byte_tokenizer.decode([q.other])) for q in questions} == {
            ("X", "Y")
        }
        for word, half in (("X", questions[:10]), ("Y", questions[10:])):
            for question in half:
                role, place = str(question.cluster).split()
                assert byte_tokenizer.decode(question.ids) + word in documents[role][int(place)]
    assert all(str(question.cluster).startswith("fit") for question in contrast.validation)
    again = next_word_contrast(letters, byte_tokenizer, CONFIG)
    assert (again.pairs, again.validation, again.test) == (contrast.pairs, contrast.validation, contrast.test)


def test_test_questions_are_of_the_held_out_half_and_where_that_is_small_of_others_that_made_no_vector(
    letters: FileSource, byte_tokenizer: PreTrainedTokenizerBase, contrast: Contrast
) -> None:
    held_out = len(list(letters.documents("eval")))
    assert held_out > 10
    assert contrast.about["test_documents"]["of the fitting half"] == 0
    more = next_word_contrast(letters, byte_tokenizer, replace(CONFIG, questions=60))
    assert more.about["test_documents"]["held out"] == held_out < 30
    assert more.about["test_documents"]["of the fitting half"] >= 30 - held_out
    documents = [document.text for document in letters.documents("fit")]

    def place(ids: tuple[int, ...]) -> int:
        return next(i for i, text in enumerate(documents) if byte_tokenizer.decode(ids) in text)

    made_from = {f"fit {place(ids)}" for pair in more.pairs for ids in pair}
    asked = [{question.cluster for question in questions} for questions in (more.validation, more.test)]
    assert not made_from & (asked[0] | asked[1])
    assert not asked[0] & asked[1]


def test_questions_are_of_as_many_documents_as_there_are(contrast: Contrast) -> None:
    for questions in (contrast.validation, contrast.test):
        for half in (questions[:10], questions[10:]):
            assert len({question.cluster for question in half}) == 10


def test_places_are_few_of_a_document_and_apart(tmp_path: Path, byte_tokenizer: PreTrainedTokenizerBase) -> None:
    """Where documents are few, each gives up to `places` before each word, none of which reads another's context."""
    random = np.random.default_rng(3)
    texts = ["".join(random.choice(list("abcdefghXY"), size=2000)) for _ in range(80)]
    source = source_of(texts, tmp_path / "long.jsonl")
    contrast = next_word_contrast(source, byte_tokenizer, replace(CONFIG, pairs=2000, questions=400, places=3))
    documents = [document.text for document in source.documents("fit")]
    of_document = Counter((question.cluster, i // 40) for i, question in enumerate(contrast.validation))
    assert 2 * len(contrast.validation) < 400 + 1
    assert max(of_document.values()) <= 6
    contexts = [ids for pair in contrast.pairs for ids in pair] + [q.ids for q in contrast.validation]
    assert len(set(contexts)) == len(contexts)
    starts: dict[int, list[int]] = {}
    for ids in contexts:
        text = byte_tokenizer.decode(ids)
        i = next(i for i, document in enumerate(documents) if text in document)
        starts.setdefault(i, []).append(documents[i].index(text))
    for places in starts.values():
        assert len(places) <= 6
        assert (np.diff(sorted(places)) >= 12).all()


def test_what_many_documents_have_in_common_is_read_once(
    byte_tokenizer: PreTrainedTokenizerBase, contrast: Contrast
) -> None:
    contexts = [ids for pair in contrast.pairs for ids in pair]
    contexts += [question.ids for question in (*contrast.validation, *contrast.test)]
    assert [byte_tokenizer.decode(ids) for ids in contexts].count("abcabcabcabc") <= 1


def test_next_words_that_cannot_be_had(letters: FileSource, byte_tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ConfigError, match="'XY' is 2 tokens"):
        next_word_contrast(letters, byte_tokenizer, NextWordConfig(words=("XY", "Y")))
    with pytest.raises(DataError, match="too few places"):
        next_word_contrast(letters, byte_tokenizer, replace(CONFIG, words=("X", "Q")))
    for settings, words in (
        ({"words": (" a", " a")}, "both words are ' a'"),
        ({"context": 1}, "context is 1"),
        ({"pairs": 1}, "pairs is 1"),
        ({"questions": 3}, "questions is 3"),
        ({"places": 0}, "places is 0"),
    ):
        with pytest.raises(ConfigError, match=words):
            NextWordConfig(**settings)  # type: ignore[arg-type]
