"""The order of engines that was measured on a machine: when `--backend auto` heeds it, and what is said of it."""

import dataclasses
import json
import logging
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from auto_choice import RANKED, chosen, heard, write_small

from engines import host, load_bundle, load_engine
from engines.bundle import add_files, describe_file
from engines.errors import BackendError, BundleError, EngineError
from engines.ranking import Ranked, keep_ranking, ranked_here
from tools.rank import rank


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_small(tmp_path / "bundle")


@pytest.fixture
def told() -> Iterator[list[str]]:
    """Return what is logged, as it comes."""
    with heard() as lines:
        yield lines


@pytest.fixture
def without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "cuda_trouble", lambda: "no NVIDIA driver")


pytestmark = pytest.mark.usefixtures("without_cuda")


def test_auto_takes_the_engine_that_ranks_first_on_this_machine(folder: Path, told: list[str]) -> None:
    keep_ranking(load_bundle(folder), reversed(RANKED))
    assert chosen(load_bundle(folder)) == ("onnxruntime", "fp32")
    assert "auto: by rank, as measured on this machine: onnxruntime CPU fp32 9.5 ms, openvino CPU fp32 9.9 ms" in told
    assert "auto: passed over torch cuda: no NVIDIA driver" in told


def test_auto_ranks_a_lower_precision_first_only_for_a_gain_beyond_noise(folder: Path) -> None:
    bundle = load_bundle(folder)
    order = keep_ranking(bundle, [Ranked("openvino", "CPU", "int8", 9.3), *RANKED]).rankings[0]["engines"]
    assert [(engine["backend"], engine["precision"]) for engine in order][:2] == [
        ("onnxruntime", "fp32"),
        ("openvino", "int8"),
    ]


def test_auto_heeds_no_rank_for_a_named_device_or_several_windows_in_flight(folder: Path) -> None:
    keep_ranking(load_bundle(folder), RANKED)
    for options in ({"device": "CPU"}, {"is_for_throughput": True}):
        assert chosen(load_bundle(folder), **options) == ("openvino", "fp32")


def test_auto_falls_back_from_an_engine_that_ranks_first_and_does_not_run(folder: Path, told: list[str]) -> None:
    keep_ranking(load_bundle(folder), [Ranked("onnxruntime", "CUDA", "fp32", 0.5)])
    assert chosen(load_bundle(folder)) == ("openvino", "fp32")
    assert any(line.startswith("auto: passed over onnxruntime CUDA fp32: ONNX Runtime has no") for line in told)


@pytest.mark.parametrize("changed", ["processor", "library", "network"])
def test_auto_heeds_no_rank_of_other_circumstances(folder: Path, monkeypatch: pytest.MonkeyPatch, changed: str) -> None:
    keep_ranking(load_bundle(folder), RANKED)
    bundle = load_bundle(folder)
    if changed == "processor":
        monkeypatch.setattr(host, "describe", lambda: {"processor": "abacus"})
    elif changed == "library":
        monkeypatch.setitem(sys.modules, "openvino", None)
    else:
        file = dataclasses.replace(bundle.files[0], name="other", sha256="ab" * 32, kind="openvino", precision="int8")
        bundle = dataclasses.replace(bundle, files=(*bundle.files, file))
    assert ranked_here(bundle) == ()


@pytest.fixture
def gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder in which the driver tells of a GPU, as it writes it."""
    file = tmp_path / "gpus" / "0000:65:00.0" / "information"
    file.parent.mkdir(parents=True)
    file.write_text("Model: \t\t NVIDIA A2\nIRQ:   \t\t 184\nGPU UUID: \t GPU-0\nVideo BIOS: \t ??\n")
    monkeypatch.setattr(host, "_GPUS", tmp_path / "gpus")
    return tmp_path / "gpus"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ("gpu", "the GPU is another one"),
        ("openvino", f"a library is another version: openvino 1.2.3, was {version('openvino')}"),
        ("onnxruntime-openvino", "a library is another version: onnxruntime-openvino 1.2.3, was not there"),
        ("network", "the bundle's engines are others"),
    ],
)
def test_auto_tells_in_one_line_why_a_rank_of_this_machine_no_longer_holds(
    folder: Path, tmp_path: Path, told: list[str], monkeypatch: pytest.MonkeyPatch, gpus: Path, changed: str, said: str
) -> None:
    keep_ranking(load_bundle(folder), RANKED)
    if changed == "gpu":
        file = gpus / "0000:65:00.0" / "information"
        file.write_text(file.read_text().replace("A2", "L4"))
    elif changed == "network":
        path = folder / "model.openvino-int8.xml"
        path.write_text("<net/>")
        add_files(load_bundle(folder), describe_file(path, "openvino", "int8"))
    else:
        installed = tmp_path / "site" / f"{changed.replace('-', '_')}-1.2.3.dist-info"
        installed.mkdir(parents=True)
        (installed / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {changed}\nVersion: 1.2.3\n")
        monkeypatch.syspath_prepend(tmp_path / "site")
    assert chosen(load_bundle(folder)) == ("openvino", "fp32")
    assert [line for line in told if "no longer holds" in line] == [
        f"auto: the order measured on this machine no longer holds ({said}); measure anew: edge-build {folder} --rank"
    ]
    keep_ranking(load_bundle(folder), RANKED)
    assert ranked_here(load_bundle(folder)) == RANKED


def test_machines_that_differ_in_the_gpu_alone_keep_their_ranks_beside_each_other(
    folder: Path, gpus: Path, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reverse = tuple(reversed([one._replace(p50_ms=10 * (2 - place)) for place, one in enumerate(RANKED)]))
    file = gpus / "0000:65:00.0" / "information"
    keep_ranking(load_bundle(folder), RANKED)
    file.write_text(file.read_text().replace("A2", "L4"))
    keep_ranking(load_bundle(folder), RANKED)
    keep_ranking(load_bundle(folder), reverse)
    assert [one["circumstances"]["gpus"] for one in load_bundle(folder).rankings] == [["NVIDIA A2"], ["NVIDIA L4"]]
    assert ranked_here(load_bundle(folder)) == reverse
    file.write_text(file.read_text().replace("L4", "A2"))
    assert ranked_here(load_bundle(folder)) == RANKED
    monkeypatch.setattr(host, "library_versions", dict)
    assert ranked_here(load_bundle(folder)) == ()
    assert "the GPU is another one" not in told[-1], "what is told is what has changed on this machine"


ODD = {"has_cuda": None, "gpus": 1, "backends": "all", "libraries": ["openvino"], "files": {}}


@pytest.mark.parametrize(
    ("circumstances", "said"),
    [({"has_cuda": False}, "an older version kept it"), (ODD, "a library is another version")],
)
def test_auto_passes_over_a_rank_that_an_older_version_or_another_hand_kept(
    folder: Path, told: list[str], circumstances: dict[str, Any], said: str
) -> None:
    keep_ranking(load_bundle(folder), RANKED)
    manifest = json.loads((folder / "manifest.json").read_text())
    (ranking,) = manifest["rankings"]
    ranking["circumstances"] = {"hardware": ranking["circumstances"]["hardware"], **circumstances}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert chosen(load_bundle(folder)) == ("openvino", "fp32")
    (line,) = [line for line in told if "no longer holds" in line]
    assert said in line


def test_auto_that_finds_none_names_each_engine_once_though_it_is_ranked(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "fast_precisions", lambda: ())
    bundle = keep_ranking(load_bundle(folder), RANKED)
    with pytest.raises(BackendError, match="runs here in int8; edge-build makes more; ") as caught:
        load_engine(bundle, "auto", precision="int8")
    reasons = str(caught.value).partition("makes more; ")[2].split("; ")
    names = [reason.partition(":")[0] for reason in reasons]
    assert sorted(set(names)) == sorted(names)
    assert sum(name.startswith("openvino") for name in names) == 1


def test_gpu_names_are_those_that_the_driver_tells(gpus: Path) -> None:
    (gpus / "0000:66:00.0").mkdir()  # of one that it tells nothing of
    assert host.gpu_names() == ["NVIDIA A2"]


def test_ranking_of_other_machines_alone_is_said_to_be_of_no_use_here(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "edge.engines")
    assert ranked_here(load_bundle(folder)) == ()
    assert caplog.text == ""
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(host, "describe", lambda: {"processor": "abacus"})
        keep_ranking(load_bundle(folder), RANKED)
    assert ranked_here(load_bundle(folder)) == ()
    assert "was measured on other hardware (arithmetic here " in caplog.text
    assert f", there abacus); measure on this: edge-build {folder} --rank" in caplog.text


def test_ranking_of_another_machine_is_kept_and_of_this_one_replaced(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(host, "describe", lambda: {"processor": "abacus"})
        keep_ranking(load_bundle(folder), RANKED[:1])
    keep_ranking(load_bundle(folder), RANKED[:1])
    keep_ranking(load_bundle(folder), RANKED)
    bundle = load_bundle(folder)
    assert len(bundle.rankings) == 2
    assert ranked_here(bundle) == RANKED


OPENVINO = {"backend": "openvino", "device": "CPU", "precision": "fp32", "p50_ms": 1.0}


@pytest.mark.parametrize(
    "engines",
    [
        [{**OPENVINO, "backend": "x"}],
        [{"backend": "openvino"}],
        [{**OPENVINO, "p50_ms": "1.0"}],
        [{**OPENVINO, "p50_ms": True}],
        [{**OPENVINO, "p50_ms": 10**400}],
        3,
    ],
)
def test_damaged_ranking_is_refused_with_the_command_that_mends_it(folder: Path, engines: Any) -> None:
    bundle = keep_ranking(load_bundle(folder), RANKED)
    damaged = dataclasses.replace(bundle, rankings=({**bundle.rankings[0], "engines": engines},))
    with pytest.raises(BundleError, match=r"ranking is damaged .*edge-build .* --rank"):
        load_engine(damaged)


def test_ranking_that_says_not_where_it_was_measured_hinders_no_new_one(folder: Path) -> None:
    bundle = dataclasses.replace(load_bundle(folder), rankings=({}, {"circumstances": None}, {"circumstances": [1]}))
    assert ranked_here(bundle) == ()
    keep_ranking(bundle, RANKED)
    assert ranked_here(load_bundle(folder)) == RANKED


def test_rank_times_every_engine_here_and_auto_takes_the_first(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tools.rank._SECONDS", 0.2)
    assert rank(load_bundle(folder)) == 0
    bundle = load_bundle(folder)
    ranked = ranked_here(bundle)
    assert {engine[:3] for engine in ranked} >= {("openvino", "CPU", "fp32"), ("onnxruntime", "CPU", "fp32")}
    assert f"{ranked[0]} a window: --backend auto takes it on this machine" in capsys.readouterr().out
    assert chosen(bundle) == (ranked[0].backend, ranked[0].precision)


def test_rank_of_a_bundle_that_cannot_be_written_is_refused_before_any_engine_runs(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tools.rank._measure", lambda _: pytest.fail("it measures"))
    monkeypatch.setattr("os.access", lambda *_: False)  # whoever is root may write everywhere
    with pytest.raises(EngineError, match=r"bundle cannot be written, .*; give it write permission"):
        rank(load_bundle(folder))
