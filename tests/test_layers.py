"""The one import rule of docs/design.md section 3, checked by reading the imports.

    foundation -> reference -> kernels/* -> ops -> nn -> {hf, models} -> {train, check, ...} -> cli

A module imports only from layers to its left; a kernel backend imports the foundation and itself,
never another backend nor the reference; nothing left of hf imports transformers. kernels/report,
which compiles the kernels without a GPU, is right of hf: what computes never loads it. JAX is
imported by the TPU kernels, tpu, the report on those kernels and the export for XLA alone, and they
by nobody else. In train, pretraining and finetune import themselves and shared, which imports
itself alone; the proof of training imports all three.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "xlnet_fast"

# Left to right. A name stands for itself and all below it; the longest match counts.
LAYERS = [
    {"_version", "deferred", "errors", "files", "lowering", "transforms"},
    {"masks", "philox", "rounding", "tolerance", "_extension", "builder"},
    {"operands"},
    {"reference"},
    {"kernels.chips"},
    {"kernels"},
    {"ops"},
    {"nn", "tpu"},
    {"hf", "models"},
    {"kernels.report"},
    {"answers", "text", "checkpoint", "info", "check", "qualifier", "train", "generate"},
    {"predict", "perplexity"},
    {"serve", "export", "deploy"},
    {""},  # xlnet_fast/__init__.py, the public names
    {"cli", "__main__"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
ROOMS = ("", "shared", "pretraining", "finetune", "proof")  # of train; "" is its __init__.py
WITH_JAX = ("kernels.pallas", "tpu", "export.xla")
# Anyone may import these.
LAZILY_WITH_JAX = ("kernels.report.pallas", "kernels.report.tpu", "export.stablehlo")
KERNELS, HF, PUBLIC = RANK["kernels"], RANK["hf"], RANK[""]


def files(folder: Path) -> dict[str, Path]:
    """Dotted module name below `folder` ("" for its __init__) -> file."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(tree: ast.AST, module: str, is_package: bool, known: set[str]) -> Iterator[str]:
    """Absolute dotted names that the module `module` (absolute) imports, lazy ones included.

    `from a import b` names a.b where that is a module of ours, else a.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")
                parents = parents[: len(parents) - node.level + is_package]
                base = ".".join([*parents, *([node.module] if node.module else [])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield full if full in known else base


def rank(name: str) -> int:
    """The layer of a module of the package, by its dotted name below the package."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        if (prefix := ".".join(parts[:end])) in RANK:
            return RANK[prefix]
    raise LookupError(
        f"xlnet_fast.{name} is in no layer: add it to LAYERS in {Path(__file__).name}"
    )


def backend(name: str) -> str | None:
    """kernels.triton.rel_attention -> triton; None for what is no kernel backend."""
    parts = name.split(".")
    return parts[1] if rank(name) == KERNELS and len(parts) > 1 else None


def has_jax(name: str) -> bool:
    """Whether a module is for TPUs and loads JAX with it, or with its first call."""
    return any(f"{name}.".startswith(f"{home}.") for home in WITH_JAX)


def may_have_jax(name: str) -> bool:
    """Whether a module may import JAX, and what loads it."""
    return has_jax(name) or name in LAZILY_WITH_JAX


def room(name: str) -> str | None:
    """train.shared.plots -> shared; None for what is not in train, "" for train itself.

    Raises:
        LookupError: a module of train in none of its rooms.
    """
    top, _, below = name.partition(".")
    if top != "train":
        return None
    found = below.partition(".")[0]
    if found not in ROOMS:
        raise LookupError(f"{PACKAGE}.{name} is in none of the rooms {', '.join(ROOMS[1:])}")
    return found


def problems(name: str, source: str, is_package: bool, modules: set[str]) -> list[str]:
    """What is wrong with the imports of module `name` (below the package)."""
    absolute = f"{PACKAGE}.{name}".rstrip(".")
    known = {f"{PACKAGE}.{other}".rstrip(".") for other in modules}
    own, found, home = rank(name), [], room(name)
    for target in imports(ast.parse(source), absolute, is_package, known):
        top, _, below = target.partition(".")
        if top in ("jax", "jaxlib", "torchax") and not may_have_jax(name):
            may = ", ".join((*WITH_JAX, *LAZILY_WITH_JAX))
            found.append(f"{absolute} imports JAX, which only {may} may")
        if top == "transformers" and own < HF:
            found.append(f"{absolute} imports transformers, which only hf and what follows may")
        if top == "benchmarks" or target.startswith(f"{PACKAGE}.benchmarks"):
            if own < RANK["cli"]:
                found.append(f"{absolute} imports {target}: only the command line may")
            continue
        if top != PACKAGE:
            continue
        # A class or function of a module counts as that module.
        while f"{PACKAGE}.{below}".rstrip(".") not in known:
            below = below.rpartition(".")[0]
        if below == "" and own < PUBLIC:
            found.append(
                f"{absolute} imports from the public {PACKAGE}, not from the module it means"
            )
        elif rank(below) > own:
            found.append(f"{absolute} imports {target}, which is to its right")
        elif has_jax(below) and not may_have_jax(name):
            found.append(f"{absolute} imports {target}, and with it JAX")
        elif own == KERNELS and below != name:
            if rank(below) == RANK["reference"]:
                found.append(f"{absolute} is a kernel backend and imports the reference")
            elif rank(below) == KERNELS and below != "kernels" and backend(below) != backend(name):
                found.append(f"{absolute} imports another kernel backend, {target}")
        elif home not in (None, "proof") and room(below) not in (None, home, "shared"):
            found.append(f"{absolute} imports {target}: only its own room and shared may be")
    return found


MODULES = files(ROOT / PACKAGE)


@pytest.mark.parametrize("name", MODULES, ids=lambda name: name or "__init__")
def test_imports_run_one_way(name):
    path = MODULES[name]
    is_package = path.name == "__init__.py"
    assert problems(name, path.read_text(encoding="utf-8"), is_package, set(MODULES)) == []


def test_kernel_package_imports_no_backend():
    """`kernels/__init__.py` would load every backend for everyone."""
    tree = ast.parse(MODULES["kernels"].read_text(encoding="utf-8"))
    known = {f"{PACKAGE}.{name}" for name in MODULES}
    assert not [
        name
        for name in imports(tree, f"{PACKAGE}.kernels", True, known)
        if name.startswith(f"{PACKAGE}.kernels")
    ]


SKETCH = {
    "",
    "errors",
    "masks",
    "reference",
    "kernels",
    "kernels.triton",
    "kernels.triton.rel_attention",
    "kernels.cpu",
    "kernels.cpu.rel_attention",
    "kernels.sdpa",
    "kernels.chips",
    "kernels.pallas",
    "kernels.pallas.core",
    "tpu",
    "lowering",
    "kernels.report",
    "kernels.report.sass",
    "kernels.report.tpu",
    "ops",
    "ops._dispatch",
    "nn",
    "hf",
    "train",
    "train.shared",
    "train.shared.trainer",
    "train.pretraining",
    "train.pretraining.trainer",
    "train.finetune",
    "train.finetune.trainer",
    "train.proof",
    "cli",
}


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("masks", "from xlnet_fast import reference"),
        ("masks", "from .reference import rel_attention"),
        ("reference", "import xlnet_fast.ops"),
        ("reference", "from xlnet_fast import rel_attention"),
        ("kernels.sdpa", "from xlnet_fast.reference import rel_attention"),
        ("kernels.sdpa", "from xlnet_fast.kernels.triton import rel_attention"),
        ("kernels.sdpa", "from .triton.rel_attention import forward"),
        ("kernels.triton.rel_attention", "from .. import sdpa"),
        ("kernels.cpu.rel_attention", "from ..sdpa import rel_attention"),
        ("kernels.sdpa", "from xlnet_fast.kernels.cpu import rel_attention"),
        ("kernels.triton", "def f():\n    from xlnet_fast.kernels import report"),
        ("kernels.triton", "from xlnet_fast.kernels.report import sass"),
        ("kernels.chips", "from xlnet_fast.kernels.triton import jit"),
        ("ops._dispatch", "def f():\n    from xlnet_fast.kernels.report import sass"),
        ("hf", "from xlnet_fast.kernels import report"),
        ("ops._dispatch", "from ..nn import RelativeAttention"),
        ("nn", "import transformers"),
        ("ops", "from transformers.models.xlnet import modeling_xlnet"),
        ("kernels.sdpa", "import jax.numpy"),
        ("kernels.report.sass", "def f():\n    import jax"),
        ("kernels.report", "from xlnet_fast.kernels import pallas"),
        ("ops", "def f():\n    from xlnet_fast.kernels import pallas"),
        ("hf", "def f():\n    from xlnet_fast import tpu"),
        ("hf", "import torchax"),
        ("hf", "import xlnet_fast.cli"),
        ("hf", "from benchmarks import run"),
        ("hf", "from xlnet_fast.benchmarks.run import run_bench"),
        ("hf", "from xlnet_fast.train.shared.trainer import XLNetTrainer"),
        ("train.shared.trainer", "from xlnet_fast.train.pretraining import PretrainOptions"),
        ("train.shared.trainer", "def f():\n    from ..finetune import trainer"),
        ("train.finetune.trainer", "from xlnet_fast.train.pretraining.trainer import collate"),
        ("train.pretraining.trainer", "import xlnet_fast.train.finetune"),
        ("train", "from xlnet_fast.train.finetune import finetune"),
        ("train.finetune.trainer", "import xlnet_fast.train.proof"),
    ],
)
def test_the_rule_finds_what_breaks_it(name, source):
    assert len(problems(name, source, name in ("kernels.triton", "ops"), SKETCH)) == 1


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("reference", "from xlnet_fast.masks import AttentionMask"),
        ("kernels.sdpa", "from xlnet_fast import errors, masks"),
        ("kernels.triton.rel_attention", "from xlnet_fast.kernels.triton import jit"),
        ("kernels.triton.rel_attention", "from . import jit"),
        ("kernels.report", "from xlnet_fast.kernels.triton import rel_attention"),
        ("kernels.report", "from xlnet_fast.kernels import triton, sdpa"),
        ("kernels.triton", "from xlnet_fast.kernels import chips"),
        ("kernels.pallas.core", "import jax\nfrom xlnet_fast.kernels import pallas"),
        (
            "kernels.report.tpu",
            "def f():\n    import jax\n    from xlnet_fast.kernels import pallas",
        ),
        ("ops._dispatch", "from xlnet_fast.kernels import cpu"),
        ("ops._dispatch", "from xlnet_fast import lowering"),
        ("tpu", "import jax\nfrom xlnet_fast import ops\nfrom xlnet_fast.kernels import pallas"),
        ("ops._dispatch", "from xlnet_fast.kernels import sdpa\nfrom xlnet_fast import reference"),
        ("hf", "import transformers\nfrom xlnet_fast.nn import RelativeAttention"),
        ("train.finetune.trainer", "from xlnet_fast.train.shared.trainer import XLNetTrainer"),
        ("train.finetune.trainer", "from . import run\nfrom xlnet_fast.train.finetune import task"),
        ("train.pretraining.trainer", "import xlnet_fast.train.shared\nfrom xlnet_fast import hf"),
        ("train.proof", "from xlnet_fast.train import finetune, pretraining"),
        ("cli", "from xlnet_fast.train.pretraining import pretrain"),
        ("cli", "import xlnet_fast\nfrom xlnet_fast.benchmarks.run import run_bench"),
        ("", "from xlnet_fast.hf import accelerate"),
    ],
)
def test_the_rule_allows_what_keeps_it(name, source):
    assert problems(name, source, name == "", SKETCH) == []


def test_a_module_without_a_layer_is_told():
    with pytest.raises(LookupError, match=r"xlnet_fast\.novelty is in no layer"):
        problems("novelty", "", False, SKETCH | {"novelty"})


def test_a_module_of_train_without_a_room_is_told():
    with pytest.raises(LookupError, match=r"xlnet_fast\.train\.novelty is in none of the rooms"):
        problems("train.novelty", "", False, SKETCH | {"train.novelty"})
