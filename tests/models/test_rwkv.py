"""RWKV-4 to 7 from official files: parity with the official package and stored logits, loading, saving, and every
refusal."""

import json
import os
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from lens_rnn.errors import ConfigError, ModelError
from lens_rnn.models import load_model, wrap_model
from lens_rnn.models.families.rwkv_config import RWKVConfig
from lens_rnn.models.rwkv_files import read_rwkv, version_of
from tests import hub_server
from tests.refusals import refusal
from tests.rwkv_weights import VERSIONS, official_logits, official_weights

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

TEXT = list(b'"in the beginning God created the heaven and the earth." And then, for many, many years, nothing was.')

needs_package = pytest.mark.skipif(find_spec("rwkv") is None, reason="the rwkv package is not installed")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A small RWKV-7."""
    path = tmp_path / "small.pth"
    torch.save(official_weights("7"), path)
    return path


def changed(path: Path, **tensors: Tensor | None) -> Path:
    """The file with some tensors, __ for a dot in their names, replaced or left out."""
    weights = torch.load(path, weights_only=True)
    for name, tensor in tensors.items():
        weights.pop(name.replace("__", "."), None)
        if tensor is not None:
            weights[name.replace("__", ".")] = tensor
    torch.save(weights, path)
    return path


# --- parity -----------------------------------------------------------------------------------------------------------


@needs_package
@pytest.mark.parametrize("version", ["4", *VERSIONS])
def test_logits_are_those_of_the_official_package(version: str, tmp_path: Path) -> None:
    path = tmp_path / "random.pth"
    torch.save(official_weights(version, vocab_size=256), path)
    expected = torch.from_numpy(official_logits(path, TEXT, version))
    model = load_model(path)
    got = model.unembed(model.forward(torch.tensor([TEXT])).norm_input)[0]
    assert expected.std() > 0.3, "the check needs predictions that differ"
    assert (got - expected).abs().max() <= 1e-4


@needs_package
@pytest.mark.parametrize("name", ["4v0-660K", "5v2-730K", "6v0-3m"])
def test_logits_of_trained_files_are_those_of_the_official_package(name: str, test_data: Path, tmp_path: Path) -> None:
    stored = test_data / "rwkv_tiny" / f"tiny-rwkv-{name}.pth"
    link = tmp_path / stored.name
    link.symlink_to(stored)
    expected = torch.from_numpy(official_logits(link, TEXT, name[0]))
    model = load_model(stored)
    got = model.unembed(model.forward(torch.tensor([TEXT])).norm_input)[0]
    assert (got - expected).abs().max() <= 1e-4


@pytest.mark.parametrize(
    ("name", "eps", "most"), [("4v0-660K", None, 1e-5), ("5v2-730K", 1e-5, 1e-5), ("6v0-3m", None, 0.08)]
)
def test_stored_logits(name: str, eps: float | None, most: float, test_data: Path) -> None:
    """Those of version 5 were made with another epsilon than official code has; those of version 6 with quantised
    weights."""
    model = load_model(test_data / "rwkv_tiny" / f"tiny-rwkv-{name}.pth")
    expected = np.fromfile(test_data / "rwkv_tiny" / f"expected-logits-{name}.bin", dtype=np.float32)
    ids = torch.tensor([list(b'"in')])

    def difference() -> float:
        return float(np.abs(model.logits(model.forward(ids).final)[0, -1].numpy() - expected).max())

    if eps is not None:
        assert difference() > 1, "official code's epsilon gives other logits"
        for block in model.blocks:
            block.att.eps = eps
    assert difference() <= most


def test_the_trained_version_5_predicts_english(test_data: Path) -> None:
    model = load_model(test_data / "rwkv_tiny" / "tiny-rwkv-5v2-730K.pth")
    ids = torch.tensor([TEXT])
    log_q = model.logits(model.forward(ids).final).log_softmax(-1)[0, :-1]
    bits = -log_q.gather(-1, ids[0, 1:, None]).mean() / np.log(2)
    assert bits < 4


# --- the model --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_the_output_is_like_that_of_transformers(version: str) -> None:
    model = read_rwkv(official_weights(version), "memory")
    ids = torch.randint(96, (2, 20))
    with torch.no_grad():
        output = model(ids, output_hidden_states=True)
        rest = model(ids[:, 11:], state=model(ids[:, :11]).state)
    assert output.logits.shape == (2, 20, 96)
    assert [tuple(h.shape) for h in output.hidden_states] == [(2, 20, 32)] * 4
    torch.testing.assert_close(model.head(output.hidden_states[-1]), output.logits)
    torch.testing.assert_close(model.ln_out(output.hidden_states[-2]), output.hidden_states[-1])
    torch.testing.assert_close(rest.logits, output.logits[:, 11:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_batch_is_its_sequences(version: str) -> None:
    model = wrap_model(read_rwkv(official_weights(version), "memory"))
    ids = torch.randint(96, (3, 18))
    together = model.forward(ids)
    for row in range(3):
        torch.testing.assert_close(
            model.forward(ids[row : row + 1]).final, together.final[row : row + 1], rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("version", VERSIONS)
def test_gradients_reach_every_weight(version: str) -> None:
    """As for fine-tuning; against finite differences in the loss along a random direction."""
    model = read_rwkv(official_weights(version), "memory", torch.float64)
    ids = torch.randint(96, (2, 20), generator=torch.Generator().manual_seed(0))

    def loss() -> Tensor:
        return torch.nn.functional.cross_entropy(model(ids).logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())

    loss().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())
    slope = sum(float(p.grad.square().sum()) for p in model.parameters()) ** 0.5  # along the gradient itself
    steps = [p.grad / slope for p in model.parameters()]
    values = []
    with torch.no_grad():
        for sign in (1, -2):
            for p, step in zip(model.parameters(), steps, strict=True):
                p += sign * 1e-3 * step
            values.append(float(loss()))
    assert (values[0] - values[1]) / 2e-3 == pytest.approx(slope, rel=1e-2)


@pytest.mark.parametrize("version", VERSIONS)
def test_saved_as_transformers_saves_it_comes_back_the_same(version: str, tmp_path: Path) -> None:
    model = wrap_model(read_rwkv(official_weights(version), "memory"))
    model.model.save_pretrained(tmp_path)
    again = load_model(tmp_path)
    ids = torch.randint(96, (1, 9))
    assert torch.equal(again.forward(ids).final, model.forward(ids).final)
    assert again.model.config.version == version


# --- files ------------------------------------------------------------------------------------------------------------


def test_ways_to_name_a_file(file: Path, tmp_path: Path) -> None:
    expected = load_model(file)
    assert expected.name == str(file)
    assert (expected.model_type, expected.family, expected.vocab_size) == ("rwkv_official", "rwkv", 96)
    in_folder = load_model(tmp_path)
    save_file(torch.load(file, weights_only=True), tmp_path / "other.safetensors")
    as_safetensors = load_model(tmp_path / "other.safetensors")
    torch.save(torch.load(file, weights_only=True), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    old = load_model(tmp_path / "old.pth")
    ids = torch.randint(96, (1, 9))
    for model in (in_folder, as_safetensors, old):
        assert torch.equal(model.forward(ids).final, expected.forward(ids).final)
    message = refusal(lambda: load_model(tmp_path))
    assert "holds 3 files of weights; name one of them: old.pth, other.safetensors, small.pth" in message


def test_a_file_on_the_hub(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through huggingface_hub and its cache, which would not ask while it is told to be offline."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    huggingface_hub.close_session()
    try:
        with hub_server.serve(models={"maker/rwkv-7": {"small.pth": file.read_bytes()}}) as address:
            here = {"endpoint": address, "cache_dir": tmp_path / "cache"}
            monkeypatch.setattr(huggingface_hub, "hf_hub_download", partial(huggingface_hub.hf_hub_download, **here))
            model = load_model("maker/rwkv-7/small.pth")
            message = refusal(lambda: load_model("maker/rwkv-7/none.pth"))
    finally:
        huggingface_hub.close_session()
    assert model.name == "maker/rwkv-7/small.pth"
    assert model.revision == hub_server.commit({"small.pth": file.read_bytes()})
    assert "cannot load model maker/rwkv-7/none.pth" in message


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "auto"])
def test_dtypes(version: str, dtype: str, tmp_path: Path) -> None:
    torch.save({name: t.to(torch.bfloat16) for name, t in official_weights(version).items()}, tmp_path / "half.pth")
    model, exact = load_model(tmp_path / "half.pth", dtype=dtype), load_model(tmp_path / "half.pth")
    assert model.dtype == (torch.float32 if dtype == "float32" else torch.bfloat16)
    ids = torch.randint(96, (1, 40))
    got, expected = model.forward(ids).final.float(), exact.forward(ids).final
    assert (got - expected).norm() <= 0.05 * expected.norm()


def test_the_first_block_of_version_7_may_have_value_matrices_that_it_does_not_use(file: Path) -> None:
    ids = torch.randint(96, (1, 9))
    before = load_model(file).forward(ids).final
    without = changed(file, blocks__0__att__v0=None, blocks__0__att__v1=None, blocks__0__att__v2=None)
    assert torch.equal(load_model(without).forward(ids).final, before)


def test_the_world_vocabulary_goes_with_its_size(test_data: Path, tmp_path: Path) -> None:
    weights = official_weights("7", vocab_size=65_536, blocks=1)
    torch.save(weights, tmp_path / "world.pth")
    vocabulary = test_data / "tokenizers" / "rwkv_vocab_v20230424.txt"
    by_name = load_model(tmp_path / "world.pth", tokenizer=vocabulary).tokenizer
    assert by_name("Hello world").input_ids == [33155, 40213]
    (tmp_path / vocabulary.name).symlink_to(vocabulary)
    beside = load_model(tmp_path / "world.pth").tokenizer
    assert beside("Hello world").input_ids == [33155, 40213]
    small = load_model(_saved(official_weights("7"), tmp_path / "small.pth"), tokenizer=vocabulary)
    assert "ids up to 65,529" in refusal(lambda: small.tokenizer)
    (tmp_path / vocabulary.name).unlink()
    alone = load_model(tmp_path / "small.pth")
    assert "has no tokenizer beside it" in refusal(lambda: alone.tokenizer)


def _saved(weights: dict[str, Tensor], path: Path) -> Path:
    torch.save(weights, path)
    return path


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["4", *VERSIONS])
def test_versions_are_told_by_the_names(version: str) -> None:
    assert version_of(official_weights(version), "memory") == version


def test_what_is_no_rwkv(tmp_path: Path) -> None:
    assert "is not an RWKV: it has no tensor emb.weight" in refusal(
        lambda: load_model(_saved({"a": torch.ones(1)}, tmp_path / "a.pth"))
    )
    odd = {name: t for name, t in official_weights("5.2").items() if "time_mix_k" not in name}
    assert "of an unknown version: blocks.0.att has gate.weight, key.weight" in refusal(
        lambda: load_model(_saved(odd, tmp_path / "b.pth"))
    )


def test_damaged_or_unsafe_files(tmp_path: Path) -> None:
    for name, content in {"a.pth": b"not a file of torch", "b.safetensors": b"\xff" * 20}.items():
        (tmp_path / name).write_bytes(content)
        assert "cannot be read safely" in refusal(lambda name=name: load_model(tmp_path / name))
    torch.save({"emb.weight": torch.ones(2, 2), "code": os.system}, tmp_path / "c.pth")
    assert "cannot be read safely" in refusal(lambda: load_model(tmp_path / "c.pth"))
    torch.save([1, 2], tmp_path / "d.pth")
    assert "is not a dictionary of tensors" in refusal(lambda: load_model(tmp_path / "d.pth"))


@pytest.mark.parametrize(
    "name", ["ln_out.bias", "blocks.1.att.w1", "blocks.2.ffn.key.weight", "blocks.0.att.r_k", "blocks.0.ffn.key.weight"]
)
def test_a_missing_tensor_is_named(file: Path, name: str) -> None:
    message = refusal(lambda: load_model(changed(file, **{name.replace(".", "__"): None})))
    assert f"is taken for RWKV-7 and lacks {name}; the checkpoint is incomplete" in message


def test_a_tensor_that_has_no_place_is_named(file: Path) -> None:
    message = refusal(lambda: load_model(changed(file, blocks__1__ffn__s1=torch.ones(3))))
    assert "is taken for RWKV-7, which has no place for blocks.1.ffn.s1" in message


@pytest.mark.parametrize(
    ("name", "shape", "asked"),
    [
        ("blocks.1.att.output.weight", (32, 31), "(32, 32)"),
        ("blocks.2.att.x_r", (1, 1, 5), "(32,)"),
        ("head.weight", (95, 32), "(96, 32)"),
    ],
)
def test_a_shape_that_does_not_fit_is_named(file: Path, name: str, shape: tuple[int, ...], asked: str) -> None:
    message = refusal(lambda: load_model(changed(file, **{name.replace(".", "__"): torch.ones(shape)})))
    assert f"{name} has shape {shape} where {asked} is expected" in message


def test_heads_that_do_not_divide_the_width(file: Path) -> None:
    message = refusal(lambda: load_model(changed(file, blocks__0__att__r_k=torch.ones(5, 8))))
    assert "has 32 rows, which 5 heads cannot share" in message


def test_settings_that_cannot_be_used(file: Path, tmp_path: Path) -> None:
    for dtype in ("int8", torch.int8):
        with pytest.raises(ModelError, match=r"unknown dtype '?(torch\.)?int8"):
            load_model(file, dtype=dtype)
    assert "the device 'nope' cannot be used here" in refusal(lambda: load_model(file, device="nope"))
    assert "is empty" in refusal(lambda: load_model(""))
    (tmp_path / "config.json").write_text("{}")
    save_file(torch.load(file, weights_only=True), tmp_path / "model.safetensors")
    assert "name the folder" in refusal(lambda: load_model(tmp_path / "model.safetensors"))
    with pytest.raises(ConfigError, match="RWKV version '8' is unknown"):
        RWKVConfig(version="8")


def test_names_from_home(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(file.parent))
    assert load_model("~/small.pth").vocab_size == 96
    assert "there is no such file or folder" in refusal(lambda: load_model("~/none.pth"))


def test_code_beside_a_tokenizer_needs_the_flag(file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["mine.Mine", None]}}))
    source = "from transformers import PreTrainedTokenizerFast\nfrom tokenizers import Tokenizer, models\n"
    source += "class Mine(PreTrainedTokenizerFast):\n    def __init__(self, **kwargs):\n"
    source += (
        "        super().__init__(tokenizer_object=Tokenizer(models.WordLevel({'a': 0, 'b': 1}, unk_token='b')))\n"
    )
    (folder / "mine.py").write_text(source)
    assert "cannot load tokenizer" in refusal(lambda: load_model(file, tokenizer=folder))
    assert load_model(file, tokenizer=folder, trust_remote_code=True).tokenizer.get_vocab() == {"a": 0, "b": 1}
