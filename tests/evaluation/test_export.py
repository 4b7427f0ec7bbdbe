"""An evaluation as files: the schema of tuned-lens, bits per byte, and what is read back."""

import csv
import io
import json
from dataclasses import replace
from math import exp, log
from pathlib import Path
from typing import Any

from lens_rnn.errors import DataError
from lens_rnn.evaluation.export import Extras, TextsRead, layer_table, result
from lens_rnn.evaluation.metrics import Evaluation, evaluate
from lens_rnn.evaluation.result_file import FILE_NAME, FORMAT, EvaluationResult, read_result
from lens_rnn.evaluation.transfer import Transfer
from lens_rnn.models import ModelAdapter
from tests.evaluation.test_metrics import BLOCKS, both_lenses

import numpy as np
import pytest

FACTOR = BLOCKS.bits_per_byte
LAYERS = [f"layer_{i}" for i in range(3)]
TEXTS = TextsRead(source="made", blocks=BLOCKS, counted=replace(BLOCKS, sha256="1" * 64))


@pytest.fixture(scope="module")
def evaluation(tiny_mamba: ModelAdapter) -> Evaluation:
    return evaluate(tiny_mamba, both_lenses(tiny_mamba), BLOCKS, unigram_ce=4.0)


@pytest.fixture(scope="module")
def everything(tiny_mamba: ModelAdapter, evaluation: Evaluation) -> EvaluationResult:
    matrix = np.arange(9.0).reshape(3, 3)
    extras = Extras(transfer=Transfer(matrix, 2 * matrix), marginal={"units": "nats"}, js_nats=(0.5, 0.25, 0.0))
    return result(tiny_mamba, evaluation, TEXTS, "a-lens", extras)


def same(one: Any, other: Any) -> bool:
    return json.dumps(one.to_json(), sort_keys=True) == json.dumps(other.to_json(), sort_keys=True)


def test_a_result_is_in_the_schema_of_tuned_lens_and_in_bits_per_byte(
    everything: EvaluationResult, evaluation: Evaluation
) -> None:
    assert pytest.approx(1 / 3 / log(2)) == FACTOR, "three bytes a token"
    content = everything.to_json()
    assert list(content) == ["logit", "tuned", "baseline", "lens_rnn"]
    for name in ("logit", "tuned"):
        for kind in ("ce", "entropy", "kl"):
            expected = {f"layer_{i}": getattr(row, kind) * FACTOR for i, row in evaluation.lenses[name].items()}
            assert content[name][kind] == expected
            assert list(content[name][kind]) == LAYERS
    assert content["baseline"]["ce"]["final"] == evaluation.model.ce * FACTOR
    assert content["baseline"]["entropy"]["final"] == evaluation.model.entropy * FACTOR
    assert content["tuned"]["layer_transfer"]["ce"]["layer_2"] == {f"layer_{i}": (6 + i) * FACTOR for i in range(3)}
    assert content["tuned"]["layer_transfer"]["kl"]["layer_0"]["layer_1"] == 2 * FACTOR


def test_what_the_schema_does_not_say_stands_under_our_key(
    everything: EvaluationResult, tiny_mamba: ModelAdapter
) -> None:
    ours = everything.to_json()["lens_rnn"]
    assert ours["format"] == FORMAT
    assert (ours["lens"], ours["data"], ours["tokens"]) == ("a-lens", "made", BLOCKS.tokens.size)
    assert ours["unigram_counted_on"] == {"tokens": BLOCKS.tokens.size, "sha256": "1" * 64}
    assert ours["unigram_ce"] == 4.0 * FACTOR
    assert list(ours["depth"].values()) == [tiny_mamba.depth(i) for i in range(3)]
    assert ours["js_nats"] == (0.5, 0.25, 0.0)


def test_what_was_not_measured_is_left_out(tiny_mamba: ModelAdapter, evaluation: Evaluation) -> None:
    alone = replace(evaluation, lenses={"logit": evaluation.lenses["logit"]}, unigram_ce=None)
    content = result(tiny_mamba, alone, TEXTS, None).to_json()
    assert list(content) == ["logit", "baseline", "lens_rnn"]
    assert content["lens_rnn"]["lens"] is content["lens_rnn"]["unigram_ce"] is None
    assert not {"marginal", "js_nats"} & content["lens_rnn"].keys()


def test_what_is_written_is_read(everything: EvaluationResult, tmp_path: Path) -> None:
    everything.write(tmp_path / FILE_NAME)
    assert same(read_result(tmp_path / FILE_NAME), everything)


def test_a_file_without_a_format_is_read_and_one_of_a_later_format_refused(
    everything: EvaluationResult, tmp_path: Path
) -> None:
    content, file = json.loads(json.dumps(everything.to_json())), tmp_path / FILE_NAME
    del content["lens_rnn"]["format"]
    file.write_text(json.dumps(content))
    assert same(read_result(file), everything)
    for later in (FORMAT + 1, "2"):
        file.write_text(json.dumps(content | {"lens_rnn": content["lens_rnn"] | {"format": later}}))
        with pytest.raises(DataError, match="format 2"):
            read_result(file)


def test_the_table_has_a_row_for_each_lens_and_layer(tiny_mamba: ModelAdapter, evaluation: Evaluation) -> None:
    rows = list(csv.DictReader(io.StringIO(layer_table(tiny_mamba, evaluation, FACTOR))))
    assert [(row["lens"], row["layer"]) for row in rows] == [
        *((name, str(i)) for name in evaluation.lenses for i in range(3)),
        ("model", ""),
    ]
    first = evaluation.lenses[rows[0]["lens"]][0]
    assert float(rows[0]["ce_bits_per_byte"]) == first.ce * FACTOR
    assert float(rows[0]["perplexity_per_token"]) == exp(first.ce)
