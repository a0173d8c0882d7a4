"""What can compute: OpenVINO, ONNX Runtime, torch, NVIDIA's driver and TensorRT; and whether a bundle runs here."""

import importlib.metadata
import importlib.util
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from edge.config import DEMO_BUNDLE
from engines.load import backend_module
from tools.doctor.finding import ROOT, Finding, Verdict, as_root, pip_install, pip_install_extra, user_name
from tools.doctor.probe import Answer, ProbeError, Probes

_BUNDLE_LIMIT_S = 120.0
"""For a large network's reference clips on a slow processor."""
_NVIDIA, _DISPLAY_CLASSES = "0x10de", ("0x0300", "0x0302")
_INTEL = "0x8086"


def questions() -> list[str]:
    """Return which libraries are worth asking: those that are installed, and the driver in any case."""
    return ["cuda", *(name for name in ("openvino", "onnxruntime", "tensorrt") if importlib.util.find_spec(name))]


def check_openvino(probes: Probes) -> Iterator[Finding]:
    """Tell OpenVINO's devices and their precisions."""
    verdicts = Verdict.PROBLEM, Verdict.PROBLEM
    answer = _asked(probes, "openvino", "OpenVINO", "openvino>=2026.1,<2027", *verdicts)
    if isinstance(answer, Finding):
        yield answer
        return
    told = "; ".join(f"{name} {_precisions(device['capabilities'])}" for name, device in answer["devices"].items())
    verdict = Verdict.OK if "CPU" in answer["devices"] else Verdict.PROBLEM
    yield Finding("OpenVINO", verdict, f"{answer['version']}: {told or 'no device'}", "", answer)
    yield from _judge_intel(answer)


def _asked(
    probes: Probes, library: str, title: str, requirement: str, missing: Verdict, broken: Verdict
) -> Answer | Finding:
    """Return what a library answers in a process of its own, or the finding that it is missing or does not work."""
    if (trouble := backend_module(library).probe()) is not None:
        return Finding(title, missing, trouble, pip_install([requirement]))
    try:
        return probes.answer(library)
    except ProbeError as exc:
        return Finding(title, broken, f"does not work: {exc}", pip_install([requirement], "--force-reinstall"))


def _precisions(capabilities: list[str]) -> str:
    return ", ".join(name for name in ("FP32", "FP16", "BF16", "INT8") if name in capabilities)


def _judge_intel(answer: Answer) -> Iterator[Finding]:
    """Tell of an Intel GPU that the kernel has and OpenVINO has not."""
    nodes = sorted(Path("/dev/dri").glob("renderD*"))
    if not nodes or not _has_gpu(_INTEL) or any(name.startswith("GPU") for name in answer["devices"]):
        return
    closed = [node for node in nodes if not os.access(node, os.R_OK | os.W_OK)]
    if closed:
        mend = as_root(f"usermod -aG render {user_name()}   # then log in again")
        yield Finding("Intel GPU", Verdict.WARNING, f"this user may not open {closed[0]}", mend)
    else:
        mend = as_root("apt-get install intel-opencl-icd")
        yield Finding(
            "Intel GPU", Verdict.NOTE, "it is here, but OpenVINO does not see it: its driver is missing", mend
        )


def _has_gpu(vendor: str) -> bool:
    """Whether a graphics processor of this maker sits on the PCI bus."""
    for device in Path("/sys/bus/pci/devices").glob("*"):
        try:
            is_vendor = (device / "vendor").read_text(encoding="ascii").strip() == vendor
            if is_vendor and (device / "class").read_text(encoding="ascii").startswith(_DISPLAY_CLASSES):
                return True
        except OSError:  # unplugged meanwhile
            continue
    return False


def check_onnxruntime(probes: Probes) -> Iterator[Finding]:
    """Tell ONNX Runtime's execution providers; most machines do without it."""
    verdicts = Verdict.NOTE, Verdict.WARNING
    answer = _asked(probes, "onnxruntime", "ONNX Runtime", "onnxruntime>=1.23", *verdicts)
    if isinstance(answer, Finding):
        yield answer
        return
    names = ", ".join(name.removesuffix("ExecutionProvider") for name in answer["providers"])
    yield Finding("ONNX Runtime", Verdict.OK, f"{answer['version']}: {names}", "", answer)


def check_torch(probes: Probes) -> Iterator[Finding]:
    """Tell torch's version and whether it was built for CUDA, without loading it, which takes seconds."""
    install = pip_install(["torch==2.13.0"])
    if (trouble := backend_module("torch").probe()) is not None:
        yield Finding(
            "torch", Verdict.NOTE, f"{trouble.partition(':')[0]}; the torch backend and edge-train need it", install
        )
        return
    version, cuda = importlib.metadata.version("torch"), _cuda_of_torch()
    built = f"for CUDA {cuda}" if cuda else "for the CPU alone"
    details = {"version": version, "cuda": cuda}
    if cuda is None and "gpus" in probes.answer("cuda"):
        mend = pip_install(["torch==2.13.0"], "--force-reinstall")
        yield Finding("torch", Verdict.WARNING, f"{version}, built {built}: it leaves the GPU idle", mend, details)
    else:
        yield Finding("torch", Verdict.OK, f"{version}, built {built}", "", details)


def _cuda_of_torch() -> str | None:
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
    match = re.search(r"^cuda\b[^=]*= *'([\d.]+)'", text, re.MULTILINE)
    return match[1] if match else None


def check_nvidia(probes: Probes) -> Iterator[Finding]:
    """Tell the GPUs that the driver has, or why a card that is here has none; then TensorRT."""
    answer = probes.answer("cuda")
    if "gpus" in answer:
        for gpu in answer["gpus"]:
            told = (
                f"{gpu['name']}, compute capability {gpu['compute_capability']}, {gpu['memory_bytes'] / 1e9:.0f} GB, "
                f"driver for CUDA {gpu['driver_cuda']}"
            )
            yield Finding(f"cuda:{gpu['index']}", Verdict.OK, told, "", gpu)
        yield _judge_tensorrt(probes)
    elif answer["needs"] == "bindings":
        mend = pip_install_extra("tensorrt", ["cuda-bindings>=12.9.1"])
        yield Finding("NVIDIA GPU", Verdict.WARNING, f"the driver is there; {answer['trouble']}", mend, answer)
    elif _has_gpu(_NVIDIA):
        mend = as_root("apt-get install nvidia-driver   # section non-free; then restart. In a container: --gpus all")
        yield Finding("NVIDIA GPU", Verdict.WARNING, f"a card is here, but {answer['trouble']}", mend, answer)
    else:
        yield Finding(
            "NVIDIA GPU", Verdict.NOTE, f"{answer['trouble']}; OpenVINO computes on the processor", "", answer
        )


def _judge_tensorrt(probes: Probes) -> Finding:
    mend = pip_install_extra("tensorrt", ["cuda-bindings>=12.9.1", "tensorrt>=11.0,<11.1"])
    if importlib.util.find_spec("tensorrt") is None:
        return Finding("TensorRT", Verdict.WARNING, "it is not installed: the GPU stays idle, but for torch", mend)
    try:
        answer = probes.answer("tensorrt")
    except ProbeError as exc:
        return Finding("TensorRT", Verdict.WARNING, f"does not work: {exc}", mend)
    if "trouble" in answer:
        return Finding("TensorRT", Verdict.WARNING, answer["trouble"], mend, answer)
    return Finding("TensorRT", Verdict.OK, answer["version"], "", answer)


def check_bundle(probes: Probes, bundle: str) -> Iterator[Finding]:
    """Check the bundle's files, and the engine that the daemon would take: it has proven itself, or was refused."""
    quoted = shlex.quote(bundle)
    try:
        answer = probes.answer("bundle", _BUNDLE_LIMIT_S)
    except ProbeError as exc:
        mend = "edge-train export RUN --out BUNDLE   # or copy the whole folder again from where it is sound"
        if Path(bundle) == DEMO_BUNDLE and (ROOT / ".git").exists():
            mend = f"git -C {shlex.quote(str(ROOT))} checkout -- engines/demo"
        yield Finding("bundle", Verdict.PROBLEM, str(exc), mend)
        return
    size = f"{answer['num_files']} files, {answer['size_bytes'] / 1e6:.1f} MB, every hash as the manifest says"
    yield Finding("bundle", Verdict.OK, f"{answer['name']}: {size}", "", {"path": bundle})
    if "trouble" in answer:
        mend = f"edge-build {quoted} --check   # proves every engine, and names what each lacks"
        yield Finding("engine", Verdict.PROBLEM, answer["trouble"], mend, answer)
        return
    rate, needed = 1e3 / answer["infer_ms"], 1e3 / answer["interval_ms"]
    told = (
        f"{answer['backend']} {answer['precision']} on {answer['device']} passes the parity gate; a window takes "
        f"{answer['infer_ms']:.1f} ms, a new frame comes every {answer['interval_ms']:.1f} ms"
    )
    mend = (
        ""
        if rate >= needed
        else f"edge-bench engine {quoted}   # measures; edge-build --precision int8 or a GPU is faster"
    )
    verdict = Verdict.OK if rate >= needed else Verdict.NOTE
    yield Finding("engine", verdict, told + ("" if rate >= needed else ": windows are skipped"), mend, answer)
