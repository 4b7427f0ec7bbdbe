"""Families that register their adapters."""

from lens_rnn.models import known_architectures, register, registry, wrap_model
from lens_rnn.models.families.mamba import MambaAdapter
from lens_rnn.models.generic import GenericAdapter
from tests.conftest import make_model

import pytest


def test_register_a_new_model_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    model = make_model("mamba")
    model.config.model_type = "mamba-of-mine"
    assert type(wrap_model(model)) is GenericAdapter

    @register("mamba-of-mine", "another")
    class Mine(MambaAdapter):
        pass

    assert {"mamba-of-mine", "another", "mamba"} <= set(known_architectures())
    wrapped = wrap_model(model)
    assert type(wrapped) is Mine
    assert wrapped.model_type == "mamba-of-mine"
