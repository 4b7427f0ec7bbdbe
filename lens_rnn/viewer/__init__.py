"""The web page: what a model believes at each layer and token of a text, in a browser."""

from lens_rnn.viewer.page import build_page, launch_page
from lens_rnn.viewer.readings import LOGIT, Choice, Readings, shipped
from lens_rnn.viewer.settings import Cell, Settings

__all__ = ["LOGIT", "Cell", "Choice", "Readings", "Settings", "build_page", "launch_page", "shipped"]
