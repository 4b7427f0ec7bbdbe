"""RWKV-5, 6 and 7 as whole models: the equations of `families/rwkv_blocks.py` with embeddings, head and recurrent
state."""

from dataclasses import dataclass
from typing import Any

from lens_rnn.models.families.recurrent import BlockState, Passage, RecurrentAdapter
from lens_rnn.models.families.rwkv_blocks import RWKVBlock
from lens_rnn.models.families.rwkv_config import MODEL_TYPE, RWKVConfig
from lens_rnn.models.recurrence import Recurrence
from lens_rnn.models.registry import register

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import ModelOutput


@dataclass
class RWKVOutput(ModelOutput):
    """As transformers returns it. hidden_states: the output of each block, then the normed last (batch, seq,
    d_model)."""

    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    state: list[BlockState] | None = None


class RWKVForCausalLM(PreTrainedModel):
    """An RWKV-5, 6 or 7 with the official names. `load_model` reads the official .pth files into it."""

    config_class = RWKVConfig

    def __init__(self, config: RWKVConfig):
        super().__init__(config)
        self.emb = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(RWKVBlock(config, i) for i in range(config.num_hidden_layers))
        self.ln_out = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.emb

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(
        self, input_ids: Tensor, state: list[BlockState] | None = None, output_hidden_states: bool = False, **_: Any
    ) -> RWKVOutput:
        x = self.emb(input_ids)
        outputs, after, first = [], [], None
        for i, block in enumerate(self.blocks):
            x, new, first = block(x, state[i] if state else None, first)
            outputs.append(x)
            after.append(new)
        normed = self.ln_out(x)
        return RWKVOutput(self.head(normed), (*outputs, normed) if output_hidden_states else None, after)


AutoConfig.register(MODEL_TYPE, RWKVConfig, exist_ok=True)
AutoModelForCausalLM.register(RWKVConfig, RWKVForCausalLM, exist_ok=True)


@register(MODEL_TYPE)
class RWKVAdapter(RecurrentAdapter):
    """RWKV-5, 6 and 7: hidden states are the blocks' outputs. A block's state: the last normed inputs `att_shift` and
    `ffn_shift` (batch, d_model), and `wkv` (batch, heads, head size, head size), float32."""

    states_after_blocks = True
    state_names = ("att_shift", "wkv", "ffn_shift")
    attention_unit = "head"
    is_ours = True
    lora_modules = ("key", "value", "receptance", "output")

    @property
    def family(self) -> str:
        return "rwkv"

    @property
    def blocks(self) -> nn.ModuleList:
        return self.model.blocks

    @property
    def final_norm(self) -> nn.Module:
        return self.model.ln_out

    def run_block(
        self, index: int, x: Tensor, before: BlockState | None, passage: Passage
    ) -> tuple[Tensor, BlockState]:
        x, after, passage.first_values = self.blocks[index](x, before, passage.first_values)
        return x, after

    def attention_units(self, index: int) -> int:
        block: Any = self.blocks[index]
        return int(block.att.heads)

    @torch.no_grad()
    def recurrence(self, index: int, x: Tensor) -> Recurrence:
        """A head: y_i = Σ_j α_ij v_j. RWKV-5 and 6: α_ij = Σ_n r_i[n] exp(Σ_{k=j+1..i−1} log w_k[n]) k_j[n], α_ii with
        the bonus u. RWKV-7: α_ij = k_jᵀ G_{j+1} … G_i r_i, with G = diag(w) − κ (κ ⊙ a)ᵀ, without the bonus ρ."""
        block: Any = self.blocks[index]
        # Which values are read is no part of the weights, so those of the first block need not be known.
        inputs = block.att.mix(*block.att_input(x, None), None).inputs
        y, _ = block.att.recur(inputs, block.empty_wkv(1))
        return Recurrence(block.att.weights(inputs), inputs[2][0], y[0])
