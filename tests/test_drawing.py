"""The drawing base: files that are whole and the same each time, pages that need nothing, text that is only text."""

import re
from pathlib import Path

from lens_rnn.drawing import BLACK, drawable, ink_on, label_bar, markup, new_figure, save_page, save_picture, save_png

import plotly.graph_objects as go
import pytest
from matplotlib import image
from matplotlib.figure import Figure


class Both:
    """A picture of both libraries."""

    def matplotlib(self) -> Figure:
        figure = new_figure(4, 3, "$a$ _b^")
        axes = figure.add_subplot()
        cells = axes.pcolormesh([[0.0, 1.0]])
        label_bar(figure.colorbar(cells, ax=axes), "nats", [0, 1], ["none", "all"])
        return figure

    def plotly(self) -> go.Figure:
        return go.Figure(go.Scatter(x=[0, 1], y=[1, 2], name="</script>"))


def test_a_png_is_the_same_each_time_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    for name in ("one.png", "two.PNG"):
        save_picture(Both(), tmp_path / "new" / name)
    one, two = (tmp_path / "new" / name for name in ("one.png", "two.PNG"))
    assert one.read_bytes() == two.read_bytes()
    assert b"Software" not in one.read_bytes()
    assert image.imread(one).shape[:2] == (600, 800)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["one.png", "two.PNG"]


def test_a_failed_write_leaves_the_old_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Figure, file: object, **_: object) -> None:
        file.write(b"half")
        raise OSError("disk full")

    (tmp_path / "a.png").write_text("old")
    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        save_png(new_figure(1, 1), tmp_path / "a.png")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert (tmp_path / "a.png").read_text() == "old"


def test_a_page_stands_by_itself(tmp_path: Path) -> None:
    save_picture(Both(), tmp_path / "a.html")
    save_page(Both().plotly(), tmp_path / "b.html", "<h3>above</h3>")
    plain, under = ((tmp_path / name).read_text() for name in ("a.html", "b.html"))
    assert plain.startswith("<!DOCTYPE html>")
    assert under == plain.replace('margin:24px">', 'margin:24px"><h3>above</h3>', 1)
    assert plain.count("Plotly.newPlot(") == 1
    assert plain.count("</script>") == plain.count("<script")
    assert not re.search(r"<(script|link)[^>]*\b(src|href)=", plain)


def test_a_bar_says_what_its_colours_are() -> None:
    figure = Both().matplotlib()
    bar = figure.axes[1]
    assert (bar.get_ylabel(), [label.get_text() for label in bar.get_yticklabels()]) == ("nats", ["none", "all"])
    assert figure.get_suptitle() == "$a$ _b^"


def test_text_is_text() -> None:
    assert markup('<b>$x$ & "y"') == '&lt;b&gt;&#36;x&#36; &amp; "y"'
    assert drawable("a␣日é") == "a␣�é"


@pytest.mark.parametrize(("ground", "ink"), [("white", BLACK), ("#F4F4F4", BLACK), ((0, 0, 0.5, 1), "#FFFFFF")])
def test_ink_is_seen_on_its_ground(ground: object, ink: str) -> None:
    assert ink_on(ground) == ink
