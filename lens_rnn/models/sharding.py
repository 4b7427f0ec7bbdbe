"""A model too large for one device: its blocks spread over the processes of a run, gathered one at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@torch.no_grad()
def spread(model: nn.Module, blocks: nn.ModuleList, device: torch.device, processes: int) -> None:
    """Spread the blocks' weights over all processes (torch's fully_shard); the rest of the model moves to `device`."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (processes,))
    for block in blocks:  # each its own root, which would stay gathered if it were not told otherwise
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    in_blocks = {id(t) for block in blocks for t in (*block.parameters(), *block.buffers())}
    for tensor in (*model.parameters(), *model.buffers()):
        if id(tensor) not in in_blocks:
            tensor.data = tensor.data.to(device)


@contextmanager
def gathered(block: Any) -> Iterator[None]:
    """Inside it all weights of a block that was spread are here."""
    block.unshard()
    try:
        yield
    finally:
        block.reshard()
