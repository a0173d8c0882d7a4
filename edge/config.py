"""The daemon's options: command line over TOML file over defaults."""

import argparse
import dataclasses
import importlib.resources
import re
import sys
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edge.commandline import Parser
from edge.curve import check_form
from edge.errors import ConfigError
from edge.image_state import ImageThresholds
from edge.recording.layout import CODEC_NAMES
from edge.report.address import parse_pacs
from edge.roi import parse_masks, parse_roi
from edge.sources.listing import ListSources
from edge.sources.network.address import is_mistyped
from edge.sources.options import SourceOptions
from edge.sources.v4l2.modes import parse_size
from edge.tuning import parse_tuning
from engines import BACKENDS, PRECISIONS

_IMAGE = ImageThresholds()
_MAX_TOML_BYTES = 2**20
DEMO_BUNDLE = Path(str(importlib.resources.files("engines"))) / "demo"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The effective configuration of one run. Field names are the TOML keys."""

    source: str
    engine: str = str(DEMO_BUNDLE)
    backend: str = "auto"
    device: str | None = None
    precision: str | None = None
    tune: str | None = None
    publish: str = "tcp://127.0.0.1:5555"
    stream: str = "main"
    hop: int = 1
    pace: str = "realtime"
    roi: str = "auto"
    duration: float | None = None
    max_windows: int | None = None
    loop: bool = False
    wait_source: bool = False
    frames: float = 0.0
    wait_subscribers: int = 0
    curve: str | None = None
    insecure: bool = False
    record: str | None = None
    record_codec: str = CODEC_NAMES[0]
    record_max_gb: float | None = None
    record_max_days: float | None = None
    control: str | None = None
    exam_auto: float | None = None
    state: str | None = None
    pacs: str | None = None
    log_format: str = "text"
    status_file: str | None = None
    mask: str | None = None
    video_size: str | None = None
    frame_rate: float | None = None
    pixel_format: str | None = None
    freeze_ms: float = _IMAGE.freeze_ms
    still_level: float = _IMAGE.still_level
    still_share: float = _IMAGE.still_share
    change_level: float = _IMAGE.change_level
    allow_aet: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    tls_ca: str | None = None
    watch_folder: str | None = None

    def __post_init__(self) -> None:
        for name, value in self.given().items():
            option = "--" + name.replace("_", "-")
            is_text = value != "" and "\0" not in value if isinstance(value, str) else True
            _check(is_text, f"{option} is {value!r}; it must be text of one character or more, without null characters")
            _check(not isinstance(value, int) or value <= sys.maxsize, f"{option} is {value}; that is too large")
        _check(self.hop >= 1, f"--hop is {self.hop}; it must be 1 or more")
        _check(self.pace in ("realtime", "max"), f"--pace is {self.pace!r}; allowed are realtime, max")
        _check(self.log_format in ("text", "json"), f"--log-format is {self.log_format!r}; allowed are text, json")
        allowed = ("auto", *BACKENDS)
        _check(self.backend in allowed, f"--backend is {self.backend!r}; allowed are {', '.join(allowed)}")
        _check(
            self.precision in (None, *PRECISIONS),
            f"--precision is {self.precision!r}; allowed are {', '.join(PRECISIONS)}",
        )
        _check(self.duration is None or self.duration > 0, f"--duration is {self.duration}; it must be above 0 s")
        _check(
            self.max_windows is None or self.max_windows >= 1,
            f"--max-windows is {self.max_windows}; it must be 1 or more",
        )
        _check(0 <= self.frames <= 1000, f"--frames is {self.frames}; it must be 0 to 1000 a second")
        _check(self.wait_subscribers >= 0, f"--wait-subscribers is {self.wait_subscribers}; it must be 0 or more")
        _check(
            re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*", self.stream) is not None,
            f"--stream is {self.stream!r}; allowed are letters, digits, '_', '-' and '.'",
        )
        codecs = ", ".join(CODEC_NAMES)
        _check(self.record_codec in CODEC_NAMES, f"--record-codec is {self.record_codec!r}; allowed are {codecs}")
        for name in ("record_max_gb", "record_max_days"):
            limit = getattr(self, name)
            _check(limit is None or 0 < limit < 1e6, f"--{name.replace('_', '-')} is {limit}; it must be above 0")
        self._check_exams()
        rate = self.frame_rate
        _check(rate is None or 0 < rate <= 1000, f"--frame-rate is {rate}; it must be above 0, up to 1000 a second")
        parse_roi(self.roi)
        parse_tuning(self.tune or "")
        parse_masks(self.mask)
        _check(0 <= self.freeze_ms <= 60_000, f"--freeze-ms is {self.freeze_ms:g}; it must be 0 (off) to 60000 ms")
        _check(0 < self.still_level <= 255, f"--still-level is {self.still_level:g}; it must be above 0, up to 255")
        for name in ("still_share", "change_level"):
            value = getattr(self, name)
            _check(0 <= value <= 1, f"--{name.replace('_', '-')} is {value:g}; it must be 0 to 1")
        self.source_options()

    def _check_exams(self) -> None:
        pause_s = self.exam_auto
        _check(pause_s is None or 1 <= pause_s <= 86_400, f"--exam-auto is {pause_s}; it must be 1 to 86400 s")
        if self.control is not None:
            check_form(self.control)
        if self.pacs is not None:
            parse_pacs(self.pacs)
            _check(self.record is not None, "--pacs needs --record DIR: the report is made from the recording")
        _check(self.state is None or self.keeps_exams, "--state serves --control, --exam-auto and --pacs; give one")

    @property
    def keeps_exams(self) -> bool:
        """Whether anything begins, ends or reports exams."""
        return any(option is not None for option in (self.control, self.exam_auto, self.pacs))

    def source_options(self) -> SourceOptions:
        """Return what some kinds of sources need beside the URI."""
        return SourceOptions(
            is_realtime=self.pace == "realtime",
            is_awaited=self.wait_source,
            video_size=parse_size(self.video_size) if self.video_size else None,
            frame_rate=self.frame_rate,
            pixel_format=self.pixel_format,
            allow_aet=tuple(aet.strip() for aet in self.allow_aet.split(",")) if self.allow_aet else (),
            tls_cert=self.tls_cert,
            tls_key=self.tls_key,
            tls_ca=self.tls_ca,
        )

    def image_thresholds(self) -> ImageThresholds:
        """Return from when on an image counts as frozen or changed."""
        return ImageThresholds(
            freeze_ms=self.freeze_ms,
            still_level=self.still_level,
            still_share=self.still_share,
            change_level=self.change_level,
        )

    def describe(self) -> str:
        """Return the effective configuration as one line, in TOML's words; a URL's credentials are left out."""
        values = self.given()
        values["source"] = _without_credentials(self.source)
        return " ".join(f"{name}={value!r}" for name, value in values.items())

    def given(self) -> dict[str, Any]:
        """Return the options that have a value."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if value is not None}


def _without_credentials(source: str) -> str:
    """Return a URL with stars for what may be a credential: before the host, in the query, or in the path."""
    scheme, mark, rest = source.partition("://")
    if not mark:
        return f"{source.partition(':')[0]}:***" if is_mistyped(source) else source
    before_last_at = rest.rpartition("@")[0]
    if re.search(r"\?|/[^/]*=", before_last_at):  # the "@" may be a password's own, and what follows it the rest of it
        return f"{scheme}://***"
    # to the last "@": a password may hold one, and "/" too; some cameras want user=NAME&password=WORD as their path
    told = re.sub(r"^.*@|\?.*|(?<=/)[^/?]*=.*", "***", rest)
    if scheme.lower() == "rtmp":  # whose path is the key of the stream
        told = re.sub(r"/.+", "/***", told)
    return f"{scheme}://{told}"


def read_config(arguments: Sequence[str] | None = None) -> Config:
    """Read the command line and, if it names one, the TOML file.

    Raises:
        ConfigError: Unknown or missing option, wrong value, unreadable file.
    """
    options = vars(_parser().parse_args(arguments))
    if "mask" in options:
        options["mask"] = ";".join(options["mask"])  # given again it adds: what was to be hidden stays hidden
    config_file = options.pop("config", None)
    from_file = _read_toml(Path(config_file)) if config_file else {}
    values = {**from_file, **options}
    if "watch_folder" in values:
        if "source" in values:
            raise ConfigError(
                "--watch-folder is a source of its own: leave --source out, or run one edge-infer for each"
            )
        values["source"] = f"watch:{values['watch_folder']}"
    if "source" not in values:
        raise ConfigError("--source is missing; try --source demo, or see edge-infer --help")
    return Config(**values)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        "edge-infer",
        "Watch an ultrasound stream with a video network; publish its probability and heatmap over ZeroMQ.",
        "edge-infer --source demo --frames 10   (then, elsewhere: edge-watch)",
    )
    parser.argument_default = argparse.SUPPRESS
    parser.usage = "edge-infer --source URI [options]"
    add = parser.add_argument
    add("--source", metavar="URI", help="/dev/video0, a file, phantom:7, demo ...: see README")
    add("--engine", metavar="BUNDLE", help="folder of the trained model (default: the demo bundle)")
    add("--backend", metavar="B", help=f"auto (default), {', '.join(BACKENDS)}")
    add("--device", metavar="D", help="the backend's device (default: its own choice)")
    add("--precision", metavar="P", help="fp32, fp16, bf16, int8 (default: the backend's choice)")
    add("--tune", metavar="K=V,...", help="threads=N, pinning=on|off, cache=DIR (compiled)")
    add("--publish", metavar="ADDRESS", help="where to bind (default: tcp://127.0.0.1:5555)")
    add("--stream", metavar="NAME", help="name in the topics (default: main)")
    add("--hop", metavar="N", type=int, help="new clip frames between two windows (default: 1)")
    add("--pace", metavar="P", help="realtime (default), or max: all windows, at full speed")
    add("--roi", metavar="R", help="auto, full or X,Y,W,H in source pixels (default: auto)")
    add("--duration", metavar="S", type=float, help="stop after S s of playing; --max-windows N: N predictions")
    add("--max-windows", metavar="N", type=int, help=argparse.SUPPRESS)  # told beside its sister: a screen is short
    add("--loop", action="store_true", help="play a recording again and again")
    add("--wait-source", action="store_true", help="wait for a live source that is not there yet")
    add("--frames", metavar="FPS", type=float, help="also publish the ROI as JPEG, so often (default: 0)")
    add("--wait-subscribers", metavar="N", type=int, help="hold the first frame until N readers are there")
    add("--curve", metavar="DIR", help="keys from edge-keygen: only their owners can read")
    add("--insecure", action="store_true", help="publish beyond this machine without keys")
    add("--mask", metavar="R", action="append", help="blank X,Y,W,H of the source too; several with ';'")
    add("--freeze-ms", metavar="MS", type=float, help="still for so long is FROZEN; 0: never (default: 350)")
    add("--still-level", metavar="L", type=float, help="gray levels of noise in a still image (default: 4)")
    add("--still-share", metavar="S", type=float, help="share of a still image that may move (default: 0.03)")
    add("--change-level", metavar="L", type=float, help="jump to another image; 0: none (default: 0.03)")
    add("--list-sources", action=ListSources, nargs=0, help="name the video devices, their inputs and modes, and exit")
    add("--video-size", metavar="WxH", help="/dev/video*; also --frame-rate F, --pixel-format F")
    add("--frame-rate", metavar="F", type=float, help=argparse.SUPPRESS)
    add("--pixel-format", metavar="F", help=argparse.SUPPRESS)
    add("--watch-folder", metavar="DIR", help="play what is put there, in place of --source")
    add("--allow-aet", metavar="A,B", help="dicom://: who may send (default: all)")
    add("--tls-cert", metavar="PEM", help="of dicom://, --pacs; also --tls-key, --tls-ca PEM")
    for name in ("--tls-key", "--tls-ca"):
        add(name, metavar="PEM", help=argparse.SUPPRESS)  # told beside its sister: a screen is short
    add("--record", metavar="DIR", help="record the ROI and all messages; a --source later")
    add("--record-codec", metavar="C", help=f"{CODEC_NAMES[0]} (default), {', '.join(CODEC_NAMES[1:])}")
    add("--record-max-gb", metavar="N", type=float, help="remove the oldest parts; so does --record-max-days N")
    add("--record-max-days", metavar="N", type=float, help=argparse.SUPPRESS)
    add("--control", metavar="ADDRESS", help="control socket, see docs/control.md")
    add("--exam-auto", metavar="S", type=float, help="a pause of S seconds ends an exam")
    add("--state", metavar="DIR", help="where an open exam is kept")
    add("--pacs", metavar="AET@HOST:PORT", help="send exams' reports (with --record)")
    add("--config", metavar="FILE", help="TOML file of these options, with underscores")
    add("--log-format", metavar="F", help="text or json (default: text)")
    add("--status-file", metavar="PATH", help="write the status there every second, as JSON")
    return parser


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_TOML_BYTES + 1)
        if len(content) > _MAX_TOML_BYTES:
            raise ValueError(f"it is larger than {_MAX_TOML_BYTES // 2**20} MiB")
        values = tomllib.loads(content.decode("utf-8-sig"))  # some editors begin with a mark
    except (OSError, ValueError, RecursionError) as exc:
        raise ConfigError(f"--config {path} cannot be read ({_reason(exc)}); it must be a TOML file") from exc
    types = {field.name: _converter(str(field.type)) for field in dataclasses.fields(Config)}
    for key in values:
        if key not in types:
            raise ConfigError(f"{path}: unknown key {key!r}; allowed are {', '.join(types)}")
    return {key: types[key](path, key, value) for key, value in values.items()}


def _converter(annotation: str) -> Callable[[Path, str, Any], Any]:
    name = annotation.removeprefix("<class '").removesuffix("'>").split(" |")[0]
    types: dict[str, tuple[type[Any], ...]] = {"str": (str,), "int": (int,), "float": (int, float), "bool": (bool,)}
    wanted = types[name]

    def convert(path: Path, key: str, value: Any) -> Any:
        if not isinstance(value, wanted) or (isinstance(value, bool) and name != "bool"):
            raise ConfigError(f"{path}: {key} is {value!r}; it must be of type {name}")
        return float(value) if name == "float" else value

    return convert


def _reason(exc: Exception) -> str:
    return exc.strerror or str(exc) if isinstance(exc, OSError) else str(exc)


def _check(is_good: bool, message: str) -> None:
    if not is_good:
        raise ConfigError(f"{message}; see edge-infer --help")
