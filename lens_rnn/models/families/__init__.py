"""One file a family: its equations, from a recurrent state on, and what views ask of them. Importing them registers
their adapters."""

from lens_rnn.models.families import mamba, mamba2, recurrent_gemma, rwkv, rwkv4

__all__ = ["mamba", "mamba2", "recurrent_gemma", "rwkv", "rwkv4"]
