"""Writes a Chrome/Perfetto trace (https://ui.perfetto.dev) of windows, from what the wire says of each."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from edge.errors import ConfigError

_DAEMON, _SUBSCRIBER = 1, 2
_STAGES = ("capture", "preprocess", "queue", "infer", "publish")
_TRACKS = (*_STAGES, "transport")
_MAX_LANES = 1000

Entry = dict[str, Any]


def write_trace(path: Path, predictions: Sequence[Entry]) -> None:
    """Write the trace.

    Args:
        path: Where to.
        predictions: The subscriber's entries: `seq`, `t_capture_ns`, `t_received_ns`, `latency_ms`, `window`.

    Raises:
        ConfigError: The file cannot be written.
    """
    document: Entry = {"traceEvents": [*_slices(predictions)], "displayTimeUnit": "ms"}
    document["traceEvents"] += _names(document["traceEvents"])
    try:
        path.write_text(json.dumps(document), encoding="utf-8")
    except OSError as exc:
        raise ConfigError(f"--trace {path} cannot be written ({exc.strerror}); choose another file") from exc


def stage_durations_ms(entry: Entry) -> dict[str, float]:
    """Return a window's stages in the order in which they follow on each other, from capture to receipt."""
    latency_ms = entry["latency_ms"]
    durations = {stage: latency_ms[stage] for stage in _STAGES[:-1]}
    durations["publish"] = latency_ms["total"] - sum(durations.values())
    durations["transport"] = received_ms(entry) - latency_ms["total"]
    return durations


def received_ms(entry: Entry) -> float:
    """Return the time from capture to receipt; both clocks are this host's monotonic one."""
    return float(entry["t_received_ns"] - entry["t_capture_ns"]) / 1e6


def _slices(predictions: Sequence[Entry]) -> Iterable[Entry]:
    """Yield a slice for every stage of every window. Slices of one stage that overlap, lie in lanes of their own."""
    lane_ends_us: dict[str, list[float]] = {track: [] for track in _TRACKS}
    for entry in predictions:
        start_us = entry["t_capture_ns"] / 1e3
        arguments = {"seq": entry["seq"], **entry["window"]}
        for stage, duration_ms in stage_durations_ms(entry).items():
            end_us = start_us + max(0.0, duration_ms * 1e3)
            lane = _take_lane(lane_ends_us[stage], start_us, end_us)
            thread = _TRACKS.index(stage) * _MAX_LANES + lane + 1
            process = _SUBSCRIBER if stage == "transport" else _DAEMON
            place = {"pid": process, "tid": thread, "ts": start_us, "dur": end_us - start_us}
            yield {"name": stage, "ph": "X", **place, "args": arguments}
            start_us = end_us


def _take_lane(ends_us: list[float], start_us: float, end_us: float) -> int:
    """Return the first lane that is free at the start, and hold it to the end."""
    for lane, busy_until_us in enumerate(ends_us):
        if busy_until_us <= start_us:
            ends_us[lane] = end_us
            return lane
    ends_us.append(end_us)
    return len(ends_us) - 1


def _names(slices: Iterable[Entry]) -> list[Entry]:
    names = [
        {"name": "process_name", "ph": "M", "pid": process, "tid": 0, "args": {"name": name}}
        for process, name in ((_DAEMON, "edge-infer"), (_SUBSCRIBER, "subscriber"))
    ]
    tracks = {(event["pid"], event["tid"]): event["name"] for event in slices}
    for (process, thread), stage in sorted(tracks.items()):
        lane = (thread - 1) % _MAX_LANES
        name = f"{stage} {lane + 1}" if lane else stage
        names.append({"name": "thread_name", "ph": "M", "pid": process, "tid": thread, "args": {"name": name}})
    return names
