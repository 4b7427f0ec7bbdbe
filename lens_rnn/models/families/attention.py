"""GPT-NeoX (Pythia), Llama and GPT-2: the transformers that the paper compares the recurrent families with."""

from lens_rnn.models.adapter import ModelAdapter, register

from torch import nn


class TransformerAdapter(ModelAdapter):
    """Hidden states are the blocks' inputs, so there is one before the first block and none that is trivial."""

    states_after_blocks = False

    @property
    def longest_sequence(self) -> int:
        return int(self.model.config.max_position_embeddings)


@register("gpt_neox")
class GPTNeoXAdapter(TransformerAdapter):
    """GPT-NeoX, of which Pythia is one."""

    @property
    def blocks(self) -> nn.ModuleList:
        return self.model.gpt_neox.layers

    @property
    def final_norm(self) -> nn.Module:
        return self.model.gpt_neox.final_layer_norm


@register("llama")
class LlamaAdapter(TransformerAdapter):
    """Llama."""

    @property
    def blocks(self) -> nn.ModuleList:
        return self.model.model.layers

    @property
    def final_norm(self) -> nn.Module:
        return self.model.model.norm


@register("gpt2")
class GPT2Adapter(TransformerAdapter):
    """GPT-2."""

    @property
    def blocks(self) -> nn.ModuleList:
        return self.model.transformer.h

    @property
    def final_norm(self) -> nn.Module:
        return self.model.transformer.ln_f
