"""Steering: contrastive activation addition on the residual stream and on the recurrent state.

pairs (questions with two answers, or texts that differ)  →  vectors, a layer each  →  steer, steer_state  →  answers,
beside controls
"""

from lens_rnn.steering.apply import advance_steered, steer, steer_state
from lens_rnn.steering.contrasts import BehaviourConfig, Contrast, behaviour_contrast
from lens_rnn.steering.evaluation import Edit, Scores, score_answers
from lens_rnn.steering.experiment import Experiment, ExperimentConfig, Outcome, run_experiment
from lens_rnn.steering.generation import generate
from lens_rnn.steering.items import BEHAVIOURS, Item, balanced, read_items, swapped
from lens_rnn.steering.lens_view import LatentEffect, latent_effect, mean_hidden, read_vector, top_tokens
from lens_rnn.steering.next_words import NextWordConfig, next_word_contrast
from lens_rnn.steering.pairs import TEMPLATES, Pair, Question, tokenise
from lens_rnn.steering.vectors import Fitted, SteeringVectors, VectorConfig, fit_vectors

__all__ = [
    "BEHAVIOURS",
    "TEMPLATES",
    "BehaviourConfig",
    "Contrast",
    "Edit",
    "Experiment",
    "ExperimentConfig",
    "Fitted",
    "Item",
    "LatentEffect",
    "NextWordConfig",
    "Outcome",
    "Pair",
    "Question",
    "Scores",
    "SteeringVectors",
    "VectorConfig",
    "advance_steered",
    "balanced",
    "behaviour_contrast",
    "fit_vectors",
    "generate",
    "latent_effect",
    "mean_hidden",
    "next_word_contrast",
    "read_items",
    "read_vector",
    "run_experiment",
    "score_answers",
    "steer",
    "steer_state",
    "swapped",
    "tokenise",
    "top_tokens",
]
