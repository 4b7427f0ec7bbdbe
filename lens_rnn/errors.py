"""Errors that a user's input can cause. Each message is one line: what is wrong, then what to do about it."""


class LensRNNError(Exception):
    """Base of every error that this package raises on purpose. The scripts print it as one line and exit with code
    2."""


class ConfigError(LensRNNError):
    """A setting has a value that cannot be used, or settings contradict each other."""


class ModelError(LensRNNError):
    """A model is missing, of an unknown architecture, or does not behave as its adapter declares."""


class DataError(LensRNNError):
    """A text source is missing, malformed, empty, or holds fewer tokens than were asked for."""


class ArtifactError(LensRNNError):
    """A saved lens is missing, unreadable, or belongs to another model."""


class FitError(LensRNNError):
    """A fit cannot start, continue or finish."""
