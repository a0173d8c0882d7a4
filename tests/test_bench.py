"""edge-bench: real engines, a real daemon, a real subscriber."""

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import cv2
import numpy as np
import openvino.opset13 as ops
import pytest
from daemon import DEADLINE_S, run_command
from media import write_video

from edge.errors import ConfigError
from engines import load_bundle
from tools.bench.flops import count_gflop, count_operation
from tools.bench.peaks import peak_meter
from tools.bench.pipeline import Memory, PipelineRun, PipelineSettings, measure_pipeline
from tools.bench.plot import check_plot, plot_engines
from tools.bench.tables import efficiency_in_words, print_engines, with_rates
from tools.bench.trace import stage_durations_ms, write_trace
from tools.bench.turns import Span, Turns, rate_outside, rate_within, undisturbed
from tools.children import Child, running
from tools.measures import percentiles

PERCENTILES = {"p50", "p95", "p99", "max"}


def _bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run_command(*arguments, module="tools.bench.cli")


def test_bench_pipeline_reports_what_the_subscriber_received(trivial_bundle: Path, tmp_path: Path) -> None:
    video, trace = write_video(tmp_path / "a video.mp4", 90, fps=30), tmp_path / "trace.json"
    arguments = ["--source", str(video), "--engine", str(trivial_bundle), "--seconds", "2", "--trace", str(trace)]
    result = _bench("pipeline", *arguments)
    assert (result.returncode, result.stderr) == (0, "")
    report = json.loads(result.stdout.splitlines()[-1])
    assert report["received"] == report["published"] > 10
    assert report["lost"] == 0
    assert report["published"] + report["skipped"] <= report["captured"] - 15
    assert 5 < report["windows_per_s"] < 60  # 30, but a stall is made up for by a burst
    assert report["efficiency"] == pytest.approx(report["windows_per_s"] / np.median(report["engine_windows_per_s"]))
    for key in ("latency_ms", "overhead_ms", "received_ms", *(f"stages_ms/{stage}" for stage in report["stages_ms"])):
        values = report
        for part in key.split("/"):
            values = values[part]
        assert set(values) == PERCENTILES
        assert values["p50"] <= values["p95"] <= values["p99"] <= values["max"]
    assert report["overhead_ms"]["p50"] < report["latency_ms"]["p50"] < report["received_ms"]["p50"]
    num_late_frames = (report["first_window_play_s"] - 0.5) * 30  # busy cores skip first windows as well
    assert num_late_frames == pytest.approx(round(num_late_frames), abs=0.1)
    assert 0 <= round(num_late_frames) <= report["skipped"]
    assert report["start_s"] == pytest.approx(report["first_prediction_s"] - report["first_window_play_s"])
    assert 20 < report["rss_mb"] < 2000
    _check_trace(json.loads(trace.read_text()), report["received"])


def _check_trace(trace: dict, num_windows: int) -> None:
    slices = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    named = {(event["pid"], event["tid"]) for event in trace["traceEvents"] if event["name"] == "thread_name"}
    assert {(event["pid"], event["tid"]) for event in slices} == named
    for stage in ("capture", "preprocess", "queue", "infer", "publish", "transport"):
        assert [event["args"]["seq"] for event in slices if event["name"] == stage] == list(range(num_windows))
    for place in named:
        track = sorted((event["ts"], event["dur"]) for event in slices if (event["pid"], event["tid"]) == place)
        for (start_us, duration_us), (next_us, _) in itertools.pairwise(track):
            assert start_us + duration_us <= next_us + 1e-3  # slices of one track do not overlap


@pytest.mark.slow
def test_bench_pipeline_at_full_speed_ends_after_max_windows(trivial_bundle: Path, tmp_path: Path) -> None:
    video = write_video(tmp_path / "video.mp4", 40)
    arguments = ["--source", str(video), "--engine", str(trivial_bundle), "--pace", "max", "--max-windows", "100"]
    result = _bench("pipeline", *arguments, "--seconds", "1")
    assert (result.returncode, result.stderr) == (0, "")
    report = json.loads(result.stdout.splitlines()[-1])
    assert report["received"] == report["published"] <= 100
    assert report["first_window_play_s"] == 0


def test_bench_engine_reports_each_backend(trivial_bundle: Path) -> None:
    result = _bench("engine", str(trivial_bundle), "--backend", "openvino", "--seconds", "0.5")
    assert (result.returncode, result.stderr) == (0, "")
    report = json.loads(result.stdout.splitlines()[-1])
    (engine,) = report["engines"]
    assert (engine["backend"], engine["precision"], engine["device"]) == ("openvino", "fp32", "CPU")
    assert set(engine["latency_ms"]) == PERCENTILES
    assert 0 < engine["windows_per_s"] <= engine["num_windows"] / 0.5
    assert engine["gflops"] == pytest.approx(report["gflop_per_window"] * engine["windows_per_s"])
    assert engine["peak_share"] == pytest.approx(engine["gflops"] / report["peak_gflops"]["cpu"]["fp32"])
    assert engine["speedup"] is None  # eager PyTorch was not measured


@pytest.mark.slow
def test_bench_engine_leaves_out_a_backend_that_the_bundle_does_not_have_and_draws_the_others(
    trivial_bundle: Path, tmp_path: Path
) -> None:
    plot = tmp_path / "engines.png"
    result = _bench("engine", str(trivial_bundle), "--seconds", "0.2", "--plot", str(plot))
    assert result.returncode == 0
    left_out = {line.split()[1] for line in result.stderr.splitlines()}
    measured = {engine["backend"] for engine in json.loads(result.stdout.splitlines()[-1])["engines"]}
    assert "torch" in left_out
    assert {"openvino", "onnxruntime"} <= measured
    assert not left_out & measured
    image = cv2.imread(str(plot))
    assert image is not None
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 10  # bars and words, not an empty page


@pytest.mark.parametrize(
    ("arguments", "exit_code", "said"),
    [
        (["engine", "/nowhere"], 4, "is not a bundle"),
        (["engine", "BUNDLE", "--backend", "abacus"], 4, "backend 'abacus' is unknown"),
        (["engine", "BUNDLE", "--backend", "openvino", "--precision", "int8"], 4, "nothing built for openvino int8"),
        (["engine", "BUNDLE", "--seconds", "0"], 2, "--seconds is 0.0"),
        (["engine", "BUNDLE", "--plot", "/nowhere/e.png"], 2, "there is no folder /nowhere"),
        (["engine", "BUNDLE", "--plot", "engines.txt"], 2, "allowed are .png, .svg, .pdf"),
        (["pipeline", "--source", "demo", "--trace", "/proc"], 2, "--trace /proc cannot be written; choose another"),
        (["pipeline", "--source", "/nowhere.mp4", "--engine", "BUNDLE", "--seconds", "0.1"], 3, "there is no file"),
        (["pipeline"], 2, "required: --source"),
        (["pipeline", "--source", "demo", "--trace", "/nowhere/t.json"], 2, "there is no folder /nowhere"),
        (["trombone"], 2, "invalid choice: 'trombone'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bench_error_is_one_line_and_its_exit_code(
    trivial_bundle: Path, arguments: list[str], exit_code: int, said: str
) -> None:
    result = _bench(*(str(trivial_bundle) if argument == "BUNDLE" else argument for argument in arguments))
    assert (result.returncode, result.stdout) == (exit_code, "")  # nothing is told before the input is known to be good
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("error: ")
    assert said in result.stderr


def test_plot_that_cannot_be_written_is_refused_before_and_after_the_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        ConfigError, match=r"--plot /proc/e\.png cannot be written \(No such file or directory\); choose"
    ):
        plot_engines(Path("/proc/e.png"), "none", [])
    monkeypatch.setattr("os.access", lambda *_: False)  # whoever is root may write everywhere
    with pytest.raises(ConfigError, match=r"--plot .*e\.png cannot be written; choose another file"):
        check_plot(tmp_path / "e.png")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_bench_stopped_by_a_signal_leaves_no_process(
    trivial_bundle: Path, tmp_path: Path, number: signal.Signals
) -> None:
    video = write_video(tmp_path / "video.mp4", 40)
    arguments = ["pipeline", "--source", str(video), "--engine", str(trivial_bundle), "--seconds", "60"]
    process = subprocess.Popen([sys.executable, "-m", "tools.bench.cli", *arguments], stdout=subprocess.DEVNULL)
    try:
        children = _wait_for_children(process, "tools.bench.engine")
        process.send_signal(number)
        process.wait(DEADLINE_S)
        assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]
    finally:
        process.kill()
        process.wait()


def _wait_for_children(process: subprocess.Popen[bytes], module: str) -> list[int]:
    while process.poll() is None:
        children = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
        for pid in children:
            with contextlib.suppress(OSError):
                if module.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return children
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.05)
    raise AssertionError(f"{module} did not start")


def test_child_that_ignores_sigterm_is_killed_and_reaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stubborn.py").write_text(
        "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('up', flush=True)\nsignal.pause()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr("tools.children._END_S", 0.1)
    with running("stubborn") as child:
        assert child.stdout.readline() == "up\n"
    assert child.process.returncode == -signal.SIGKILL


def test_child_that_ends_with_more_than_a_pipe_holds_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "reporter.py").write_text(
        "import signal, sys\n"
        "signal.signal(signal.SIGTERM, lambda *_: print('x' * 1_000_000, flush=True) or sys.exit())\n"
        "print('up', flush=True)\n"
        "signal.pause()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with running("reporter") as child:
        assert child.stdout.readline() == "up\n"
    assert child.process.returncode not in (None, -signal.SIGKILL)


def test_child_that_writes_much_to_stderr_does_not_stall(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "chatty.py").write_text("import sys\nsys.stderr.write('x' * 1_000_000)\nprint('done')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path) + os.pathsep + os.environ.get("PYTHONPATH", ""))
    child = Child("chatty")
    try:
        assert child.finish(DEADLINE_S) == "done\n"
    finally:
        child.end()


def test_count_gflop_of_the_trivial_network_is_one_multiply_add_a_pixel(trivial_bundle: Path) -> None:
    assert count_gflop(load_bundle(trivial_bundle)) == pytest.approx(2 * 16 * 224 * 224 / 1e9)


def test_count_operation_counts_a_multiply_add_as_two() -> None:
    left = ops.parameter([2, 5, 3], np.float32)
    product = ops.matmul(left, ops.constant(np.zeros((7, 5), np.float32)), transpose_a=True, transpose_b=True)
    assert count_operation(product) == 2 * 2 * 3 * 5 * 7
    image = ops.parameter([1, 4, 8, 8], np.float32)
    weights = ops.constant(np.zeros((2, 3, 2, 3, 3), np.float32))  # 2 groups, each 2 channels to 3, 3 x 3
    convolved = ops.group_convolution(image, weights, [1, 1], [1, 1], [1, 1], [1, 1])
    assert count_operation(convolved) == 2 * (6 * 8 * 8) * (2 * 3 * 3)
    assert count_operation(ops.relu(image)) == 0


@pytest.mark.slow
def test_bench_pipeline_at_full_load_takes_turns_with_the_bare_engine(trivial_bundle: Path, tmp_path: Path) -> None:
    video = write_video(tmp_path / "video.mp4", 60, fps=30)
    arguments = ["--source", str(video), "--engine", str(trivial_bundle), "--pace", "max", "--seconds", "3"]
    result = _bench("pipeline", *arguments)
    assert (result.returncode, result.stderr) == (0, "")
    report = json.loads(result.stdout.splitlines()[-1])
    rates = report["engine_windows_per_s"]
    assert len(rates) >= 3
    assert report["efficiency"] == pytest.approx(report["windows_per_s"] / np.mean(rates))
    assert f"in {len(rates)} turns with it: efficiency {report['efficiency']:.1%}" in result.stdout
    assert report["lost"] == report["skipped"] == 0
    # it plays for 6 s, of which the engine has up to half, and the start some
    assert report["windows_per_s"] * 6 * 0.2 < report["published"] < report["windows_per_s"] * 6 * 1.3


def _entry(captured_s: float, infer_s: float, received_s: float) -> dict:
    latency_ms = {"capture": 0.0, "preprocess": 0.0, "queue": 0.0, "infer": infer_s * 1e3}
    return {"t_capture_ns": captured_s * 1e9, "t_received_ns": received_s * 1e9, "latency_ms": latency_ms}


def test_windows_count_for_the_turn_in_which_they_were_completed() -> None:
    spans = [Span(0, 2 * 10**9), Span(5 * 10**9, 7 * 10**9)]
    stops = [Span(2 * 10**9, 5 * 10**9)]
    in_time, late = _entry(0.5, 0.5, 1.5), _entry(1.0, 0.5, 5.1)  # the second one left after the stop
    held_up, after = _entry(1.9, 3.5, 5.5), _entry(6.0, 0.5, 6.6)
    beyond = _entry(7.0, 0.5, 7.6)
    entries = [in_time, late, held_up, after, beyond]
    assert rate_within(spans, entries) == 1.0
    assert undisturbed(stops, entries) == [in_time, after, beyond]


def test_window_completed_after_the_last_turn_counts_for_none() -> None:
    assert rate_within([Span(0, 2 * 10**9)], [_entry(1.9, 0.5, 2.6)]) == 0.0


def test_turns_stop_the_daemon_when_due_and_eight_times_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s, signals = 100.0, []

    def measure(_bare: object, seconds: float) -> float:
        nonlocal now_s
        now_s += seconds
        return 5.0

    monkeypatch.setattr("tools.bench.turns.measure_rate", measure)
    monkeypatch.setattr("tools.bench.turns.time", SimpleNamespace(monotonic_ns=lambda: int(now_s * 1e9)))
    taken = Turns(cast(Any, SimpleNamespace(send_signal=signals.append)), cast(Any, None), 16.0)
    taken.take_if_due()
    assert not signals  # the daemon is not under way
    taken.begin()
    now_s += 1.5
    taken.take_if_due()
    assert not signals  # a turn is an eighth of 16 s
    for _ in range(9):
        now_s += 2.0
        taken.take_if_due()
    assert signals == [signal.SIGSTOP, signal.SIGCONT] * 8
    assert taken.engine_rates == [5.0] * 8
    assert [span.seconds for span in taken.spans] == [3.5, *[2.0] * 7]
    assert [stop.seconds for stop in taken.stops] == [2.0] * 8


def test_rate_of_a_run_too_short_for_turns_leaves_out_the_time_for_which_it_was_stopped() -> None:
    """As a run has it that --max-windows ends after the first stop."""
    entries = [_entry(0.0, 0.0, received_s) for received_s in (1.0, 1.5, 2.0, 5.5, 6.0)]
    assert rate_outside([], entries) == pytest.approx(4 / 5)
    assert rate_outside([Span(2 * 10**9, 5 * 10**9)], entries) == pytest.approx(4 / 2)
    assert rate_outside([Span(0, 10**9), Span(2 * 10**9, 5 * 10**9), Span(6 * 10**9, 9 * 10**9)], entries) == 2.0


def _played(num_predictions: int, spans: list[Span], stops: list[Span]) -> PipelineRun:
    """Return a run of 10 windows a second, whose latencies grow by a millisecond each; frames come every 40 ms."""
    predictions = [
        {
            "seq": seq,
            "t_capture_ns": seq * 100_000_000,
            "t_received_ns": seq * 100_000_000 + 50_000_000 + seq * 1_000_000,
            "latency_ms": {"capture": 1.0, "preprocess": 2.0, "queue": seq, "infer": 20.0, "total": 30.0 + seq},
            "window": {"first_index": seq + 3, "last_index": seq + 18, "span_ms": 600.0},
        }
        for seq in range(num_predictions)
    ]
    return PipelineRun(
        predictions=predictions,
        counters={"captured": 400, "skipped": 7, "published": num_predictions + 2},
        num_lost=2,
        memory=Memory(300.0, None),
        first_prediction_s=2.5,
        spans=spans,
        stops=stops,
        engine_rates=[12.0] * len(spans),
    )


def _measure(run: PipelineRun, monkeypatch: pytest.MonkeyPatch, pace: str = "realtime") -> dict[str, Any]:
    """Return the report of a run beside a bare engine of 16 and then 24 windows a second."""
    rates = iter((16.0, 24.0))
    loaded = {"backend": "b", "precision": "fp32", "device": "CPU"}
    bare = contextlib.nullcontext(SimpleNamespace(ask=lambda *_: loaded))
    monkeypatch.setattr("tools.bench.pipeline.running", lambda *_: bare)
    monkeypatch.setattr("tools.bench.pipeline.measure_rate", lambda *_: next(rates))
    monkeypatch.setattr("tools.bench.pipeline.run_pipeline", lambda *_: run)
    settings = PipelineSettings(
        source="s", engine=Path("e"), backend="b", device=None, pace=pace, hop=1, seconds=10.0, max_windows=None
    )
    return measure_pipeline(settings)[0]


def test_report_of_a_pipeline_leaves_out_the_first_sixteen_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    report = _measure(_played(66, [], []), monkeypatch)
    later = np.arange(16, 66)
    points = {"p50": 50, "p95": 95, "p99": 99, "max": 100}
    for name, values in {
        "latency_ms": 30 + later,
        "overhead_ms": 10 + later,
        "received_ms": 50 + later,
    }.items():
        assert report[name] == pytest.approx({point: np.percentile(values, q) for point, q in points.items()}), name
    medians = {stage: values["p50"] for stage, values in report["stages_ms"].items()}
    expected = {"capture": 1, "preprocess": 2, "queue": np.median(later), "infer": 20, "publish": 7, "transport": 20}
    assert medians == pytest.approx(expected)
    assert report["windows_per_s"] == pytest.approx(1 / 0.101)  # received a millisecond later each
    assert report["efficiency"] == pytest.approx(1 / 0.101 / 20)
    assert (report["received"], report["published"], report["captured"]) == (66, 68, 400)
    assert (report["lost"], report["skipped"]) == (2, 7)
    assert report["first_window_play_s"] == pytest.approx(18 * 0.04)
    assert report["start_s"] == pytest.approx(2.5 - 18 * 0.04)


def test_report_of_few_windows_leaves_none_out_and_full_speed_has_no_playing_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    report = _measure(_played(64, [], []), monkeypatch, pace="max")
    assert report["latency_ms"]["p50"] == pytest.approx(30 + 31.5)
    assert (report["first_window_play_s"], report["start_s"]) == (0, 2.5)


def test_report_compares_with_the_engines_own_turns_from_three_on(monkeypatch: pytest.MonkeyPatch) -> None:
    second = 10**9
    spans, stops = [Span(2 * second, 3 * second), Span(4 * second, 5 * second)], [Span(3 * second, 4 * second)]
    report = _measure(_played(66, spans, stops), monkeypatch, pace="max")
    assert report["engine_windows_per_s"] == [16.0, 24.0]
    assert report["latency_ms"]["max"] == 95  # of seq 65; those in whose lives the daemon was stopped are seq 30 to 39
    assert report["latency_ms"]["p50"] == pytest.approx(30 + np.median([*range(16, 30), *range(40, 66)]))
    spans.append(Span(5 * second, 6 * second))
    report = _measure(_played(66, spans, stops), monkeypatch, pace="max")
    assert report["engine_windows_per_s"] == [12.0] * 3
    assert report["windows_per_s"] == pytest.approx(10, rel=0.05)
    assert report["efficiency"] == pytest.approx(report["windows_per_s"] / 12)


@pytest.mark.slow
def test_bench_engine_with_windows_in_flight_says_so(trivial_bundle: Path) -> None:
    result = _bench("engine", str(trivial_bundle), "--backend", "openvino", "--seconds", "0.2", "--throughput")
    (engine,) = json.loads(result.stdout.splitlines()[-1])["engines"]
    assert engine["is_for_throughput"]


def _measured(
    backend: str, precision: str, device: str, windows_per_s: float, graphs: str | None = None
) -> dict[str, Any]:
    spec = {"backend": backend, "precision": precision, "device": device, "graphs": graphs}
    return {**spec, "windows_per_s": windows_per_s}


def test_rates_compare_with_the_devices_own_peak_and_with_eager_pytorch() -> None:
    fast = _measured("openvino", "int8", "CPU", 6.0)
    reference = _measured("torch", "fp32", "cpu", 2.0)
    other = _measured("openvino", "fp16", "GPU", 1.0)
    peaks = {"cpu": {"fp32": 40.0, "int8": 100.0}, "gpu": {}}
    rated = with_rates([fast, reference, other], 10.0, peaks)
    assert [engine["gflops"] for engine in rated] == [60.0, 20.0, 10.0]
    assert [engine["peak_share"] for engine in rated] == [0.6, 0.5, None]
    assert [engine["speedup"] for engine in rated] == [3.0, 1.0, 0.5]


def test_engines_on_a_gpu_compare_with_eager_pytorch_there() -> None:
    engines = [
        _measured("tensorrt", "fp16", "cuda:0", 900.0, "window"),
        _measured("torch", "fp16", "cuda:0", 600.0, "fixed"),
        _measured("torch", "fp16", "cuda:0", 200.0, "none"),
        _measured("torch", "fp16", "cuda:1", 500.0, "window"),
        _measured("onnxruntime", "fp32", "CUDA", 100.0),
        _measured("onnxruntime", "fp32", "CPU", 8.0),
        _measured("torch", "fp32", "cpu", 4.0),
    ]
    speedups = [engine["speedup"] for engine in with_rates(engines, 1.0, {})]
    assert speedups == [4.5, 3.0, 1.0, None, 0.5, 2.0, 1.0]


def test_table_names_what_speed_is_compared_with(capsys: pytest.CaptureFixture[str]) -> None:
    engines = [_measured("torch", "fp16", "cuda:0", 9.0, "window"), _measured("torch", "fp16", "cuda:0", 3.0, "none")]
    latency_ms = dict.fromkeys(("p50", "p95", "p99", "max"), 1.0)
    rated = [{**one, "latency_ms": latency_ms, "rss_mb": 1.0, "load_s": 1.0} for one in with_rates(engines, 1.0, {})]
    print_engines("a", rated, 1.0, {})
    printed = capsys.readouterr().out
    assert "torch, eager" in printed
    assert "for engines on a GPU in FP16 there" in printed


@pytest.mark.parametrize(("share", "is_told"), [(1.9, True), (1.05, False), (None, False)])
def test_peak_that_an_engine_surpasses_is_told_to_be_none(
    capsys: pytest.CaptureFixture[str], share: float | None, is_told: bool
) -> None:
    latency_ms = dict.fromkeys(("p50", "p95", "p99", "max"), 1.0)
    rates = {"gflops": 1.0, "peak_share": share, "speedup": None}
    spec = {**_measured("openvino", "int8", "CPU", 1.0), "rss_mb": 1.0, "load_s": 1.0}
    print_engines("a", [{**spec, **rates, "latency_ms": latency_ms}], 1.0, {})
    assert ("no bound" in capsys.readouterr().out) == is_told


@pytest.mark.parametrize(
    ("bare", "said"),
    [([100.0, 96.0], "efficiency 97.0%"), ([100.0, 50.0], "too far apart to tell the efficiency (95% to 190%)")],
)
def test_efficiency_is_told_only_where_the_bare_runs_agree(bare: list[float], said: str) -> None:
    report = {"engine_windows_per_s": bare, "windows_per_s": 95.0, "efficiency": 0.97}
    assert said in efficiency_in_words(report)


@pytest.mark.slow
def test_peaks_are_measured_in_each_precision_that_the_processor_has() -> None:
    with peak_meter("CPU") as meter, peak_meter("NPU") as other:
        assert other is None
        assert meter is not None
        for _ in range(3):
            meter.take_turn(0.25)
        peaks = meter.rates()
    assert peaks["fp32"] > 1
    assert all(rate > 0 for rate in peaks.values())


def test_peak_of_a_gpu_without_torch_is_left_out_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """TensorRT and ONNX Runtime run there without it, and what they gave must not be lost."""
    (tmp_path / "torch.py").write_text("raise ImportError('no torch here')\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")])))
    with peak_meter("cuda:0") as meter:
        assert meter is None
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: the matrix-multiply peak of cuda:0 is not measured: backend torch: no torch here;")


def test_percentiles_of_a_known_row() -> None:
    assert percentiles([float(value) for value in range(101)]) == {"p50": 50, "p95": 95, "p99": 99, "max": 100}
    assert percentiles([]) is None


def test_trace_windows_that_overlap_lie_in_lanes_of_their_own(tmp_path: Path) -> None:
    latency_ms = {"capture": 1.0, "preprocess": 2.0, "queue": 20.0, "infer": 4.0, "total": 28.0}
    entries = [
        {"seq": seq, "t_capture_ns": seq * 5_000_000, "t_received_ns": seq * 5_000_000 + 30_000_000,
         "latency_ms": latency_ms, "window": {"last_index": seq}}
        for seq in range(10)
    ]  # fmt: skip
    durations = {"capture": 1.0, "preprocess": 2.0, "queue": 20.0, "infer": 4.0, "publish": 1.0, "transport": 2.0}
    assert stage_durations_ms(entries[0]) == pytest.approx(durations)
    write_trace(tmp_path / "trace.json", entries)
    trace = json.loads((tmp_path / "trace.json").read_text())
    _check_trace(trace, 10)
    queues = {event["tid"] for event in trace["traceEvents"] if event["ph"] == "X" and event["name"] == "queue"}
    assert len(queues) == 4  # 20 ms each, one every 5 ms
