"""The house rules of lens_rnn, read from its source: who may import whom, who may name an architecture, and what no
module does.

    leaves → models, hub → artifacts → lens → evaluation → fitting, steering, elk, views → viewer → run, the scripts

The leaves may be imported by every room above them; so may `processes` and `data` from `evaluation` on. What draws and
reads result files (RESULTS) knows no model. A new module at the top is listed in ROOMS, or in LEAVES.
"""

import ast
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from lens_rnn.looks import LOOKS
from lens_rnn.models import known_architectures
from tests.models import tiny_hybrids

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lens_rnn"

# What each room may import, besides itself. A room is a module, or a package with all in it that is not listed by
# itself.
LEAVES: dict[str, set[str]] = {
    "errors": set(),
    "files": {"errors"},
    "intervals": set(),
    "memory": set(),
    "drawing": {"files"},
    "directions": {"errors"},
    "looks": set(),
    "versions": set(),
    "activity": set(),
    "checkpoints": {"errors", "files", "processes"},
    "compiled": set(),
    "rows": {"compiled"},
    "ranges": {"errors"},
    "reports": {"errors", "files"},
    "fit_report": {"errors"},
    "fitted": {"errors", "files"},
}
RESULTS = [
    f"evaluation.{name}"
    for name in ("canvas", "curves", "result_file", "results", "matrix", "plots", "summary", "figures")
]
_LENS = {*LEAVES, "models", "hub", "artifacts", "lens", "data", "processes"}
_WORK = {*_LENS, "evaluation", *RESULTS}
ROOMS: dict[str, set[str]] = {
    "": set(),  # lens_rnn/__init__.py
    **LEAVES,
    "processes": {"errors"},
    "data": {"errors", "files", "ranges"},
    "flags": {"errors", "ranges"},
    "cli": {*LEAVES, "flags"},
    "models": {*LEAVES},
    "hub": {"errors"},
    "artifacts": {*LEAVES, "hub"},
    "lens": {*LEAVES, "models", "hub", "artifacts"},
    **{room: {*LEAVES, *RESULTS[:place]} for place, room in enumerate(RESULTS)},
    "evaluation": {*_LENS, *RESULTS},
    "fitting": _WORK,
    "steering": _WORK,
    "elk": _WORK,
    "views": _WORK,
    "viewer": _WORK | {"fitting", "steering", "elk", "views"},
    "run": {*LEAVES, "cli", "models", "processes"},
}
SIBLINGS = {"fitting", "steering", "elk", "views"}
SCRIPTS = ("train", "eval", "tests", "benchmarks")

# Families and types of models. What depends on them is in the room `models`, behind its adapters.
ARCHITECTURES = {*known_architectures(), *tiny_hybrids.SETTINGS, *tiny_hybrids.CONTROLS, *LOOKS}
# what families are called and look like; how published files of three are laid out
MAY_NAME_ANY = ("looks", "evaluation.results")
NAME_OTHER_THINGS = {"steering/pairs.py": {"llama"}}  # a layout of prompts, for models of any architecture
NO_FAMILY = "lens_rnn.models.families.recurrent"  # what the families with a file share

NAMES_OF_NOTHING = {"said", "found", "its", "what", "one", "them", "this", "that", "log_to", "blameless", "fromtop"}
MOST_LINES = 300


class Module(NamedTuple):
    """A file of the package."""

    file: str
    """Its path within it."""
    source: str

    @property
    def tree(self) -> ast.Module:
        return parsed(self.source)


@cache
def parsed(source: str) -> ast.Module:
    return ast.parse(source)


@cache
def modules_of(folder: Path) -> list[Module]:
    return [
        Module(path.relative_to(folder).as_posix(), path.read_text(encoding="utf-8"))
        for path in sorted(folder.rglob("*.py"))
    ]


# --- rules: each gives the breaches in one module ---------------------------------------------------------------------


def dotted(file: str) -> str:
    """Of models/adapter.py: "models.adapter"; of a package's __init__.py, the package."""
    return file.removesuffix(".py").replace("/", ".").removesuffix("__init__").removesuffix(".")


def room_of(module: str) -> str:
    """The room of a module of lens_rnn, given without that prefix. Raises LookupError if it is in none."""
    parts = module.split(".") if module else []
    for end in range(len(parts), 0, -1):
        if ".".join(parts[:end]) in ROOMS:
            return ".".join(parts[:end])
    if not module:
        return ""
    raise LookupError(
        f"lens_rnn.{module} is in no room: list it in ROOMS of tests/test_architecture.py, with what it may import"
    )


def names_imported(module: Module) -> Iterator[tuple[int, str, str]]:
    """(line, module, name in it) of all that is imported, inside functions too; where a module is, the name is ""."""
    package = ["lens_rnn", *Path(module.file).parent.parts]
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                yield (node.lineno, whole, "") if is_module(whole) else (node.lineno, base, alias.name)


@cache
def is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def against_the_direction(module: Module) -> Iterator[str]:
    """Imports that go against the direction."""
    room = room_of(dotted(module.file))
    for line, name, _ in names_imported(module):
        top, _, inner = name.partition(".")
        if top in SCRIPTS:
            yield f"{module.file}:{line} imports {name}: the library knows no script"
        elif top == "lens_rnn" and room_of(inner) not in ROOMS[room] | {room, ""}:
            allowed = ", ".join(sorted(ROOMS[room])) or "nothing"
            yield f"{module.file}:{line} imports {name}: {room or 'lens_rnn'} may import {allowed}"
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            yield f"{module.file}:{node.lineno} imports by name, which this test cannot follow"


def private_elsewhere(module: Module) -> Iterator[str]:
    """What begins with _ belongs to the module that defines it."""
    neighbours = {name.rpartition(".")[2] for _, name, part in names_imported(module) if not part}
    for line, name, part in names_imported(module):
        if name.startswith("lens_rnn") and part.startswith("_"):
            yield f"{module.file}:{line} imports {part} of {name}, which is private"
    for node in ast.walk(module.tree):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in neighbours
            and is_module(f"lens_rnn.{node.value.id}")
            and node.attr.startswith("_")
        ):
            yield f"{module.file}:{node.lineno} uses {ast.unparse(node)}, which is private"


def without_a_purpose(module: Module) -> Iterator[str]:
    if not (ast.get_docstring(module.tree) or "").strip():
        yield f"{module.file} does not say what it is for"


def printing(module: Module) -> Iterator[str]:
    """Library code speaks through logging; cli.py alone speaks to people."""
    for node in ast.walk(module.tree):
        if (
            isinstance(node, ast.Call)
            and module.file != "cli.py"
            and ast.unparse(node.func) in ("print", "sys.stdout.write", "sys.stderr.write")
        ):
            yield f"{module.file}:{node.lineno} prints; use logging"


def careless_loading(module: Module) -> Iterator[str]:
    """Files can hold code; what reads them must not run it."""
    for line, name, part in names_imported(module):
        if name in ("torch", "pickle") and part in ("load", "loads"):
            yield f"{module.file}:{line} imports {name}'s {part} by itself, where this test cannot see how it is called"
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        arguments = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if name == "torch.load" and arguments.get("weights_only") != "True":
            yield f"{module.file}:{node.lineno} calls torch.load without weights_only=True"
        if name in ("pickle.load", "pickle.loads", "joblib.load", "yaml.load", "yaml.unsafe_load", "eval", "exec"):
            yield f"{module.file}:{node.lineno} calls {name}, which runs what it reads"
        if name in ("np.load", "numpy.load") and "allow_pickle" in arguments:
            yield f"{module.file}:{node.lineno} calls {name} with allow_pickle"


def naming_architectures(module: Module) -> Iterator[str]:
    """Whatever depends on an architecture is asked of its adapter: a family's name in another room is a fact that
    stands twice."""
    room = room_of(dotted(module.file))
    if room == "models" or room in MAY_NAME_ANY:
        return
    docstrings = {id(node.value) for node in ast.walk(module.tree) if isinstance(node, ast.Expr)}
    names = ARCHITECTURES - NAME_OTHER_THINGS.get(module.file, set())
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Constant) and node.value in names and id(node) not in docstrings:
            yield (
                f"{module.file}:{node.lineno} names {node.value}; ask the adapter, or, for what is drawn and written, "
                "lens_rnn.looks"
            )
    for line, name, _ in names_imported(module):
        if name.startswith("lens_rnn.models.families.") and name != NO_FAMILY:
            yield f"{module.file}:{line} imports {name}: what a family knows is asked of its adapter"


def too_long(module: Module) -> Iterator[str]:
    if (lines := module.source.count("\n")) > MOST_LINES:
        yield f"{module.file} has {lines} lines, {MOST_LINES} are enough; split it"


def names_of_nothing(module: Module) -> Iterator[str]:
    """Variables, parameters and functions whose names say nothing of what they hold."""
    for node in ast.walk(module.tree):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name) | ast.FunctionDef(name=name):
                if name.strip("_") in NAMES_OF_NOTHING:
                    yield f"{module.file}:{node.lineno} calls something {name}; say what it is"


def without_a_test(module: Module) -> Iterator[str]:
    """A module has the test file of its name, or a test file imports from it or names it (`models/caches.py`)."""
    path = Path(module.file)
    if path.stem != "__init__" and dotted(module.file) not in with_tests():
        mirror = path.with_name(f"test_{path.name}")
        yield f"{module.file} has no tests/{mirror}, and no test imports from it or names it"


@cache
def with_tests() -> set[str]:
    """The modules of lens_rnn, without that prefix, that tests stand for."""
    given_on = {}  # (package, name): the module that defines it
    for module in modules_of(PACKAGE):
        if module.file.endswith("__init__.py"):
            package = f"lens_rnn.{dotted(module.file)}"
            given_on |= {(package, part): name for _, name, part in names_imported(module) if part}
    known = set()
    for test in modules_of(ROOT / "tests"):
        path = Path(test.file)
        if not path.name.startswith("test_"):
            continue
        known.add(dotted(str(path.with_name(path.name.removeprefix("test_")))))
        for _, name, part in names_imported(test):
            known.add(given_on.get((name, part), name).removeprefix("lens_rnn."))
        known |= {dotted(module.file) for module in modules_of(PACKAGE) if f"`{module.file}`" in test.source}
    return known


Rule = Callable[[Module], Iterable[str]]
RULES: dict[Rule, tuple[list[tuple[str, str]], list[tuple[str, str]]]] = {
    against_the_direction: (
        [
            ("errors.py", "from lens_rnn import models"),
            ("errors.py", "import lens_rnn.models"),
            ("models/mamba.py", "from lens_rnn.artifacts import save"),
            ("models/mamba.py", "def f():\n    from lens_rnn.lens import TunedLens"),
            ("models/mamba.py", "if TYPE_CHECKING:\n    from lens_rnn.lens import TunedLens"),
            ("models/mamba.py", "from ..lens import TunedLens"),
            ("models/mamba.py", "from .. import lens"),
            ("artifacts.py", "from lens_rnn.models import ModelAdapter"),
            ("artifacts.py", "from . import models"),
            ("hub.py", "from lens_rnn import artifacts"),
            ("lens.py", "from lens_rnn.evaluation.metrics import evaluate"),
            ("lens.py", "from lens_rnn.data import TokenBlocks"),
            ("data/packing.py", "from lens_rnn.models import ModelAdapter"),
            ("processes.py", "from lens_rnn import data"),
            ("cli.py", "from lens_rnn.models import ModelAdapter"),
            ("compiled.py", "from lens_rnn.errors import LensRNNError"),
            ("looks.py", "from lens_rnn.models import known_architectures"),
            ("evaluation/plots.py", "from lens_rnn.models import ModelAdapter"),
            ("evaluation/plots.py", "from lens_rnn.evaluation import metrics"),
            ("evaluation/results.py", "from lens_rnn.evaluation.plots import draw"),
            ("evaluation/metrics.py", "from lens_rnn.fitting import fit"),
            ("evaluation/metrics.py", "from lens_rnn import cli"),
            ("fitting/fit.py", "from lens_rnn.steering import apply"),
            ("steering/vectors.py", "import lens_rnn.fitting.closed_form"),
            ("elk/probes.py", "from lens_rnn.views import attention"),
            ("views/attention.py", "from ..elk import probes"),
            ("fitting/fit.py", "import lens_rnn.viewer"),
            ("fitting/fit.py", "from lens_rnn.run import check_output"),
            ("viewer.py", "from lens_rnn.run import check_output"),
            ("run.py", "from lens_rnn.lens import TunedLens"),
            ("__init__.py", "from lens_rnn.errors import LensRNNError"),
            ("fitting/fit.py", "import train.fit_lens"),
            ("fitting/fit.py", "from eval import perplexity"),
            ("fitting/fit.py", "def f():\n    from tests.reference import objective"),
            ("lens.py", "importlib.import_module('lens_rnn.viewer')"),
            ("lens.py", "__import__('lens_rnn.viewer')"),
        ],
        [
            ("lens.py", "from lens_rnn import artifacts"),
            ("lens.py", "from lens_rnn.models.adapter import ModelAdapter"),
            ("models/mamba.py", "from lens_rnn.models.adapter import ModelAdapter"),
            ("models/mamba.py", "from .adapter import ModelAdapter"),
            ("models/mamba.py", "from . import adapter"),
            ("models/recurrences.py", "from lens_rnn.compiled import exp"),
            ("evaluation/plots.py", "from lens_rnn.evaluation.curves import Curves"),
            ("evaluation/plots.py", "from lens_rnn.looks import look_of"),
            ("evaluation/metrics.py", "import numpy, evaluate, training"),
            ("steering/vectors.py", "from lens_rnn.evaluation.metrics import evaluate"),
            ("viewer.py", "from lens_rnn.steering import vectors"),
        ],
    ),
    private_elsewhere: (
        [
            ("lens.py", "from lens_rnn.artifacts import _CONFIG_FIELDS"),
            ("views/strip.py", "def f():\n    from ..evaluation.tokens import _shown"),
            ("run.py", "from lens_rnn import cli\ncli._fail('no')"),
        ],
        [
            ("lens.py", "from torch.nn.functional import _pair"),
            ("lens.py", "from lens_rnn.artifacts import CONFIG\nself._names = CONFIG"),
        ],
    ),
    without_a_purpose: ([("lens.py", "import torch"), ("lens.py", "''' '''")], [("lens.py", "'''A purpose.'''")]),
    printing: (
        [("lens.py", "def f():\n    print('x')"), ("lens.py", "sys.stderr.write('x')")],
        [("lens.py", "log.info('x')"), ("cli.py", "print('x')")],
    ),
    careless_loading: (
        [
            ("lens.py", "torch.load(path)"),
            ("lens.py", "torch.load(path, weights_only=False)"),
            ("lens.py", "torch.load(path, weights_only=safe)"),
            ("lens.py", "from torch import load"),
            ("lens.py", "pickle.loads(data)"),
            ("lens.py", "yaml.load(text, Loader)"),
            ("lens.py", "np.load(path, allow_pickle=True)"),
        ],
        [("lens.py", "torch.load(path, map_location='cpu', weights_only=True)\nyaml.safe_load(text)\nnp.load(path)")],
    ),
    naming_architectures: (
        [
            ("elk/finetune.py", "maps = {'mamba': ['in_proj']}.get(adapter.family)"),
            ("elk/finetune.py", "if adapter.model_type == 'gpt_neox': pass"),
            ("elk/finetune.py", "def f(kind='nemotron_h'): pass"),
            ("views/weights.py", "match model_type:\n    case 'qwen3_next': pass"),
            ("evaluation/plots.py", "MARKERS = {'rwkv': 's'}"),
            ("run.py", "f(*('mamba2',))"),
            ("steering/pairs.py", "NAMES = {'llama': 1, 'mistral': 2}"),
            ("views/relevance.py", "from lens_rnn.models.families.mamba import MambaAdapter"),
            ("views/relevance.py", "from lens_rnn.models.families import mamba"),
        ],
        [
            ("models/families/mamba.py", "register('mamba')"),
            ("looks.py", "LOOKS = {'jamba': 1}"),
            ("evaluation/results.py", "FAMILIES = {'pythia': 'gpt_neox'}"),
            ("steering/pairs.py", "TEMPLATES = {'llama': '[INST]'}"),
            ("elk/finetune.py", "'mamba'\nrank: int = 8\n'rwkv'"),
            ("elk/finetune.py", "f('a mamba', 'checkpoints/tiny-mamba')"),
            ("views/relevance.py", "from lens_rnn.models.families.recurrent import Rules"),
            ("views/relevance.py", "from lens_rnn.models import families"),
        ],
    ),
    too_long: ([("lens.py", "x\n" * (MOST_LINES + 1))], [("lens.py", "x\n" * MOST_LINES)]),
    names_of_nothing: (
        [
            ("lens.py", "found = 1"),
            ("lens.py", "for one in many: pass"),
            ("lens.py", "def f(*, what): pass"),
            ("lens.py", "def _said(): pass"),
            ("lens.py", "x = [its for its in y]"),
        ],
        [("lens.py", "lens.found\nf(what=1)\nfounded = 1")],
    ),
    without_a_test: (
        [("cellar.py", ""), ("models/cellar.py", "")],
        [("lens/tuned.py", ""), ("fitting/fit.py", ""), ("models/__init__.py", "")],
    ),
}


# --- the package keeps them, and they see what they are for -----------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_every_module_keeps_the_rule(rule: Rule) -> None:
    modules = modules_of(PACKAGE)
    assert {"artifacts.py", "models/__init__.py", "fitting/fit.py"} <= {module.file for module in modules}
    assert [breach for module in modules for breach in rule(module)] == []


@pytest.mark.parametrize("rule", RULES)
def test_the_rule_sees_a_breach_and_nothing_else(rule: Rule) -> None:
    breaches, allowed = RULES[rule]
    for module in map(Module._make, breaches):
        (breach,) = rule(module)
        assert breach.startswith(module.file)
    assert [breach for module in map(Module._make, allowed) for breach in rule(module)] == []


def test_scripts_load_with_care_and_leave_private_names_alone() -> None:
    for folder in ("train", "eval", "benchmarks"):
        scripts = modules_of(ROOT / folder)
        assert scripts
        assert not (ROOT / folder / "__init__.py").exists(), "scripts are no package"
        for rule in (careless_loading, private_elsewhere):
            assert [breach for script in scripts for breach in rule(script)] == []


def test_the_rooms_have_a_direction() -> None:
    """No circle of imports is possible, and the four kinds of work do not know one another."""
    left = {room: set(known) for room, known in ROOMS.items()}
    while ready := [room for room, known in left.items() if not known & left.keys()]:
        for room in ready:
            del left[room]
    assert left == {}
    assert not any(ROOMS[room] & SIBLINGS for room in SIBLINGS)
    assert all(known <= ROOMS.keys() for known in ROOMS.values())
    assert not any(known & {"run", "cli"} for room, known in ROOMS.items() if room != "run")


def test_every_room_is_there() -> None:
    """Nothing is listed that has gone."""
    assert [room for room in ROOMS if not is_module(f"lens_rnn.{room}".rstrip("."))] == []


def test_a_module_in_no_room_is_told_where_to_be_listed() -> None:
    with pytest.raises(LookupError, match=r"^lens_rnn\.cellar\.wine is in no room: list it in ROOMS"):
        list(against_the_direction(Module("cellar/wine.py", "")))
    with pytest.raises(LookupError, match=r"lens_rnn\.attic is in no room"):
        list(against_the_direction(Module("viewer.py", "import lens_rnn.attic")))


def test_names_that_mean_other_things_are_still_there() -> None:
    """A file on the list of exceptions needs it."""
    for file, names in NAME_OTHER_THINGS.items():
        tree = ast.parse((PACKAGE / file).read_text(encoding="utf-8"))
        assert names <= {
            node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
