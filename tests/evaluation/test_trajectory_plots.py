"""Heat maps of trajectories: both libraries show the cells, places and colours of the trajectory, and no text is taken
for markup."""

import re
from math import log, log10

from lens_rnn.errors import ConfigError, DataError
from lens_rnn.evaluation.trajectory import NO_TARGET, STATISTICS, Trajectory
from lens_rnn.evaluation.trajectory_picture import MOST_WORDS
from lens_rnn.evaluation.trajectory_plots import html_figure, png_figure

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

VOCAB = 1000
TEXTS = {
    0: " the",
    1: "<b>",
    2: "$x$",
    3: "\n        ",
    4: "internationalisation",
    5: "日本",
    6: "%{z}",
    7: "&amp;",
    8: "",
}


def text(token: int) -> str:
    return TEXTS.get(token % 50, f"t{token}")


def make_trajectory(tokens: int = 12, layers: int = 4, seed: int = 0) -> Trajectory:
    """Made-up figures; the last token has no target."""
    random, shape = np.random.default_rng(seed), (layers + 1, tokens)
    ce = random.uniform(0, 4, shape)
    ce[0, 0], ce[:, -1] = 55.0, np.nan
    rank = random.integers(0, VOCAB, shape)
    rank[:, -1] = NO_TARGET
    ids = np.arange(tokens)
    return Trajectory(
        layers=tuple(range(layers)),
        depths=np.arange(1, layers + 2) / (layers + 1),
        input_ids=ids,
        targets=np.append(ids[1:], NO_TARGET),
        entropy=random.uniform(0, 3, shape),
        ce=ce,
        kl=np.concatenate([random.uniform(0, 2, (layers, tokens)), np.zeros((1, tokens))]),
        rank=rank,
        top_ids=random.integers(0, VOCAB, (*shape, 20)),
        top_probabilities=np.sort(random.dirichlet(np.ones(20), shape))[..., ::-1],
        vocab_size=VOCAB,
    )


def words(figure: Figure) -> list[str]:
    return [label.get_text() for label in figure.axes[0].texts]


# --- what is shown ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("statistic", list(STATISTICS))
def test_both_libraries_show_the_statistic_of_each_cell(statistic: str) -> None:
    trajectory = make_trajectory()
    expected = trajectory.values(statistic)
    if statistic == "rank":
        expected = np.log10(1 + expected)
    page, picture = html_figure(trajectory, text, statistic), png_figure(trajectory, text, statistic)
    np.testing.assert_allclose(np.array(page.data[0].z, dtype=float), expected)
    mesh = picture.axes[0].collections[0]
    np.testing.assert_allclose(np.ma.filled(mesh.get_array().reshape(expected.shape), np.nan), expected)
    limits = {
        "entropy": trajectory.entropy.max(),
        "ce": log(VOCAB),
        "kl": trajectory.kl.max(),
        "rank": 3,
        "probability": 1,
    }
    assert (page.data[0].zmin, page.data[0].zmax) == mesh.get_clim() == (0, pytest.approx(limits[statistic]))
    dark = {
        place: sum(int(colour[i : i + 2], 16) for i in (1, 3, 5)) < 300 for place, colour in page.data[0].colorscale
    }
    assert dark[1.0] is (statistic == "probability"), "the darker, the surer"
    assert dark[0.0] is not dark[1.0]


def test_rows_are_layers_by_depth_from_below_and_columns_tokens() -> None:
    trajectory = make_trajectory()
    page, picture = html_figure(trajectory, text), png_figure(trajectory, text)
    rows = ["0.20", "0.40", "0.60", "0.80", "model"]
    assert list(page.layout.yaxis.ticktext) == rows
    assert list(page.layout.yaxis.tickvals) == [0, 1, 2, 3, 4]
    assert page.layout.yaxis.autorange is None, "upwards"
    axes = picture.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == rows
    assert axes.get_yticks().tolist() == [0.5, 1.5, 2.5, 3.5, 4.5]
    assert not axes.yaxis_inverted()
    assert [label.get_text() for label in axes.get_xticklabels()][:5] == ["␣the", "<b>", "$x$", "↵␣×8", "interna…"]
    assert page.layout.yaxis.title.text == axes.get_ylabel() == "Fraction of blocks applied"
    assert page.layout.xaxis.title.text == axes.get_xlabel() == "Token read"


def test_a_cell_shows_its_likeliest_token() -> None:
    trajectory = make_trajectory()
    trajectory.top_ids[1, 2, 0], trajectory.top_ids[0, 0, 0] = 4, 3
    shown = words(png_figure(trajectory, text))
    assert len(shown) == 5 * 12
    assert (shown[12 + 2], shown[0]) == ("interna…", "↵␣×8")
    page = html_figure(trajectory, text)
    assert (page.data[0].text[1][2], page.data[0].text[0][0]) == ("interna…", "↵␣×8")
    assert page.data[0].texttemplate == "%{text}"


def test_words_are_light_on_dark_and_dark_on_light() -> None:
    trajectory = make_trajectory()
    trajectory.entropy[:] = 0
    trajectory.entropy[2, 3] = 6
    colours = [label.get_color() for label in png_figure(trajectory, text).axes[0].texts]
    assert {i for i, colour in enumerate(colours) if colour != "#FFFFFF"} == {2 * 12 + 3}


def test_long_texts_have_cells_without_words_and_all_tokens_at_the_axis() -> None:
    trajectory = make_trajectory(tokens=MOST_WORDS + 1, layers=3)
    page = html_figure(trajectory, text)
    assert page.data[0].text is None
    assert len(page.layout.xaxis.ticktext) == MOST_WORDS + 1
    assert page.layout.xaxis.tickangle == -90
    assert len(page.data[0].customdata[0]) == MOST_WORDS + 1
    assert words(png_figure(trajectory, text)) == []
    long = make_trajectory(tokens=512, layers=3)
    assert 10 * 512 < html_figure(long, text).layout.width < 6000
    picture = png_figure(long, text)
    assert picture.get_size_inches()[0] < 23
    assert 100 < len(picture.axes[0].get_xticks()) < 200, "names that stay apart"


@pytest.mark.parametrize(("layers", "step"), [(1, 1), (16, 1), (17, 1), (18, 2), (35, 3), (64, 4), (99, 6)])
def test_so_many_rows_are_named_that_their_names_stay_apart(layers: int, step: int) -> None:
    page = html_figure(make_trajectory(tokens=2, layers=layers), text)
    places = list(page.layout.yaxis.tickvals)
    assert places[-1] == layers
    assert len(places) <= 18
    assert min(np.diff(places)) == step
    assert page.layout.yaxis.ticktext[-1] == "model"


def test_more_is_said_of_a_cell_that_is_pointed_at() -> None:
    trajectory = make_trajectory()
    trajectory.top_ids[2, 4, :3] = [3, 1, 2]
    trajectory.top_probabilities[2, 4, :3] = [0.5, 0.25, 0.0625]
    page = html_figure(trajectory, text, "rank")
    lines = page.data[0].customdata[2][4].split("<br>")
    assert lines[0] == "<b>layer 2</b> after token 4, internationalisation"
    assert lines[1] == "target 日本"
    assert lines[3:6] == [" 50.0 %  ↵␣×8", " 25.0 %  &lt;b&gt;", "  6.2 %  &#36;x&#36;"]
    assert len([line for line in lines if " %  " in line]) == 5
    assert f"Rank of the target: {trajectory.rank[2, 4]}" in lines
    assert f"Entropy: {trajectory.entropy[2, 4]:.4g} nats" in lines
    part = html_figure(trajectory, text, "rank", first=100).data[0].customdata[2][4]
    assert part.startswith("<b>layer 2</b> after token 104, "), "of a longer text"
    last = page.data[0].customdata[4][11]
    assert last.startswith("<b>model</b> after token 11")
    assert "target" not in last, "where there is none, nothing is said of it"
    assert page.data[0].hoverongaps
    assert page.data[0].hovertemplate == "%{customdata}<extra></extra>"


def test_ranks_are_named_on_the_bar() -> None:
    page, picture = html_figure(make_trajectory(), text, "rank"), png_figure(make_trajectory(), text, "rank")
    assert list(page.data[0].colorbar.ticktext) == ["0", "1", "10", "100"]
    assert page.data[0].colorbar.tickvals == pytest.approx([log10(1 + rank) for rank in (0, 1, 10, 100)])
    assert [label.get_text() for label in picture.axes[1].get_yticklabels()] == ["0", "1", "10", "100"]
    assert picture.axes[1].get_ylabel() == page.data[0].colorbar.title.text == "Rank of the target"


def test_a_difference_is_shown_around_0() -> None:
    a, b = make_trajectory(), make_trajectory(seed=1)
    page, picture = html_figure(a, text, "ce", minus=b), png_figure(a, text, "ce", minus=b)
    np.testing.assert_allclose(np.array(page.data[0].z, dtype=float), a.ce - b.ce)
    far = np.nanmax(np.abs(a.ce - b.ce))
    assert (page.data[0].zmin, page.data[0].zmax) == picture.axes[0].collections[0].get_clim() == (-far, far)
    assert page.data[0].colorbar.title.text == "Difference in cross-entropy of the target (nats)"
    with pytest.raises(DataError, match="no difference"):
        png_figure(a, text, minus=make_trajectory(tokens=3))


def test_nothing_but_gaps_and_nothing_but_zeros() -> None:
    for tokens, statistic in ((1, "ce"), (1, "rank"), (3, "kl")):
        trajectory = make_trajectory(tokens=tokens)
        trajectory.kl[:] = 0
        page, picture = html_figure(trajectory, text, statistic), png_figure(trajectory, text, statistic)
        assert page.data[0].zmax > 0
        FigureCanvasAgg(picture).draw()


def test_an_unknown_statistic() -> None:
    for draw in (html_figure, png_figure):
        with pytest.raises(ConfigError, match="no statistic 'loss'"):
            draw(make_trajectory(), text, "loss")


# --- text is text -----------------------------------------------------------------------------------------------------


def test_no_text_is_taken_for_markup() -> None:
    page = html_figure(make_trajectory(), text, title="<i>$a$ & b</i>")
    shown = [page.layout.title.text, *page.layout.xaxis.ticktext, *(cell for row in page.data[0].text for cell in row)]
    assert page.layout.title.text == "<b>&lt;i&gt;&#36;a&#36; &amp; b&lt;/i&gt;</b>"
    assert page.layout.xaxis.ticktext[1:3] == ("&lt;b&gt;", "&#36;x&#36;")
    assert page.layout.xaxis.ticktext[7] == "&amp;amp;"
    hovers = [cell for row in page.data[0].customdata for cell in row]
    assert not any("$" in cell for cell in [*shown, *hovers])
    assert {tag for cell in hovers for tag in re.findall(r"<[^>]*>", cell)} == {"<b>", "</b>", "<br>"}


def test_a_picture_draws_dollars_and_what_no_font_has(recwarn: pytest.WarningsRecorder) -> None:
    trajectory = make_trajectory()
    trajectory.top_ids[0, :2, 0] = [2, 5]
    picture = png_figure(trajectory, text, title="$\\frac{ 日")
    FigureCanvasAgg(picture).draw()
    assert words(picture)[:2] == ["$x$", "��"]
    assert picture.axes[0].get_title(loc="left") == "$\\frac{ �"
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]
