"""RWKV-5, 6 and 7 as whole models: what `models/rwkv_blocks.py` has the equations of, with embeddings, head and recurrent state."""

from dataclasses import dataclass
from typing import Any

from lens_rnn.models.adapter import Forward, ModelAdapter, register
from lens_rnn.models.rwkv_blocks import MODEL_TYPE, BlockState, RWKVBlock, RWKVConfig
from lens_rnn.models.state import RecurrentState

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import ModelOutput


@dataclass
class RWKVOutput(ModelOutput):
    """As transformers returns it. hidden_states: the output of each block, then the normed last (batch, seq, d_model)."""

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

    def zero_state(self, batch: int) -> list[BlockState]:
        """The state before the first token."""
        config, like = self.config, self.emb.weight

        def block() -> BlockState:
            shifts = like.new_zeros(2, batch, config.hidden_size)
            wkv = torch.zeros(batch, config.heads, config.head_size, config.head_size, device=like.device)
            return BlockState(shifts[0], wkv, shifts[1])

        return [block() for _ in self.blocks]

    def run_blocks(self, input_ids: Tensor, state: list[BlockState] | None = None) -> tuple[list[Tensor], list[BlockState]]:
        """Outputs of all blocks, each (batch, seq, d_model), and the state after the last token. The given state is left as it is."""
        x = self.emb(input_ids)
        outputs, after, first = [], [], None
        for block, before in zip(self.blocks, state or self.zero_state(len(input_ids)), strict=True):
            x, new, first = block(x, before, first)
            outputs.append(x)
            after.append(new)
        return outputs, after

    def forward(self, input_ids: Tensor, state: list[BlockState] | None = None, output_hidden_states: bool = False, **_: Any) -> RWKVOutput:
        outputs, after = self.run_blocks(input_ids, state)
        normed = self.ln_out(outputs[-1])
        return RWKVOutput(self.head(normed), (*outputs, normed) if output_hidden_states else None, after)


AutoConfig.register(MODEL_TYPE, RWKVConfig, exist_ok=True)
AutoModelForCausalLM.register(RWKVConfig, RWKVForCausalLM, exist_ok=True)


@register(MODEL_TYPE)
class RWKVAdapter(ModelAdapter):
    """RWKV-5, 6 and 7: hidden states are the blocks' outputs; the state of a block is a token shift, S, and another token shift."""

    states_after_blocks = True
    state_names = BlockState._fields

    @property
    def family(self) -> str:
        return "rwkv"

    @property
    def blocks(self) -> nn.ModuleList:
        return self.model.blocks

    @property
    def final_norm(self) -> nn.Module:
        return self.model.ln_out

    @torch.no_grad()
    def forward(self, input_ids: Tensor) -> Forward:
        return self._advance(input_ids, None)[0]

    def _advance(self, input_ids: Tensor, state: RecurrentState | None) -> tuple[Forward, RecurrentState]:
        blocks = (
            None
            if state is None
            else [BlockState(*tensors) for tensors in zip(*(state.of(name) for name in self.state_names), strict=True)]
        )
        outputs, after = self.model.run_blocks(input_ids, blocks)
        tensors: dict[str, list[Tensor | None]] = {name: [getattr(block, name) for block in after] for name in self.state_names}
        final = self.model.ln_out(outputs[-1])
        states = self._as_changed(outputs)
        forward = Forward(states, states[-1], final)
        return forward, RecurrentState(tensors, input_ids.shape[1] + (state.tokens if state else 0))
