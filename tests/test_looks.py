"""How families are called and drawn: the same in every picture, and apart from one another."""

import subprocess
import sys
from itertools import combinations

from lens_rnn.evaluation.canvas import SYMBOLS
from lens_rnn.looks import LOOKS, MARKERS, Look, look_of, title_of
from tests.models import tiny_hybrids

import numpy as np
import pytest
from matplotlib.colors import LinearSegmentedColormap, to_rgb

FIRST = ("mamba", "rwkv", "gpt_neox")
MADE_UP = [f"family_{i}" for i in range(40)]


def brightness(look: Look, shade: float) -> float:
    colour = LinearSegmentedColormap.from_list("ramp", look.ramp)(shade)
    return float(np.dot(to_rgb(colour), [0.2126, 0.7152, 0.0722]))


@pytest.mark.parametrize("family", [*LOOKS, *MADE_UP, None])
def test_a_look_can_be_drawn_and_goes_from_light_to_dark(family: str | None) -> None:
    look = look_of(family)
    assert look.marker in SYMBOLS
    assert np.all(np.diff([brightness(look, shade) for shade in np.linspace(0, 1, 7)]) < -0.03)


def test_the_first_three_are_apart_from_all_others_without_colour() -> None:
    own = {look_of(family).marker for family in FIRST}
    assert len(own) == 3
    assert not own & {*MARKERS, "X"}  # X is for broken runs
    for family in [*MADE_UP, *(family for family in LOOKS if family not in (*FIRST, "pythia"))]:
        assert look_of(family).marker not in own
    lone = [brightness(look_of(family), look_of(family).lone_shade) for family in FIRST]
    assert min(abs(a - b) for a, b in combinations(lone, 2)) > 0.15


def test_no_two_families_look_alike() -> None:
    looks = {look_of(family).title: look_of(family) for family in [*LOOKS, *MADE_UP] if family != "pythia"}
    drawn = [(look.marker, look.ramp) for look in looks.values()]
    assert len(set(drawn)) == len(drawn)


def test_a_family_that_is_not_listed_has_its_name_and_a_look_that_stays() -> None:
    assert title_of("rwkv_9") == "rwkv_9"
    code = "from lens_rnn.looks import look_of; print(look_of('rwkv_9'))"  # another process has another seed of hash()
    again = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert again.strip() == str(look_of("rwkv_9"))


def test_it_is_a_leaf() -> None:
    code = "import sys, lens_rnn.looks; print({'torch', 'numpy', 'matplotlib'} & sys.modules.keys())"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
        == "set()"
    )


def test_the_families_that_the_package_meets_have_titles() -> None:
    titles = {
        name: title_of(name) for name in (*tiny_hybrids.SETTINGS, *tiny_hybrids.CONTROLS, *FIRST, "recurrent_gemma")
    }
    assert [name for name, title in titles.items() if title == name] == []
    assert titles["granitemoehybrid"] == "Granite-4-H"
    assert titles["qwen3_5_text"] == title_of("qwen3_5") == "Qwen3.5"
    assert title_of("pythia") == "Pythia"
