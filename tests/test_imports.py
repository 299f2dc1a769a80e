"""The house of docs/design.md: imports point down, the lower storeys touch nothing outside, nothing stored is ever executed."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import jaxseg

ROOT = Path(jaxseg.__file__).parent
STOREYS = (  # bottom to top; the longest name that fits decides
    ("errors",),
    ("ops",),
    ("upsample", "losses", "metrics", "instances", "em_metrics", "region_metrics", "weight_map", "pictures", "plots"),
    ("models",),
    ("data", "weights"),
    ("inference", "unsupervised", "receptive_field", "model_table", "heatmaps"),
    ("train_state",),
    ("parallel", "host_memory", "checkpoint", "config", "model_json", "run_folder", "run_log", "progress", "report", "report_objects"),
    (
        "embed",
        "image_files",
        "export_onnx",
        "onnx_graph",
        "weights.start",
        "weights.runs",
        "inference.tiles",
        "inference.region_prediction",
    ),
    ("benchmark",),
    (
        "train",
        "evaluate",
        "predict",
        "segment",
        "export",
        "report_run",
        "data.commands",
        "weights.commands",
        "heatmaps.command",
        "benchmark.upsampling",
        "benchmark.model_family",
        "benchmark.session",
        "benchmark.torch_peer",
        "cli",
    ),
)
SCRIPTS = frozenset(STOREYS[-1])
LEVEL = {name: level for level, names in enumerate(STOREYS) for name in names}
FILES = {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in sorted(ROOT.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(), str(path)) for name, path in FILES.items()}
MODULES = [name for name in FILES if name != "__init__"]
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "joblib", "marshal", "shelve", "yaml"}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__", "torch.load"}


def level(module: str) -> int:
    parts = module.split(".")
    for n in range(len(parts), 0, -1):
        if ".".join(parts[:n]) in LEVEL:
            return LEVEL[".".join(parts[:n])]
    raise AssertionError(f"jaxseg.{module} is on no storey: add it to STOREYS")


def imports(tree: ast.AST) -> list[tuple[str, int]]:
    """(dotted name, line) of all imports, those in functions too; `from a import b` is a.b where that is a module, else a."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.append((whole if whole.removeprefix("jaxseg.") in FILES else str(node.module), node.lineno))
    return found


def dotted(node: ast.AST) -> str:
    """`a.b.c` of an attribute chain, "" of anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return ""


def unsafe(tree: ast.AST) -> list[str]:
    """Lines which could execute what is stored."""
    found = [f"{line}: import {name}" for name, line in imports(tree) if name.split(".")[0] in UNSAFE_MODULES]
    careful = {  # torch.load of arrays alone
        node.func
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and dotted(node.func) == "torch.load"
        and any(k.arg == "weights_only" and getattr(k.value, "value", None) is True for k in node.keywords)
    }
    for node in ast.walk(tree):
        if node in careful:
            continue
        if isinstance(node, ast.Attribute | ast.Name) and (dotted(node) in UNSAFE_CALLS or getattr(node, "attr", "") == "exec_module"):
            found.append(f"{node.lineno}: {dotted(node)}")
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle" and getattr(node.value, "value", None) is not False:
            found.append(f"{node.value.lineno}: allow_pickle")
    return found


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module):
    wrong = []
    for name, line in imports(TREES[module]):
        if name == "jaxseg" or not name.startswith("jaxseg."):
            continue
        target = name.removeprefix("jaxseg.")
        if level(target) > level(module):
            wrong.append(f"{FILES[module]}:{line} imports {name}, which lies above")
    assert not wrong


def test_no_cycles_among_modules():
    """Imports at the head of a file; one inside a function is made when all modules are there."""
    graph: dict[str, set[str]] = {}
    for module in MODULES:
        head = [name for node in TREES[module].body if isinstance(node, ast.Import | ast.ImportFrom) for name, _ in imports(node)]
        graph[module] = {name.removeprefix("jaxseg.") for name in head} & set(MODULES)
    while leaves := [module for module, targets in graph.items() if not targets & graph.keys() - {module}]:
        for module in leaves:
            del graph[module]
    assert not graph


@pytest.mark.parametrize("module", [m for m in MODULES if level(m) == 1])
def test_operations_know_no_flax(module):
    assert not [name for name, _ in imports(TREES[module]) if name.split(".")[0] in ("flax", "optax", "orbax")]


@pytest.mark.parametrize("module", [m for m in MODULES if level(m) <= LEVEL["models"]])
def test_operators_and_models_know_nothing_of_training(module):
    assert not [name for name, _ in imports(TREES[module]) if name.split(".")[0] in ("orbax", "tyro", "grain", "tensorflow_datasets")]


@pytest.mark.parametrize("module", [m for m in MODULES if m not in SCRIPTS])
def test_only_scripts_touch_the_process(module):
    """Arguments, environment, signals and exits are the scripts'; devices also those of the modules that place arrays."""
    outside = [
        "sys.argv",
        "sys.exit",
        "os.environ",
        "os.getenv",
        "os.putenv",
        "signal.signal",
        "jax.config.update",
        "jax.distributed.initialize",
    ]
    if module not in ("parallel", "checkpoint"):
        outside += ["jax.devices", "jax.local_devices", "jax.device_count", "jax.local_device_count"]
    used = [(node.lineno, dotted(node)) for node in ast.walk(TREES[module]) if isinstance(node, ast.Attribute)]
    assert not [f"{FILES[module]}:{line}: {name}" for line, name in used if name in outside]


@pytest.mark.parametrize("module", MODULES)
def test_no_import_asks_for_devices_or_makes_arrays(module):
    """Nothing is computed by JAX when a module is imported (except in functions, which run later)."""
    for node in TREES[module].body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            continue
        for part in ast.walk(node):
            if isinstance(part, ast.Lambda):
                break
            called = dotted(part.func) if isinstance(part, ast.Call) else ""
            assert called.split(".")[0] not in ("jnp",), f"{FILES[module]}:{node.lineno}: {called} at import"
            assert called not in ("jax.devices", "jax.random.key", "jax.jit"), f"{FILES[module]}:{node.lineno}: {called} at import"


def test_nothing_stored_is_executed():
    found = {module: lines for module, tree in TREES.items() if (lines := unsafe(tree))}
    assert [line.split(": ")[1] for line in found.pop("config", [])] == ["spec.loader.exec_module"]
    assert not found


@pytest.mark.parametrize(
    "text",
    [
        "eval('1')",
        "exec(text)",
        "import pickle",
        "from pickle import loads",
        "def f():\n    import yaml",
        "import torch\ntorch.load(p)",
        "np.load(p, allow_pickle=True)",
        "np.load(p, allow_pickle=flag)",
        "x = __import__('os')",
        "spec.loader.exec_module(m)",
    ],
)
def test_the_search_finds_each_unsafe_call(text):
    assert unsafe(ast.parse(text))


def test_the_search_lets_safe_calls_pass():
    assert not unsafe(ast.parse("re.compile('a')\nmodel.eval()\nf.lower().compile()\nnp.load(p, allow_pickle=False)\njson.loads(t)"))


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        ("jaxseg", "orbax tensorflow tensorflow_datasets grain array_record matplotlib tyro"),
        ("jaxseg.ops, jaxseg.upsample, jaxseg.losses, jaxseg.metrics, jaxseg.models", "orbax tensorflow tensorflow_datasets grain tyro"),
        ("jaxseg.train_state, jaxseg.data", "orbax tensorflow tensorflow_datasets grain tyro"),
        ("jaxseg.cli", "jax flax orbax tensorflow tensorflow_datasets grain tyro"),
    ],
)
def test_an_import_takes_only_what_it_needs_and_does_no_work(modules, absent):
    """The number of devices can still be chosen afterwards, so no array was made."""
    code = f"""
import sys, {modules}
print(*sorted(set({absent!r}.split()) & sys.modules.keys()))
import jax
jax.config.update("jax_num_cpu_devices", 3)
assert jax.device_count() == 3
"""
    env = {"JAX_PLATFORMS": "cpu", "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")
