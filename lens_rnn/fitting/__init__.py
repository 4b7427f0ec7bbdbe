"""Fitting a tuned lens."""

from lens_rnn.checkpoints import Checkpoints
from lens_rnn.fitting.config import FitConfig
from lens_rnn.fitting.fit import FitResult, StepReport, fit
from lens_rnn.fitting.objective import FusedObjective
from lens_rnn.fitting.plan import Plan, make_plan

__all__ = ["Checkpoints", "FitConfig", "FitResult", "FusedObjective", "Plan", "StepReport", "fit", "make_plan"]
