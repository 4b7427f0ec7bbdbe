"""Tuned lenses for recurrent language models."""

import os

# torch and numba each have a pool of OpenMP threads. By default the idle threads of one spin and take the cores from
# the other, which slows a fit on a CPU. OpenMP reads this once, when torch is imported: import lens_rnn first.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
