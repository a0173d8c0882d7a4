"""Reads a program that torch.export wrote, after a check that it can do nothing but compute with tensors.

A bundle may come from a stranger. What `torch.export.load` does with a file is meant for files of one's own: it
unpickles, loads compiled libraries, evaluates expressions, looks up functions by name and makes source code of names.
"""

import contextlib
import io
import json
import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_RECORDS = re.compile(
    r"archive_format|archive_version|byteorder|version|\.data/\w+|models/model\.json|data/sample_inputs/model\.pt"
    r"|data/weights/(weight_\d+|model_weights_config\.json)|data/constants/(tensor_\d+|model_constants_config\.json)"
)
_ENGINE_RECORDS = re.compile(r"data/constants/custom_obj_\d+|extra/\w+(\.json)?")
"""What a program of torch-tensorrt holds beside: TensorRT's plans, as objects of a class in C++."""
_OPERATOR = re.compile(r"torch\.ops\.(aten)\.([a-z_0-9]+)\.([A-Za-z_0-9]+)")
_ENGINE_OPERATOR = re.compile(r"torch\.ops\.(aten|tensorrt)\.([a-z_0-9]+)\.([A-Za-z_0-9]+)")
_INNER = frozenset({
    "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "_assert_async", "_assert_scalar", "_assert_tensor_metadata",
    "_convolution", "_log_softmax", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training",
    "_scaled_dot_product_flash_attention_for_cpu", "_softmax", "_to_copy", "_unsafe_view",
})  # fmt: skip
"""Of the operators that are torch's own affair, those that a network may hold; others trust their callers."""
_TRUSTING = re.compile(r"backward|sparse|nested|segment_|ctc_")
"""Operators that write or read where an index tells them to, in the tensor or not."""
_NAME = re.compile(r"\w*", re.ASCII)
"""A variable of the code that torch makes: with a dot in it, that code would set an attribute of anything."""
_PATH = re.compile(r"[\w.]*", re.ASCII)
_PATHS = frozenset({"", "fqn", "parameter_name", "buffer_name", "tensor_constant_name", "custom_obj_name", "class_fqn"})
"""Where a part or a tensor of the network is named by its path, which torch follows; and the keys of tables."""
_CODE = frozenset({"expr_str", "guards_code", "as_operator", "as_graph", "source_fn_stack"})
"""What torch evaluates, or looks up by getting attribute after attribute, which alone can load a library."""
_SHOWN = frozenset({"stack_trace", "nn_module_stack", "torch_fn", "from_node", "custom"})
"""Of a node's metadata, which may hold any text: torch makes no code of these."""
_CONTAINERS = frozenset({None, "builtins.tuple", "builtins.list", "builtins.dict"})
_CONTEXTS = frozenset({None, "null", "[]"})
_FORCE_TENSORS = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
"""torch's own switch: what it unpickles then holds tensors alone, or is refused."""


class ForeignCodeError(ValueError):
    """The file holds more than a computation with tensors."""


def load_program(torch: Any, path: Path, *, may_hold_engines: bool = False) -> Any:
    """Return the `torch.export.ExportedProgram` in a file.

    Args:
        torch: The library.
        path: A file that `torch.export.save` wrote.
        may_hold_engines: It may be one of torch-tensorrt's.

    Raises:
        ForeignCodeError: What the file holds would run code of its own, or none that this project exports.
        Exception: Whatever torch raises for a damaged file, and its schema checks meet.
    """
    from torch.export.pt2_archive import PT2ArchiveReader

    content = io.BytesIO(path.read_bytes())  # what is checked is what is read
    records = PT2ArchiveReader(content)
    _check_records(records.get_file_names(), may_hold_engines=may_hold_engines)
    # what its own reader fails on, torch takes for a file of an older form and reads again, with Python's
    names = [name.partition("/")[2] for name in zipfile.ZipFile(content).namelist()]
    _check_records(names, may_hold_engines=may_hold_engines)
    tables = (f"data/{kind}/model_{kind}_config.json" for kind in ("weights", "constants"))
    for name in ("models/model.json", *tables):
        _check_program(torch, json.loads(records.read_bytes(name)), may_hold_engines=may_hold_engines)
    content.seek(0)
    with _tensors_alone():
        return torch.export.load(content)


def _check_records(names: list[str], *, may_hold_engines: bool) -> None:
    for name in names:
        if not (_RECORDS.fullmatch(name) or (may_hold_engines and _ENGINE_RECORDS.fullmatch(name))):
            raise ForeignCodeError(f"it holds {name[:80]!r}, which is no part of a network's program")


def _check_program(torch: Any, program: Any, *, may_hold_engines: bool) -> None:
    operator = _ENGINE_OPERATOR if may_hold_engines else _OPERATOR
    outermost = torch.fx.GraphModule(torch.nn.Module(), torch.fx.Graph())
    for key, value in _leaves(program):
        if key == "target":
            _check_operator(torch, value, operator)
        elif key in ("in_spec", "out_spec"):
            _check_containers(json.loads(value))
        elif key in _CODE:
            raise ForeignCodeError(f"it holds the text {str(value)[:80]!r}, which torch would run as code")
        elif isinstance(value, str) and not _is_harmless(key, value, outermost):
            raise ForeignCodeError(f"it names something {value[:80]!r}")


def _is_harmless(key: str, text: str, outermost: Any) -> bool:
    """Return whether a text is no more than it should be.

    Args:
        key: What it stands under; nothing where it is a key itself.
        text: It.
        outermost: A `torch.fx.GraphModule` with nothing in it: no part of a network is called like what it has.
    """
    if key == "torch_version":  # it is only shown
        return True
    if key == "as_string":  # an operator's mode or equation, which stands in quotes
        return text.isprintable() and not set(text) & set("'\"\\")
    if key not in _PATHS:
        return bool(_NAME.fullmatch(text))
    if key in ("", "class_fqn"):
        return bool(_PATH.fullmatch(text))
    first, *inner = text.split(".")
    leads_out = hasattr(outermost, first) or any(part.startswith("__") for part in inner)
    return bool(_PATH.fullmatch(text)) and not leads_out


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each value in a program that is no list or table, with the key that it or its list stands under; and keys.

    What is only shown of a node's metadata is left out: it holds lines of the source.
    """
    if isinstance(value, dict):
        is_node = isinstance(value.get("target"), str)  # and no table of tensors one of which is named metadata
        for name, part in value.items():
            yield "", name
            if name == "metadata" and is_node and all(isinstance(text, str) for text in part.values()):
                yield from ((key, text) for key, text in part.items() if key not in _SHOWN)
            else:
                yield from _leaves(part, name)
    elif isinstance(value, list):
        for part in value:
            yield from _leaves(part, key)
    else:
        yield key, value


def _check_operator(torch: Any, target: Any, allowed: re.Pattern[str]) -> None:
    found = allowed.fullmatch(str(target))
    overload: Any = None
    if found and "__" not in found[0]:
        overload = getattr(getattr(getattr(torch.ops, found[1]), found[2], None), found[3], None)
    if not isinstance(overload, torch._ops.OpOverload) or not _is_computation(overload._schema):
        raise ForeignCodeError(f"it calls {str(target)[:80]!r}, which is no operator on tensors")


def _is_computation(schema: Any) -> bool:
    """Return whether an operator gives tensors or asserts something, and reads or writes no file or other memory.

    Others print, or change how the process computes. A text is a mode but for from_file and save, which take a name.
    """
    name = schema.name.partition("::")[2]
    if _TRUSTING.search(name) or (name.startswith("_") and name not in _INNER):
        return False
    gives_tensors = any("Tensor" in str(each.type) for each in schema.returns)
    is_computation = gives_tensors or name.startswith("_assert_")
    return is_computation and "filename" not in {argument.name for argument in schema.arguments}


def _check_containers(spec: Any) -> None:
    for key, value in _leaves(spec):
        if (key == "type" and value not in _CONTAINERS) or (key == "context" and value not in _CONTEXTS):
            raise ForeignCodeError(f"its inputs or outputs are of type {str(value)[:80]!r}")


@contextlib.contextmanager
def _tensors_alone() -> Iterator[None]:
    before = os.environ.get(_FORCE_TENSORS)
    os.environ[_FORCE_TENSORS] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_FORCE_TENSORS]
        else:
            os.environ[_FORCE_TENSORS] = before
