"""RecurrentGemma (transformers): RG-LRU blocks with local attention between them (De et al. 2024, arXiv 2402.19427)."""

from copy import deepcopy
from typing import Any

from lens_rnn.models.adapter import Forward, ModelAdapter, register
from lens_rnn.models.state import RecurrentState

import torch
from torch import Tensor, nn
from transformers import DynamicCache


@register("recurrent_gemma")
class RecurrentGemmaAdapter(ModelAdapter):
    """Hidden states are the blocks' inputs. A recurrent block's state: the last inputs of its convolution `conv` (batch, channels,
    kernel − 1) and `lru` (batch, channels), float32; an attention block has neither. Logits are capped."""

    states_after_blocks = False
    state_names = ("conv", "lru")

    @property
    def blocks(self) -> nn.ModuleList:
        return self.model.model.layers

    @property
    def final_norm(self) -> nn.Module:
        return self.model.model.final_norm

    @property
    def logit_cap(self) -> float | None:
        return float(self.model.config.logits_soft_cap)

    def _advance(self, input_ids: Tensor, state: RecurrentState | None) -> tuple[Forward, RecurrentState]:
        if state is not None and input_ids.shape[1] > 1:  # transformers starts its convolution anew for more than one token
            return self._token_by_token(input_ids, state)
        recurrent: list[Any] = [block.temporal_block if hasattr(block.temporal_block, "rg_lru") else None for block in self.blocks]
        seen = state.tokens if state else 0
        cache = deepcopy(state.rest) if state else DynamicCache(config=self.model.config)
        # transformers keeps the recurrent state inside the modules; it is put there for one pass and taken out again.
        for i, block in enumerate(recurrent):
            if block is not None:
                block.conv1d_state = None if state is None else state["conv"][i]
                block.rg_lru.recurrent_states = None if state is None else state["lru"][i]
        positions = torch.arange(seen, seen + input_ids.shape[1], device=input_ids.device)[None]
        try:
            forward, _ = self._run(input_ids, past_key_values=cache, position_ids=positions, use_cache=True)
            conv = [None if block is None else block.conv1d_state for block in recurrent]
            lru = [None if block is None else block.rg_lru.recurrent_states for block in recurrent]
        finally:
            for block in recurrent:
                if block is not None:
                    block.conv1d_state = block.rg_lru.recurrent_states = None
        return forward, RecurrentState({"conv": conv, "lru": lru}, seen + input_ids.shape[1], cache)
