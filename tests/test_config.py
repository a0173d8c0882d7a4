"""The daemon's options: command line over TOML over defaults, and one line with exit code 2 for whatever is wrong."""

import dataclasses
import re
import tomllib
from pathlib import Path

import pytest

from edge.config import Config, read_config
from edge.errors import ConfigError
from edge.roi import parse_masks


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    return tmp_path / "edge.toml"


def _refusal(arguments: list[str]) -> str:
    with pytest.raises(ConfigError) as caught:
        read_config(arguments)
    assert caught.value.exit_code == 2
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_config_defaults_are_as_documented() -> None:
    config = read_config(["--source", "demo"])
    assert config == Config(source="demo")
    assert (config.publish, config.stream, config.hop, config.pace) == ("tcp://127.0.0.1:5555", "main", 1, "realtime")
    assert (config.backend, config.roi, config.loop, config.insecure) == ("auto", "auto", False, False)
    assert Path(config.engine).parts[-2:] == ("engines", "demo")


def test_config_every_option_is_read_from_the_command_line() -> None:
    arguments = (
        "--source a.mp4 --engine b --backend openvino --device CPU --publish tcp://127.0.0.1:6000 --stream left "
        "--hop 4 --pace max --roi 1,2,300,400 --duration 2.5 --max-windows 7 --loop --frames 5 --wait-subscribers 2 "
        "--curve keys --insecure --log-format json --status-file s.json --mask 1,2,3,4 --video-size 640x480 "
        "--frame-rate 25 --allow-aet A,B --tls-cert c.pem --tls-key k.pem --tls-ca a.pem --pixel-format YUYV "
        "--wait-source"
    )
    given = dataclasses.asdict(read_config(arguments.split()))
    wanted = {
        "source": "a.mp4",
        "engine": "b",
        "backend": "openvino",
        "device": "CPU",
        "publish": "tcp://127.0.0.1:6000",
        "stream": "left",
        "hop": 4,
        "pace": "max",
        "roi": "1,2,300,400",
        "duration": 2.5,
        "max_windows": 7,
        "loop": True,
        "wait_source": True,
        "frames": 5.0,
        "wait_subscribers": 2,
        "curve": "keys",
        "insecure": True,
        "log_format": "json",
        "status_file": "s.json",
        "mask": "1,2,3,4",
        "video_size": "640x480",
        "frame_rate": 25.0,
        "pixel_format": "YUYV",
        "allow_aet": "A,B",
        "tls_cert": "c.pem",
        "tls_key": "k.pem",
        "tls_ca": "a.pem",
    }
    assert {**given, **wanted} == given


def test_config_every_option_is_a_toml_key_with_underscores(toml: Path) -> None:
    toml.write_text(
        'source = "a.mp4"\nengine = "b"\nbackend = "openvino"\ndevice = "CPU"\npublish = "tcp://127.0.0.1:6000"\n'
        'stream = "left"\nhop = 4\npace = "max"\nroi = "full"\nduration = 2\nmax_windows = 7\nloop = true\n'
        'frames = 0.5\nwait_subscribers = 2\ncurve = "keys"\ninsecure = true\nlog_format = "json"\n'
        'status_file = "s.json"\nmask = "1,2,3,4"\nvideo_size = "640x480"\nframe_rate = 25\n'
        'pixel_format = "YUYV"\n',
        encoding="utf-8",
    )
    config = read_config(["--config", str(toml)])
    defaults = dataclasses.asdict(Config(source="demo"))
    told = tomllib.loads(toml.read_text(encoding="utf-8"))
    assert all(getattr(config, key) != defaults[key] for key in told)
    assert (config.duration, config.frames, config.loop) == (2.0, 0.5, True)
    assert type(config.duration) is float


def test_config_command_line_goes_over_toml_over_defaults(toml: Path) -> None:
    toml.write_text('source = "file.mp4"\nhop = 3\nstream = "left"\nloop = true\n', encoding="utf-8")
    config = read_config(["--config", str(toml), "--hop", "5"])
    assert (config.source, config.hop, config.stream, config.loop) == ("file.mp4", 5, "left", True)
    assert config.pace == "realtime"


def test_config_option_that_repeats_its_default_still_goes_over_toml(toml: Path) -> None:
    toml.write_text('source = "demo"\nhop = 3\npace = "max"\n', encoding="utf-8")
    config = read_config(["--config", str(toml), "--hop", "1", "--pace", "realtime"])
    assert (config.hop, config.pace) == (1, "realtime")


def test_config_masks_given_one_by_one_hide_all_of_them() -> None:
    config = read_config(["--source", "demo", "--mask", "1,2,3,4", "--mask", "5,6,7,8;9,9,9,9"])
    assert parse_masks(config.mask) == ((1, 2, 3, 4), (5, 6, 7, 8), (9, 9, 9, 9))


def test_config_of_a_windows_editor_is_read(toml: Path) -> None:
    toml.write_bytes(b'\xef\xbb\xbfsource = "file.mp4"\r\nhop = 3\r\n')
    assert read_config(["--config", str(toml)]).hop == 3


def test_config_without_source_is_refused() -> None:
    assert "--source is missing" in _refusal([])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--sauce", "demo"], "--sauce demo; did you mean --source?; see"),
        (["--source", "demo", "--xyz"], "unrecognized arguments: --xyz; see"),
        (["--source", "demo", "--roi", "-5,0,9,9"], "is written --roi=VALUE"),
        (["--sourc", "demo"], "--sourc"),  # no abbreviations: they would break when an option is added
        (["demo"], "unrecognized arguments: demo; did you mean --source before it?"),
        (["--source"], "expected one argument"),
        (["--source", ""], "--source is ''"),
        (["--engine", ""], "--engine is ''"),
        (["--hop", "x"], "'x' is no whole number"),
        (["--hop", "1.5"], "is no whole number"),
        (["--hop", "0"], "--hop is 0; it must be 1 or more"),
        (["--precision", "int4"], "--precision is 'int4'; allowed are fp32, fp16, bf16, int8"),
        (["--hop", "-1"], "--hop is -1"),
        (["--pace", "fast"], "allowed are realtime, max"),
        (["--backend", "cuda"], "allowed are auto, openvino"),
        (["--log-format", "xml"], "allowed are text, json"),
        (["--duration", "0"], "must be above 0 s"),
        (["--duration", "-3"], "--duration is -3.0"),
        (["--duration", "nan"], "--duration is nan"),
        (["--max-windows", "0"], "--max-windows is 0"),
        (["--frames", "-1"], "--frames is -1.0"),
        (["--frames", "nan"], "--frames is nan"),
        (["--frames", "inf"], "--frames is inf"),
        (["--max-windows", "99999999999999999999"], "--max-windows is 99999999999999999999; that is too large"),
        (["--wait-subscribers", "-1"], "--wait-subscribers is -1"),
        (["--stream", ""], "--stream is ''"),
        (["--stream", "a b"], "--stream is 'a b'"),
        (["--stream", "ü"], "--stream is"),
        (["--stream", ".a"], "--stream is"),
        (["--stream", "a\n"], "--stream is"),
        (["--roi", "1,2,3"], "1,2,3"),
        (["--roi", "1,2,3,0"], "1,2,3,0"),
        (["--roi=-1,2,3,4"], "-1,2,3,4"),
        (["--roi", "some"], "some"),
    ],
)
def test_config_wrong_option_is_refused_by_name(arguments: list[str], said: str) -> None:
    text = _refusal(["--source", "demo", *arguments] if arguments[0] not in ("--source", "--sourc") else arguments)
    assert said in text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('sauce = "demo"', "unknown key 'sauce'; allowed are source, engine"),
        ('"max-windows" = 3', "unknown key 'max-windows'"),
        ('config = "other.toml"', "unknown key 'config'"),
        ("[infer]\nhop = 3", "unknown key 'infer'"),
        ("hop = '3'", "hop is '3'; it must be of type int"),
        ("hop = 3.0", "hop is 3.0; it must be of type int"),
        ("hop = true", "hop is True; it must be of type int"),
        ("loop = 1", "loop is 1; it must be of type bool"),
        ("frames = true", "frames is True; it must be of type float"),
        ("duration = '3 s'", "duration is '3 s'; it must be of type float"),
        ("device = 0", "device is 0; it must be of type str"),
        ("source = ['a', 'b']", "it must be of type str"),
        ('engine = "a\\u0000b"', r"--engine is 'a\x00b'"),
        ("hop = 0", "--hop is 0; it must be 1 or more"),
        ("frames = nan", "--frames is nan"),
        ("hop = ", "must be a TOML file"),
        ("hop = 1\nhop = 2", "must be a TOML file"),
        pytest.param("roi = " + "[" * 100_000, "must be a TOML file", id="deep"),
        pytest.param("#" * (2**20 + 1), "larger than 1 MiB", id="large"),
    ],
)
def test_config_wrong_toml_is_refused_by_key(toml: Path, content: str, said: str) -> None:
    toml.write_text(content, encoding="utf-8")
    assert said in _refusal(["--source", "demo", "--config", str(toml)])


def test_config_wrong_toml_key_is_refused_even_where_the_command_line_goes_over_it(toml: Path) -> None:
    toml.write_text("hop = 'many'", encoding="utf-8")
    assert "hop is 'many'" in _refusal(["--source", "demo", "--hop", "2", "--config", str(toml)])


def test_config_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    text = _refusal(["--config", str(tmp_path / "none.toml")])
    assert "none.toml cannot be read (No such file or directory)" in text


def test_config_file_that_is_no_text_is_refused(toml: Path) -> None:
    toml.write_bytes(b"\xff\xfe\x00")
    assert "edge.toml cannot be read" in _refusal(["--config", str(toml)])


def test_config_folder_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    assert "cannot be read (Is a directory)" in _refusal(["--config", str(tmp_path)])


def test_config_is_frozen_and_describes_itself_in_one_line() -> None:
    config = read_config(["--source", "my file.mp4", "--hop", "4"])
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.hop = 5  # type: ignore[misc]
    assert re.fullmatch(r"source='my file\.mp4' engine=.* hop=4 .*", config.describe())


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("rtsp://user:p@ss/word@host/x", "rtsp://***host/x"),
        ("rtsp://host/x?password=secret", "rtsp://host/x***"),
        ("rtsp://host/x", "rtsp://host/x"),
        ("rtsp://host:554/user=admin&password=secret&channel=1.sdp", "rtsp://host:554/***"),
        ("rtsp://host/live/user=admin_password=se@cret", "rtsp://***"),
        ("http://host/x?password=se@cret", "http://***"),
        ("rtsp://user:se?cret@host/x", "rtsp://***"),
        ("rtmp://host/live/secret", "rtmp://host/***"),
        ("dicom://0.0.0.0:11112?aet=EDGE", "dicom://0.0.0.0:11112***"),
        ("rtsp:/user:secret@host/x", "rtsp:***"),
        ("RTSP:user:secret@host/x", "RTSP:***"),
    ],
)
def test_config_describes_itself_without_credentials(source: str, told: str) -> None:
    assert f"source='{told}'" in read_config(["--source", source]).describe()


def test_help_fits_a_screen_names_every_option_and_shows_an_example(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit) as caught:
        read_config(["--help"])
    text = capsys.readouterr().out
    assert caught.value.code == 0
    assert len(text.splitlines()) <= 48
    for field in dataclasses.fields(Config):
        assert f"--{field.name.replace('_', '-')}" in text
    assert "example: edge-infer" in text
    assert "not a medical device" in text
