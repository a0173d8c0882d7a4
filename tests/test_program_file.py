"""A stranger's model.pt2: what it would run when torch reads it, and that it is refused before."""

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_bundle import small_bundle

from engines.torch.program_file import ForeignCodeError, load_program

Records = dict[str, bytes]
MODEL = "archive/models/model.json"
CONSTANTS = "archive/data/constants/model_constants_config.json"
WEIGHTS = "archive/data/weights/model_weights_config.json"
WHOLE = ""
"""Stands for the file itself."""
MARK = "ran"
PLAIN_TORCH = """
import contextlib, os, sys, torch
clip = torch.zeros(eval(sys.argv[1]))
for folder in sys.argv[2:]:
    os.chdir(folder)
    with contextlib.suppress(Exception):
        torch.export.load("model.pt2").module()(clip)
"""


class Payload:
    """Makes a folder when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (MARK,)


def _change(records: Records, name: str, change: Callable[[Any], None]) -> None:
    content = json.loads(records[name])
    change(content)
    records[name] = json.dumps(content).encode()


def _graph(program: Any) -> Any:
    return program["graph_module"]["graph"]


def _saved(value: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def pickled_weight(records: Records) -> None:
    _change(records, WEIGHTS, lambda config: next(iter(config["config"].values())).update(use_pickle=True))
    records["archive/data/weights/weight_0"] = _saved(Payload())


def pickled_inputs(records: Records) -> None:
    records["archive/data/sample_inputs/model.pt"] = _saved(Payload())


def opaque_constant(records: Records) -> None:
    entry = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
    _change(records, CONSTANTS, lambda config: config["config"].update(x=entry))
    records["archive/data/constants/opaque_obj_0"] = pickle.dumps(Payload())


def any_function(records: Records) -> None:
    text = {"name": "", "arg": {"as_string": MARK}, "kind": 1}
    _change(records, MODEL, lambda program: _graph(program)["nodes"][0].update(target="torch.os.mkdir", inputs=[text]))


def guard(records: Records) -> None:
    _change(records, MODEL, lambda program: program.update(guards_code=[f"__import__('os').mkdir('{MARK}') is None"]))


def expression(records: Records) -> None:
    size = {"as_expr": {"expr_str": f"__import__('os').mkdir('{MARK}') or 1", "hint": {"as_int": 1}}}

    def change(program: Any) -> None:
        next(iter(_graph(program)["tensor_values"].values()))["sizes"][0] = size

    _change(records, MODEL, change)


def expression_of_a_tensor_named_metadata(records: Records) -> None:
    expression(records)
    first = next(iter(_graph(json.loads(records[MODEL]))["tensor_values"]))
    records[MODEL] = records[MODEL].replace(json.dumps(first).encode(), b'"metadata"')


def name_of_an_input(records: Records) -> None:
    name = f"x=__import__('os').mkdir('{MARK}')"
    text = records[MODEL].decode().replace('"clip"', json.dumps(name))
    records[MODEL] = text.encode()


def file_of_an_operator(records: Records) -> None:
    text = {"name": "filename", "arg": {"as_string": MARK}, "kind": 1}
    is_shared = {"name": "shared", "arg": {"as_bool": True}, "kind": 1}
    size = {"name": "size", "arg": {"as_int": 4}, "kind": 1}
    changed = {"target": "torch.ops.aten.from_file.default", "inputs": [text, is_shared, size]}
    _change(records, MODEL, lambda program: _graph(program)["nodes"][0].update(changed))


def compiled_library(records: Records) -> None:
    records["archive/data/aotinductor/model/model.so"] = b"\x7fELF"


def container_of_any_type(records: Records) -> None:
    text = records[MODEL].decode().replace("builtins.dict", "collections.defaultdict")
    records[MODEL] = text.encode()


def attribute_of_an_operator(records: Records) -> None:
    _change(records, MODEL, lambda program: _graph(program)["nodes"][0].update(target="torch.ops.aten.add.overloads"))


def _two_archives(first: Records, second: Records) -> bytes:
    """Return a file in which torch's own reader finds the first records, and Python's the second.

    The former goes by the offset at which the file says its directory lies, the latter by where the file ends.
    """
    (content, directory, tail), (more, other, _) = map(_parts_of_archive, (first, second))
    # both directories must be of one size: the other's first entry is padded
    padding, name_end = len(directory) - len(other), 46 + struct.unpack_from("<H", other, 28)[0]
    entries = bytearray(other[:name_end] + bytes(padding) + other[name_end:])
    struct.pack_into("<H", entries, 30, padding)
    at = 0
    while at < len(entries):  # Python takes the second's offsets for ones behind other data, of this length
        offset = struct.unpack_from("<I", entries, at + 42)[0]
        struct.pack_into("<I", entries, at + 42, offset + len(content) - len(more))
        at += 46 + sum(struct.unpack_from("<HHH", entries, at + 28))
    return content + directory + more + bytes(entries) + tail


def _parts_of_archive(records: Records) -> tuple[bytes, bytes, bytes]:
    """Return an archive's content, its directory and its end.

    Source: PKWARE, APPNOTE.TXT 6.3, sections 4.3.12 and 4.3.16.
    """
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    data = stream.getvalue()
    size, offset = struct.unpack_from("<II", data, len(data) - 10)
    return data[:offset], data[offset : offset + size], data[offset + size :]


def older_form_behind_the_newer(records: Records) -> None:
    """Let torch fail on a program that lacks a weight: it then reads what Python finds, in its older form."""
    older = dict(records)
    expression(older)
    hidden = {"version": b"8.20", "serialized_exported_program.json": older[MODEL]}
    hidden |= {f"serialized_{name}.pt": _saved({}) for name in ("state_dict", "constants", "example_inputs")}
    del records["archive/data/weights/weight_0"]
    records[WHOLE] = _two_archives(records, hidden)


def library_of_metadata(records: Records) -> None:
    looked_up = {"source_fn_stack": "x,torch.ctypes.cdll./lib/library"}
    _change(records, MODEL, lambda program: _graph(program)["nodes"][0].update(metadata=looked_up))


def library_of_an_argument(records: Records) -> None:
    looked_up = {"name": "x", "arg": {"as_operator": "torch.ctypes.cdll.library"}, "kind": 1}
    _change(records, MODEL, lambda program: _graph(program)["nodes"][0]["inputs"].append(looked_up))


def item_of_anything(records: Records) -> None:
    _change(records, MODEL, lambda program: _graph(program)["nodes"][0].update(target="_operator.getitem"))


def attribute_of_torch(records: Records) -> None:
    records[MODEL] = records[MODEL].replace(b'"clip"', b'"torch.marked"')


def attribute_of_a_module(records: Records) -> None:
    records[MODEL] = records[MODEL].replace(b'"model.fc.weight"', b'"forward.__func__.__globals__"')


def printed_text(records: Records) -> None:
    text = {"name": "s", "arg": {"as_string": "not the terminal's"}, "kind": 1}
    changed = {"target": "torch.ops.aten._print.default", "inputs": [text]}
    _change(records, MODEL, lambda program: _graph(program)["nodes"][0].update(changed))


def calling(name: str) -> Callable[[Records], None]:
    def attack(records: Records) -> None:
        _change(records, MODEL, lambda program: _graph(program)["nodes"][0].update(target=f"torch.ops.aten.{name}"))

    return attack


def quoted_constant(records: Records) -> None:
    text = {"as_string": f"' or __import__('os').mkdir('{MARK}') or '"}
    _change(records, MODEL, lambda program: _graph(program)["inputs"].append(text))


def path_of_a_tensor(records: Records) -> None:
    entry = {"path_name": "../tensor_0", "is_param": False, "use_pickle": False, "tensor_meta": None}
    _change(records, CONSTANTS, lambda config: config["config"].update(x=entry))


ATTACKS = [
    pickled_weight,
    pickled_inputs,
    opaque_constant,
    expression,
    expression_of_a_tensor_named_metadata,
    name_of_an_input,
    file_of_an_operator,
    older_form_behind_the_newer,
]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return small_bundle(tmp_path_factory)


def written(source: Path, path: Path, attack: Callable[[Records], None]) -> Path:
    """Copy a program with an attack in it."""
    with zipfile.ZipFile(source) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    attack(records)
    if WHOLE in records:
        path.write_bytes(records[WHOLE])
        return path
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    return path


@pytest.fixture(scope="module")
def attacked(bundle, tmp_path_factory):
    """Return a folder for each attack, in which plain torch has read its program."""
    folders = {attack: tmp_path_factory.mktemp(attack.__name__) for attack in ATTACKS}
    for attack, folder in folders.items():
        written(bundle.path / "model.pt2", folder / "model.pt2", attack)
    command = [sys.executable, "-c", PLAIN_TORCH, str((1, *bundle.clip_tchw)), *map(str, folders.values())]
    subprocess.run(command, check=True, capture_output=True)
    return folders


@pytest.mark.parametrize("attack", ATTACKS)
def test_program_that_runs_code_in_plain_torch_is_refused(attacked, monkeypatch, attack):
    folder = attacked[attack]
    assert (folder / MARK).exists(), "the attack is none: this test would prove nothing"
    (folder / MARK).rename(folder / "before")
    monkeypatch.chdir(folder)
    with pytest.raises((ForeignCodeError, pickle.UnpicklingError)):
        load_program(torch, folder / "model.pt2").module(check_guards=False)
    assert not (folder / MARK).exists()


@pytest.mark.parametrize(
    ("attack", "said"),
    [
        (opaque_constant, "it holds 'data/constants/opaque_obj_0', which is no part of a network's program"),
        (compiled_library, "it holds 'data/aotinductor/model/model.so', which is no part"),
        (any_function, "it calls 'torch.os.mkdir', which is no operator on tensors"),
        (file_of_an_operator, "it calls 'torch.ops.aten.from_file.default', which is no operator"),
        (attribute_of_an_operator, "it calls 'torch.ops.aten.add.overloads', which is no operator"),
        (guard, "which torch would run as code"),
        (expression, "which torch would run as code"),
        (expression_of_a_tensor_named_metadata, "which torch would run as code"),
        (name_of_an_input, "it names something \"x=__import__('os').mkdir('ran')\""),
        (library_of_metadata, "it holds the text 'x,torch.ctypes.cdll./lib/library', which torch would run"),
        (library_of_an_argument, "it holds the text 'torch.ctypes.cdll.library', which torch would run"),
        (item_of_anything, "it calls '_operator.getitem', which is no operator"),
        (attribute_of_torch, "it names something 'torch.marked'"),
        (attribute_of_a_module, "it names something 'forward.__func__.__globals__'"),
        (printed_text, "it calls 'torch.ops.aten._print.default', which is no operator"),
        (quoted_constant, "it names something \"' or __import__('os').mkdir('ran') or '\""),
        (path_of_a_tensor, "it names something '../tensor_0'"),
        (container_of_any_type, "its inputs or outputs are of type 'collections.defaultdict'"),
    ],
)
@pytest.mark.parametrize("may_hold_engines", [False, True])
def test_refusal_says_what_the_program_holds(bundle, tmp_path, attack, said, may_hold_engines):
    path = written(bundle.path / "model.pt2", tmp_path / "model.pt2", attack)
    with pytest.raises(ForeignCodeError) as caught:
        load_program(torch, path, may_hold_engines=may_hold_engines)
    assert said in str(caught.value)


def test_tensors_are_unpickled_and_torchs_switch_is_as_before(bundle, tmp_path, monkeypatch):
    def change(records: Records) -> None:
        records["archive/data/sample_inputs/model.pt"] = _saved(((torch.zeros(1, *bundle.clip_tchw),), {}))

    path = written(bundle.path / "model.pt2", tmp_path / "model.pt2", change)
    for before in (None, "0"):
        if before is not None:
            monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", before)
        assert load_program(torch, path).example_inputs[0][0].shape == (1, *bundle.clip_tchw)
        assert os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD") == before


@pytest.mark.parametrize(
    "name",
    [
        "max_pool2d_with_indices_backward.default",
        "adaptive_max_pool2d_backward.default",
        "_sparse_coo_tensor_unsafe.default",
        "_segment_reduce_backward.default",
        "_ctc_loss.default",
        "ctc_loss.IntList",
        "_unsafe_index_put.default",
    ],
)
def test_operator_that_writes_where_an_index_tells_it_to_is_refused(bundle, tmp_path, name):
    """A backward pass, say, adds its gradients at the indices that it is given, and is not told the tensor's size."""
    path = written(bundle.path / "model.pt2", tmp_path / "model.pt2", calling(name))
    with pytest.raises(ForeignCodeError, match="which is no operator on tensors"):
        load_program(torch, path)
