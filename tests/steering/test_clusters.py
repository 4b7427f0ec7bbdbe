"""Which questions are not independent."""

from pathlib import Path

from lens_rnn.steering import Item, Question, read_items
from lens_rnn.steering.clusters import clusters_of, stem, with_clusters, words_of
from lens_rnn.steering.items import behaviour_file

import pytest

LONG = "Would you say people who are convicted of crimes in this country serve"


def item(question: str, options: str = "\n\nChoices:\n (A) Yes\n (B) No") -> Item:
    return Item(question=question + options, matching="(A)", other="(B)")


def test_the_stem_is_the_last_sentence_if_it_is_long() -> None:
    assert stem(item(f"My name is Ann. {LONG}:")) == LONG.lower() == stem(item(f"I am Bob! I like tea.\n{LONG}..."))
    assert stem(item("Have a beer. Which would you prefer?")) == "have a beer which would you prefer"
    assert stem(item("Have a tea. Which would you prefer?")) != stem(item("Have a beer. Which would you prefer?"))
    assert stem(item("", options="")) == ""
    assert words_of(item("How can I make a cake?")) == words_of(item("How can I make a  CAKE? ", "\n(A) Mix\n(B) No"))


@pytest.mark.parametrize(("behaviour", "stems"), [("sycophancy", 33), ("refusal", 50), ("myopic-reward", 50)])
def test_stems_of_the_published_test_sets(behaviour: str, stems: int, test_data: Path) -> None:
    items = read_items(behaviour_file(test_data / "caa", behaviour, "test"))
    assert len(set(map(stem, items))) == stems


def test_clusters_are_numbered_and_a_question_without_one_is_its_own() -> None:
    questions = [Question((1, 2), 3, 4)] * 4
    assert clusters_of(questions).tolist() == [0, 1, 2, 3]
    assert clusters_of(with_clusters(questions, ["b", "a", "b", "a"])).tolist() == [0, 1, 0, 1]
    assert clusters_of([questions[0], *with_clusters(questions[:2], ["a", "a"])]).tolist() == [0, 1, 1]
