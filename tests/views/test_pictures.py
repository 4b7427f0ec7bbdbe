"""Pictures of views: both libraries show the numbers, long texts are grouped, and no token is taken for markup."""

from lens_rnn.views.attention import HiddenAttention, rollout
from lens_rnn.views.attention_pictures import MOST_PANELS, attention_html, attention_panels, attention_png
from lens_rnn.views.axes import MOST_CELLS
from lens_rnn.views.relevance import Explained, Relevance
from lens_rnn.views.relevance_pictures import layer_map, relevance_html, relevance_png, relevance_strip
from lens_rnn.views.strip import Strip, rooted

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb

NAMES = [
    " the",
    "<b>",
    "$x$",
    ":\n        ",
    "internationalisation of everything there is",
    "日本",
    "%{z}",
    "&amp;",
    "",
]


def names(tokens: int) -> list[str]:
    return [NAMES[i % len(NAMES)] if i < 20 else f"t{i}" for i in range(tokens)]


def make_attention(tokens: int, layers: int, signed: bool = False) -> HiddenAttention:
    matrices = torch.randn(layers, tokens, tokens, generator=torch.Generator().manual_seed(0)).tril()
    shown = matrices if signed else matrices.abs()
    shape = {"layers": tuple(range(layers)), "kinds": ("recurrence",) * layers, "n_layers": max(2, layers)}
    return HiddenAttention(**shape, matrices=shown, unit="channel", units=None, signed=signed)


def make_relevance(tokens: int, layers: int = 3) -> Relevance:
    rows = torch.randn(layers + 1, tokens, generator=torch.Generator().manual_seed(0))
    explained = Explained(token=1, position=tokens - 1)
    return Relevance(
        explained=explained, method="lrp", value=1.0, tokens=rows[0], layers=tuple(range(layers)), by_layer=rows[1:]
    )


# --- hidden attention -------------------------------------------------------------------------------------------------


def test_panels_are_shares_and_the_rollout() -> None:
    attention = make_attention(12, 3)
    panels = attention_panels(attention)
    assert list(panels) == ["layer 0", "layer 1", "layer 2", "rollout"]
    matrix = attention.matrices[1].numpy()
    np.testing.assert_allclose(np.nan_to_num(panels["layer 1"]), matrix / matrix.sum(1, keepdims=True), rtol=1e-6)
    np.testing.assert_allclose(np.nan_to_num(panels["rollout"]), rollout(attention.matrices).numpy(), rtol=1e-6)
    assert np.isnan(panels["layer 0"][0, 1:]).all()
    assert "rollout" not in attention_panels(make_attention(12, 3, signed=True))  # which has no product of shares
    assert "rollout" not in attention_panels(make_attention(12, 1))  # of two: the other one would be missing


@pytest.mark.parametrize("tokens", [MOST_CELLS + 1, 3 * MOST_CELLS - 5])
def test_long_texts_are_grouped(tokens: int) -> None:
    panel = attention_panels(make_attention(tokens, 1))["layer 0"]
    assert len(panel) <= MOST_CELLS
    np.testing.assert_allclose(np.nansum(panel, axis=1), 1, rtol=1e-5)  # each row is still all that its tokens read
    found = make_relevance(tokens)
    assert layer_map(found).shape == (4, len(panel))
    np.testing.assert_allclose(layer_map(found).sum(1)[1:], found.by_layer.sum(1), rtol=1e-3)


def test_the_page_has_every_layer_and_the_numbers() -> None:
    attention = make_attention(12, 3)
    figure = attention_html(attention, names(12), "a <title>")
    assert [trace.visible for trace in figure.data] == [False, False, False, True]
    assert [step.label for step in figure.layout.sliders[0].steps] == ["layer 0", "layer 1", "layer 2", "rollout"]
    assert figure.layout.sliders[0].steps[1].args[0]["visible"] == [False, True, False, False]
    panel = attention_panels(attention)["layer 1"]
    shown = np.array([[np.nan if x is None else x for x in row] for row in figure.data[1].customdata], float)
    np.testing.assert_allclose(shown, panel, atol=1e-5)
    places = np.array([[np.nan if x is None else x for x in row] for row in figure.data[1].z], float)
    np.testing.assert_allclose(places, np.sqrt(panel), atol=1e-5)
    assert figure.layout.title.text == "<b>a &lt;title&gt;</b>"
    assert "&lt;b&gt;" in figure.layout.xaxis.ticktext
    assert not any("<b>" in text or "$" in text for text in (*figure.layout.xaxis.ticktext, *figure.data[0].text[0]))


@pytest.mark.parametrize(("layers", "panels"), [(1, 1), (3, 4), (40, MOST_PANELS + 1)])
def test_the_png_has_panels_of_some_layers(layers: int, panels: int) -> None:
    attention = make_attention(14, layers)
    figure = attention_png(attention, names(14), "$a$")
    titles = [axes.get_title(loc="left") for axes in figure.axes if axes.images]
    assert len(titles) == panels
    assert titles[0] == "layer 0"
    if layers > 1:
        assert titles[-2:] == [f"layer {layers - 1}", "rollout"]
    shown = figure.axes[0].images[0].get_array()
    np.testing.assert_allclose(np.ma.filled(shown, np.nan), np.sqrt(attention_panels(attention)["layer 0"]), rtol=1e-5)


# --- relevance --------------------------------------------------------------------------------------------------------


def test_relevance_is_shown_by_layer_and_token() -> None:
    found = make_relevance(12)
    page, picture = relevance_html(found, names(12), "t"), relevance_png(found, names(12), "t")
    matrix = np.concatenate([found.tokens[None], found.by_layer])
    np.testing.assert_allclose(np.array(page.data[0].customdata), matrix, rtol=1e-5)
    far = np.abs(matrix).max()
    np.testing.assert_allclose(np.array(page.data[0].z), rooted(matrix, far), rtol=1e-5)
    assert list(page.data[0].y) == ["embeddings", "layer 0", "layer 1", "layer 2"]
    below = next(axes for axes in picture.axes if axes.images)
    np.testing.assert_allclose(np.array(below.images[0].get_array()), rooted(matrix, far), rtol=1e-5)
    assert relevance_strip(found, names(12)).far == pytest.approx(far)


def test_a_strip_says_which_tokens_add_and_which_take_away() -> None:
    strip = Strip((" a", "b", "c", "d"), np.array([2.0, -2.0, 0.0, 0.02]), 2.0)
    red, blue, grey, faint = (np.array(to_rgb(strip.colour(i))) for i in range(4))
    assert red[0] > red[2] + 0.3
    assert blue[2] > blue[0] + 0.3
    assert np.ptp(grey) < 0.02
    assert 0.05 < np.ptp(faint) < np.ptp(red)
    np.testing.assert_allclose(rooted(np.array([-1.0, 0, 0.25]), 1.0), [-1, 0, 0.5])
    page = strip.html("<title>", mark=1)
    assert "&lt;title&gt;" in page
    assert page.count("outline:2px") == 1
    assert 'title="token 1, b: -2.0000"' in page


def test_a_strip_breaks_lines_and_takes_nothing_for_markup() -> None:
    strip = Strip(tuple(NAMES), np.zeros(len(NAMES)), 1.0)
    assert strip.lines(30) == [[0, 1, 2, 3], [4, 5, 6], [7, 8]]
    assert strip.words()[0] == " the"
    assert strip.words()[3] == ":↵␣×8"
    assert len(strip.words()[4]) == 24
    assert strip.lines(1)[-1] == [8]  # a token that is wider than the line has one of its own
    assert Strip(("a\n",), np.zeros(1), 1.0).lines() == [[0]]
    page = strip.html("")
    assert "<b>" not in page
    assert "&lt;b&gt;" in page
    assert "&amp;amp;" in page
