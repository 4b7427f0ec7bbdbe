"""The house rules of lens_rnn, read from its source: who may import whom, who may name an architecture, and what no
module does.

    errors → models → hub → artifacts → lens → evaluation → fitting, steering, elk, views → viewer → the scripts

`data`, `processes`, `compiled`, `versions`, `activity`, `looks`, and the drawing of result files (`evaluation.curves`
and what stands on it) are leaves. A new module is listed in ROOMS.
"""

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

from lens_rnn.looks import LOOKS
from lens_rnn.models import known_architectures
from tests.models import tiny_hybrids

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lens_rnn"

# What each room may import, besides itself. A room is a module, or a package with all in it that is not listed by
# itself.
_LENS = {"errors", "files", "models", "hub", "artifacts", "lens"}
_TOOLS = {"errors", "data", "processes", "checkpoints", "intervals", "memory", "drawing"}
_WORK = (
    _LENS | _TOOLS | {"evaluation", "evaluation.canvas", "evaluation.curves", "evaluation.results", "evaluation.plots"}
)
ROOMS: dict[str, set[str]] = {
    "": set(),  # lens_rnn/__init__.py
    "errors": set(),
    "versions": set(),
    "activity": set(),
    "compiled": set(),
    "files": {"errors"},
    "intervals": set(),
    "memory": set(),
    "drawing": {"files"},
    "checkpoints": {"errors", "files", "processes"},
    "data": {"errors"},
    "processes": {"errors"},
    "looks": set(),
    "models": {"errors", "files", "compiled", "versions"},
    "hub": {"errors"},
    "artifacts": {"errors", "files", "hub"},
    "cli": {"errors", "files", "versions", "activity"},
    "lens": {"errors", "files", "models", "hub", "artifacts"},
    "evaluation.canvas": {"drawing", "files"},
    "evaluation.curves": {"errors"},
    "evaluation.results": {"errors", "files", "looks", "evaluation.curves"},
    "evaluation.plots": {"drawing", "errors", "looks", "evaluation.canvas", "evaluation.curves"},
    "evaluation.matrix": {"drawing", "evaluation.canvas", "evaluation.curves"},
    "evaluation.summary": {"evaluation.curves"},
    "evaluation.figures": {"errors", "files", "looks", "drawing"}
    | {f"evaluation.{leaf}" for leaf in ("canvas", "curves", "matrix", "plots", "results")},
    "evaluation": _LENS | _TOOLS,
    "fitting": _WORK | {"compiled", "activity"},
    "steering": _WORK,
    "elk": _WORK,
    "views": _WORK,
    "viewer": _WORK | {"fitting", "steering", "elk", "views"},
    "run": {"errors", "files", "activity", "cli", "models", "processes"},
}
SIBLINGS = ("fitting", "steering", "elk", "views")
SCRIPTS = ("train", "eval", "tests", "benchmarks")

# Families and types of models. What depends on them is in the room `models`, behind its adapters.
ARCHITECTURES = {*known_architectures(), *tiny_hybrids.SETTINGS, *tiny_hybrids.CONTROLS, *LOOKS}
MAY_NAME_ANY = (
    "looks",
    "evaluation.results",
)  # what families are called and look like; how published files of three are laid out
NAME_OTHER_THINGS = {"steering/pairs.py": {"llama"}}  # a layout of prompts, for models of any architecture
NO_FAMILY = "lens_rnn.models.families.recurrent"  # what the families with a file share

MOST_LINES = 350

MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


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


def imports(tree: ast.Module, file: str) -> Iterator[tuple[int, str]]:
    """(line, full name) of all that a module imports, inside functions too. Of `from a import b`, b is joined on if it
    is a module."""
    package = ["lens_rnn", *Path(file).parent.parts]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}" if is_module(f"{base}.{alias.name}") else base


def is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def import_breaches(tree: ast.Module, file: str) -> Iterator[str]:
    """Imports that go against the direction."""
    room = room_of(dotted(file))
    for line, name in imports(tree, file):
        top, _, inner = name.partition(".")
        if top in SCRIPTS:
            yield f"{file}:{line} imports {name}: the library knows no script"
        elif top == "lens_rnn" and room_of(inner) not in ROOMS[room] | {room, ""}:
            yield (
                f"{file}:{line} imports {name}: {room or 'lens_rnn'} may import "
                f"{', '.join(sorted(ROOMS[room])) or 'nothing'}"
            )
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            yield f"{file}:{node.lineno} imports by name, which this test cannot follow"


def docstring_breaches(tree: ast.Module, file: str) -> Iterator[str]:
    if not (ast.get_docstring(tree) or "").strip():
        yield f"{file} does not say what it is for"


def printing_breaches(tree: ast.Module, file: str) -> Iterator[str]:
    """Library code speaks through logging; cli.py alone speaks to people."""
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and file != "cli.py"
            and ast.unparse(node.func) in ("print", "sys.stdout.write", "sys.stderr.write")
        ):
            yield f"{file}:{node.lineno} prints; use logging"


def loading_breaches(tree: ast.Module, file: str) -> Iterator[str]:
    """Files can hold code; what reads them must not run it."""
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.ImportFrom)
            and node.module in ("torch", "pickle")
            and {"load", "loads"} & {a.name for a in node.names}
        ):
            yield (
                f"{file}:{node.lineno} imports {node.module}'s load by itself, where this test cannot see how it "
                "is called"
            )
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        arguments = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if name == "torch.load" and arguments.get("weights_only") != "True":
            yield f"{file}:{node.lineno} calls torch.load without weights_only=True"
        if name in ("pickle.load", "pickle.loads", "joblib.load", "yaml.load", "yaml.unsafe_load", "eval", "exec"):
            yield f"{file}:{node.lineno} calls {name}, which runs what it reads"
        if name in ("np.load", "numpy.load") and "allow_pickle" in arguments:
            yield f"{file}:{node.lineno} calls {name} with allow_pickle"


def naming_breaches(tree: ast.Module, file: str) -> Iterator[str]:
    """Whatever depends on an architecture is asked of its adapter: a family's name in another room is a fact that
    stands twice."""
    room = room_of(dotted(file))
    if room == "models" or room in MAY_NAME_ANY:
        return
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    names = ARCHITECTURES - NAME_OTHER_THINGS.get(file, set())
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node.value in names and id(node) not in docstrings:
            yield (
                f"{file}:{node.lineno} names {node.value}; ask the adapter, or, for what is drawn and written, "
                "lens_rnn.looks"
            )
    for line, name in imports(tree, file):
        if name.startswith("lens_rnn.models.families.") and name != NO_FAMILY:
            yield f"{file}:{line} imports {name}: what a family knows is asked of its adapter"


def length_breaches(source: str, file: str) -> Iterator[str]:
    if (lines := source.count("\n")) > MOST_LINES:
        yield f"{file} has {lines} lines, {MOST_LINES} are enough; split it"


RULES = [import_breaches, docstring_breaches, printing_breaches, loading_breaches, naming_breaches]


# --- the package keeps them -------------------------------------------------------------------------------------------


def test_there_is_a_package_to_look_at() -> None:
    assert {"artifacts.py", "models/__init__.py", "models/adapter.py", "fitting/fit.py"} <= set(MODULES)


@pytest.mark.parametrize("file", MODULES)
@pytest.mark.parametrize("rule", RULES)
def test_a_module_keeps_the_rules(file: str, rule: Callable[[ast.Module, str], Iterator[str]]) -> None:
    assert list(rule(ast.parse((PACKAGE / file).read_text(encoding="utf-8")), file)) == []


@pytest.mark.parametrize("file", MODULES)
def test_a_module_is_not_too_long(file: str) -> None:
    assert list(length_breaches((PACKAGE / file).read_text(encoding="utf-8"), file)) == []


@pytest.mark.parametrize("folder", ["train", "eval"])
def test_scripts_load_with_care_too(folder: str) -> None:
    scripts = sorted((ROOT / folder).glob("*.py"))
    assert scripts
    assert not (ROOT / folder / "__init__.py").exists(), "scripts are no package"
    for script in scripts:
        assert list(loading_breaches(ast.parse(script.read_text(encoding="utf-8")), script.name)) == []


def test_the_rooms_have_a_direction() -> None:
    """No circle of imports is possible, and the four kinds of work do not know one another."""
    left = {room: set(known) for room, known in ROOMS.items()}
    while ready := [room for room, known in left.items() if not known & left.keys()]:
        for room in ready:
            del left[room]
    assert left == {}
    for room in SIBLINGS:
        assert not ROOMS[room] & set(SIBLINGS)
    assert all(known <= ROOMS.keys() for known in ROOMS.values())
    assert not any(known & {"run", "cli"} for room, known in ROOMS.items() if room != "run")


# --- the rules see what they are for ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "source"),
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
        ("data.py", "from lens_rnn.models import ModelAdapter"),
        ("processes.py", "from lens_rnn import data"),
        ("cli.py", "from lens_rnn.models import ModelAdapter"),
        ("compiled.py", "from lens_rnn.errors import LensRNNError"),
        ("looks.py", "from lens_rnn.models import known_architectures"),
        ("evaluation/metrics.py", "from lens_rnn.compiled import exp"),
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
)
def test_an_import_against_the_direction_is_seen(file: str, source: str) -> None:
    breaches = list(import_breaches(ast.parse(source), file))
    assert len(breaches) == 1
    assert breaches[0].startswith(f"{file}:")


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("lens.py", "from lens_rnn import artifacts"),
        ("lens.py", "from lens_rnn.models.adapter import ModelAdapter"),
        ("models/mamba.py", "from lens_rnn.models.adapter import ModelAdapter"),
        ("models/mamba.py", "from .adapter import ModelAdapter"),
        ("models/mamba.py", "from . import adapter"),
        ("models/recurrences.py", "from lens_rnn.compiled import exp"),
        ("fitting/rows_cpu.py", "from lens_rnn.compiled import exp"),
        ("evaluation/plots.py", "from lens_rnn.evaluation.curves import Curves"),
        ("evaluation/plots.py", "from lens_rnn.looks import look_of"),
        ("evaluation/metrics.py", "import numpy, evaluate, training"),
        ("steering/vectors.py", "from lens_rnn.evaluation.metrics import evaluate"),
        ("viewer.py", "from lens_rnn.steering import vectors"),
    ],
)
def test_an_import_along_the_direction_is_allowed(file: str, source: str) -> None:
    assert list(import_breaches(ast.parse(source), file)) == []


def test_a_module_in_no_room_is_told_where_to_be_listed() -> None:
    with pytest.raises(
        LookupError, match=r"^lens_rnn\.cellar\.wine is in no room: list it in ROOMS of tests/test_architecture\.py"
    ):
        list(import_breaches(ast.parse(""), "cellar/wine.py"))
    with pytest.raises(LookupError, match=r"lens_rnn\.attic is in no room"):
        list(import_breaches(ast.parse("import lens_rnn.attic"), "viewer.py"))


@pytest.mark.parametrize(
    ("rule", "file", "source"),
    [
        (docstring_breaches, "lens.py", "import torch"),
        (docstring_breaches, "lens.py", "''' '''"),
        (printing_breaches, "lens.py", "def f():\n    print('x')"),
        (printing_breaches, "lens.py", "sys.stderr.write('x')"),
        (loading_breaches, "lens.py", "torch.load(path)"),
        (loading_breaches, "lens.py", "torch.load(path, weights_only=False)"),
        (loading_breaches, "lens.py", "torch.load(path, weights_only=safe)"),
        (loading_breaches, "lens.py", "from torch import load"),
        (loading_breaches, "lens.py", "pickle.loads(data)"),
        (loading_breaches, "lens.py", "yaml.load(text, Loader)"),
        (loading_breaches, "lens.py", "np.load(path, allow_pickle=True)"),
    ],
)
def test_a_breach_is_seen(rule: Callable[[ast.Module, str], Iterator[str]], file: str, source: str) -> None:
    assert len(list(rule(ast.parse(source), file))) == 1


@pytest.mark.parametrize(
    ("file", "source"),
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
)
def test_the_name_of_an_architecture_in_another_room_is_seen(file: str, source: str) -> None:
    (breach,) = naming_breaches(ast.parse(source), file)
    assert breach.startswith(f"{file}:")


@pytest.mark.parametrize(
    ("file", "source"),
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
)
def test_a_name_in_its_room_or_in_words_is_no_breach(file: str, source: str) -> None:
    assert list(naming_breaches(ast.parse(source), file)) == []


def test_names_that_mean_other_things_are_still_there() -> None:
    """A file on the list of exceptions needs it."""
    for file, names in NAME_OTHER_THINGS.items():
        tree = ast.parse((PACKAGE / file).read_text(encoding="utf-8"))
        assert names <= {
            node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }


def test_what_is_allowed_is_no_breach() -> None:
    tree = ast.parse(
        "'''A purpose.'''\ntorch.load(path, map_location='cpu', weights_only=True)\nlog.info('x')\nyaml.safe_load(text)"
    )
    assert [breach for rule in RULES for breach in rule(tree, "lens.py")] == []
    assert list(printing_breaches(ast.parse("print('x')"), "cli.py")) == []


def test_a_long_file_is_seen() -> None:
    assert list(length_breaches("x\n" * MOST_LINES, "lens.py")) == []
    assert list(length_breaches("x\n" * (MOST_LINES + 1), "lens.py")) == [
        f"lens.py has {MOST_LINES + 1} lines, 350 are enough; split it"
    ]
