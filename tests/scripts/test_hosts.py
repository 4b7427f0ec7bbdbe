"""train/fit_lens.py on two machines, with nothing in common but the wire between them.

The machines are network namespaces (hosts.py). LENS_RNN_HOSTS=required turns a skip for want of rights into a failure.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lens_rnn.errors import DataError, FitError, LensRNNError
from lens_rnn.processes import Processes
from tests.conftest import make_model, save_model
from tests.scripts.hosts import Host, Pair, joined
from tests.scripts.launch import ROOT, run_in_process

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerBase

COMMAND = ("--model", "model", "--data", "made.jsonl", "--tokens", 20_480, "--eval-tokens", 2_048, "--seq-len", 64)
COMMAND += ("--batch-size", 8, "--micro-batch-size", 1, "--passes", 1, "--start-tokens", 8_192, "--checkpoint-every", 2)
COMMAND += ("--products", "float32", "--device", "cpu", "--threads", 1)
STEPS = 37


def translators(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "params.pt", weights_only=True)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, model_folders: dict[str, Path], text_file: Path) -> Iterator[Pair]:
    """Two joined hosts, each with a copy of the same model and text."""
    with joined(tmp_path_factory.mktemp("hosts")) as pair:
        for host in pair:
            shutil.copytree(model_folders["mamba"], host.folder / "model")
            shutil.copy(text_file, host.folder / "made.jsonl")
        yield pair


@pytest.fixture(scope="module")
def whole(pair: Pair) -> Path:
    """The output on the first host of a run that nobody disturbed."""
    assert pair.run(*COMMAND, "--output", "whole") == [0, 0], pair.first.terminal + pair.second.terminal
    assert "processes  2 on cpu, 1 threads each" in pair.first.terminal
    return pair.first.folder / "whole"


@pytest.fixture
def lens_of_one(pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The output of one process that does the same."""
    monkeypatch.chdir(pair.first.folder)
    assert run_in_process("train/fit_lens.py", monkeypatch, *COMMAND, "--threads", 2, "--output", tmp_path / "one") == 0
    return tmp_path / "one"


def test_two_hosts_fit_the_lens_of_one(pair: Pair, whole: Path, lens_of_one: Path) -> None:
    """As the README says: up to rounding, which is 1 % of a translator's norm and 1e-4 of a loss where the products are
    bfloat16. The loss of the first step is of equal translators.
    """
    by_one, by_two = translators(lens_of_one), translators(whole)
    assert by_one.keys() == by_two.keys()
    for key, expected in by_one.items():
        assert (by_two[key] - expected).norm() <= 0.01 * expected.norm(), key
    reports = [json.loads((folder / "fit.json").read_text()) for folder in (lens_of_one, whole)]
    assert [report["run"]["processes"] for report in reports] == [1, 2]
    alone, together = (np.array(report["training_loss"]["steps"]) for report in reports)  # (steps, layers)
    assert len(alone) == len(together) == STEPS
    np.testing.assert_allclose(together[0], alone[0], rtol=1e-5)
    np.testing.assert_allclose(together, alone, rtol=1e-4)
    for i, row in reports[0]["layers"].items():
        assert reports[1]["layers"][i]["kl_tuned"] == pytest.approx(row["kl_tuned"], rel=1e-4)
    for host in pair:  # each has packed the text for itself, and the lens is where the first rank was
        assert len(list(host.folder.glob("cache/*/tokens.bin"))) == 2, host.name
        assert (host.folder / "whole").exists() == (host is pair.first)


KILLED = [pytest.param(1, 0, id="the second"), pytest.param(0, 1, id="the first", marks=pytest.mark.slow)]


@pytest.mark.parametrize(("killed", "main_then"), KILLED)
def test_a_host_killed_in_the_middle_and_both_resumed(killed: int, main_then: int, pair: Pair, whole: Path) -> None:
    """They end bit-identical to hosts that were never killed, although only the first host has a checkpoint.

    The slow case kills the host that has it, and gives the first rank to the other one.
    """
    command, hosts = (*COMMAND, "--output", f"killed-{killed}", "--resume"), list(pair)
    pair.start(*command)
    pair.kill_when(hosts[killed], lambda: last_step(hosts[0], command[-2]) >= 6)
    stopped = last_step(hosts[0], command[-2])
    assert 6 <= stopped < STEPS
    assert not (hosts[1].folder / command[-2]).exists()
    assert pair.run(*command, main=hosts[main_then]) == [0, 0], pair.first.terminal + pair.second.terminal
    assert f"resumed after step {stopped} of {STEPS}" in hosts[main_then].terminal
    output = hosts[main_then].folder / command[-2]
    expected, got = translators(whole), translators(output)
    assert [name for name in expected if not torch.equal(expected[name], got[name])] == []
    histories = [json.loads((folder / "fit.json").read_text())["training_loss"] for folder in (whole, output)]
    assert histories[0] == histories[1]
    assert [path.name for path in sorted(output.glob("checkpoints/*"))] == ["step-00000036.pt", "step-00000037.pt"]


def last_step(host: Host, output: str) -> int:
    """The step of the last checkpoint on a host, -1 if there is none."""
    paths = host.folder.glob(f"{output}/checkpoints/step-*.pt")
    return max((int(path.stem.removeprefix("step-")) for path in paths), default=-1)


def test_a_host_with_other_data_weights_and_packages_is_refused_by_name(
    pair: Pair, tmp_path: Path, byte_tokenizer: PreTrainedTokenizerBase
) -> None:
    """Its text lacks the last document, its weights are of another seed, its numba is older: both say so, and end."""
    lines = (pair.second.folder / "made.jsonl").read_text().splitlines(keepends=True)
    (pair.second.folder / "other.jsonl").write_text("".join(lines[:-1]))
    save_model(make_model("mamba", 257, seed=1), pair.second.folder / "other", byte_tokenizer)
    older = tmp_path / "numba-0.1.dist-info" / "METADATA"
    older.parent.mkdir()
    older.write_text("Metadata-Version: 2.1\nName: numba\nVersion: 0.1\n")
    others = ("--data", "other.jsonl", "--model", "other")
    codes = pair.run(*COMMAND, "--output", "refused", of_second=others, PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert 0 not in codes
    for host in pair:
        (error,) = (line for line in host.terminal.splitlines() if line.startswith("error:"))
        assert [
            word
            for word in ("host-b", "numba (0.1, not ", "data sha256", "data documents (", "model weights_sha256")
            if word not in error
        ] == []
        assert not (host.folder / "refused").exists()


class Meeting(Processes):
    """The first of two processes, with what the other one says."""

    def __init__(self, other: Any):
        object.__setattr__(self, "other", other)

    def gather(self, value: Any) -> list[Any]:
        return [value, self.other]


def test_what_is_wrong_on_one_machine_is_said_on_all() -> None:
    with (
        pytest.raises(LensRNNError, match=r"^process 1 on b: no such file$"),
        Meeting(("b", "no such file")).together(),
    ):
        pass
    with pytest.raises(DataError, match=r"^mine$"), Meeting(("b", "its")).together():
        raise DataError("mine")
    with Meeting(("b", None)).together():
        pass


def test_facts_that_differ_are_named_and_hashes_are_cut() -> None:
    facts = {"python": "3.11", "data": "a" * 64, "settings": 1}
    Meeting(("b", facts)).refuse_differences(facts)
    theirs = {"python": "3.11", "data": "0000" + "b" * 60}
    named = r"data \(0000bbbb…, not a{8}…\), settings \(None, not 1\)"
    with pytest.raises(FitError, match=named):
        Meeting(("b", theirs)).refuse_differences(facts)
