"""The lens that commands read by default: the one last fitted for the model, or the one beside it."""

import json
import os
from pathlib import Path

from lens_rnn.fitted import default_lens

import pytest


def fit(folder: Path, model: str, at: int, **settings: object) -> str:
    """What a fit leaves, with the time at which it ended."""
    folder.mkdir(parents=True)
    (folder / "fit.json").write_text(json.dumps({"model": {"name": model}, "settings": settings}))
    os.utime(folder / "fit.json", (at, at))
    return str(folder)


def test_the_newest_fit_of_the_model_comes_before_the_lens_beside_it(tmp_path: Path) -> None:
    model, lenses = str(tmp_path / "model"), tmp_path / "lenses"
    assert default_lens(model, lenses=lenses) is None
    (tmp_path / "model-lens").mkdir()
    assert default_lens(f"{model}/", lenses=lenses) == str(tmp_path / "model-lens")
    newest = fit(lenses / "a", model, 30)
    fit(lenses / "b", model, 20)
    fit(lenses / "another", f"{model}-2", 40)
    assert default_lens(model, lenses=lenses) == newest


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"model": 1}', '{"model": {}}', '{"model": {"name": "m"}, "settings": 1}']
)
def test_what_is_no_finished_fit_is_passed_by(content: str, tmp_path: Path) -> None:
    (tmp_path / "lenses" / "a").mkdir(parents=True)
    (tmp_path / "lenses" / "a" / "params.pt").write_text("begun")
    assert default_lens("m", lenses=tmp_path / "lenses") is None
    (tmp_path / "lenses" / "a" / "fit.json").write_text(content)
    assert default_lens("m", lenses=tmp_path / "lenses") is None


def test_a_folder_has_several_names_and_a_hub_model_several_revisions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    fit(Path("lenses/a"), "model", 10)
    assert default_lens(str(tmp_path / "model")) == default_lens("./model/") == "lenses/a"
    fit(Path("lenses/b"), "org/model", 10, revision="v1")
    assert default_lens("org/model") is None
    assert default_lens("org/model", "v1") == "lenses/b"
