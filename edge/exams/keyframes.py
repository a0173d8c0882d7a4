"""Keyframes as plain maps: in the exam's state on disk, in the control socket's replies, and back."""

import math
from typing import Any

import numpy as np

from edge.display.keyframes import Keyframe
from edge.display.views import Heat, View
from edge.errors import WireError
from edge.messages import Arrival, FrameMessage, read_message
from edge.wire import Header, Message

_ARRIVAL = Arrival(t_received_ns=0, host="", stale_after_ms=math.inf)


def pack_keyframe(keyframe: Keyframe) -> Header:
    """Return a map that msgpack takes; `jpeg` and `heatmap.values` are bytes."""
    heat = keyframe.view.heat
    heatmap = None
    if heat is not None:
        heatmap = {"shape": list(heat.map_hw.shape), "roi_px": list(heat.roi_px), "values": heat.map_hw.tobytes()}
    return {
        "probability": keyframe.probability,
        "positive": keyframe.positive,
        "t_capture_ns": keyframe.t_capture_ns,
        "t_wall_ns": keyframe.t_wall_ns,
        "frame": keyframe.view.frame.header,
        "jpeg": keyframe.view.frame.jpeg,
        "heatmap": heatmap,
    }


def unpack_keyframe(packed: Any, keyframe_id: int = 0) -> Keyframe:
    """Return the keyframe that `pack_keyframe` packed.

    Raises:
        WireError: It is damaged.
    """
    try:
        frame = read_message(Message("frame", packed["frame"], (packed["jpeg"],)), _ARRIVAL)
        assert isinstance(frame, FrameMessage)
        return Keyframe(
            id=keyframe_id,
            probability=float(packed["probability"]),
            positive=bool(packed["positive"]),
            t_capture_ns=int(packed["t_capture_ns"]),
            t_wall_ns=int(packed["t_wall_ns"]),
            view=View(frame, _unpack_heat(packed["heatmap"])),
        )
    except (LookupError, TypeError, ValueError, OverflowError) as exc:
        raise WireError(f"a keyframe is damaged ({type(exc).__name__}: {exc})") from exc


def _unpack_heat(packed: Any) -> Heat | None:
    if packed is None:
        return None
    height, width = packed["shape"]
    x, y, roi_width, roi_height = packed["roi_px"]
    map_hw = np.frombuffer(packed["values"], np.uint8).reshape(height, width)
    return Heat(map_hw, (int(x), int(y), int(roi_width), int(roi_height)))
