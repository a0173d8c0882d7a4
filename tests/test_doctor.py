"""edge-doctor: this very machine, and machines on which something is missing, occupied, forbidden or broken."""

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from daemon import DEADLINE_S, run_command
from doctor_findings import one_finding
from media import write_video
from packaging.requirements import Requirement
from test_seams import loaded_by

from edge.config import DEMO_BUNDLE
from edge.errors import ConfigError, EngineError
from engines import load_bundle
from engines.bundle import add_files, describe_file
from tools.doctor import clocks, engines, ports, python
from tools.doctor.finding import Check, Finding, Verdict, examine
from tools.doctor.probe import Answer, ProbeError, Probes
from tools.doctor.screen import exit_code

ROOT = Path(__file__).parent.parent
NAMES = {
    "Python", "packages", "[build]", "[train]", "[tensorrt]", "locale", "system", "processor", "memory",
    "state, spool", "clock", "wall clock", "systemd", "video", "recording", "DICOM", "SRT", "OpenVINO", "ONNX Runtime",
    "torch", "bundle", "engine", "ZeroMQ", "edge-infer", "edge-display",
}  # fmt: skip
"""What is looked at on every machine; V4L2 devices and NVIDIA GPUs come under names of their own."""


@pytest.fixture
def free() -> list[str]:
    """Return the options that name two ports which nobody holds."""
    with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
        ports = [one.getsockname()[1] for one in (first, second)]
    return [f"--publish=tcp://127.0.0.1:{ports[0]}", f"--http=127.0.0.1:{ports[1]}"]


def _doctor(*arguments: str, **environment: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Run the command; return its JSON object, and its findings by name."""
    done = subprocess.run(
        [sys.executable, "-m", "tools.doctor.cli", "--json", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.stderr == ""
    told = json.loads(done.stdout)
    assert told["exit_code"] == done.returncode
    return told, {check["name"]: check for check in told["checks"]}


def test_doctor_looks_at_all_of_this_machine(free: list[str]) -> None:
    told, found = _doctor(*free)
    problems = [check for check in told["checks"] if check["verdict"] == "problem"]
    assert (told["exit_code"], problems) == (0, [])
    assert found.keys() >= NAMES
    assert sum(told["counts"].values()) == len(told["checks"])
    assert found["engine"]["details"]["infer_ms"] > 0
    assert "passes the parity gate" in found["engine"]["found"]
    assert found["DICOM"]["details"]["JPEG Baseline (Process 1)"] == "pillow"
    assert all("\n" not in check["found"] + check["mend"] for check in told["checks"])


def test_doctor_screen_says_it_in_words_and_without_colour_in_a_file(free: list[str]) -> None:
    done = run_command(*free, module="tools.doctor.cli")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert "not a medical device" in done.stdout.splitlines()[0]
    assert done.stdout.splitlines()[-1].startswith("Nothing essential is missing.")
    line = next(line for line in done.stdout.splitlines() if "every hash as the manifest says" in line)
    assert line.split()[:2] == ["ok", "bundle"]


def test_doctor_loads_neither_torch_nor_other_heavy_libraries_itself() -> None:
    heavy = ("torch", "tensorrt", "openvino", "onnxruntime", "pydicom", "av", "cuda")
    modules = ", ".join(f"tools.doctor.{path.stem}" for path in sorted((ROOT / "tools/doctor").glob("*.py")))
    assert loaded_by(f"import {modules}", heavy) == []


def test_doctor_mistyped_option_is_one_line_with_what_was_meant() -> None:
    done = run_command("--jsno", module="tools.doctor.cli")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: unrecognized arguments: --jsno; did you mean --json?; see edge-doctor --help\n"


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--publish=tcp://0.0.0.0:5555", "give --curve DIR"),
        ("--publish=tcp://0.0.0.0:5555", "(to edge-doctor in a --config)"),
        ("--http=8080", "--http is '8080'; it must be HOST:PORT"),
        ("--config=nowhere.toml", "nowhere.toml cannot be read"),
        ("--backend=magic", "--backend is 'magic'; allowed are auto, openvino"),
    ],
)
def test_doctor_wrong_option_is_refused_as_by_the_daemon(option: str, said: str) -> None:
    done = run_command(option, module="tools.doctor.cli")
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr


# what is occupied


def test_doctor_occupied_ports_are_problems_that_name_the_holder() -> None:
    with socket.create_server(("127.0.0.1", 0)) as publish, socket.create_server(("127.0.0.1", 0)) as http:
        ports = [one.getsockname()[1] for one in (publish, http)]
        told, found = _doctor(f"--publish=tcp://127.0.0.1:{ports[0]}", f"--http=127.0.0.1:{ports[1]}")
    assert told["exit_code"] == 5
    name = Path("/proc/self/comm").read_text(encoding="utf-8").strip()
    for command, port in zip(("edge-infer", "edge-display"), ports, strict=True):
        assert found[command]["verdict"] == "problem"
        assert f":{port} cannot be bound (Address already in use)" in found[command]["found"]
        assert f"process {os.getpid()} ({name}) holds it" in found[command]["found"]
        assert f"'sport = :{port}'" in found[command]["mend"]
    other = int(found["edge-infer"]["mend"].partition("   #")[0].rpartition(":")[2])
    with socket.create_server(("127.0.0.1", other)):  # what it proposes is free
        assert other > ports[0]


@pytest.mark.parametrize("host", ["fe80::1%nowhere", "a..b"])  # for which no name server is asked
def test_doctor_page_at_a_host_that_nobody_knows_is_a_problem(host: str) -> None:
    finding = one_finding(ports.check_http(host, 8080))
    assert finding.verdict is Verdict.PROBLEM
    assert f"the name '{host}' is not known here" in finding.found


def test_doctor_port_held_by_the_command_itself_is_well() -> None:
    program = """if True:
        import socket, sys
        open("/proc/self/comm", "w").write("edge-display")
        server = socket.create_server(("127.0.0.1", 0))
        print(server.getsockname()[1], flush=True)
        sys.stdin.read()
    """
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        port = int(child.stdout.readline())
        finding = one_finding(ports.check_http("127.0.0.1", port))
        child.communicate()
    assert finding.verdict is Verdict.OK
    assert finding.found == f"127.0.0.1:{port} is held by edge-display itself (process {child.pid})"


def test_doctor_leaves_an_ipc_address_alone(tmp_path: Path) -> None:
    path = tmp_path / "daemon.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        assert one_finding(ports.check_publish(f"ipc://{path}")).verdict is Verdict.NOTE
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


# sources


def test_doctor_source_gives_its_first_frame(tmp_path: Path, free: list[str]) -> None:
    video = write_video(tmp_path / "a video.mp4", 5, fps=30)
    told, found = _doctor(f"--source={video}", *free)
    assert told["exit_code"] == 0
    assert found["source"]["found"].startswith("video file: 320x240, first frame after")


@pytest.mark.slow
def test_doctor_source_that_is_missing_ends_with_3(free: list[str]) -> None:
    told, found = _doctor("--source=/dev/video4242", *free)
    assert told["exit_code"] == 3
    assert found["source"]["found"].startswith("there is no device /dev/video4242")
    assert "edge-infer --list-sources" in found["source"]["mend"]


def test_doctor_source_is_told_without_its_password(free: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    told, _ = _doctor(f"--source=rtsp://user:verysecret@127.0.0.1:{port}/live", *free)
    assert told["exit_code"] == 3
    assert "verysecret" not in json.dumps(told)


@pytest.mark.slow
def test_doctor_listener_is_bound_and_what_waits_is_left_to_the_daemon(tmp_path: Path, free: list[str]) -> None:
    port, spool = int(free[0].rpartition(":")[2]), tmp_path / "spool"
    source = f"--source=dicom://127.0.0.1:{port}?aet=EDGE&spool={spool}"
    with socket.create_server(("127.0.0.1", port)):
        told, found = _doctor(source, free[1], "--publish=tcp://127.0.0.1:0")
        assert (told["exit_code"], found["source"]["verdict"]) == (3, "problem")
    told, found = _doctor(source, free[1], "--publish=tcp://127.0.0.1:0")
    assert told["exit_code"] == 0
    assert "it can listen there" in found["source"]["found"]


# bundles and libraries


def test_doctor_broken_bundle_is_named_by_file_and_ends_with_4(tmp_path: Path, free: list[str]) -> None:
    copy = shutil.copytree(DEMO_BUNDLE, tmp_path / "copy of it")
    with (copy / "model.onnx").open("ab") as file:
        file.write(b"\0")
    told, found = _doctor(f"--engine={copy}", *free)
    assert told["exit_code"] == 4
    assert found["bundle"]["verdict"] == "problem"
    assert "model.onnx has sha256" in found["bundle"]["found"]
    assert "edge-train export" in found["bundle"]["mend"]
    assert "engine" not in found


@pytest.mark.slow
def test_doctor_whole_bundle_whose_engine_differs_from_the_reference_ends_with_4(
    tmp_path: Path, free: list[str]
) -> None:
    copy = shutil.copytree(DEMO_BUNDLE, tmp_path / "copy")
    with np.load(copy / "reference.npz") as arrays:
        changed = {**arrays, "probabilities": arrays["probabilities"][:, ::-1]}
    bundle = load_bundle(copy)
    np.savez(copy / "reference.npz", **changed)
    add_files(bundle, describe_file(copy / "reference.npz", "reference", None))
    before = {path: path.stat().st_mtime_ns for path in copy.iterdir()}
    told, found = _doctor(f"--engine={copy}", "--backend=openvino", *free)
    assert told["exit_code"] == 4
    assert (found["bundle"]["verdict"], found["engine"]["verdict"]) == ("ok", "problem")
    assert "probabilities differ by" in found["engine"]["found"]
    assert f"edge-build {copy} --check" in found["engine"]["mend"]
    assert before == {path: path.stat().st_mtime_ns for path in copy.iterdir()}


def test_doctor_configuration_names_what_is_looked_at(tmp_path: Path, free: list[str]) -> None:
    config = tmp_path / "edge-infer.toml"
    config.write_text(f"source = 'phantom:1'\nengine = '{tmp_path}'\nrecord = '{tmp_path / 'r'}'\n", encoding="utf-8")
    told, found = _doctor(f"--config={config}", *free)
    assert told["exit_code"] == 4
    assert f"{tmp_path} is not a bundle" in found["bundle"]["found"]
    assert str(tmp_path / "r") in found["recordings"]["found"]
    assert found["source"]["verdict"] == "ok"


def test_doctor_library_that_ends_the_process_is_a_finding(tmp_path: Path, free: list[str]) -> None:
    (tmp_path / "openvino.py").write_text("import os\nos.abort()\n", encoding="utf-8")
    told, found = _doctor(*free, PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert told["exit_code"] == 4
    assert found["OpenVINO"]["found"] == "does not work: it ends its process (SIGABRT)"
    assert "--force-reinstall" in found["OpenVINO"]["mend"]
    assert found["edge-display"]["verdict"] == "ok"  # all others were made


def test_doctor_library_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "openvino.py").write_text("import signal\nsignal.pause()\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    with Probes({"openvino": {}}) as probes, pytest.raises(ProbeError, match=r"does not answer within 0\.5 s"):
        probes.answer("openvino", limit_s=0.5)


def test_doctor_library_that_chatters_does_not_spoil_its_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "__version__ = '9.9'\nprint('hello')\ndef get_available_providers(): return ['CPUExecutionProvider']\n"
    (tmp_path / "onnxruntime.py").write_text(code, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    with Probes({"onnxruntime": {}}) as probes:
        finding = one_finding(engines.check_onnxruntime(probes))
    assert (finding.verdict, finding.found) == (Verdict.OK, "9.9: CPU")


def test_doctor_interrupted_leaves_no_process(tmp_path: Path, free: list[str]) -> None:
    (tmp_path / "openvino.py").write_text(
        f"import os, signal\nopen({str(tmp_path / 'pid')!r} + str(os.getpid()), 'w')\nsignal.pause()\n",
        encoding="utf-8",
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-u", "-m", "tools.doctor.cli", *free]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as doctor:
        assert doctor.stdout is not None
        for line in doctor.stdout:
            if line.startswith("Engines") or "SRT" in line:
                break
        doctor.send_signal(signal.SIGINT)
        doctor.communicate(timeout=DEADLINE_S)
    pids = [int(path.name.removeprefix("pid")) for path in tmp_path.glob("pid*")]
    assert pids
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


class _Answers(Probes):
    """What processes would answer on a machine with a GPU."""

    def __init__(self, **answers: Answer) -> None:
        super().__init__({})
        self._answers = answers


GPU = {"index": 0, "name": "GPU X", "compute_capability": "8.9", "driver_cuda": "13.0", "memory_bytes": 24 * 10**9}


def test_doctor_gpu_without_tensorrt_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    gpu, tensorrt = engines.check_nvidia(_Answers(cuda={"gpus": [GPU]}))
    assert (gpu.name, gpu.verdict) == ("cuda:0", Verdict.OK)
    assert gpu.found == "GPU X, compute capability 8.9, 24 GB, driver for CUDA 13.0"
    assert tensorrt.verdict is Verdict.WARNING
    assert "[tensorrt]" in tensorrt.mend


def test_doctor_driver_without_its_python_bindings_and_card_without_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    bindings = {"trouble": "cuda-python is not installed", "needs": "bindings"}
    driver = {"trouble": "no NVIDIA driver", "needs": "driver"}
    assert one_finding(engines.check_nvidia(_Answers(cuda=bindings))).verdict is Verdict.WARNING
    for has_card, verdict in ((True, Verdict.WARNING), (False, Verdict.NOTE)):
        monkeypatch.setattr(engines, "_has_gpu", lambda _, is_there=has_card: is_there)
        assert one_finding(engines.check_nvidia(_Answers(cuda=driver))).verdict is verdict


def test_doctor_machine_without_torch_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "backend_module", lambda _: type("M", (), {"probe": lambda: "it is not: `x`"}))
    finding = one_finding(engines.check_torch(_Answers()))
    assert finding.verdict is Verdict.NOTE
    assert finding.mend.endswith("pip install torch==2.13.0")


@pytest.mark.parametrize(("infer_ms", "verdict"), [(10.0, Verdict.OK), (50.0, Verdict.NOTE)])
def test_doctor_engine_slower_than_the_frames_is_noted(infer_ms: float, verdict: Verdict) -> None:
    ran = {"backend": "openvino", "precision": "fp32", "device": "CPU", "infer_ms": infer_ms, "interval_ms": 100 / 3}
    answer = {"name": "b", "num_files": 4, "size_bytes": 10**6, **ran}
    _, engine = engines.check_bundle(_Answers(bundle=answer), "my bundle")
    assert engine.verdict is verdict
    assert ("windows are skipped" in engine.found) == (verdict is Verdict.NOTE)
    assert engine.mend == "" or "edge-bench engine 'my bundle'" in engine.mend


# Python, clocks, and the doctor itself


def test_doctor_packages_are_compared_by_version() -> None:
    wanted = [Requirement(line) for line in ("numpy>=2", "rich<1", "no-such-package-anywhere", "x; python_version<'3'")]
    state = python.compare(wanted)
    assert [one.split()[0] for one in state.fitting] == ["numpy"]
    assert [one.name for one in state.missing] == ["no-such-package-anywhere"]
    assert [str(one) for one in state.wrong.values()] == ["rich<1"]


def test_doctor_without_a_checkout_reads_what_was_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    about = tmp_path / "edge_ultrasound-0.1.0.dist-info"
    about.mkdir()
    needs = ("numpy>=2", "absent-package>=3", 'rich<1; extra == "train"', 'edge-ultrasound[build]; extra == "train"')
    lines = ["Metadata-Version: 2.4", "Name: edge-ultrasound", "Version: 0.1.0", "Requires-Python: <3"]
    lines += [f"Requires-Dist: {need}" for need in needs]
    (about / "METADATA").write_text("\n".join(lines) + "\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(python, "ROOT", tmp_path)
    monkeypatch.setattr("tools.doctor.finding.ROOT", tmp_path)
    assert one_finding(python.check_python()).verdict is Verdict.PROBLEM
    packages, build, train, tensorrt = python.check_packages()
    assert (packages.verdict, packages.found) == (Verdict.PROBLEM, "not installed: absent-package")
    assert packages.mend.endswith("pip install 'absent-package>=3'")
    assert (build.verdict, tensorrt.verdict) == (Verdict.OK, Verdict.OK)
    assert train.verdict is Verdict.WARNING
    assert train.mend.endswith("pip install 'rich<1'")


def test_doctor_text_that_is_not_utf8_is_warned_of(free: list[str]) -> None:
    _, found = _doctor(*free, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert (found["locale"]["verdict"], found["locale"]["mend"]) == ("warning", "export LC_ALL=C.UTF-8")


def test_doctor_slow_clock_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clocks, "_clock_source", lambda: "hpet")
    clock, wall_clock = clocks.check_clocks()
    assert (clock.verdict, wall_clock.name) == (Verdict.WARNING, "wall clock")
    assert 0 < clock.details["step_ns"] < 1_000_000


def test_doctor_check_that_fails_itself_is_a_finding_and_the_next_one_is_made() -> None:
    def fails() -> Iterator[Finding]:
        yield Finding("first", Verdict.OK, "well")
        raise KeyError("surprise")

    def refused() -> Iterator[Finding]:
        raise ConfigError("not so")

    checks = [Check("Part", name, 4, run) for name, run in (("strange", fails), ("refused", refused))]
    well = Check("Part", "well", EngineError.exit_code, lambda: [Finding("last", Verdict.OK, "well")])
    results = list(examine([*checks, well]))
    assert [finding.name for _, finding in results] == ["first", "strange", "refused", "last"]
    strange, refusal = results[1][1], results[2][1]
    assert strange.verdict is Verdict.PROBLEM
    assert strange.found == "could not be looked at: the check itself failed (KeyError: 'surprise')"
    assert "in fails" in strange.details["traceback"]
    assert refusal.found == "could not be looked at: not so"
    assert exit_code(results) == 4
