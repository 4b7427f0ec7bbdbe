"""Opening a lens of whichever kind is at a place."""

from pathlib import Path

from lens_rnn.errors import ArtifactError
from lens_rnn.lens import KINDS, JacobianLens, LogitLens, LowRankLens, TunedLens, open_lens
from lens_rnn.models import ModelAdapter
from tests.lens import test_jacobian, test_low_rank
from tests.refusals import refusal

import pytest


def test_a_place_is_opened_as_what_is_there(tiny_model: ModelAdapter, tmp_path: Path) -> None:
    TunedLens.from_adapter(tiny_model).save(tmp_path / "tuned")
    test_jacobian.made(tiny_model).save(tmp_path / "lens.pt")
    (tmp_path / "folder").mkdir()
    test_jacobian.made(tiny_model).save(tmp_path / "folder" / "any name.pt")
    test_low_rank.made(tiny_model).save(tmp_path / "low")
    opened = {
        name: open_lens(tiny_model, name if name == "logit" else tmp_path / name)
        for name in ("logit", "tuned", "lens.pt", "folder", "low")
    }
    kinds = [type(lens) for lens in opened.values()]
    assert kinds == [LogitLens, TunedLens, JacobianLens, JacobianLens, LowRankLens]
    assert {lens.kind for lens in opened.values()} == set(KINDS)


@pytest.mark.parametrize("name", ["nobody/nothing", "nobody/nothing/lens.pt", "nothing"])
def test_what_is_nowhere_is_refused(tiny_mamba: ModelAdapter, name: str) -> None:
    assert name in refusal(lambda: open_lens(tiny_mamba, name), ArtifactError)


def test_a_place_without_a_lens_is_refused(tiny_mamba: ModelAdapter, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    assert "no lens of a known kind" in refusal(lambda: open_lens(tiny_mamba, tmp_path), ArtifactError)
