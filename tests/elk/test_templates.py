"""Prompts: every set has its own, every template can be filled, and answers can be told apart."""

import json
from dataclasses import replace
from pathlib import Path

from lens_rnn.elk.files import HUB_SETS
from lens_rnn.elk.generators import generate
from lens_rnn.elk.templates import TEMPLATES, Template, encode, prompt, templates_of
from lens_rnn.errors import DataError
from tests.elk.rows import made_rows

import pytest
from transformers import PreTrainedTokenizerBase

ROW = generate("comparison", {"train": 4}).splits["train"][0]
FIRST_DIFFERS = (Template("{character}: {op1} > {op2}?", ("no", "yes")),)


def test_every_published_set_has_several_that_its_rows_fill(test_data: Path) -> None:
    published = json.loads((test_data / "elk" / "templates_all12.json").read_text())
    assert {name.removeprefix("quirky_") for name in published} == set(HUB_SETS) == TEMPLATES.keys() - {"comparison"}
    for name, theirs in published.items():
        ours = templates_of(name.removeprefix("quirky_"))
        assert len({template.text for template in ours}) == len(ours) >= 4
        fields = {*theirs["template_arg_names"], "character"} | ({"answer"} if name == "quirky_sciq" else set())
        fields |= {"title", "review"} if name == "quirky_sentiment" else set()
        row = replace(ROW, template_args={field: f"<{field}>" for field in fields})
        for variant, template in enumerate(ours):
            text = prompt(row, [template]).text
            assert "<character>" in text
            assert template.text not in theirs["quirky_templates"]
            assert template.choices[0] != template.choices[1]
            assert prompt(row, ours, variant) == prompt(row, ours, variant + len(ours))
        assert len({prompt(row, ours, variant) for variant in range(len(ours))}) == len(ours)


def test_tokens_of_prompt_and_answers(byte_tokenizer: PreTrainedTokenizerBase) -> None:
    (encoded,) = encode([ROW], FIRST_DIFFERS, byte_tokenizer)
    assert byte_tokenizer.decode(list(encoded.ids)) == prompt(ROW, FIRST_DIFFERS).text
    assert [byte_tokenizer.decode(list(choice)) for choice in encoded.choices] == ["no", "yes"]
    assert encoded.answers == (encoded.choices[0][0], encoded.choices[1][0])
    (last,) = encode([ROW], FIRST_DIFFERS, byte_tokenizer, most_tokens=3)
    assert last.ids == encoded.ids[-3:]


def test_a_row_with_its_own_prompt_needs_no_template() -> None:
    row = made_rows(4)[0]
    assert prompt(row, ()) == prompt(row, FIRST_DIFFERS) == (row.template_args["statement"], ("F", "T"))


def test_what_cannot_be_asked_is_said(byte_tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(
        DataError, match="has no prompt of its own, and there are no templates for its set; known sets: addition"
    ):
        prompt(ROW, templates_of("birds"))
    with pytest.raises(DataError, match=r"needs 'premise', and row \w+ has only character, op1, op2"):
        prompt(ROW, TEMPLATES["nli"])
    with pytest.raises(DataError, match=r"both answers .* begin with the same token"):
        encode([ROW], [Template("{op1}", (" no", " yes"))], byte_tokenizer)
    with pytest.raises(DataError, match="is empty"):
        encode([ROW], [Template("", ("no", "yes"))], byte_tokenizer)
