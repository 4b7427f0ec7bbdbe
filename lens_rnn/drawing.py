"""What all pictures share: colours and fonts, figures without pyplot's global state, files, and text made safe for
either library."""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from lens_rnn.files import write_atomically, write_text

import plotly.graph_objects as go
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colorbar import Colorbar
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font

BLACK, GREY, PALE, GRID = "#1A1A1A", "#6E6E6E", "#B4B4B4", "#E4E4E4"
SURE_TO_UNSURE = ("#08306B", "#1663AA", "#5FA8D3", "#B3D5E9", "#E1ECF7", "#F8FBFE")
LESS_TO_MORE = ("#08519C", "#6BAED6", "#F4F4F4", "#FB9A68", "#B5330A")
DOTS_PER_INCH = 200  # 1600 pixels for a usual picture: sharp at the 800 that a README shows
FONTS = ["DejaVu Sans Mono", "DejaVu Sans"]  # of tokens in a PNG; matplotlib brings both
MONOSPACED = "DejaVu Sans Mono, Menlo, Consolas, monospace"  # of tokens on a page
SANS = "Helvetica, Arial, sans-serif"


class Drawable(Protocol):
    """Something laid out that both libraries draw."""

    def matplotlib(self) -> Figure: ...

    def plotly(self) -> go.Figure: ...


def new_figure(width: float, height: float, title: str = "", title_size: float = 12) -> Figure:
    """An empty figure of so many inches, with a title over all of it; drawn by Agg, wherever it runs."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    if title:
        # a dollar sign in a name is a dollar sign
        figure.suptitle(title, fontsize=title_size, fontweight="bold", x=0.01, ha="left").set_parse_math(False)
    return figure


def label_bar(bar: Colorbar, title: str, ticks: Sequence[float] = (), names: Sequence[str] = ()) -> None:
    """What a bar of colours says: its title and, where the numbers do not say it, its ticks and their names."""
    bar.set_label(title, fontsize=9)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, length=2, color=GREY)
    if len(ticks):
        bar.set_ticks(list(ticks), labels=list(names))


def page_look(title: str) -> dict[str, Any]:
    """The layout that plotly's pictures of tokens share."""
    return {
        "title": {"text": f"<b>{markup(title)}</b>", "x": 0, "xref": "paper", "font": {"size": 16}},
        "template": "none",
        "font": {"family": SANS, "size": 13, "color": BLACK},
        "hoverlabel": {
            "align": "left",
            "bgcolor": "white",
            "bordercolor": GREY,
            "font": {"family": "monospace", "size": 13, "color": BLACK},
        },
    }


def page_bar(title: str, ticks: Sequence[float] = (), names: Sequence[str] = ()) -> dict[str, Any]:
    """`label_bar` for plotly."""
    bar = {"title": {"text": markup(title), "side": "right"}, "thickness": 14, "outlinewidth": 0}
    return bar | ({"tickvals": list(ticks), "ticktext": list(names)} if len(ticks) else {})


def ink_on(ground: Any) -> str:
    """White on a dark ground, black on a light one: any colour that matplotlib knows."""
    red, green, blue = to_rgb(ground)
    return "#FFFFFF" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.55 else BLACK


def markup(text: str) -> str:
    """`text` for plotly, which takes < for the start of a tag and may take $ for the start of a formula."""
    return html.escape(text, quote=False).replace("$", "&#36;")


def drawable(text: str) -> str:
    """`text` for matplotlib, with � for what none of FONTS has."""
    fonts = [get_font(findfont(FontProperties(family=family))) for family in FONTS]
    return "".join(c if any(font.get_char_index(ord(c)) for font in fonts) else "�" for c in text)


def save_png(figure: Figure, path: Path) -> None:
    """Write a matplotlib figure. Without its version stamp the same figure gives the same bytes."""
    write_atomically(
        path, lambda file: figure.savefig(file, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    )


def save_page(figure: go.Figure, path: Path, above: str = "") -> None:
    """Write a plotly figure, under some HTML, as a page that holds all it needs and works offline (about 5 MB)."""
    body = figure.to_html(
        include_plotlyjs=True,
        full_html=False,
        div_id="lens-rnn",
        config={"displaylogo": False},
        default_height="90vh",
    )
    head = '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"></head>'
    write_text(path, f'{head}<body style="font-family:{SANS};margin:24px">{above}{body}</body></html>\n')


def save_picture(picture: Drawable, path: Path) -> None:
    """Write a picture as a page where the path ends in .html, else as a PNG."""
    if path.suffix.lower() == ".html":
        save_page(picture.plotly(), path)
    else:
        save_png(picture.matplotlib(), path)
