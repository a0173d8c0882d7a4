"""The command `edge-doctor`: what this machine can do, what is missing, and the command that mends it."""

import argparse
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edge.commandline import Parser, run_command
from edge.config import Config, read_config
from edge.curve import check_address
from edge.errors import BindError, ConfigError, EngineError, SourceError
from edge.sources.dicom.address import state_folder
from edge.sources.dicom.spool import SpoolLimits
from tools.doctor import clocks, codecs, devices, machine, ports, python
from tools.doctor import engines as engines_here
from tools.doctor.finding import Check, examine
from tools.doctor.probe import Probes
from tools.doctor.screen import Result, Screen, as_json, exit_code

_HTTP = "127.0.0.1:8080"
_HERE = 1
"""Exit code of a problem with Python, a package or the machine."""
_RECORDINGS = "recordings"
_LIMITS = SpoolLimits()


def main() -> int:
    """Run the command."""
    return run_command(_run)


def _run() -> int:
    options, config = _parse()
    host_and_port = _host_and_port(options.http)
    results: list[Result] = []
    screen = None if options.json else Screen()
    with Probes(_questions(config)) as probes:
        if screen:
            screen.begin()
        for check, finding in examine(_checks(config, host_and_port, probes)):
            results.append((check, finding))
            if screen:
                screen.show(check, finding)
    if screen:
        screen.end(results)
    else:
        print(as_json(results))
    return exit_code(results)


def _parse() -> tuple[argparse.Namespace, Config]:
    """Return our own options, and what the daemon would make of those that are its."""
    parser = Parser(
        "edge-doctor",
        "Say what this machine can do and what is missing, with the command that mends it; change nothing. A problem "
        "ends with exit code 1 (Python, packages, machine), 3 (source), 4 (engine) or 5 (address), of several with the "
        "first one's; notes and warnings alone with 0.",
        "edge-doctor --config /etc/edge-infer.toml",
    )
    add = parser.add_argument
    add("--config", metavar="FILE", help="look at what this configuration of edge-infer names")
    add("--source", metavar="URI", help="wait for the first frame of this source, too")
    add("--engine", metavar="BUNDLE", help="check this bundle, not the demo's: hashes, parity, time; compiles nothing")
    add("--backend", metavar="B", help="with this backend (default: the best one)")
    add("--publish", metavar="ADDRESS", help="where edge-infer is to bind (default: tcp://127.0.0.1:5555)")
    add("--http", metavar="HOST:PORT", default=_HTTP, help="where edge-display is to serve (default: %(default)s)")
    add("--record", metavar="DIR", help="where recordings are to go: is there room?")
    add("--json", action="store_true", help="print one JSON object, with more details")
    options = parser.parse_args()
    names = ("config", "source", "engine", "backend", "publish", "record")
    given = [f"--{name}={value}" for name in names if (value := getattr(options, name)) is not None]
    if options.config is None and options.source is None:
        given.append("--source=demo")
    config = read_config(given)
    try:
        check_address(config.publish, has_keys=config.curve is not None, insecure=config.insecure)
    except ConfigError as exc:
        raise ConfigError(f"edge-infer would refuse: {exc} (to edge-doctor in a --config)") from exc
    return options, config


def _host_and_port(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"--http is {text!r}; it must be HOST:PORT, for example {_HTTP}")
    return host.strip("[]"), int(port)


def _questions(config: Config) -> dict[str, dict[str, Any]]:
    """Return what is asked in processes of their own."""
    bundle = {"path": config.engine, **{key: getattr(config, key) for key in ("backend", "device", "precision")}}
    asked: dict[str, dict[str, Any]] = {"bundle": bundle, **{name: {} for name in engines_here.questions()}}
    if config.source != "demo":
        asked["source"] = {"uri": config.source, "options": dataclasses.asdict(config.source_options())}
    return asked


def _checks(config: Config, host_and_port: tuple[str, int], probes: Probes) -> Iterator[Check]:
    """Yield all checks, in the order of the screen."""
    section = "Installation"
    yield Check(section, "Python", _HERE, python.check_python)
    yield Check(section, "packages", _HERE, python.check_packages)
    yield Check(section, "locale", _HERE, python.check_locale)
    section = "Machine"
    yield Check(section, "system", _HERE, machine.check_system)
    yield Check(section, "processor", _HERE, machine.check_processor)
    yield Check(section, "memory", _HERE, machine.check_memory)
    for name, folder in _folders(config).items():
        yield Check(section, name, _HERE, _disk_check(name, folder))
    yield Check(section, "clock", _HERE, clocks.check_clocks)
    yield Check(section, "systemd", _HERE, machine.check_systemd)
    section = "Sources"
    yield Check(section, "V4L2", SourceError.exit_code, devices.check_devices)
    yield Check(section, "video", SourceError.exit_code, codecs.check_video)
    yield Check(section, "DICOM", SourceError.exit_code, codecs.check_dicom)
    yield Check(section, "SRT", SourceError.exit_code, codecs.check_srt)
    if config.source != "demo":
        yield Check(section, "source", SourceError.exit_code, lambda: codecs.check_source(probes, config.source))
    section, code = "Engines", EngineError.exit_code
    yield Check(section, "OpenVINO", code, lambda: engines_here.check_openvino(probes))
    yield Check(section, "ONNX Runtime", code, lambda: engines_here.check_onnxruntime(probes))
    yield Check(section, "torch", code, lambda: engines_here.check_torch(probes))
    yield Check(section, "NVIDIA GPU", code, lambda: engines_here.check_nvidia(probes))
    yield Check(section, "bundle", code, lambda: engines_here.check_bundle(probes, config.engine))
    section, code = "Addresses", BindError.exit_code
    yield Check(section, "ZeroMQ", code, ports.check_zeromq)
    yield Check(section, "edge-infer", code, lambda: ports.check_publish(config.publish))
    yield Check(section, "edge-display", code, lambda: ports.check_http(*host_and_port))


def _folders(config: Config) -> dict[str, Path]:
    folders = {"state, spool": state_folder()}
    return folders if config.record is None else {**folders, _RECORDINGS: Path(config.record)}


def _disk_check(name: str, folder: Path) -> Any:
    room = _LIMITS.max_waiting_bytes, _LIMITS.max_object_bytes  # what the DICOM spool may hold
    return lambda: machine.check_disk(name, folder, *room, holds_recordings=name == _RECORDINGS)


if __name__ == "__main__":
    raise SystemExit(main())
