"""Result files as curves, and the pictures of them: what is read, what is drawn, what is refused."""

import json
import logging
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lens_rnn.drawing import save_picture
from lens_rnn.errors import DataError
from lens_rnn.evaluation.curves import Curves, warn_of_broken
from lens_rnn.evaluation.plots import comparison_picture, layers_picture
from lens_rnn.evaluation.results import FILE_NAME, PUBLISHED_UNIFORM, read_curves

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

SCRIPT = Path(__file__).parents[2] / "eval" / "plot_curves.py"


def rows(values: list[float]) -> dict[str, float]:
    return {f"layer_{i}": value for i, value in enumerate(values)}


def published(logit: list[float], tuned: list[float] | None, model: float) -> dict[str, Any]:
    """A result in the tuned-lens schema, as the paper's authors published them."""
    content: dict[str, Any] = {"logit": {"ce": rows(logit), "kl": rows(logit)}, "baseline": {"ce": {"final": model}}}
    return content | ({"tuned": {"ce": rows(tuned), "kl": rows(tuned)}} if tuned else {})


def ours(
    logit: list[float], tuned: list[float] | None, model: float, depth: list[float], **about: Any
) -> dict[str, Any]:
    """A result as eval/perplexity.py writes it."""
    about = {"model": "org/tiny-mamba", "family": "mamba", "depth": rows(depth), "units": "bits per byte"} | about
    return published(logit, tuned, model) | {"lens_rnn": about}


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def make(name: str = "m", model: float = 1.0, scale: float = 1.0, **fields: Any) -> Curves:
    values = {
        "depth": np.array([0.25, 0.5, 0.75]),
        "logit_ce": scale * np.array([9.0, 6.0, 3.0]),
        "tuned_ce": np.array([3.0, 2.0, 1.5]),
    }
    return Curves(name=name, model_ce=model, **(values | fields))


def axes_of(figure: Figure) -> Axes:
    return figure.axes[0]


def lines_of(figure: Figure) -> dict[str, Line2D]:
    """Drawn lines by their label, keys of the legend that hold no points left out."""
    return {
        str(line.get_label()): line
        for line in axes_of(figure).lines
        if len(line.get_xdata()) and line.get_label() != "_"
    }


def layers_figure(*arguments: Any) -> Figure:
    return layers_picture(*arguments).matplotlib()


def comparison_figure(*arguments: Any) -> Figure:
    return comparison_picture(*arguments).matplotlib()


def legend_of(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


# Reading


def test_reads_our_file_from_its_folder_or_by_name(tmp_path: Path) -> None:
    content = ours([8.0, 4.0], [3.0, 1.0], 1.0, [0.5, 1.0], uniform_ce=4.5, unigram_ce=2.5)
    file = write(tmp_path / "run" / FILE_NAME, content)
    for spec in (file, file.parent, str(file)):
        curves = read_curves(spec)
        assert curves.name == "tiny-mamba"
        assert curves.family == "mamba"
        np.testing.assert_array_equal(curves.depth, [0.5, 1.0])
        np.testing.assert_array_equal(curves.logit_ce, [8.0, 4.0])
        np.testing.assert_array_equal(curves.tuned_ce, [3.0, 1.0])
        np.testing.assert_array_equal(curves.tuned_kl, [3.0, 1.0])
        assert (curves.model_ce, curves.uniform_ce, curves.unigram_ce) == (1.0, 4.5, 2.5)


def test_extras_of_ours_may_be_absent_or_null(tmp_path: Path) -> None:
    content = ours([8.0, 4.0], None, 1.0, [0.5, 1.0], uniform_ce=None)
    del content["logit"]["kl"]
    curves = read_curves(write(tmp_path / FILE_NAME, content))
    assert curves.uniform_ce is None
    assert curves.unigram_ce is None
    assert curves.tuned_ce is None
    assert curves.tuned_kl is None
    assert curves.logit_kl is None
    assert curves.broken is None


def test_layers_are_ordered_by_number_not_by_place_or_name(tmp_path: Path) -> None:
    values = [float(12 - i) for i in range(12)]
    content = published(values, values, 0.5)
    content["logit"]["ce"] = dict(
        sorted(content["logit"]["ce"].items())
    )  # layer_0, layer_1, layer_10, layer_11, layer_2, …
    curves = read_curves(write(tmp_path / "rwkv" / "169m" / FILE_NAME, content))
    np.testing.assert_array_equal(curves.logit_ce, values)


@pytest.mark.parametrize(
    ("family", "depth", "name"),
    [
        ("mamba", [0.25, 0.5, 0.75], "Mamba 130m"),  # the last block's output is left out
        ("rwkv", [1 / 3, 2 / 3, 1.0], "RWKV 130m"),
        ("pythia", [0.0, 1 / 3, 2 / 3], "Pythia 130m"),  # inputs of the blocks
    ],
)
def test_depth_of_published_rows_follows_the_family(tmp_path: Path, family: str, depth: list[float], name: str) -> None:
    content = published([9.0, 6.0, 3.0], [3.0, 2.0, 1.0], 1.0)
    by_folder = read_curves(write(tmp_path / family / "130m" / FILE_NAME, content).parent)
    by_prefix = read_curves(f"{family}:{write(tmp_path / 'elsewhere' / '130m' / FILE_NAME, content)}")
    for curves in (by_folder, by_prefix):
        np.testing.assert_allclose(curves.depth, depth)
        assert curves.name == name
        assert curves.uniform_ce == PUBLISHED_UNIFORM


def test_a_named_family_wins_over_the_folders(tmp_path: Path) -> None:
    folder = write(tmp_path / "mamba" / "1b" / FILE_NAME, published([2.0, 1.5], None, 1.0)).parent
    curves = read_curves(f"pythia:{folder}")
    assert curves.family == "gpt_neox"
    np.testing.assert_array_equal(curves.depth, [0.0, 0.5])


def test_a_colon_in_a_name_that_exists_is_no_family(tmp_path: Path) -> None:
    file = write(tmp_path / "rwkv" / "a:b.json", published([2.0, 1.5], None, 1.0))
    assert read_curves(file).name == "RWKV a:b"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("not json", "is not JSON"),
        ("[1]", "JSON object"),
        ({"baseline": {"ce": {"final": 1.0}}}, "no logit.ce"),
        ({"logit": {"ce": rows([1.0])}}, "no baseline.ce.final"),
        ({"logit": {"ce": rows([1.0])}, "tuned": {}, "baseline": {"ce": {"final": 1.0}}}, "no tuned.ce"),
        ({"logit": {"ce": {}}}, "no layers"),
        ({"logit": {"ce": {"layer_0": 1.0, "layer_2": 1.0}}}, "no layer_1; layers must run from layer_0 without a gap"),
        ({"logit": {"ce": {"layer_0": "x"}}}, "finite number"),
        ({"logit": {"ce": {"layer_0": True}}}, "finite number"),
        ('{"logit": {"ce": {"layer_0": NaN}}}', "finite number"),
        ({"logit": {"ce": 3}}, "must hold keys"),
        (published([2.0, 1.0], [1.0], 0.5), "tuned.ce has 1 layers and logit.ce 2"),
        (ours([2.0, 1.0], None, 0.5, [0.5]), "lens_rnn.depth has 1 layers"),
        (ours([2.0, 1.0], None, 0.5, [1.0, 0.5]), "must increase"),
        (ours([2.0, 1.0], None, 0.5, [0.5, 1.5]), "between 0 and 1"),
        (ours([2.0], None, 0.5, [0.5], units="nats"), "is in nats"),
        (ours([2.0], None, 0.5, [0.5], uniform_ce="a"), "finite number"),
    ],
)
def test_a_file_that_is_no_result_is_refused_in_one_line(tmp_path: Path, content: object, said: str) -> None:
    file = write(tmp_path / "mamba" / FILE_NAME, content)
    with pytest.raises(DataError, match=re.escape(said)) as raised:
        read_curves(file)
    assert "\n" not in str(raised.value)
    assert str(file) in str(raised.value)


def test_what_cannot_be_found_or_placed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no result at .*absent"):
        read_curves(tmp_path / "absent")
    with pytest.raises(DataError, match=rf"no result at .*{FILE_NAME}"):
        read_curves(tmp_path)
    plain = write(
        tmp_path / "mamba" / "a" / "b" / FILE_NAME, published([2.0], None, 1.0)
    )  # too far up to mean this file
    with pytest.raises(DataError, match="FAMILY:PATH with one of mamba, rwkv, pythia"):
        read_curves(plain)
    with pytest.raises(DataError, match="unknown family 'llama'"):
        read_curves(f"llama:{plain}")


def test_curves_of_different_lengths_are_refused() -> None:
    with pytest.raises(DataError, match="tuned_ce has 2 layers and depth 3"):
        make(tuned_ce=np.array([1.0, 2.0]))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("mamba-130m-hf", 130e6),
        ("RWKV 1b5", 1.5e9),
        ("Pythia 2.8b", 2.8e9),
        ("Llama-3.1-8B", 8e9),
        ("tiny-mamba", None),
        ("v2 lab", None),
    ],
)
def test_size_from_the_name(name: str, parameters: float | None) -> None:
    assert make(name).parameters == (None if parameters is None else pytest.approx(parameters))


# One result


def test_one_result_is_drawn_with_its_baselines_and_joined_to_the_model() -> None:
    figure = layers_figure(make("tiny", uniform_ce=4.0, unigram_ce=2.5))
    lines = lines_of(figure)
    assert list(lines) == legend_of(figure) == ["Tuned lens", "Logit lens", "Uniform: 4", "Unigram: 2.5", "Model: 1"]
    np.testing.assert_array_equal(lines["Tuned lens"].get_xdata(), [0.25, 0.5, 0.75, 1.0])
    np.testing.assert_array_equal(lines["Tuned lens"].get_ydata(), [3.0, 2.0, 1.5, 1.0])
    np.testing.assert_array_equal(lines["Logit lens"].get_ydata(), [9.0, 6.0, 3.0, 1.0])
    for label, level in {"Uniform: 4": 4.0, "Unigram: 2.5": 2.5, "Model: 1": 1.0}.items():
        np.testing.assert_array_equal(lines[label].get_ydata(), [level, level])
    axes = axes_of(figure)
    assert axes.get_xlabel() == "Fraction of blocks applied"
    assert axes.get_ylabel() == "Cross-entropy (bits per byte)"
    assert axes.get_title(loc="left") == "tiny"


def test_a_curve_that_reaches_the_last_block_gets_no_further_point() -> None:
    curves = make(depth=np.array([1 / 3, 2 / 3, 1.0]))
    np.testing.assert_array_equal(lines_of(layers_figure(curves))["Tuned lens"].get_xdata(), curves.depth)


def test_absent_lens_and_baselines_are_not_drawn() -> None:
    assert list(lines_of(layers_figure(make(tuned_ce=None)))) == ["Logit lens", "Model: 1"]
    assert list(lines_of(layers_figure(make(), "tuned"))) == ["Tuned lens", "Model: 1"]
    with pytest.raises(DataError, match="m has no tuned lens"):
        layers_figure(make(tuned_ce=None), "tuned")


def test_y_is_logarithmic_only_where_the_range_needs_it() -> None:
    near, far = axes_of(layers_figure(make())), axes_of(layers_figure(make(scale=7.0)))
    assert near.get_yscale() == "linear"
    assert near.get_ylim()[0] == 0
    assert far.get_yscale() == "log"
    assert [f"{tick:g}" for tick in far.get_yticks()] == ["1", "2", "5", "10", "20", "50"]
    assert far.get_ylim()[0] < 1 < 63 < far.get_ylim()[1]


def test_a_broken_run_is_grey_and_named_and_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    broken = make("Mamba 160m", model=5.62, uniform_ce=3.63)
    assert broken.broken == "model 5.62 > uniform 3.63"
    assert make(model=3.62, uniform_ce=3.63).broken is None
    assert make(model=9.0).broken is None  # without the baseline nothing can be said

    figure = layers_figure(broken)
    red, green, blue = to_rgb(lines_of(figure)["Tuned lens"].get_color())
    assert red == green == blue
    assert legend_of(figure)[-1] == "Model: 5.62\n(broken: model 5.62\n> uniform 3.63)"

    sound = make("Mamba 130m", uniform_ce=3.63)
    figure = comparison_figure([broken, sound])
    label = "Mamba 160m\n(broken: model 5.62\n> uniform 3.63)"
    assert legend_of(figure)[-2:] == ["Mamba 130m", label]
    red, green, blue = to_rgb(lines_of(figure)[label].get_color())
    assert red == green == blue
    assert len(set(to_rgb(lines_of(figure)["Mamba 130m"].get_color()))) > 1

    with caplog.at_level(logging.WARNING, logger="lens_rnn"):
        warn_of_broken([sound, broken])
    (record,) = caplog.records
    assert "Mamba 160m" in record.getMessage()


# Several results


def test_comparison_draws_each_model_in_one_colour_tuned_solid_logit_dashed_and_thin() -> None:
    figure = comparison_figure([make("Mamba 1b", family="mamba"), make("RWKV 1b", family="rwkv", scale=3.0)])
    drawn = [line for line in axes_of(figure).lines if len(line.get_xdata())]
    solid, dashed = [[line for line in drawn if line.get_linestyle() == style] for style in ("-", "--")]
    assert [line.get_color() for line in solid] == [line.get_color() for line in dashed]
    assert solid[0].get_color() != solid[1].get_color()
    assert solid[0].get_marker() != solid[1].get_marker()
    assert max(line.get_linewidth() for line in dashed) < min(line.get_linewidth() for line in solid)
    np.testing.assert_array_equal(dashed[1].get_ydata(), [27.0, 18.0, 9.0, 1.0])
    assert legend_of(figure) == ["Tuned lens", "Logit lens", "Mamba 1b", "RWKV 1b"]


def brightness(line: Line2D) -> float:
    return float(np.dot(to_rgb(line.get_color()), [0.2126, 0.7152, 0.0722]))


def test_shades_run_from_small_and_light_to_large_and_dark_within_a_family() -> None:
    names = ["Mamba 2.8b", "Pythia 410m", "Mamba 130m", "Mamba 790m", "Pythia 70m"]
    results = [make(name, family={"M": "mamba", "P": "gpt_neox"}[name[0]]) for name in names]
    figure = comparison_figure(results, "tuned")
    assert legend_of(figure) == ["Mamba 130m", "Mamba 790m", "Mamba 2.8b", "Pythia 70m", "Pythia 410m"]
    lines = lines_of(figure)
    for family in ("Mamba", "Pythia"):
        lights = [brightness(line) for name, line in lines.items() if name.startswith(family)]
        assert lights == sorted(lights, reverse=True)
        assert min(-np.diff(lights)) > 0.1


def test_two_lenses_of_one_model_get_different_colours_in_the_given_order() -> None:
    figure = comparison_figure([make("a 130m", family="mamba"), make("b 130m", family="mamba"), make("c")], "tuned")
    assert legend_of(figure) == ["a 130m", "b 130m", "c"]
    assert len({line.get_color() for line in lines_of(figure).values()}) == 3


def test_one_model_a_family_keeps_its_colour_whatever_its_name() -> None:
    colours = [
        lines_of(comparison_figure([make(name, family="rwkv"), make("other", family="mamba")], "tuned"))[
            name
        ].get_color()
        for name in ("RWKV 7b", "tiny-rwkv4")
    ]
    assert colours[0] == colours[1]


def test_uniform_is_one_line_where_results_share_it_else_the_lowest_and_the_highest() -> None:
    same = comparison_figure([make("a", uniform_ce=3.63), make("b", uniform_ce=3.63), make("c")])
    np.testing.assert_array_equal(lines_of(same)["Uniform: 3.63"].get_ydata(), [3.63, 3.63])
    different = comparison_figure([make("a", uniform_ce=3.63), make("b", uniform_ce=4.5), make("c", uniform_ce=4.0)])
    levels = [line.get_ydata()[0] for line in axes_of(different).lines if line.get_linestyle() == ":"]
    assert levels == [3.63, 4.5]
    assert [label for label in legend_of(different) if "Uniform" in label] == ["Uniform: 3.63 to 4.5"]
    assert not any("Uniform" in label for label in legend_of(comparison_figure([make("a"), make("b")])))


def test_long_names_and_many_results_leave_room_for_the_curves() -> None:
    results = [make(f"a-model-whose-name/goes-on-and-on-and-on-without-end-{i}b") for i in range(20)]
    figure = comparison_figure(results)
    figure.draw_without_rendering()
    assert axes_of(figure).get_position().width > 0.5
    assert figure.legends[0].get_window_extent().y0 > 0


def test_comparison_of_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="no result to draw"):
        comparison_figure([])


# Files


def test_html_holds_all_it_needs_and_the_same_curves(tmp_path: Path) -> None:
    save_picture(comparison_picture([make("a", uniform_ce=4.0), make("b", tuned_ce=None)]), tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text()
    assert not re.search(r"<(script|link)[^>]*\b(src|href)=", page)
    text = page[page.rindex("Plotly.newPlot(") :]
    traces = json.JSONDecoder().raw_decode(text[text.index("[") :])[0]
    drawn = {(trace["name"], trace["line"]["dash"]): trace["y"] for trace in traces if trace["y"] != [None]}
    assert drawn == {
        ("Uniform: 4", "dot"): [4.0, 4.0],
        ("a", "solid"): [3.0, 2.0, 1.5, 1.0],
        ("a", "dash"): [9.0, 6.0, 3.0, 1.0],
        ("b", "dash"): [9.0, 6.0, 3.0, 1.0],
    }
    assert [trace["name"] for trace in traces if trace["showlegend"]] == [
        "Tuned lens",
        "Logit lens",
        "Uniform: 4",
        "a",
        "b",
    ]


def test_html_of_one_result_has_units_and_a_logarithmic_axis(tmp_path: Path) -> None:
    save_picture(layers_picture(make("</script>", scale=7.0)), tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text()
    assert page.count("</script>") == page.count("<script")
    assert '"type":"log"' in page
    assert "Cross-entropy (bits per byte)" in page
    assert "Fraction of blocks applied" in page
    low, high = json.loads(re.search(r'"type":"log","range":(\[[^]]*\])', page[page.rindex("Plotly.newPlot(") :])[1])
    assert low < 0 < np.log10(63) < high < 2  # plotly takes the exponents


# Published results


def test_published_results_have_the_known_figures(test_data: Path) -> None:
    folder = test_data / "published_results"
    mamba, rwkv, pythia = (read_curves(folder / name) for name in ("mamba/130m", "rwkv/169m", "pythia/160m"))
    assert [len(curves.depth) for curves in (mamba, rwkv, pythia)] == [23, 12, 12]
    assert mamba.depth[[0, -1]] == pytest.approx([1 / 24, 23 / 24])
    assert rwkv.depth[[0, -1]] == pytest.approx([1 / 12, 1.0])
    assert pythia.depth[[0, -1]] == pytest.approx([0.0, 11 / 12])
    assert (mamba.model_ce, mamba.logit_ce[0], mamba.tuned_ce[0]) == pytest.approx((0.884, 41.5, 5.94), rel=2e-3)
    assert rwkv.tuned_kl[-1] == pytest.approx(0, abs=1e-3)  # the last layer is the model itself
    assert rwkv.tuned_ce[-1] == pytest.approx(rwkv.model_ce, abs=1e-3)


def test_of_the_published_results_one_is_broken(test_data: Path) -> None:
    results = [read_curves(file) for file in sorted((test_data / "published_results").glob("*/*/" + FILE_NAME))]
    assert len(results) == 16
    assert [curves.name for curves in results if curves.broken] == ["Mamba 160m"]
    figure = comparison_figure(results)
    assert len([line for line in axes_of(figure).lines if len(line.get_xdata()) > 2]) == 32
    assert legend_of(figure)[2] == "Uniform: 3.63"
    assert axes_of(figure).get_yscale() == "log"


# The script


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs eval/plot_curves.py with these arguments; returns its exit code, what it printed, and what it said on
    standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["plot_curves.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        return stopped.value.code, *capsys.readouterr()

    return run


@pytest.fixture
def result(tmp_path: Path) -> Path:
    content = ours([8.0, 4.0], [3.0, 1.5], 1.0, [0.5, 1.0], uniform_ce=4.5, unigram_ce=2.5)
    return write(tmp_path / "first" / FILE_NAME, content).parent


def test_script_writes_what_it_was_asked_for(script: Callable, result: Path, tmp_path: Path) -> None:
    assert script(result, "--output", tmp_path / "new" / "a.PNG") == (0, f"wrote {tmp_path / 'new' / 'a.PNG'}\n", "")
    code, printed, _ = script(result, result / FILE_NAME, "--lens", "tuned", "--output", tmp_path / "folder")
    assert code == 0
    assert printed.splitlines() == [f"wrote {tmp_path / 'folder' / name}" for name in ("curves.png", "curves.html")]
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == ["curves.html", "curves.png"]
    assert (
        "(first)" in (tmp_path / "folder" / "curves.html").read_text()
    )  # two results of one model are told apart by their folders


def test_script_takes_labels(script: Callable, result: Path, tmp_path: Path) -> None:
    assert script(result, result, "--labels", "before", "after", "--output", tmp_path / "a.html")[0] == 0
    page = (tmp_path / "a.html").read_text()
    assert '"name":"before"' in page
    assert '"name":"after"' in page
    assert "tiny-mamba" not in page


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{result}", "--output", "a.pdf"], "--output a.pdf ends in '.pdf'; use .png, .html or a folder"),
        (["{result}", "--output", "a.png", "--labels", "a", "b"], "--labels has 2 names for 1 results"),
        (["{result}", "--output", "a.png", "--lens", "other"], "tuned"),
        (["--output", "a.png"], "there is no result to draw"),
        (["{result}/absent", "--output", "a.png"], "no result at"),
        (["llama:{result}", "--output", "a.png"], "unknown family 'llama'"),
        ([str(SCRIPT), "--output", "a.png"], "is not JSON"),
    ],
)
def test_script_refuses_in_one_line(
    script: Callable, result: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, printed, error = script(*(argument.format(result=result) for argument in arguments))
    assert code == 2
    assert printed == ""
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert said in error
    assert [path.name for path in tmp_path.iterdir()] == ["first"]
