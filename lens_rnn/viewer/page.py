"""The page itself, in Gradio: what is on it, how it looks, and what asks for what."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from lens_rnn.errors import ConfigError
from lens_rnn.evaluation.trajectory import STATISTICS
from lens_rnn.viewer.answers import HINT, Answers
from lens_rnn.viewer.cache import MOST_IN_MATRIX, MOST_TOKENS, ViewerCache
from lens_rnn.viewer.settings import LENS, MEAN, ROLLOUT, VIEWS, Settings
from lens_rnn.viewer.view_pictures import UNREAD

import plotly

if TYPE_CHECKING:
    import gradio

HERE = Path(__file__).parent
PLOTLY = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
INTRODUCTION = """# What the model believes, layer by layer
At each layer a lens reads what the model would say next. A cell shows the likeliest token."""

MOST_WAITING = 64
"""Requests in the queue; more are told to come again."""
MOST_AT_ONCE = 8
"""Requests served at once: they wait for the model in turn, and draw their pictures side by side."""


def build_page(cache: ViewerCache, text: str) -> "gradio.Blocks":
    """The page, not yet served; it opens on `text`. Raises ConfigError without Gradio, or for a text that cannot be
    used."""
    gr = _gradio()
    model, choice = next(iter(cache.choices.items()))
    answers = Answers(gr, cache, Settings(model=model, lens=choice.lens_names[0], text=text))
    with gr.Blocks(title="lens-rnn", analytics_enabled=False) as page:
        gr.Markdown(INTRODUCTION)
        tabs, fields = _fields(gr, cache, answers.opening)
        button = gr.Button("Run", variant="primary", elem_id="run")
        message = gr.HTML(
            elem_id="message",
            html_template="<div role='alert'>${value}</div>",
            js_on_load=None,
            apply_default_css=False,
        )
        with gr.Row(elem_id="maps"):
            maps = [
                _heat_map(gr, "first", "Heat map"),
                _heat_map(gr, "second", "Heat map of the second text", visible="hidden"),
            ]
        tables, relevance = _live(gr, "cell", HINT), _live(gr, "relevance", "")
        matrix = _plot(
            gr,
            "matrix",
            "matrix.js",
            "Hidden attention: arrow keys choose a cell",
            after="<p class='said' aria-live='polite'></p>",
        )
        link = _link(gr)
        _connect(gr, page, answers, tabs, fields, button, [*maps, tables, relevance, matrix, fields[-1], link, message])
    return page


def launch_page(page: "gradio.Blocks", **options: Any) -> Any:
    """Serve the page. options are those of Gradio's launch. The page fetches nothing from elsewhere."""
    gr = _gradio()
    theme = gr.themes.Default(
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace"],
    )
    theme.set(block_info_text_color="*neutral_600", block_info_text_color_dark="*neutral_300")
    css = (HERE / "page.css").read_text(encoding="utf-8")
    page.queue(max_size=MOST_WAITING)
    return page.launch(theme=theme, css=css, footer_links=[], allowed_paths=[str(PLOTLY)], ssr_mode=False, **options)


def _gradio() -> Any:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when it is imported
    try:
        import gradio
    except ImportError:
        raise ConfigError("the web page needs gradio, which is not installed; pip install 'lens-rnn[viewer]'") from None
    return gradio


def _fields(gr: Any, cache: ViewerCache, opening: Settings) -> tuple[Any, list[Any]]:
    """The tabs, and what can be set, in the order of answers.FIELDS."""
    wide = {"lines": 1, "max_lines": 12, "min_width": 300}
    statistics = [(about.title, name) for name, about in STATISTICS.items()]
    with gr.Row():
        text = gr.Textbox(
            opening.text,
            label="Text",
            info=f"At most {MOST_TOKENS} tokens. Enter runs, Shift+Enter is a new line.",
            **wide,
        )
        second = gr.Textbox(
            "", label="Second text", info="Shown beside the first. Leave it empty for none.", elem_id="beside", **wide
        )
    # Gradio's lists that drop down stay open when Tab leaves them; radio buttons do not.
    with gr.Row():
        model = gr.Radio(list(cache.choices), value=opening.model, label="Model", min_width=300)
        lens = gr.Radio(cache.choice(opening.model).lens_names, value=opening.lens, label="Lens", min_width=300)
    with gr.Tabs(selected=opening.tab) as tabs:
        with gr.Tab("Lens", id=LENS, render_children=True), gr.Row():
            statistic = gr.Radio(statistics, value=opening.statistic, label="Colours", min_width=300, scale=4)
            stride = gr.Number(opening.stride, label="Layer stride", precision=0, minimum=1, min_width=120)
            tokens = gr.Textbox("", label="Tokens shown", placeholder="all, or 10-40", max_lines=1, min_width=120)
        with gr.Tab("Views", id=VIEWS, elem_id="views", render_children=True):
            token = gr.Radio(
                UNREAD, value="", label="Relevance for the logit of", info="The likeliest tokens after the text."
            )
            with gr.Row():
                at = gr.Textbox(
                    "", label="Read by the lens at layer", info="Empty for the model's own.", max_lines=1, min_width=120
                )
                attention = gr.Textbox(
                    opening.attention,
                    label="Hidden attention of layer",
                    info=f"A layer, {MEAN} or {ROLLOUT}. At most {MOST_IN_MATRIX} tokens.",
                    max_lines=1,
                    min_width=120,
                )
    tab = gr.Textbox("", visible="hidden")  # until the link has been read
    return tabs, [model, lens, text, second, statistic, stride, tokens, tab, attention, at, token]


def _live(gr: Any, name: str, value: str) -> Any:
    """Text that a screen reader tells of when it changes."""
    template = "<div aria-live='polite'>${value}</div>"
    return gr.HTML(value, elem_id=name, html_template=template, js_on_load=None, apply_default_css=False)


def _heat_map(gr: Any, name: str, label: str, **options: Any) -> Any:
    """A heat map. Its value is a picture of pictures.heat_map; its event `cell` brings query and cell."""
    return _plot(gr, name, "heat_map.js", f"{label}: arrow keys choose a cell", **options)


def _plot(gr: Any, name: str, script: str, label: str, after: str = "", **options: Any) -> Any:
    """A picture that `script` draws, in a frame that it scrolls in, and what comes after it."""
    return gr.HTML(
        "",
        elem_id=name,
        html_template=f"<div class='heat-map' tabindex='0' role='application' aria-label='{label}'><div "
        f"class='plot'></div></div>{after}",
        js_on_load=(HERE / script).read_text(encoding="utf-8"),
        head=f'<script src="gradio_api/file={quote(PLOTLY.as_posix())}"></script>',
        **options,
    )


def _link(gr: Any) -> Any:
    """A link whose value is the query; the address bar follows it."""
    return gr.HTML(
        "",
        elem_id="link",
        html_template="<a href='?${value}'>Permanent link to what is shown</a>",
        js_on_load='watch("value", () => { if (props.value) history.replaceState(null, "", `?${props.value}`); });',
    )


def _connect(gr: Any, page: Any, answers: Answers, tabs: Any, fields: list[Any], button: Any, shown: list[Any]) -> None:
    """Say what asks for what. shown: the parts of answers.Shown."""
    first_map, second_map, tables, *_, link, message = shown
    model, lens, text, second, statistic, stride, tokens, tab, attention, at, token = fields
    served = {"trigger_mode": "always_last", "concurrency_id": "read", "concurrency_limit": MOST_AT_ONCE}

    def explain(event: gr.EventData) -> tuple[str, str, str]:
        return answers.explain(str(event.query), str(event.cell))

    asked = [button.click, text.submit, second.submit, tokens.submit, stride.submit, lens.input, statistic.input]
    asked += [attention.submit, at.submit, token.input]
    gr.on(asked, answers.show, [*fields, link], shown, api_name="show", **served)
    other_model = model.input(answers.lenses, model, lens, api_visibility="private")
    other_model.then(answers.show, [*fields, link], shown, api_visibility="private", **served)
    for choice in tabs.children:
        opened = choice.select(None, tab, tab, js=f"tab => tab && '{choice.id}'", api_visibility="private")
        opened.then(answers.open, [*fields, link], shown, api_visibility="private", **served)
    for heat_map in (first_map, second_map):
        heat_map.cell(
            explain, None, [tables, link, message], api_visibility="private", show_progress="hidden", **served
        )
    query = gr.Textbox(visible=False)
    page.load(
        answers.restore,
        query,
        [tabs, *fields[:-1], *shown],
        js="() => window.location.search",
        api_visibility="private",
        **served,
    )
