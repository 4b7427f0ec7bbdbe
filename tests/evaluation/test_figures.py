"""The figures of the paper: which results each shows, what its matrices and its table say, what is refused."""

import csv
import io
import json
import logging
import math
import re
from pathlib import Path
from typing import Any

from lens_rnn.errors import ConfigError, DataError
from lens_rnn.evaluation import figures, matrix, summary
from lens_rnn.evaluation.canvas import Picture
from lens_rnn.evaluation.curves import Curves, LayerTransfer
from lens_rnn.evaluation.results import FILE_NAME, find_results, read_curves, read_results
from tests.evaluation.test_plots import make, ours, published, rows, write

import numpy as np
import pytest


def of(family: str, size: str, **fields: Any) -> Curves:
    return make(f"{family} {size}", family=family, **fields)


def labels(picture: Any) -> set[str]:
    assert isinstance(picture, Picture)
    return {line.label for panel in picture.panels for line in panel.lines if line.label}


def transfer(**fields: Any) -> LayerTransfer:
    """Four translators on three layers, as the published Mamba results have it."""
    values = {
        "translator_depth": np.array([0.25, 0.5, 0.75, 1.0]),
        "source_depth": np.array([0.25, 0.5, 0.75]),
        "ce": np.array([[3.0, 1.9, 2.5], [4.0, 2.0, 1.6], [5.0, 3.0, 1.5], [9.0, 6.0, 3.0]]),
        "kl": np.array([[0.0, 0.2, 1.1], [0.7, 0.0, 0.3], [1.5, 0.6, 0.0], [6.0, 4.0, 1.5]]),
        "own": np.arange(3),
    }
    return LayerTransfer(**(values | fields))


def with_transfer(ce: dict[str, dict[str, float]], kl: dict[str, dict[str, float]] | None = None) -> dict[str, Any]:
    content = published([9.0, 6.0, 3.0], [3.0, 2.0, 1.5], 1.0)
    content["tuned"]["layer_transfer"] = {"ce": ce, "kl": ce if kl is None else kl}
    return content


# Reading


def test_transfer_is_translator_by_source_whatever_the_order_in_the_file(tmp_path: Path) -> None:
    matrix = {f"layer_{t}": {f"layer_{s}": 10.0 * t + s for s in (2, 0, 1)} for t in (3, 1, 0, 2)}
    read = read_curves(write(tmp_path / "mamba" / "1b" / FILE_NAME, with_transfer(matrix))).transfer
    assert read is not None
    np.testing.assert_array_equal(read.ce, [[10.0 * t + s for s in range(3)] for t in range(4)])
    np.testing.assert_allclose(
        read.translator_depth, [0.25, 0.5, 0.75, 1.0]
    )  # the one past the last layer is the last block's
    np.testing.assert_allclose(read.source_depth, [0.25, 0.5, 0.75])
    np.testing.assert_array_equal(np.diagonal(read.penalty), 0)
    assert read.penalty[2, 0] == 20.0 - 0.0
    assert read.penalty[0, 2] == 2.0 - 22.0


def test_transfer_may_leave_out_layers_that_have_no_translator(tmp_path: Path) -> None:
    matrix = {"layer_1": {"layer_1": 2.0, "layer_2": 1.0}, "layer_2": {"layer_1": 3.0, "layer_2": 0.5}}
    content = with_transfer(matrix) | {"lens_rnn": {"depth": rows([0.25, 0.5, 1.0])}}
    read = read_curves(write(tmp_path / FILE_NAME, content)).transfer
    assert read is not None
    np.testing.assert_array_equal(read.translator_depth, [0.5, 1.0])
    np.testing.assert_array_equal(read.penalty, [[0.0, 0.5], [1.0, 0.0]])


@pytest.mark.parametrize(
    ("matrix", "said"),
    [
        ({}, "must hold translator"),
        ({"layer_0": 3.0}, "must hold translator"),
        ({"layer_0": {"layer_1": 1.0}}, "must hold translator"),  # a source without its own translator
        ({"layer_9": {"layer_9": 1.0}}, "must hold translator"),
        (
            {"layer_0": {"layer_0": 1.0, "layer_1": 1.0}, "layer_1": {"layer_0": 1.0}},
            "no tuned.layer_transfer.ce.layer_1.layer_1",
        ),
        ({"layer_0": {"layer_0": math.nan}}, "finite number"),
    ],
)
def test_transfer_that_is_no_matrix_is_refused_in_one_line(tmp_path: Path, matrix: dict, said: str) -> None:
    file = write(tmp_path / "mamba" / FILE_NAME, with_transfer(matrix))
    with pytest.raises(DataError, match=re.escape(said)) as raised:
        read_curves(file)
    assert "\n" not in str(raised.value)
    assert str(file) in str(raised.value)


def test_a_folder_stands_for_all_results_below_it_each_once(tmp_path: Path) -> None:
    content = published([2.0, 1.5], None, 1.0)
    inner, outer, lone = (
        write(tmp_path / name / FILE_NAME, content) for name in ("all/rwkv/3b", "all/mamba/1b", "else")
    )
    found = find_results(
        [str(tmp_path / "all"), str(outer.parent), f"pythia:{lone.parent}", f"rwkv:{tmp_path / 'all' / 'rwkv'}"]
    )
    assert found == [str(outer), str(inner), f"pythia:{lone}"]
    assert [curves.name for curves in read_results(found)] == ["Mamba 1b", "RWKV 3b", "Pythia else"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no result in .*empty"):
        find_results([str(tmp_path / "empty")])


def test_results_of_one_name_are_told_apart_by_as_much_of_their_folders_as_it_takes(tmp_path: Path) -> None:
    files = [write(tmp_path / name / FILE_NAME, ours([2.0], None, 1.0, [0.5])) for name in ("a/last", "b/last", "c")]
    names = [curves.name for curves in read_results(list(map(str, files)))]
    assert names == ["tiny-mamba (a/last)", "tiny-mamba (b/last)", "tiny-mamba (c)"]


def test_nats_per_token_undo_bits_per_byte() -> None:
    curves = make(uniform_ce=4.0, bits_per_byte_per_nat=0.5).per_token()
    np.testing.assert_allclose(curves.tuned_ce, [6.0, 4.0, 3.0])
    assert (curves.model_ce, curves.uniform_ce, curves.unigram_ce, curves.units) == (2.0, 8.0, None, "nats per token")
    with pytest.raises(DataError, match=r"m has no lens_rnn\.bits_per_byte_per_nat"):
        make().per_token()
    with pytest.raises(DataError, match="must be above 0"):
        make(bits_per_byte_per_nat=0.0)


# Which results a figure shows


def test_families_are_compared_at_the_sizes_nearest_to_each_other() -> None:
    mamba, rwkv, neox = (
        [of("mamba", s) for s in ("130m", "1.4b")],
        [of("rwkv", s) for s in ("169m", "7b")],
        [of("gpt_neox", "160m")],
    )
    assert figures.one_size([mamba, rwkv, neox]) == [mamba[0], rwkv[0], neox[0]]
    assert figures.one_size([mamba, rwkv, neox], 3e9) == [mamba[1], rwkv[1], neox[0]]
    tie = [[of("mamba", s) for s in ("1.4b", "2.8b")], [of("rwkv", s) for s in ("1b5", "3b")]]
    assert [c.name for c in figures.one_size(tie)] == ["mamba 2.8b", "rwkv 3b"]  # both 1.07 apart: the larger


def test_a_broken_run_and_an_unknown_size_are_chosen_only_where_there_is_nothing_else() -> None:
    sound, broken = of("mamba", "130m"), of("mamba", "160m", model=9.0, uniform_ce=3.63)
    neox, nameless = of("gpt_neox", "160m"), of("rwkv", "tiny")
    assert figures.one_size([[broken, sound], [neox]]) == [sound, neox]
    assert figures.one_size([[broken], [nameless], [neox]]) == [broken, nameless, neox]
    assert figures.one_size([[nameless], [of("mamba", "tiny")]])[0] is nameless
    with pytest.raises(DataError, match="do not tell their sizes; give one result a family"):
        figures.one_size([[nameless, of("rwkv", "small")], [neox]])


@pytest.mark.parametrize("size", ["big", "0m", "160"])
def test_a_size_that_is_none_is_refused(size: str) -> None:
    with pytest.raises(ConfigError, match=r"write it like 160m, 1\.4b or 1b5"):
        figures.parse_size(size)


def test_each_figure_shows_its_results() -> None:
    small, large = (
        of("mamba", "130m", uniform_ce=3.63, transfer=transfer()),
        of("mamba", "1.4b", bits_per_byte_per_nat=0.3),
    )
    rwkv = of("rwkv", "169m", tuned_ce=None)
    results = [large, rwkv, small]
    assert [c.name for c in figures.ordered(results)] == ["mamba 130m", "mamba 1.4b", "rwkv 169m"]

    drawn = {name: figures.draw(name, results) for name in figures.NAMES}
    assert {name: list(pictures) for name, pictures in drawn.items()} == {
        "families": ["families"],
        "sizes": ["sizes-mamba"],
        "lenses": ["lenses-mamba", "lenses-rwkv"],
        "transfer": ["transfer-mamba-130m"],
        "perplexity": ["perplexity"],
    }
    assert labels(drawn["families"]["families"]) == {
        "Tuned lens",
        "Logit lens",
        "Uniform: 3.63",
        "mamba 130m",
        "rwkv 169m",
    }
    assert labels(drawn["sizes"]["sizes-mamba"]) == {"Uniform: 3.63", "mamba 130m", "mamba 1.4b"}
    panels = drawn["lenses"]["lenses-mamba"].panels  # type: ignore[attr-defined] # a picture of lines, not a matrix
    assert [panel.title for panel in panels] == ["mamba 130m", "mamba 1.4b"]
    per_token = drawn["perplexity"]["perplexity"]
    assert isinstance(per_token, Picture)
    assert per_token.y_title == "Log perplexity (nats per token)"
    np.testing.assert_allclose(per_token.panels[0].lines[0].y[:3], np.array([3.0, 2.0, 1.5]) / 0.3)


def test_results_without_the_conversion_are_named_and_left_out(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="lens_rnn"):
        drawn = figures.draw(
            "perplexity", [make("a", bits_per_byte_per_nat=0.3), make("b"), make("c", bits_per_byte_per_nat=0.3)]
        )
    assert labels(drawn["perplexity"]) >= {"a", "c"}
    assert "b" not in labels(drawn["perplexity"])
    assert "not known of b: " in caplog.text
    assert "bits_per_byte_per_nat" in caplog.text


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("families", "every result is of the family mamba"),
        ("sizes", "no family has two results with a tuned lens"),
        ("transfer", "no result holds tuned.layer_transfer"),
        ("perplexity", "nats per token are not known of any of the results"),
    ],
)
def test_a_figure_that_the_results_hold_nothing_for_says_what_is_missing(name: figures.Name, said: str) -> None:
    with pytest.raises(DataError, match=said):
        figures.draw(name, [of("mamba", "130m")])


def test_two_results_never_share_a_file() -> None:
    drawn = figures.draw(
        "transfer", [make("a b", transfer=transfer()), make("a/b", transfer=transfer()), make("…", transfer=transfer())]
    )
    assert list(drawn) == ["transfer-a-b", "transfer-a-b-1", "transfer-result"]


def test_a_panel_crosses_the_layers_where_the_tuned_lens_is_the_worse() -> None:
    curves = make("Mamba 160m", model=5.0, uniform_ce=4.0, tuned_ce=np.array([9.5, 2.0, 3.5]), family="mamba")
    picture = figures.draw("lenses", [curves])["lenses-mamba"]
    assert isinstance(picture, Picture)
    crosses = next(line for line in picture.panels[0].lines if line.dash == "none")
    np.testing.assert_array_equal(crosses.x, [0.25, 0.75])
    np.testing.assert_array_equal(crosses.y, [9.5, 3.5])
    said = "Mamba 160m (broken: model 5.00 > uniform 4.00)"
    assert picture.title.replace("\n", " ") == f"Mamba: tuned against logit lens {said}"
    assert said in picture.matplotlib().axes[0].get_title(loc="left").replace("\n", " ")
    two = figures.draw("lenses", [curves, of("mamba", "130m")])["lenses-mamba"].matplotlib()
    assert [axes.get_title(loc="left").replace("\n", " ") for axes in two.axes] == ["mamba 130m", said]


def test_panels_share_axes_and_one_legend() -> None:
    drawn = figures.draw("lenses", [of("mamba", f"{i}m", scale=float(i)) for i in range(1, 6)])["lenses-mamba"]
    figure = drawn.matplotlib()
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title(loc="left") for axes in shown] == [f"mamba {i}m" for i in range(1, 6)]
    assert len({axes.get_ylim() for axes in shown}) == 1
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["Tuned lens", "Logit lens", "Model"]
    figure.draw_without_rendering()
    page = drawn.plotly()
    assert [trace.name for trace in page.data if trace.showlegend] == ["Tuned lens", "Logit lens", "Model"]
    assert len(page.data) == 15


# Matrices


def test_matrices_show_the_cost_and_the_distance_in_both_libraries() -> None:
    curves = make("m", transfer=transfer())
    picture = matrix.transfer_picture(curves, transfer())
    penalty = [[0.0, -0.1, 1.0], [1.0, 0.0, 0.1], [2.0, 1.0, 0.0], [6.0, 4.0, 1.5]]
    np.testing.assert_allclose(picture.heats[0].values, penalty)
    np.testing.assert_array_equal(picture.heats[1].values, transfer().kl)

    figure = picture.matplotlib()
    for axes, heat in zip(figure.axes, picture.heats, strict=False):
        np.testing.assert_allclose(axes.collections[0].get_array(), matrix.shade(heat.values))
        assert axes.collections[0].get_clim() == (0, pytest.approx(matrix.shade(np.array(6.0))))
    np.testing.assert_allclose(
        figure.axes[0].collections[1].get_offsets(), [[0.5, 0.25]]
    )  # translator 0 reads layer 1 better
    assert "better than the layer's own" in figure.axes[0].get_title(loc="left")

    cells = [trace for trace in picture.plotly().data if trace.type == "heatmap"]
    for trace, heat in zip(cells, picture.heats, strict=True):
        np.testing.assert_allclose(trace.customdata, heat.values, atol=1e-4)
        np.testing.assert_allclose(trace.z, matrix.shade(heat.values), atol=1e-4)
        assert (list(trace.x), list(trace.y)) == ([0.25, 0.5, 0.75], [0.25, 0.5, 0.75, 1.0])


def test_one_layer_makes_a_matrix_too() -> None:
    one = transfer(
        translator_depth=np.array([0.5]),
        source_depth=np.array([0.5]),
        ce=np.ones((1, 1)),
        kl=np.zeros((1, 1)),
        own=np.array([0]),
    )
    picture = matrix.transfer_picture(make(), one)
    picture.matplotlib().draw_without_rendering()
    assert "dot" not in picture.heats[0].title


# The table


def test_the_table_counts_what_is_worse_and_leaves_out_the_end_of_the_blocks() -> None:
    curves = make(
        depth=np.array([0.25, 0.5, 0.75, 1.0]),
        logit_ce=np.array([2.0, 6.0, 1.0, 1.0]),
        tuned_ce=np.array([5.0, 4.004, 2.0, 9.0]),  # within half a hundredth of the uniform baseline: not worse
        uniform_ce=4.0,
    )
    (row,) = summary.summarise([curves])
    assert (row.layers, row.mean_tuned_ce, row.mean_logit_ce) == (3, pytest.approx(11.004 / 3), 3.0)
    assert (row.tuned_worse_than_uniform, row.these_worse_than_uniform) == (1, "0")
    assert (row.tuned_worse_than_logit, row.these_worse_than_logit) == (2, "0 2")
    assert row.broken == ""


def test_what_is_not_known_is_empty_in_the_table() -> None:
    table = summary.summarise([make(tuned_ce=None), make("b", model=9.0, uniform_ce=4.0)])
    first, second = csv.DictReader(io.StringIO(summary.as_csv(table)))
    assert [
        first[name] for name in ("mean_tuned_ce", "uniform_ce", "tuned_worse_than_uniform", "tuned_worse_than_logit")
    ] == [""] * 4
    assert (second["broken"], float(second["model_ce"])) == ("model 9.00 > uniform 4.00", 9.0)
    lines = summary.as_text(table).splitlines()
    assert len(lines) == 3
    assert lines[1].split() == ["m", "1", "-", "6", "-", "-", "-"]


@pytest.mark.parametrize(("indices", "said"), [([], ""), ([4], "4"), ([0, 1, 2, 5, 7, 8], "0-2 5 7-8")])
def test_runs_of_layers_are_shortened(indices: list[int], said: str) -> None:
    assert summary.ranges(np.array(indices, dtype=int)) == said


def test_the_page_holds_table_and_figures_and_escapes_names() -> None:
    results = [make("<b>&", transfer=transfer())]
    drawn = {name: picture.plotly() for name, picture in figures.draw("transfer", results).items()}
    page = summary.as_page(summary.summarise(results), drawn | {"again": next(iter(drawn.values()))})
    assert "<td>&lt;b&gt;&amp;</td>" in page
    assert page.count("Plotly.newPlot(") == 2
    assert len(page) < 8e6  # the library is there once
    assert not re.search(r"<(script|link)[^>]*\b(src|href)=", page)


# Published results: figures that others read from the same files


@pytest.mark.parametrize(
    ("name", "model", "uniform", "logit"),
    [
        ("mamba/130m", 0.884, "0-4", ""),
        ("mamba/370m", 0.810, "0-12", ""),
        ("mamba/790m", 0.777, "0-15", ""),
        ("mamba/1.4b", 0.689, "0-13", ""),
        ("mamba/2.8b", 0.670, "0-21", ""),
        ("rwkv/169m", 0.923, "0", "10"),
        ("rwkv/430m", 0.839, "", "4-19 21"),
        ("rwkv/7b", 0.749, "", ""),
        ("pythia/160m", 0.831, "0", "2-11"),
        ("pythia/6.9b", 0.649, "", ""),
    ],
)
def test_the_published_lenses_fail_at_the_known_layers(
    test_data: Path, name: str, model: float, uniform: str, logit: str
) -> None:
    (row,) = summary.summarise([read_curves(test_data / "published_results" / name)])
    assert row.model_ce == pytest.approx(model, abs=5e-4)
    assert (row.these_worse_than_uniform, row.these_worse_than_logit) == (uniform, logit)


def test_published_transfer_agrees_with_the_lenses_own_figures(test_data: Path) -> None:
    for file in sorted((test_data / "published_results").glob("*/*/" + FILE_NAME)):
        curves = read_curves(file)
        assert curves.transfer is not None
        assert curves.tuned_ce is not None
        n = len(curves.depth)
        assert curves.transfer.ce.shape == (n + (curves.family == "mamba"), n)
        np.testing.assert_allclose(np.diagonal(curves.transfer.ce), curves.tuned_ce, atol=1e-5)
        np.testing.assert_array_equal(np.diagonal(curves.transfer.kl), 0)
        if (
            curves.family != "gpt_neox"
        ):  # the last translator was never fitted: what it makes of a layer is the logit lens
            np.testing.assert_allclose(curves.transfer.ce[-1], curves.logit_ce, atol=1e-3)
        raw = json.loads(file.read_text())["tuned"]["layer_transfer"]
        assert curves.transfer.ce[3, 1] == raw["ce"]["layer_3"]["layer_1"]
        assert curves.transfer.kl[3, 1] == raw["kl"]["layer_3"]["layer_1"]
