"""Random weights with the names and shapes of official RWKV files, and the official package run on them in a process of
its own."""

import atexit
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

VERSIONS = ("5.0", "5.1", "5.2", "6", "7")

_RUN = """
import sys
import numpy as np
from rwkv.model import RWKV
for line in sys.stdin:
    path, output, *ids = line.rstrip("\\n").split("\\t")
    logits, _ = RWKV(model=path, strategy="cpu fp32").forward([int(t) for t in ids], None, full_output=True)
    np.save(output, logits.float().numpy())
    print("\\nsaved", flush=True)
"""


def official_weights(
    version: str, vocab_size: int = 96, d_model: int = 32, head_size: int = 8, blocks: int = 3, seed: int = 0
) -> dict[str, Tensor]:
    """As a .pth file of that version has them; "4" too. Large enough for every part to matter."""
    g = torch.Generator().manual_seed(seed)
    heads, ffn = d_model // head_size, 2 * d_model

    def normal(*shape: int, std: float | None = None) -> Tensor:
        return torch.randn(*shape, generator=g) * (shape[-1] ** -0.5 if std is None else std)

    def mix() -> Tensor:
        return torch.rand(1, 1, d_model, generator=g)

    weights = {"emb.weight": normal(vocab_size, d_model, std=0.5)}

    def norm(name: str) -> None:
        weights[f"{name}.weight"], weights[f"{name}.bias"] = 1 + normal(d_model, std=0.1), normal(d_model, std=0.1)

    norm("blocks.0.ln0")
    for i in range(blocks):
        att, ffn_name = f"blocks.{i}.att.", f"blocks.{i}.ffn."
        norm(f"blocks.{i}.ln1")
        norm(f"blocks.{i}.ln2")
        for name in ("receptance", "key", "value", "output"):
            weights[f"{att}{name}.weight"] = normal(d_model, d_model)
        if version != "4":
            norm(f"{att}ln_x")
        if version[0] in "45":
            for name in "kvr" if version in ("4", "5.0") else "kvrg":
                weights[f"{att}time_mix_{name}"] = mix()
            shape = {"4": (d_model,), "5.2": (heads, head_size)}.get(version, (heads,))
            weights[f"{att}time_decay"] = normal(*shape, std=1.0)
            weights[f"{att}{'time_faaaa' if version == '5.2' else 'time_first'}"] = normal(*shape, std=0.5)
        if version in ("5.1", "5.2", "6"):
            weights[f"{att}gate.weight"] = normal(d_model, d_model)
        if version == "6":
            for name in "xwkvrg":
                weights[f"{att}time_maa_{name}"] = mix()
            weights[f"{att}time_maa_w1"], weights[f"{att}time_maa_w2"] = (
                normal(d_model, 5 * 4),
                normal(5, 4, d_model, std=0.3),
            )
            weights[f"{att}time_decay"] = normal(1, 1, d_model, std=1.0)
            weights[f"{att}time_decay_w1"], weights[f"{att}time_decay_w2"] = (
                normal(d_model, 6),
                normal(6, d_model, std=0.5),
            )
            weights[f"{att}time_faaaa"] = normal(heads, head_size, std=0.5)
        if version == "7":
            for name in "rwkvag":
                weights[f"{att}x_{name}"] = mix()
            for name, width in {"w": 6, "a": 5, "v": 4, "g": 7}.items():
                if name != "g":
                    weights[f"{att}{name}0"] = normal(1, 1, d_model, std=1.0)
                weights[f"{att}{name}1"], weights[f"{att}{name}2"] = (
                    normal(d_model, width),
                    normal(width, d_model, std=0.5),
                )
            weights[f"{att}k_k"], weights[f"{att}k_a"] = 0.5 + mix(), mix()
            weights[f"{att}r_k"] = normal(heads, head_size, std=0.3)
        for name in {"6": ("time_maa_k", "time_maa_r"), "7": ("x_k",)}.get(version, ("time_mix_k", "time_mix_r")):
            weights[f"{ffn_name}{name}"] = mix()
        weights[f"{ffn_name}key.weight"], weights[f"{ffn_name}value.weight"] = (
            normal(ffn, d_model),
            normal(d_model, ffn),
        )
        if version != "7":
            weights[f"{ffn_name}receptance.weight"] = normal(d_model, d_model)
    norm("ln_out")
    weights["head.weight"] = normal(vocab_size, d_model, std=0.3)
    return weights


@cache
def _package(version: str) -> subprocess.Popen[str]:
    """The rwkv package, waiting for files. It reads its settings when it is imported, hence a process for each."""
    env = {"RWKV_JIT_ON": "0", "RWKV_CUDA_ON": "0"} | ({"RWKV_V7_ON": "1"} if version == "7" else {})
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, "-c", _RUN],
        stdin=pipe,
        stdout=pipe,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | env,
    )
    atexit.register(process.kill)
    return process


def official_logits(path: Path, ids: list[int], version: str) -> np.ndarray:
    """(tokens, vocab) by the rwkv package, which must be installed."""
    process, output = _package("7" if version == "7" else "before 7"), path.with_suffix(".npy")
    print(path.with_suffix(""), output, *ids, sep="\t", file=process.stdin, flush=True)
    assert "saved\n" in process.stdout, "the rwkv package has ended"
    return np.load(output)
