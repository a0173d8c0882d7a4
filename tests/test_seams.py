"""The seams between the parts, by reading the imports; and what a fresh daemon loads. Each gate is shown to fire.

`engines` imports nothing of ours. `edge` uses `engines` through its interface alone. Nobody imports `trainer` or
`tools`. A heavy library is imported in the one module that owns it, and not before it is needed.
"""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PARTS = ("edge", "engines", "tools", "trainer")

ALLOWED_PARTS = {
    "engines": {"engines"},
    "edge": {"edge", "engines"},
    "trainer": {"trainer", "edge", "engines"},
    "tools": {"tools", "edge", "engines"},
}

INTERFACE_EXCEPTIONS = {"edge/errors.py": "engines.errors"}
"""The error tree has one root, which is where nothing else of ours is needed."""

OWNERS = {
    "openvino": ["engines/openvino/*.py"],
    "nncf": ["engines/openvino/int8.py"],
    "torch": ["engines/torch/*.py"],
    "tensorrt": ["engines/tensorrt/*.py", "engines/torch/gpu.py", "engines/torch/tensorrt_build.py"],
    "torch_tensorrt": ["engines/torch/gpu.py"],
    "cuda": ["engines/cuda.py"],
    "onnxruntime": ["engines/onnxruntime_engine.py", "engines/half.py"],
    "onnx": ["engines/half.py", "engines/half_graph.py"],
    "matplotlib": [],
    "lightning": [],
    "pynetdicom": [
        "edge/sources/dicom/scp.py",
        "edge/sources/dicom/server.py",
        "edge/sources/dicom/guard.py",
        "edge/report/pacs.py",
    ],
    "pyigtl": ["edge/sources/openigtlink.py"],
    "pydicom": ["edge/sources/dicom/*.py", "edge/sources/table.py", "edge/report/*.py"],
    "highdicom": ["edge/report/dicom_*.py"],
    "aiohttp": ["edge/display/*.py"],
}
"""Who in `edge` and `engines` may import a heavy or optional library."""

LAZY = (
    "torch",
    "matplotlib",
    "lightning",
    "openvino",
    "nncf",
    "tensorrt",
    "onnx",
    "onnxruntime",
    "pydicom",
    "pynetdicom",
    "av",
    "aiohttp",
    "highdicom",
)
"""What `import edge.cli, edge.daemon` must not load."""


def imports_of(path: Path, root: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and the full name of every module that a file imports, wherever in the file."""
    package = path.relative_to(root).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            yield node.lineno, module
            # a name may be a module itself: `from edge import wire`
            if module.split(".")[0] in PARTS:
                yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names if alias.name.islower())


def violations(root: Path) -> list[str]:
    """Return one line for each import that breaks a seam."""
    found: set[str] = set()
    for part in PARTS:
        for path in sorted((root / part).rglob("*.py")):
            name = path.relative_to(root).as_posix()
            for line, module in imports_of(path, root):
                found.update(f"{name}:{line} {module}: {rule}" for rule in _broken_rules(root, name, part, module))
    return sorted(found)


def _broken_rules(root: Path, name: str, part: str, module: str) -> Iterator[str]:
    top = module.split(".")[0]
    if top in PARTS and top not in ALLOWED_PARTS[part]:
        yield f"{part} may import {', '.join(sorted(ALLOWED_PARTS[part]))}"
    if part == "edge" and _is_module(root, module, "engines") and INTERFACE_EXCEPTIONS.get(name) != module:
        yield "edge uses engines through its interface, `from engines import ...`"
    if part in ("edge", "engines") and not any(fnmatch(name, owner) for owner in OWNERS.get(top, [name])):
        yield f"belongs into {' or '.join(OWNERS[top]) or 'trainer or tools'}"


def _is_module(root: Path, module: str, package: str) -> bool:
    """Whether it is a module inside the package, and not a name that the package itself offers."""
    path = root / Path(*module.split("."))
    return module.startswith(f"{package}.") and (path.with_suffix(".py").is_file() or (path / "__init__.py").is_file())


def loaded_by(code: str, names: tuple[str, ...], *, path: Path = ROOT) -> list[str]:
    """Return which of the modules a fresh process has loaded after it ran the code."""
    program = f"{code}\nimport sys\nprint(*[name for name in {names!r} if name in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(path), str(ROOT)])}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_seams_hold() -> None:
    assert violations(ROOT) == []


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("engines/bad.py", "import edge.frame", "engines may import engines"),
        ("engines/bad.py", "def f():\n    from trainer.models import tin", "engines may import engines"),
        ("edge/bad.py", "from trainer import clips", "edge may import edge, engines"),
        ("edge/sources/bad.py", "from ...tools import trivial", "edge may import edge, engines"),
        ("trainer/bad.py", "import tools.trivial", "trainer may import edge, engines, trainer"),
        ("tools/bad.py", "from trainer.models.tin import TIN", "tools may import edge, engines, tools"),
        ("edge/bad.py", "from engines.ring import MirroredRing", "through its interface"),
        ("edge/bad.py", "from engines import ring", "through its interface"),
        ("edge/bad.py", "import engines.errors", "through its interface"),
        ("edge/bad.py", "from engines import openvino", "through its interface"),
        ("edge/bad.py", "from engines.openvino import engine", "through its interface"),
        ("edge/bad.py", "import torch", "belongs into engines/torch/*.py"),
        (
            "engines/bad.py",
            "try:\n    from torch.nn import Module\nexcept ImportError:\n    pass",
            "engines/torch/*.py",
        ),
        ("edge/cli.py", "def main():\n    import matplotlib.pyplot as plt", "belongs into trainer or tools"),
        ("edge/bad.py", "from lightning import Trainer", "belongs into trainer or tools"),
        ("edge/pipeline.py", "import openvino", "belongs into engines/openvino/"),
        ("edge/cli.py", "import pydicom", "belongs into edge/sources/dicom/"),
    ],
)
def test_seams_planted_violation_is_found(tmp_path: Path, name: str, code: str, said: str) -> None:
    for module in ("ring.py", "errors.py", "openvino/__init__.py"):
        path = tmp_path / "engines" / module
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(code, encoding="utf-8")
    found = violations(tmp_path)
    assert len({line.split(":")[0] for line in found}) == 1
    assert any(line.startswith(name) and said in line for line in found), found


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("edge/errors.py", "from engines.errors import EdgeError"),
        ("edge/wire.py", "from engines import Bundle"),
        ("edge/sources/dicom/file.py", "import pydicom"),
        ("engines/torch/engine.py", "import torch"),
        (
            "trainer/training/fit.py",
            "import torch, matplotlib\nfrom engines.bundle import write_manifest\nfrom . import loop",
        ),
    ],
)
def test_seams_allowed_import_is_no_violation(tmp_path: Path, name: str, code: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(code, encoding="utf-8")
    (tmp_path / "engines").mkdir(exist_ok=True)
    (tmp_path / "engines" / "errors.py").touch()
    assert violations(tmp_path) == []


def test_daemon_imports_nothing_heavy_before_it_needs_it() -> None:
    assert loaded_by("import edge.cli, edge.daemon", LAZY) == []


def test_daemon_that_imports_something_heavy_is_found(tmp_path: Path) -> None:
    (tmp_path / "torch.py").touch()
    (tmp_path / "planted.py").write_text("import torch", encoding="utf-8")
    assert loaded_by("import edge.cli, edge.daemon, planted", LAZY, path=tmp_path) == ["torch"]
