"""The figures of the paper, by name, from any number of results: which results each shows, laid out for drawing.

families    depth against bits per byte, one result a family, of about one size
sizes       the tuned lens at every size, one figure a family
lenses      tuned against logit lens, a panel a result, one figure a family
transfer    what the translator of one layer makes of another layer's hidden states, one figure a result
perplexity  log perplexity per token, in nats, where a result holds the conversion
"""

import logging
import math
import re
from collections.abc import Callable, Sequence
from typing import Literal, get_args

from lens_rnn.drawing import Drawable
from lens_rnn.errors import ConfigError, DataError
from lens_rnn.evaluation.curves import Curves, parameters_in
from lens_rnn.evaluation.matrix import transfer_picture
from lens_rnn.evaluation.plots import comparison_picture, layers_picture, panels_picture
from lens_rnn.looks import title_of

Name = Literal["families", "sizes", "lenses", "transfer", "perplexity"]
NAMES: tuple[Name, ...] = get_args(Name)


def draw(name: Name, results: Sequence[Curves], size: str | None = None) -> dict[str, Drawable]:
    """The pictures of one figure by their file stem.

    `size`, written like 160m, 1.4b or 1b5, is what `families` looks for; by default the sizes nearest to each other.
    Raises DataError where the results hold nothing for this figure, saying what is missing.
    """
    builders: dict[Name, Callable[[], dict[str, Drawable]]] = {
        "families": lambda: _families(results, size),
        "sizes": lambda: _sizes(results),
        "lenses": lambda: _lenses(results),
        "transfer": lambda: _transfer(results),
        "perplexity": lambda: _perplexity(results),
    }
    return builders[name]()


def ordered(results: Sequence[Curves]) -> list[Curves]:
    """Results by family in the order of appearance, within one from small to large."""
    return [curves for members in _by_family(results).values() for curves in members]


def parse_size(text: str) -> float:
    """Number of parameters that 160m, 1.4b or 1b5 means. Raises ConfigError for anything else."""
    parameters = parameters_in(text)
    if not parameters:
        raise ConfigError(f"size {text!r} is no number of parameters; write it like 160m, 1.4b or 1b5")
    return parameters


def one_size(families: Sequence[Sequence[Curves]], size: float | None = None) -> list[Curves]:
    """One result of each family: the nearest to `size` parameters, by default those nearest to each other (the larger,
    where equal).

    Broken runs are taken only where a family has nothing else. Raises DataError where sizes are needed and not known.
    """
    candidates = []
    for members in families:
        sound = [curves for curves in members if not curves.broken] or list(members)
        known = [curves for curves in sound if curves.parameters]
        if len(sound) > 1 and not known:
            raise DataError(
                f"the names of {', '.join(c.name for c in sound)} do not tell their sizes; give one result a family"
            )
        candidates.append(known or sound)

    def nearest(target: float) -> list[Curves]:
        return [min(members, key=lambda c: abs(math.log((c.parameters or target) / target))) for members in candidates]

    def apart(chosen: list[Curves]) -> float:
        sizes = [curves.parameters for curves in chosen if curves.parameters]
        return round(max(sizes) / min(sizes), 2)  # names round sizes: a difference of a hundredth says nothing

    if size is not None:
        return nearest(size)
    anchors = sorted(
        (curves.parameters for members in candidates for curves in members if curves.parameters), reverse=True
    )
    return min(map(nearest, anchors), key=apart) if anchors else [members[0] for members in candidates]


def _families(results: Sequence[Curves], size: str | None) -> dict[str, Drawable]:
    families = _by_family(results)
    if len(families) < 2:
        raise DataError(f"every result is of the family {next(iter(families))}; name results of another")
    chosen = one_size(list(families.values()), parse_size(size) if size else None)
    return {"families": comparison_picture(chosen, title="Tuned and logit lens by family, at one size")}


def _sizes(results: Sequence[Curves]) -> dict[str, Drawable]:
    tuned = _by_family([curves for curves in results if curves.tuned_ce is not None])
    drawn: dict[str, Drawable] = {
        f"sizes-{slug(family)}": comparison_picture(members, "tuned", f"{title_of(family)}: tuned lens at every size")
        for family, members in tuned.items()
        if len(members) > 1
    }
    if not drawn:
        raise DataError("no family has two results with a tuned lens; name more results")
    return drawn


def _lenses(results: Sequence[Curves]) -> dict[str, Drawable]:
    return {
        f"lenses-{slug(family)}": panels_picture(members, f"{title_of(family)}: tuned against logit lens")
        for family, members in _by_family(results).items()
    }


def _transfer(results: Sequence[Curves]) -> dict[str, Drawable]:
    drawn: dict[str, Drawable] = {}
    for curves in results:
        if curves.transfer is not None:
            stem = f"transfer-{slug(curves.name)}"
            drawn[f"{stem}-{len(drawn)}" if stem in drawn else stem] = transfer_picture(curves, curves.transfer)
    if not drawn:
        raise DataError("no result holds tuned.layer_transfer; measure it with eval/perplexity.py --transfer")
    return drawn


def _perplexity(results: Sequence[Curves]) -> dict[str, Drawable]:
    known = [curves.per_token() for curves in results if curves.bits_per_byte_per_nat is not None]
    missing = [curves.name for curves in results if curves.bits_per_byte_per_nat is None]
    lacking = (
        f"nats per token are not known of {', '.join(missing) if known else 'any of the results'}: bits per byte are "
        "converted by the "
        "tokens and bytes of the text, which the file must hold as lens_rnn.bits_per_byte_per_nat"
    )
    if not known:
        raise DataError(f"{lacking}; eval/perplexity.py writes it")
    if missing:
        logging.getLogger(__name__).warning("perplexity: %s; left out", lacking)
    if len(known) == 1:
        return {"perplexity": layers_picture(known[0])}
    return {
        "perplexity": comparison_picture(
            known, title="Log perplexity per token\n(comparable where the tokenizer is the same)"
        )
    }


def slug(name: str) -> str:
    """A name as part of a file name: lower case, without spaces and marks."""
    return re.sub(r"[^a-z0-9._]+", "-", name.lower()).strip("-.") or "result"


def _by_family(results: Sequence[Curves]) -> dict[str, list[Curves]]:
    """Results by family in the order of appearance, within one from small to large."""
    families: dict[str, list[Curves]] = {}
    for curves in sorted(results, key=lambda c: c.parameters or 0):
        families.setdefault(curves.family or "unknown", []).append(curves)
    order = [curves.family or "unknown" for curves in results]
    return {family: families[family] for family in sorted(families, key=order.index)}
