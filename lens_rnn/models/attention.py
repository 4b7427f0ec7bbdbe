"""GPT-NeoX (Pythia): the transformer that the paper compares the recurrent families with."""

from lens_rnn.models.adapter import ModelAdapter, register

from torch import nn


@register("gpt_neox")
class GPTNeoXAdapter(ModelAdapter):
    """GPT-NeoX: hidden states are the blocks' inputs, so there is one before the first block and none that is trivial."""

    states_after_blocks = False

    @property
    def blocks(self) -> nn.ModuleList:
        return self.model.gpt_neox.layers

    @property
    def longest_sequence(self) -> int:
        return int(self.model.config.max_position_embeddings)

    @property
    def final_norm(self) -> nn.Module:
        return self.model.gpt_neox.final_layer_norm
