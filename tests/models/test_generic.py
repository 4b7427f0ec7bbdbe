"""Models whose family has no file here, code beside the weights included: found by watching them run, and refused where
they cannot be: `models/parts.py`."""

import json
from pathlib import Path
from typing import Any

from lens_rnn.models import load_model, wrap_model
from lens_rnn.models.check import check
from lens_rnn.models.generic import GenericAdapter
from lens_rnn.models.head import LogitMap
from tests.conftest import make_model
from tests.refusals import refusal

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertLMHeadModel, PreTrainedTokenizerBase

CODE = """
import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput

class GatedConfig(PreTrainedConfig):
    model_type = "gated_rnn"
    def __init__(self, vocab_size=257, hidden_size=24, num_hidden_layers=3, states="{states}", **kwargs):
        self.vocab_size, self.hidden_size = vocab_size, hidden_size
        self.num_hidden_layers, self.states = num_hidden_layers, states
        super().__init__(**kwargs)

class Block(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.norm, self.keep, self.put, self.out = nn.LayerNorm(d), nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, d)
    def forward(self, hidden_states):
        x = self.norm(hidden_states)
        w, v = torch.sigmoid(self.keep(x)), self.put(x)
        s, ys = torch.zeros_like(v[:, 0]), []
        for t in range(x.shape[1]):
            s = w[:, t] * s + v[:, t]
            ys.append(s)
        return (hidden_states + self.out(torch.stack(ys, 1)),)

class GatedModel(PreTrainedModel):
    config_class = GatedConfig
    def __init__(self, config):
        super().__init__(config)
        self.emb = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config.hidden_size) for _ in range(config.num_hidden_layers))
        self.last_norm = nn.LayerNorm(config.hidden_size)
        self.post_init()
    def forward(self, input_ids, output_hidden_states=False, use_cache=None):
        x, states = self.emb(input_ids), []
        for layer in self.layers:
            if self.config.states == "before":
                states.append(x)
            (x,) = layer(x)
            if self.config.states == "after":
                states.append(x)
        x = self.last_norm(x)
        return BaseModelOutput(x, hidden_states=tuple(states) + (x,))

class GatedForCausalLM(PreTrainedModel):
    config_class = GatedConfig
    base_model_prefix = "inner"
    def __init__(self, config):
        super().__init__(config)
        self.inner = GatedModel(config)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()
    def get_output_embeddings(self):
        return self.head
    def forward(self, input_ids, output_hidden_states=False, use_cache=None):
        inner = self.inner(input_ids, output_hidden_states)
        return CausalLMOutput(logits=self.head(inner.last_hidden_state), hidden_states=inner.hidden_states)
"""


def checkpoint(folder: Path, tokenizer: PreTrainedTokenizerBase, states: str) -> Path:
    """A folder with weights, and the code that they need."""
    folder.mkdir()
    name = f"modeling_{states}"
    (folder / f"{name}.py").write_text(CODE.replace("{states}", states))
    auto = {"AutoConfig": f"{name}.GatedConfig", "AutoModelForCausalLM": f"{name}.GatedForCausalLM"}
    config = {"model_type": "gated_rnn", "architectures": ["GatedForCausalLM"], "auto_map": auto, "states": states}
    (folder / "config.json").write_text(
        json.dumps(config | {"vocab_size": 257, "hidden_size": 24, "num_hidden_layers": 3})
    )
    space: dict = {}
    exec(compile(CODE.replace("{states}", states), "code", "exec"), space)
    torch.manual_seed(0)
    model = space["GatedForCausalLM"](space["GatedConfig"]())
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("states", ["before", "after"])
def test_code_beside_the_weights(states: str, tmp_path: Path, byte_tokenizer: PreTrainedTokenizerBase) -> None:
    folder = checkpoint(tmp_path / "model", byte_tokenizer, states)
    message = refusal(lambda: load_model(folder))
    assert "'gated_rnn'" in message
    assert "code that lies beside its weights; read that code, and give --trust-remote-code if you trust it" in message
    model = load_model(folder, trust_remote_code=True)
    assert isinstance(model, GenericAdapter)
    assert (model.n_layers, model.states_after_blocks, model.state_names) == (3, states == "after", ())
    assert model.final_norm is model.model.inner.last_norm
    ids = torch.randint(257, (2, 9))
    with torch.no_grad():
        expected = model.model(ids, output_hidden_states=True)
    got = model.forward(ids)
    for ours, theirs in zip(got.hidden_states, expected.hidden_states, strict=False):
        assert torch.equal(ours, theirs)
    torch.testing.assert_close(model.unembed(got.norm_input), expected.logits)
    assert "cannot be reached" in refusal(lambda: model.advance(ids))


def test_a_model_that_tells_no_hidden_states_is_refused(
    tmp_path: Path, byte_tokenizer: PreTrainedTokenizerBase
) -> None:
    folder = checkpoint(tmp_path / "model", byte_tokenizer, "never")
    message = refusal(lambda: load_model(folder, trust_remote_code=True))
    assert "cannot be taken apart: 0 stacks of 0 blocks" in message
    assert "(found: a head from 24 to 257, 1 hidden states)" in message
    assert "subclass lens_rnn.models.ModelAdapter" in message


@pytest.mark.parametrize("family", ["mamba", "mamba2", "falcon_mamba", "recurrent_gemma"])
def test_what_watching_finds_is_what_the_familys_own_adapter_declares(family: str) -> None:
    """Not of RWKV-4, which halves its stream, and RWKV-5 to 7, which have no base model."""
    model = make_model(family)
    own, watched = wrap_model(model), GenericAdapter(model)
    check(watched)
    assert list(watched.blocks) == list(own.blocks)
    assert watched.final_norm is own.final_norm
    assert watched.states_after_blocks == own.states_after_blocks
    assert watched.logit_map == own.logit_map == LogitMap(1.0, 1.5 if family == "recurrent_gemma" else None)


BROKEN = {
    "its own code does not run here (ValueError: on purpose)": (
        "s, ys = torch.zeros_like(v[:, 0]), []",
        "raise ValueError('on purpose')",
    ),
    "it returns no hidden states": ("return CausalLMOutput(logits=", "return (lambda **kw: (kw['logits'],))(logits="),
    "its head is not called as a module": (
        "logits=self.head(inner.last_hidden_state)",
        "logits=inner.last_hidden_state @ self.head.weight.T",
    ),
    "it has no base model that runs without the head": ('base_model_prefix = "inner"', 'base_model_prefix = "outer"'),
}


@pytest.mark.parametrize("complaint", BROKEN)
def test_foreign_code_that_cannot_be_watched_is_refused_in_one_line(
    complaint: str, tmp_path: Path, byte_tokenizer: PreTrainedTokenizerBase
) -> None:
    old, new = BROKEN[complaint]
    assert old in CODE
    folder = checkpoint(tmp_path / "model", byte_tokenizer, "after")
    (folder / "modeling_after.py").write_text(CODE.replace("{states}", "after").replace(old, new))
    assert complaint in refusal(lambda: load_model(folder, trust_remote_code=True))


def test_an_edit_where_blocks_are_called_by_keyword(tmp_path: Path, byte_tokenizer: PreTrainedTokenizerBase) -> None:
    folder = checkpoint(tmp_path / "model", byte_tokenizer, "after")
    source = CODE.replace("{states}", "after").replace("(x,) = layer(x)", "(x,) = layer(hidden_states=x)")
    (folder / "modeling_after.py").write_text(source)
    model = load_model(folder, trust_remote_code=True)
    ids = torch.randint(257, (1, 5))
    with model.edited(1, torch.zeros_like):
        assert torch.equal(model.forward(ids).hidden_states[1], torch.zeros(1, 5, 24))
    assert model.forward(ids).hidden_states[1].abs().sum() > 0


def test_what_looks_ahead_is_refused() -> None:
    """An encoder has hidden states, blocks and a head, and predicts no next token."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    torch.manual_seed(0)
    model = BertLMHeadModel(BertConfig(vocab_size=96, **sizes, is_decoder=False))
    assert refusal(lambda: wrap_model(model.eval())).startswith("model type 'bert'")


def test_attention_that_looks_ahead_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("neox")

    def shifted(ids: Tensor) -> Tensor:
        return (ids + ids[:, -1:]) % 96

    base, inner = type(model.base_model), type(model.base_model).forward
    monkeypatch.setattr(base, "forward", lambda self, input_ids, **kwargs: inner(self, shifted(input_ids), **kwargs))
    assert "depends on later tokens, as in an encoder" in refusal(lambda: wrap_model(model))


def test_several_heads_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits that do not follow from the final state alone are no cap(scale · (U u + b))."""
    model = make_model("neox")
    forward = type(model).forward

    def blended(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = forward(self, *args, **kwargs)
        output.logits = output.logits + torch.linspace(-1, 1, output.logits.shape[-1])
        return output

    monkeypatch.setattr(type(model), "forward", blended)
    message = refusal(lambda: wrap_model(model))
    assert "its logits are not cap(scale · (U u + b)) of its normed final state u, for any scale and cap" in message
