"""What the page answers when it is opened or used: values for its fields, pictures, tables, and messages where
something cannot be done."""

from collections.abc import Callable
from dataclasses import asdict, replace
from html import escape
from typing import Any, get_args

from lens_rnn.errors import ConfigError, LensRNNError
from lens_rnn.viewer.cache import ViewerCache
from lens_rnn.viewer.pictures import cell_tables, heat_map
from lens_rnn.viewer.settings import LENS, Settings
from lens_rnn.viewer.view_pictures import UNREAD, matrix, relevance_html, tokens_to_pick

FIELDS = ("model", "lens", "text", "second", "statistic", "stride", "tokens", "tab", "attention", "at", "token")
"""The settings that the page has a field for, in its order. The last one is set with what is shown, as that says what
it can be."""
CELL_OF = ("model", "lens", "text", "second", "stride", "tokens")
TOKEN_OF = ("model", "lens", "text", "at")
"""What a chosen cell, and a picked token, belong to: they stay while these stay."""
HINT = "<p>Choose a cell of the heat map, by a click or by the arrow keys, for its likeliest tokens.</p>"

Part = tuple[Any, Any, str, str, str, Any]
"""Heat map, second heat map, tables of the cell, relevance, matrix, tokens to pick from: what a tab does not show is
empty."""
Shown = tuple[Any, Any, str, str, str, Any, str, str]
"""A part, query, message."""


class Answers:
    """Every answer is made from what is asked alone, so users do not see each other's."""

    def __init__(self, gradio: Any, cache: ViewerCache, opening: Settings) -> None:
        self._gradio = gradio
        self._cache = cache
        self.opening = opening
        """What the page opens on, and what a link leaves out."""

    def show(self, *values: Any) -> Shown:
        """What the fields say, in the order of FIELDS, and then the query shown before."""
        return self._shown(lambda: self._settings(values[:-1], values[-1]))

    def open(self, *values: Any) -> tuple[Any, ...]:
        """As `show`, if the open tab is not the one that is shown: Gradio tells of the tab that a page or a link opens
        on, too."""
        tab, before = values[FIELDS.index("tab")], values[-1]
        if not tab or (before and self._from_query(before).tab == tab):
            return (self._gradio.skip(),) * len(get_args(Shown))
        return self.show(*values)

    def restore(self, query: str) -> tuple[Any, ...]:
        """The open tab and the fields as a link says, the last one with what they show."""
        try:
            settings = self._from_query(query)
            names = self._cache.choice(settings.model).lens_names
        except LensRNNError as error:
            return self._gradio.skip(), *(getattr(self.opening, name) for name in FIELDS[:-1]), *self._nothing(error)
        fields = [getattr(settings, name) for name in FIELDS[:-1]]
        fields[FIELDS.index("lens")] = self._gradio.Radio(
            names, value=settings.lens if settings.lens in names else None
        )
        return self._gradio.Tabs(selected=settings.tab), *fields, *self._shown(lambda: settings)

    def explain(self, query: str, cell: str) -> tuple[str, str, str]:
        """Tables, query and message for a cell of the picture that `query` describes."""
        try:
            settings = replace(self._from_query(query), cell=cell)
            return cell_tables(self._cache, settings), settings.query(), ""
        except LensRNNError as error:
            return "", query, _message(error)

    def lenses(self, model: str) -> Any:
        """The choice of lens for another model."""
        names = self._cache.choice(model).lens_names
        return self._gradio.Radio(names, value=names[0])

    def _settings(self, fields: tuple[Any, ...], before: str | None) -> Settings:
        """What the fields say, with the chosen cell and the picked token if they still belong to it."""
        given = dict(zip(FIELDS, fields, strict=True))
        if given["stride"] is None:
            raise ConfigError("the layer stride is empty; give a whole number of at least 1")
        settings = Settings(**given | {"tab": given["tab"] or self.opening.tab, "token": given["token"] or ""})
        earlier = self._from_query(before or "")
        cell = earlier.cell if settings.same(earlier, CELL_OF) else ""
        return replace(settings, cell=cell, token=settings.token if settings.same(earlier, TOKEN_OF) else "")

    def _from_query(self, query: str) -> Settings:
        return Settings.from_query(query, {name: str(value) for name, value in asdict(self.opening).items()})

    def _shown(self, wanted: Callable[[], Settings]) -> Shown:
        try:
            settings = wanted()
            part = self._heat_maps(settings) if settings.tab == LENS else self._views(settings)
        except LensRNNError as error:
            return self._nothing(error)
        return *part, settings.query(), ""

    def _heat_maps(self, settings: Settings) -> Part:
        pictures = [heat_map(self._cache, settings, side) for side in range(len(settings.texts))]
        tables = cell_tables(self._cache, settings) if settings.chosen else HINT
        return pictures[0], self._second(*pictures[1:]), tables, "", "", self._tokens(settings, explained=False)

    def _views(self, settings: Settings) -> Part:
        """Both views, or what is in the way of one: a model may have the other alone."""
        self._cache.text(settings.model)  # a model that is not there is no trouble of a view
        picture, explained = "", True
        try:
            text = relevance_html(self._cache, settings)
        except LensRNNError as error:
            text, explained = _message(error), False
        try:
            picture = matrix(self._cache, settings)
        except LensRNNError as error:
            text += _message(error)
        return "", self._second(), "", text, picture, self._tokens(settings, explained)

    def _tokens(self, settings: Settings, explained: bool) -> Any:
        return self._gradio.Radio(tokens_to_pick(self._cache, settings, explained), value=settings.token)

    def _nothing(self, error: LensRNNError) -> Shown:
        return "", self._second(), "", "", "", self._gradio.Radio(UNREAD, value=""), "", _message(error)

    def _second(self, picture: str = "") -> Any:
        return self._gradio.HTML(picture, visible=True if picture else "hidden")


def _message(error: LensRNNError) -> str:
    words = str(error)
    return f"<p>{escape(words[:1].upper() + words[1:])}.</p>"
