"""The web page: what a model believes at each layer and token of a text, in a browser."""

from lens_rnn.viewer.cache import LOGIT, Choice, ViewerCache, shipped
from lens_rnn.viewer.page import build_page, launch_page
from lens_rnn.viewer.settings import Cell, Settings

__all__ = ["LOGIT", "Cell", "Choice", "Settings", "ViewerCache", "build_page", "launch_page", "shipped"]
