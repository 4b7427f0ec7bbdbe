"""Puts small defects into a copy of the tree, one at a time, and says which of them the tests see. Run by hand:

    python tests/mutations.py                              # all of them, in a copy of this tree: some minutes
    python tests/mutations.py --tree ../older --only unigram ties

A defect is a piece of the package's text and what stands there instead. White space counts for nothing, and the file is
not named, so that it survives formatting and moving; where the text itself has changed over time there are several to
try. The text must be in the package exactly once. Exit code 1 if a defect is not seen or cannot be put in.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
SECONDS = 600


class Defect(NamedTuple):
    """One thing that could be wrong."""

    name: str
    changes: dict[str, str]
    """What stands in the package, and what it becomes; the first that is there is taken."""
    tests: str
    """Patterns of test files, those that are there; what follows -k is given to pytest."""


DEFECTS = [
    Defect(
        "gradient with the wrong sign",
        {"(gradient,) = torch.autograd.grad(u, z, at_u,": "(gradient,) = torch.autograd.grad(u, z, -at_u,"},
        "fitting/test_objective.py",
    ),
    Defect(
        "metrics of the layer below",
        {"span.hidden[layer], layer), p,": "span.hidden[layer - 1], layer), p,"}
        | {"chunk.hidden[layer], layer), p,": "chunk.hidden[layer - 1], layer), p,"},
        "evaluation/test_metrics.py",
    ),
    Defect(
        "normalisation left out of the probes' pairs",
        {"return centred / deviation, mean, deviation": "return centred, mean, deviation"},
        "elk/test_probes.py",
    ),
    Defect(
        "rollout normalised over the wrong axis",
        {"mixed / mixed.sum(-1, keepdim=True)": "mixed / mixed.sum(-2, keepdim=True)"},
        "views/test_attention.py -k rollout",
    ),
    Defect(
        "translator without its bias",
        {"return h + translator(h)": "return h + h @ translator.weight.T"},
        "lens/test_tuned.py",
    ),
    Defect(
        "KL in the other direction",
        {"kl = torch.linalg.vecdot(p, log_p - log_q)": "kl = torch.linalg.vecdot(log_q.exp(), log_q - log_p)"},
        "evaluation/test_metrics.py",
    ),
    Defect(
        "seed of the drawn labels ignored",
        {"np.random.default_rng((seed, step)).random(": "np.random.default_rng((0, step)).random("},
        "fitting/test_fit.py -k draw",
    ),
    Defect(
        "RWKV-6 decays before it reads",
        {"torch.nn.functional.pad(between[:, :, :-1], (0, 0, 0, 0, 1, 0))": "between"},
        "models/test_wkv.py models/test_recurrences.py",
    ),
    Defect(
        "files written in place, not renamed",
        {"os.replace(name, path)": "path.write_bytes(Path(name).read_bytes())"},
        "test_files.py test_artifacts.py -k 'write or whole or partial or left'",
    ),
    Defect(
        "depth of the block before",
        {"return (layer + self.states_after_blocks) / self.n_layers": "return layer / self.n_layers"},
        "models/test_adapter.py",
    ),
    Defect(
        "cross-entropy of the token itself",
        {"labels = input_ids[:, 1:].reshape(-1)": "labels = input_ids[:, :-1].reshape(-1)"},
        "fitting/test_objective.py",
    ),
    Defect(
        "cap of the logits dropped",
        {"return scaled if self.cap is None else scaled.div_(self.cap).tanh_().mul_(self.cap)": "return scaled"},
        "models/test_head.py fitting/test_objective.py",
    ),
    Defect(
        "fit on what is held out",
        {"% HELD_OUT_ONE_IN == 0": "% HELD_OUT_ONE_IN != 0"},
        "test_data.py data/test_*.py -k 'held or half or halves or split'",
    ),
    Defect(
        "interval of 90 %",
        {"[(1 - COVERAGE) / 2, (1 + COVERAGE) / 2]": "[1 - COVERAGE, COVERAGE]"},
        "test_intervals.py",
    ),
    Defect(
        "ties lose",
        {"ranks = rankdata(scores, axis=0)": 'ranks = rankdata(scores, "min", axis=0)'},
        "elk/test_scores.py",
    ),
    Defect(
        "low-rank adapters on the maps that kernels pass by",
        {"if name != _MIXER_INPUT": "if name == _MIXER_INPUT"},
        "elk/test_lora.py models/test_lora.py",
    ),
    Defect(
        "a run continued by another",
        {'self._compare(state["identity"])': "pass"},
        "test_checkpoint_store.py scripts/test_fit_lens.py -k 'refused_by_name or killed_again'",
    ),
    Defect(
        "steering of the token before",
        {"return at[:, None] % seq ==": "return (at[:, None] - 1) % seq =="},
        "steering/test_apply.py",
    ),
    Defect(
        "rollout without the residual stream",
        {"mixed = shares(matrix) + eye": "mixed = shares(matrix)"},
        "views/test_attention.py -k rollout",
    ),
    Defect(
        "unigram model of the scored text",
        {"counts = fit.counts(vocab_size) + 1": "counts = scored.counts(vocab_size) + 1"},
        "test_data.py data/test_*.py -k unigram",
    ),
]


def pattern(text: str) -> re.Pattern[str]:
    """Of a text whose white space may be any, or none beside punctuation: a formatter breaks lines there."""
    return re.compile(r"\s*".join(re.escape(word) for word in re.findall(r"\w+|[^\w\s]", text)))


def put_in(defect: Defect, package: Path) -> tuple[Path, str]:
    """Change the one place in the package; gives its file and the file's text before. Raises LookupError."""
    sources = {path: path.read_text(encoding="utf-8") for path in sorted(package.rglob("*.py"))}
    for old, new in defect.changes.items():
        places = [(path, m) for path, source in sources.items() for m in pattern(old).finditer(source)]
        if len(places) > 1:
            raise LookupError(f"{old!r} stands in {len(places)} places: {', '.join(path.name for path, _ in places)}")
        for path, match in places:
            source = sources[path]
            path.write_text(source[: match.start()] + new + source[match.end() :], encoding="utf-8")
            return path, source
    raise LookupError(f"the package nowhere says {' or '.join(map(repr, defect.changes))}")


def run(tree: Path, tests: str) -> subprocess.CompletedProcess:
    """pytest on what `tests` of a defect names, until the first failure."""
    patterns, _, words = tests.partition(" -k ")
    files = [str(path) for name in patterns.split() for path in sorted((tree / "tests").glob(name))]
    if not files:
        raise LookupError(f"there are no tests {patterns}")
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *files]
    environment = {
        **os.environ,
        "PYTHONDONTWRITEBYTECODE": "1",
    }  # a change within a second would not be seen in bytecode
    return subprocess.run(
        [*command, *(["-k", words.strip("'")] if words else [])],
        cwd=tree,
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path, default=ROOT, help="a checkout with lens_rnn and tests")
    parser.add_argument("--only", nargs="+", default=[""], metavar="WORD", help="defects whose names have one of these")
    words = parser.parse_args()
    chosen = [defect for defect in DEFECTS if any(word in defect.name for word in words.only)]
    seen = 0
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(words.tree, tree, ignore=shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "results"))
        passing: dict[str, bool] = {}  # without a defect
        for defect in chosen:
            begun = time.monotonic()
            try:
                if defect.tests not in passing:
                    passing[defect.tests] = run(tree, defect.tests).returncode == 0
                path, source = put_in(defect, tree / "lens_rnn")
                try:
                    done = run(tree, defect.tests)
                finally:
                    path.write_text(source, encoding="utf-8")
                verdict = {0: "NOT SEEN", 1: "seen"}.get(done.returncode, f"pytest ended with {done.returncode}")
                if not passing[defect.tests]:
                    verdict = "UNKNOWN: the tests fail without it, too"
            except (LookupError, subprocess.TimeoutExpired) as error:
                verdict = f"UNKNOWN: {error}"
            seen += verdict == "seen"
            failed = re.findall(r"^FAILED \S+::(\S+)", done.stdout, re.MULTILINE) if verdict == "seen" else []
            print(f"{verdict:9} {defect.name:52} {time.monotonic() - begun:5.0f} s  {' '.join(failed)}", flush=True)
    print(f"{seen} of {len(chosen)} defects were seen")
    return int(seen < len(chosen))


if __name__ == "__main__":
    sys.exit(main())
