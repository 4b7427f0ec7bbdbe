"""Maps of patching: a panel a kind, on one scale, with what is not there left out."""

from lens_rnn.views.patching import CONVOLUTION, RECURRENT, RESIDUAL, Patching
from lens_rnn.views.patching_pictures import patching_html, patching_png

import numpy as np

TOKENS, LAYERS = 5, 3


def made(pairs: int) -> Patching:
    random = np.random.default_rng(0)
    shares = {kind: random.uniform(-0.2, 1, (pairs, LAYERS, TOKENS)) for kind in (RESIDUAL, CONVOLUTION, RECURRENT)}
    shares[CONVOLUTION][:, 1] = np.nan
    ends = np.ones(pairs)
    return Patching(shares=shares, clean=ends, corrupted=-ends, depth=(0.3, 0.6, 1.0))


def test_a_panel_a_kind() -> None:
    names = ["a", " b", "\n", "$x$", "<b>"]
    figure = patching_png(made(1), names, "a title")
    panels = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title(loc="left") for axes in panels] == [RESIDUAL, CONVOLUTION, RECURRENT]
    for axes, kind in zip(panels, (RESIDUAL, CONVOLUTION, RECURRENT), strict=True):
        np.testing.assert_allclose(axes.images[0].get_array().filled(np.nan), made(1).mean(kind))


def test_the_page_has_intervals_where_there_are_several_pairs() -> None:
    page = patching_html(made(4), list("abcde"), "a title")
    residual, convolution, _ = page.data
    assert " to " in residual.hovertext[0][0]
    assert [*convolution.z[1]] == [None] * TOKENS
    assert convolution.hovertext[1][0] == ""
    assert patching_html(made(1), list("abcde"), "a title").data[0].hovertext[0][0] == ""
