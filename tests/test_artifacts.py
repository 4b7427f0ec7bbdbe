"""The files of a lens: what is written can be read by stock tuned-lens, and what cannot be trusted is refused in one
line, unread."""

import contextlib
import errno
import json
import pickle
import random
import resource
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from math import isnan
from pathlib import Path
from typing import Any

from lens_rnn import artifacts
from lens_rnn.errors import ArtifactError
from lens_rnn.files import write_json
from lens_rnn.fit_report import (
    FORMAT,
    Baselines,
    DataFacts,
    FitData,
    FitReport,
    LayerReport,
    LayerStart,
    ModelFacts,
    RunFacts,
    TrainingLoss,
    Units,
)

import numpy as np
import pytest
import torch
from torch import Tensor
from tuned_lens.nn.lenses import TunedLensConfig

D_MODEL, LAYERS = 4, 3
FIGURES = {"depth": 0.5, "kl_logit": 2.0, "kl_tuned": 0.5, "ce_logit": 3.0, "ce_tuned": 1.5}
CONFIG = TunedLensConfig("some/model", D_MODEL, LAYERS, unembed_hash="0" * 64).to_dict()


def make_translators(layers: int = LAYERS, d_model: int = D_MODEL) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"weight": (d_model, d_model), "bias": (d_model,)}
    return {
        f"{i}.{kind}": torch.randn(shape, generator=generator) for i in range(layers) for kind, shape in shapes.items()
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound lens; tests damage it."""
    artifacts.save(tmp_path / "lens", CONFIG, make_translators())
    return tmp_path / "lens"


def refusal(lens: str | Path) -> str:
    """The message with which a lens is refused, which must be one line."""
    with pytest.raises(ArtifactError) as caught:
        artifacts.load(lens)
    message = str(caught.value)
    assert "\n" not in message
    return message


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --- writing ----------------------------------------------------------------------------------------------------------


def test_what_is_saved_is_loaded(folder: Path) -> None:
    write_json(folder / "fit.json", {"model": {"vocab_size": 7}})
    artifact = artifacts.load(folder)
    assert artifact.config == CONFIG
    assert artifact.report == FitReport(model=ModelFacts(vocab_size=7))
    assert artifact.where == str(folder)
    expected = make_translators()
    assert artifact.translators.keys() == expected.keys()
    assert all(torch.equal(artifact.translators[name], tensor) for name, tensor in expected.items())


def test_a_lens_without_fit_json_has_an_empty_report(folder: Path) -> None:
    assert repr(artifacts.load(folder).report) == repr(FitReport())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_params_are_float32_whatever_they_come_in(tmp_path: Path, dtype: torch.dtype) -> None:
    translators = {name: tensor.to(dtype).requires_grad_() for name, tensor in make_translators().items()}
    artifacts.save(tmp_path, CONFIG, translators)
    saved = torch.load(tmp_path / "params.pt", weights_only=True)
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    assert not any(tensor.requires_grad for tensor in saved.values())
    assert all(torch.equal(saved[name], tensor.float()) for name, tensor in translators.items())


def test_the_config_has_exactly_the_fields_of_tuned_lens(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    written = json.loads((folder / "config.json").read_text())
    assert set(written) == set(TunedLensConfig.__dataclass_fields__)
    assert TunedLensConfig.from_dict(written) == TunedLensConfig(**CONFIG)
    assert caplog.records == []
    TunedLensConfig.from_dict(written | {"more": 1})
    assert len(caplog.records) == 1, "tuned-lens warns of a field that it does not know"


def test_files_can_be_read_by_others_and_nothing_else_is_left(folder: Path) -> None:
    assert sorted(content(folder)) == ["config.json", "params.pt"]
    for path in folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) & 0o444 == 0o444


@contextlib.contextmanager
def files_end_at(size: int) -> Iterator[None]:
    """While this lasts the system refuses to write a file beyond `size` bytes, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [0, 100, 5_000, 100_000])
def test_a_full_disk_is_an_os_error_that_names_the_file(tmp_path: Path, size: int) -> None:
    """torch.save reports it as a RuntimeError about positions, unless the last bytes are what does not fit."""
    artifacts.save(tmp_path, CONFIG, make_translators())
    before = content(tmp_path)
    with pytest.raises(OSError, match=r"params\.pt") as caught, files_end_at(size):
        artifacts.save(tmp_path, CONFIG, make_translators(layers=1, d_model=300))
    assert caught.value.errno == errno.EFBIG
    assert caught.value.filename == str(tmp_path / "params.pt")
    assert content(tmp_path) == before


def test_a_folder_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    with pytest.raises(OSError, match=r"config\.json'$"):
        artifacts.save(tmp_path, CONFIG, make_translators())


# --- reading: unsafe and damaged parameters ---------------------------------------------------------------------------


class Payload:
    """A pickle of this creates a file when it is read without care."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("form", ["torch archive", "legacy torch", "bare pickle", "beside tensors"])
def test_code_in_params_is_refused_and_never_run(folder: Path, tmp_path: Path, form: str) -> None:
    victim, params = tmp_path / "ran", folder / "params.pt"
    payload: Any = Payload(victim)
    if form == "bare pickle":
        params.write_bytes(pickle.dumps(payload, protocol=2))
    else:
        value = make_translators() | {"9.weight": payload} if form == "beside tensors" else payload
        torch.save(value, params, _use_new_zipfile_serialization=form != "legacy torch")
    assert "cannot be read safely" in refusal(folder)
    assert not victim.exists()
    with contextlib.suppress(RuntimeError):  # torch finds that a bare pickle is not its own, after having run it
        torch.load(params, weights_only=False)
    assert victim.exists(), "the payload is live: without the guard it would have run"


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.99])
def test_truncated_params_are_refused(folder: Path, keep: float) -> None:
    params = folder / "params.pt"
    raw = params.read_bytes()
    params.write_bytes(raw[: int(keep if keep >= 1 else keep * len(raw))])
    assert f"{params} cannot be read safely: it is damaged" in refusal(folder)


@pytest.mark.parametrize("legacy", [False, True])
def test_params_with_damaged_bytes_are_either_refused_or_read(folder: Path, legacy: bool) -> None:
    """Damaged bytes make the unpickler fail with IndexError, AssertionError, struct.error and more: all become the one
    refusal."""
    params = folder / "params.pt"
    torch.save(make_translators(), params, _use_new_zipfile_serialization=not legacy)
    raw, at_random, refused = params.read_bytes(), random.Random(0), 0
    for _ in range(200):
        damaged = bytearray(raw)
        for _ in range(3):
            damaged[at_random.randrange(len(raw))] = at_random.randrange(256)
        params.write_bytes(damaged)
        with contextlib.suppress(ArtifactError):
            artifacts.load(folder)
            refused -= 1
        refused += 1
    assert refused > 50


def test_params_that_are_no_archive_are_refused(folder: Path) -> None:
    (folder / "params.pt").write_bytes(b"<!DOCTYPE html><title>404</title>")
    assert "damaged or holds more than tensors" in refusal(folder)


def test_params_that_may_not_be_read_are_said_to_be(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*args: object, **kwargs: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "params.pt")

    monkeypatch.setattr(torch, "load", denied)
    assert refusal(folder).endswith("params.pt cannot be read (Permission denied)")


# --- reading: parameters that are no translators ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        [torch.zeros(4, 4)],
        torch.zeros(4, 4),
        make_translators() | {"0.bias": [0.0] * 4},
        make_translators() | {"0.bias": torch.zeros(4, dtype=torch.int64)},
        make_translators() | {"0.bias": torch.zeros(4, dtype=torch.complex64)},
        make_translators() | {"0.weight": torch.zeros(4, 4).to_sparse()},
        {"layer_translators": make_translators()},
    ],
    ids=["list", "tensor", "list inside", "integers", "complex", "sparse", "nested"],
)
def test_params_that_are_no_state_dict_are_refused(folder: Path, value: object) -> None:
    torch.save(value, folder / "params.pt")
    assert refusal(folder) == f"{folder / 'params.pt'} is not a state dict of translators"


@pytest.mark.parametrize(
    ("change", "trouble"),
    [
        (lambda t: t.pop("1.bias"), "'1.bias' is missing"),
        (lambda t: t.update({"3.weight": torch.zeros(4, 4)}), "'3.weight' has no place there"),
        (lambda t: t.update({"unembed.weight": torch.zeros(4, 4)}), "'unembed.weight' has no place there"),
        (lambda t: t.clear(), "'0.bias' is missing"),
        (lambda t: t.update({"1.weight": torch.zeros(4, 5)}), "1.weight has shape (4, 5), config.json says (4, 4)"),
        (lambda t: t.update({"2.bias": torch.zeros(4, 1)}), "2.bias has shape (4, 1), config.json says (4,)"),
        (lambda t: t["2.weight"][3].fill_(float("nan")), "2.weight holds NaN or infinity"),
        (lambda t: t["0.bias"][1:2].fill_(float("inf")), "0.bias holds NaN or infinity"),
    ],
)
def test_translators_that_do_not_fit_the_config_are_refused_by_name(
    folder: Path, change: Callable[[dict[str, Tensor]], None], trouble: str
) -> None:
    translators = make_translators()
    change(translators)
    torch.save(translators, folder / "params.pt")
    assert trouble in refusal(folder)


def test_translators_without_bias_are_read_where_the_config_says_so(folder: Path) -> None:
    weights = {name: tensor for name, tensor in make_translators().items() if name.endswith("weight")}
    torch.save(weights, folder / "params.pt")
    assert "'0.bias' is missing" in refusal(folder)
    edit_config(folder, bias=False)
    assert artifacts.load(folder).translators.keys() == weights.keys()


@pytest.mark.parametrize("kind", ["weight", "bias"])
def test_low_rank_translators_are_refused_as_such(folder: Path, kind: str) -> None:
    shapes = {
        f"{i}.{name}": (2, 4) if name == "down.weight" else (4, 2)
        for i in range(LAYERS)
        for name in ("down.weight", "up.weight")
    }
    low_rank = {name: torch.zeros(shape) for name, shape in shapes.items()}
    beside = {name: tensor for name, tensor in make_translators().items() if name.endswith(kind)}
    torch.save(low_rank | beside, folder / "params.pt")
    assert (
        refusal(folder)
        == f"{folder} holds a low-rank lens ('0.down.weight' in params.pt); only full translators can be read"
    )


def test_where_the_last_translators_are_missing_layers_can_be_stated(folder: Path) -> None:
    edit_config(folder, num_hidden_layers=LAYERS + 1)
    message = refusal(folder)
    assert message.endswith(
        "'3.bias' is missing; if layers were left out, state those it has, for example layers=range(3)"
    )
    assert artifacts.load(folder, translators=LAYERS).translators.keys() == make_translators().keys()
    with pytest.raises(
        ArtifactError,
        match=r"does not hold the 2 linear translators that the stated layers need: '2\.bias' has no place",
    ):
        artifacts.load(folder, translators=2)


# --- reading: config.json ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["config.json", "fit.json"])
def test_json_that_is_damaged_is_refused_by_name(folder: Path, name: str) -> None:
    (folder / name).write_text("{'d_model': 4}")
    assert str(folder / name) in refusal(folder)


@pytest.mark.parametrize("field", ["d_model", "num_hidden_layers"])
def test_a_config_without_a_size_is_refused_by_name(folder: Path, field: str) -> None:
    (folder / "config.json").write_text(json.dumps({name: value for name, value in CONFIG.items() if name != field}))
    assert f"does not say {field}" in refusal(folder)


@pytest.mark.parametrize("field", ["d_model", "num_hidden_layers"])
@pytest.mark.parametrize("value", [None, "4", 4.0, True, 0, -1])
def test_a_size_that_is_no_whole_number_is_refused_by_name(folder: Path, field: str, value: object) -> None:
    edit_config(folder, **{field: value})
    assert f"does not say {field}" in refusal(folder)


@pytest.mark.parametrize("layers", [1, LAYERS + 1, 10**12])
def test_another_number_of_layers_than_params_hold_is_refused_at_once(folder: Path, layers: int) -> None:
    edit_config(folder, num_hidden_layers=layers)
    assert f"does not hold the {layers} linear translators of config.json" in refusal(folder)


def test_a_lens_of_another_type_is_refused_by_name(folder: Path) -> None:
    edit_config(folder, lens_type="low_rank_tuned_lens")
    assert (
        refusal(folder) == f"{folder} holds a lens of type 'low_rank_tuned_lens'; only 'linear_tuned_lens' can be read"
    )


def test_a_config_without_a_type_is_linear(folder: Path) -> None:
    """As tuned-lens has it: the field has that default."""
    (folder / "config.json").write_text(
        json.dumps({"base_model_name_or_path": "m", "d_model": D_MODEL, "num_hidden_layers": LAYERS})
    )
    assert len(artifacts.load(folder).translators) == 2 * LAYERS


def test_settings_that_nobody_knows_are_named_in_a_warning(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    artifacts.load(folder)
    assert caplog.messages == []
    edit_config(folder, dropout=0.1, rank=None)
    assert len(artifacts.load(folder).translators) == 2 * LAYERS
    assert caplog.messages == [f"{folder / 'config.json'} has settings that mean nothing here: dropout, rank"]


@pytest.mark.parametrize("field", sorted(set(CONFIG) - {"d_model", "num_hidden_layers", "base_model_name_or_path"}))
def test_what_tuned_lens_can_do_without_may_be_absent(folder: Path, field: str) -> None:
    kept = {name: value for name, value in CONFIG.items() if name != field}
    (folder / "config.json").write_text(json.dumps(kept))
    TunedLensConfig.from_dict(kept)
    assert artifacts.load(folder).config == kept


def test_json_is_utf_8_wherever_it_comes_from(folder: Path) -> None:
    name = "models/καφές"
    (folder / "config.json").write_bytes(
        json.dumps(CONFIG | {"base_model_name_or_path": name}, ensure_ascii=False).encode()
    )
    assert artifacts.load(folder).config["base_model_name_or_path"] == name


# --- fit.json ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        '{"model": "mamba"}',
        '{"layers": [1]}',
        '{"layers": {"first": {}}}',
        '{"training_loss": {"steps": 1}}',
        '{"data": 1}',
    ],
)
def test_a_fit_json_that_is_none_is_refused_by_name(folder: Path, text: str) -> None:
    (folder / "fit.json").write_text(text)
    assert str(folder / "fit.json") in refusal(folder)


def test_a_later_format_is_refused(folder: Path) -> None:
    artifacts.save_fit_report(folder, FitReport())
    written = json.loads((folder / "fit.json").read_text())
    assert written["format"] == FORMAT
    write_json(folder / "fit.json", written | {"format": FORMAT + 1})
    assert f"format {FORMAT + 1}" in refusal(folder)


def test_a_report_is_read_as_it_was_written(folder: Path) -> None:
    """With keys for all that is unknown, and null for what is not finite."""
    report = FitReport(
        model=ModelFacts(name="made", d_model=D_MODEL, n_layers=2, vocab_size=7),
        settings={"loss": "kl", "init_lens": None},
        data=FitData(fit=DataFacts(source="made.txt", tokens=64, tokens_per_byte=0.25, origin={"commit": "1"})),
        units=Units(bits_per_byte_per_nat=0.5),
        baselines=Baselines(uniform_ce=4.0, model_ce=1.0),
        layers={0: LayerReport(**FIGURES, start=LayerStart(ridge=0.1)), 10: LayerReport(**FIGURES, fitted=False)},
        training_loss=TrainingLoss(layers=(0,), steps=((1.5,), (0.5,))),
        run=RunFacts(versions={"torch": "2"}),
    )
    artifacts.save_fit_report(folder, report)
    assert repr(artifacts.load_fit_report(folder)) == repr(report)
    row = json.loads((folder / "fit.json").read_text())["layers"]["10"]
    assert row == {**FIGURES, "fitted": False, "kl_start": None, "kl_reference": None, "start": None}
    artifacts.save_fit_report(folder, replace(report, training_loss=TrainingLoss(steps=((float("inf"),),))))
    assert json.loads((folder / "fit.json").read_text())["training_loss"]["steps"] == [[None]]
    assert isnan(artifacts.load_fit_report(folder).training_loss.steps[0][0])


@pytest.mark.parametrize("name", ["tiny-mamba-lens", "tiny-rwkv4-lens"])
def test_a_report_from_before_formats_is_read(name: str, tmp_path: Path) -> None:
    """As lens-rnn 0.2.0 wrote the shipped ones: without a format, and without what came later."""
    shipped = Path(__file__).parents[1] / "checkpoints" / name
    shutil.copytree(shipped, tmp_path / "older")
    older = json.loads((shipped / "fit.json").read_text())
    assert older.pop("format") == FORMAT
    del older["model"]["stock_attaches"], older["data"]["fit"]["held_out"], older["data"]["eval"]["held_out"]
    (tmp_path / "older" / "fit.json").write_text(json.dumps(older))
    report = artifacts.load(tmp_path / "older").report
    assert report.layers == artifacts.load(shipped).report.layers
    artifacts.save_fit_report(tmp_path, report)
    again = json.loads((tmp_path / "fit.json").read_text())
    assert again.pop("format") == FORMAT
    assert again["model"].pop("stock_attaches") is False
    assert [again["data"][half].pop("held_out") for half in ("fit", "eval")] == ["", ""]
    assert again == older


# --- finding ----------------------------------------------------------------------------------------------------------


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    assert refusal(tmp_path / "nothing") == f"no such lens folder: {tmp_path / 'nothing'}"
    assert refusal("./no-such-lens") == "no such lens folder: no-such-lens"


def test_a_folder_without_a_lens_says_what_is_missing(folder: Path, tmp_path: Path) -> None:
    assert refusal(tmp_path).endswith("holds no lens: config.json and params.pt missing")
    (folder / "params.pt").unlink()
    assert refusal(folder).endswith("holds no lens: params.pt missing")


def test_a_file_is_not_a_lens(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert refusal("params.pt") == "params.pt is a file; name the folder that holds the lens"
    assert "is a file" in refusal(folder / "params.pt")


@pytest.mark.parametrize("name", ["some-model", "org/some-model", "no such thing"])
def test_a_resource_cannot_be_had_offline_and_says_so_quickly(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    start = time.monotonic()
    message = refusal(name)
    assert time.monotonic() - start < 5
    space = "AlignmentResearch/tuned-lens"
    where = (
        f"neither {space} nor a model repository of that name gives it" if "/" in name else f"{space} does not give it"
    )
    assert message.startswith(f"no lens folder {name!r} here, and {where} (Cannot reach ")
    assert "offline mode is enabled" in message


# --- hashes -----------------------------------------------------------------------------------------------------------


def test_a_hash_depends_on_names_bytes_dtype_and_shape() -> None:
    base = {"a": torch.zeros(2, 3), "b": torch.ones(4)}
    changed = {
        "name": {"c": base["a"], "b": base["b"]},
        "names exchanged": {"b": torch.zeros(2, 3), "a": torch.ones(4)},
        "one bit": {
            **base,
            "a": torch.from_numpy(np.array([1, 0, 0, 0, 0, 0], dtype=np.int32).view(np.float32)).reshape(2, 3),
        },
        "sign of zero": {**base, "a": -base["a"]},
        "shape": {**base, "a": torch.zeros(3, 2)},
        "dtype of the same bytes": {**base, "a": torch.zeros(2, 3, dtype=torch.int32)},
        "one less": {"a": base["a"]},
    }
    hashes = {name: artifacts.sha256_of(tensors.items()) for name, tensors in changed.items()}
    hashes["base"] = artifacts.sha256_of(base.items())
    assert len(set(hashes.values())) == len(hashes), hashes
    assert all(len(digest) == 64 for digest in hashes.values())


def test_a_hash_does_not_depend_on_order_or_layout_in_memory() -> None:
    tensors = {name: tensor.bfloat16() for name, tensor in make_translators().items()} | {
        "empty": torch.zeros(0),
        "one": torch.tensor(3.0),
    }
    expected = artifacts.sha256_of(tensors.items())
    assert artifacts.sha256_of(reversed(tensors.items())) == expected
    assert (
        artifacts.sha256_of((name, t.T.contiguous().T if t.ndim == 2 else t) for name, t in tensors.items()) == expected
    )
