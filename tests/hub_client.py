"""What test_hub.py does with a Hub on loopback, in a process of its own: huggingface_hub reads its address when it is
imported.

    python -m tests.hub_client FOLDER

FOLDER holds neox/ and mamba/, small models, with neox-lens/ and mamba-lens/, their lenses. Prints one line of JSON:
what each step gave.
"""

import contextlib
import json
import logging
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests import hub_server

NAMES = {"EleutherAI/pythia-160m-deduped-v0": 1, "EleutherAI/pythia-70m-deduped": 2, "gpt2": 3, "org/cut": 4}
"""Lenses in the Space, and the seed of their parameters."""
OTHERS = {"mine/lenses": 5, "me/pushed": 6, "EleutherAI/pythia-160m-deduped-v0 at v1": 7, "elsewhere": 8}
"""Lenses elsewhere."""
FIT = {"model": {"vocab_size": 96}}
ACCOUNTS = {
    "hf_writes": {"name": "me", "orgs": [{"name": "us"}], "auth": {"accessToken": {"role": "write"}}},
    "hf_reads": {"name": "me", "orgs": [], "auth": {"accessToken": {"role": "read"}}},
}


def lens_files(seed: int, folder: Path) -> dict[str, bytes]:
    """config.json and params.pt of a lens, its parameters drawn from the seed."""
    from lens_rnn import artifacts

    import torch
    from tuned_lens.nn.lenses import TunedLensConfig

    generator = torch.Generator().manual_seed(seed)
    shapes = {"weight": (4, 4), "bias": (4,)}
    state = {f"{i}.{kind}": torch.randn(shape, generator=generator) for i in range(2) for kind, shape in shapes.items()}
    artifacts.save(folder / str(seed), TunedLensConfig(f"model/{seed}", 4, 2).to_dict(), state)
    return {path.name: path.read_bytes() for path in (folder / str(seed)).iterdir()}


def under(folder: str, files: dict[str, bytes]) -> dict[str, bytes]:
    return {f"{folder}/{name}": content for name, content in files.items()}


def attempt(act: Callable[[], Any]) -> Any:
    """What it returns or, in place of that, what it refused with."""
    from lens_rnn.errors import LensRNNError

    try:
        return act()
    except LensRNNError as error:
        return f"{type(error).__name__}: {error}"


@contextlib.contextmanager
def environment(**values: str) -> Iterator[None]:
    os.environ.update(values)
    yield
    for name in values:
        del os.environ[name]


class Session:
    """Every step, on one server."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.requests: list[str] = []
        self.cut = {"lens/org/cut/params.pt"}
        self.full = {"me/full"}
        self.models: dict[str, hub_server.Files] = {}
        self.spaces: dict[str, hub_server.Files] = {}

    def stock_the_shelves(self) -> None:
        """What others have published before."""
        files = {seed: lens_files(seed, self.folder / "made") for seed in (*NAMES.values(), *OTHERS.values())}
        space = {
            "app.py": b"",
            "lens/half/config.json": b"{}",
            "lens-old/gpt2/config.json": b"{}",
            "lens-old/gpt2/params.pt": b"",
        }
        for name, seed in NAMES.items():
            space |= under(f"lens/{name}", files[seed])
        self.spaces["AlignmentResearch/tuned-lens"] = space
        self.spaces["AlignmentResearch/tuned-lens@v1"] = under("lens/EleutherAI/pythia-160m-deduped-v0", files[7])
        self.models["mine/lenses"] = under("lens/mine", files[5]) | under("other/place/mine", files[8])
        self.models["me/pushed"] = {**files[6], "fit.json": json.dumps(FIT).encode()}

    def loaded(self, resource: str, **place: Any) -> Any:
        """Which lens a load gives, by its base model; the vocabulary in its fit.json; and the requests that it took."""
        from lens_rnn import artifacts

        before = len(self.requests)

        def act() -> dict[str, Any]:
            artifact = artifacts.load(resource, **place)
            asked = self.requests[before:]
            total = float(sum(tensor.double().sum() for tensor in artifact.translators.values()))
            return {
                "base": artifact.config["base_model_name_or_path"],
                "sum": total,
                "vocab_size": artifact.report.model.vocab_size,
                "asked": asked,
            }

        return attempt(act)

    def reading(self) -> Iterator[tuple[str, Any]]:
        from lens_rnn import artifacts

        pythia = "EleutherAI/pythia-160m-deduped-v0"
        yield "available", attempt(artifacts.available)
        yield "available at v1", attempt(lambda: artifacts.available(revision="v1"))
        yield (
            "available elsewhere",
            attempt(lambda: artifacts.available("mine/lenses", "model", subfolder="other/place")),
        )
        yield "available nowhere", attempt(lambda: artifacts.available("no/thing"))
        yield "first", self.loaded(pythia)
        yield "again", self.loaded(pythia)
        yield "v1", self.loaded(pythia, revision="v1")
        yield "commit", self.loaded(pythia, revision=hub_server.commit(self.spaces["AlignmentResearch/tuned-lens@v1"]))
        with environment(TUNED_LENS_REPO_ID="mine/lenses", TUNED_LENS_REPO_TYPE="model"):
            yield "available by variable", attempt(artifacts.available)
            yield "by variable", self.loaded("mine")
            yield "over variable", self.loaded("gpt2", repo_id="AlignmentResearch/tuned-lens", repo_type="space")
            yield "pushed, over variable", self.loaded("me/pushed")
        yield "subfolder", self.loaded("mine", repo_id="mine/lenses", repo_type="model", subfolder="other/place")
        yield "pushed", self.loaded("me/pushed")
        yield "pushed, again", self.loaded("me/pushed")
        yield "misspelt", self.loaded("EleutherAI/pythia-160m-dedup")
        yield "nothing like it", self.loaded("zzzz")
        yield "no revision", self.loaded("gpt2", revision="v9")
        yield "no repository", self.loaded("gpt2", repo_id="no/thing")
        yield "no type", self.loaded("gpt2", repo_type="spaceship")
        yield "cut", self.loaded("org/cut")
        self.cut.clear()
        yield "mended", self.loaded("org/cut")

    def pushing(self) -> Iterator[tuple[str, Any]]:
        from lens_rnn import artifacts, hub

        lens = self.folder / "neox-lens"
        yield "no token", attempt(lambda: hub.check_push("me/new"))
        yield "push without a token", attempt(lambda: artifacts.push(lens, "me/new"))
        for token in ("hf_unknown", "hf_reads"):
            with environment(HF_TOKEN=token):
                yield token, attempt(lambda: hub.check_push("me/new"))
        os.environ["HF_TOKEN"] = "hf_writes"
        yield (
            "names",
            [attempt(lambda name=name: hub.check_push(name)) for name in ("new", "us/new", "them/new", "me/a b")],
        )
        before = len(self.requests)
        yield "dry", attempt(lambda: artifacts.push(lens, "me/new", dry_run=True))
        yield "asked when dry", self.requests[before:]
        yield "new", attempt(lambda: artifacts.push(lens, "me/new"))
        yield "branch", attempt(lambda: artifacts.push(lens, "me/new", revision="v2"))
        yield "public", attempt(lambda: artifacts.push(lens, "me/new", private=True))
        yield "private", attempt(lambda: artifacts.push(lens, "me/private", private=True))
        yield "full", (refused := attempt(lambda: artifacts.push(lens, "me/full", revision="v2")))
        self.full.clear()
        program, flag, code = shlex.split(refused.partition("to try again: ")[2])
        exec(code, {})
        yield "command", [program, flag]
        yield (
            "received",
            {name: {path: len(content) for path, content in files.items()} for name, files in self.models.items()},
        )
        on_disk = {path.name: path.read_bytes() for path in lens.iterdir() if path.is_file()}
        for name in ("me/new", "me/new@v2", "me/private", "me/full@v2"):
            yield f"{name} as on disk", all(on_disk[path] == content for path, content in self.models[name].items())

    def using(self) -> Iterator[tuple[str, Any]]:
        """The code of the cards as it stands, for lenses that were pushed with them."""
        from lens_rnn import artifacts
        from lens_rnn.lens import TunedLens

        import torch

        os.chdir(self.folder)
        for family in ("neox", "mamba"):
            artifacts.push(f"{family}-lens", f"me/{family}-lens")
            card = self.models[f"me/{family}-lens"]["README.md"].decode()
            spaces: list[dict[str, Any]] = []
            for block in re.findall(r"```python\n(.*?)```", card, re.DOTALL):
                spaces.append({})
                exec(block, spaces[-1])
            ours, theirs = spaces
            h = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
            expected = TunedLens.load(ours["adapter"], f"{family}-lens")
            with torch.no_grad():
                equal = [torch.equal(space["lens"](h, i), expected(h, i)) for space in spaces for i in range(3)]
            yield (
                family,
                {
                    "types": [f"{type(s['lens']).__module__}.{type(s['lens']).__name__}" for s in (ours, theirs)],
                    "equal": equal,
                },
            )


def main(folder: Path) -> None:
    session, given = Session(folder), {}
    kept = {
        "spaces": session.spaces,
        "models": session.models,
        "cut": session.cut,
        "full": session.full,
        "requests": session.requests,
    }
    with hub_server.serve(accounts=ACCOUNTS, **kept) as address:
        os.environ["HF_ENDPOINT"] = address
        session.stock_the_shelves()
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
        for steps in (session.reading, session.pushing, session.using):
            given |= dict(steps())
    import huggingface_hub

    huggingface_hub.close_session()  # else its connection outlives the server
    given["server gone"] = session.loaded("EleutherAI/pythia-160m-deduped-v0")
    given["server gone, pushed"] = session.loaded("me/pushed")
    print(json.dumps(given))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
