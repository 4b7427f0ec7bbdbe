"""Tuned lenses for recurrent language models."""
