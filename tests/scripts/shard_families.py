"""Run under torchrun by test_fit_lens.py: a model spread over two processes gives bit-equal states, family by family,
and reads on."""

import os
import sys

from lens_rnn.models import load_model

import torch
from accelerate import Accelerator

accelerator = Accelerator(cpu=True)
for folder in sys.argv[1:]:
    adapter = load_model(folder, device="cpu")
    whole = sum(p.numel() for p in adapter.model.parameters())
    ids = torch.randint(adapter.vocab_size, (2, 20), generator=torch.Generator().manual_seed(accelerator.process_index))
    before = adapter.forward(ids)
    read_on = [adapter.advance(ids[:, 7:], adapter.advance(ids[:, :7])[1])[0].final] if adapter.has_state else []
    adapter.shard(accelerator.device, accelerator.num_processes)
    for _ in range(2):  # the second pass gathers what the first has let go
        after = adapter.forward(ids)
        assert torch.equal(before.final, after.final), folder
        assert all(torch.equal(a, b) for a, b in zip(before.hidden_states, after.hidden_states, strict=True)), folder
    for expected in read_on:
        assert torch.equal(adapter.advance(ids[:, 7:], adapter.advance(ids[:, :7])[1])[0].final, expected), folder
    here = sum(p.to_local().numel() if hasattr(p, "to_local") else p.numel() for p in adapter.model.parameters())
    outside = whole - sum(p.numel() for block in adapter.blocks for p in block.parameters())
    assert here - outside < 0.6 * (whole - outside), (folder, here, whole)
    print(f"equal: {folder}", flush=True)
accelerator.wait_for_everyone()
accelerator.state.destroy_process_group()
sys.stdout.flush()
os._exit(0)  # as lens_rnn.cli does, and for its reason
