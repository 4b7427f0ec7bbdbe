"""Lenses: readings of hidden states as predictions of the next token.

logit       unembed(h)                        nothing is fitted
tuned       unembed(h + W h + b)              fitted to the model's own prediction (`lens_rnn.fitting.fit`)
low-rank    the same with W of rank r         compressed from a tuned lens (`lens_rnn.fitting.low_rank`)
jacobian    unembed(J h)                      what a change of h does to later predictions (`fitting.jacobian`)
"""

from lens_rnn.lens.base import Lens
from lens_rnn.lens.jacobian import JacobianLens
from lens_rnn.lens.kinds import KINDS, kind_at, open_lens
from lens_rnn.lens.logit import LogitLens
from lens_rnn.lens.low_rank import LowRankLens
from lens_rnn.lens.tuned import TunedLens
from lens_rnn.lens.unembedding import Unembedding, stock_attaches

__all__ = [
    "KINDS",
    "JacobianLens",
    "Lens",
    "LogitLens",
    "LowRankLens",
    "TunedLens",
    "Unembedding",
    "kind_at",
    "open_lens",
    "stock_attaches",
]
