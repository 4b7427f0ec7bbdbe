"""How much memory there is: of the machine or of a GPU."""

import os

import torch


def of_device(device: torch.device) -> int:
    """Bytes of memory of a GPU or, for the CPU, of the machine; 0 where that is not known."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    if device.type != "cpu":
        return 0
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # Windows says it elsewhere
        return 0


def free_on(device: torch.device) -> int:
    """Bytes that one more piece of work may take: what a GPU has free, or half the machine; 0 where not known."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return of_device(device) // 2
