"""One picture of a prediction: the keyframe, the heatmap where it belongs, and what was said."""

import datetime
import io

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from edge import __version__
from edge.commandline import NOTICE
from edge.evidence import Evidence
from edge.messages import FrameMessage, PredictionMessage
from edge.sources.base import MAX_IMAGE_PX, Rect

_IMAGE_HEIGHT_PX = 640
_MAX_IMAGE_WIDTH_PX = 1280
_MIN_WIDTH_PX = 640
_MAX_ALPHA = 0.6  # the image must stay visible below the strongest evidence
_MARGIN_PX = 16
_TITLE_PX, _TEXT_PX = 34, 17
_BACKGROUND, _INK, _FAINT, _WARNING = (16, 18, 22), (235, 235, 235), (150, 155, 165), (255, 190, 60)

RgbImage = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]
Line = tuple[str, int, Colour]
"""Text, size in px, colour."""


def draw(
    prediction: PredictionMessage, evidence: Evidence | None, frame: FrameMessage | None, source: str
) -> Image.Image:
    """Draw the picture of one prediction."""
    image, rect = _base_image(evidence, frame)
    height, width = image.shape[:2]
    scale = min(_IMAGE_HEIGHT_PX / height, _MAX_IMAGE_WIDTH_PX / width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    image = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)  # type: ignore[assignment]
    if evidence is not None:
        image = overlay(image, evidence.map_hw, _scaled(rect, scale))
    title, below = _title(prediction), _notes(prediction, evidence, frame, source)
    return _compose(image, title, [*below, (NOTICE, _TEXT_PX, _WARNING)])


def overlay(image: RgbImage, map_hw: npt.NDArray[np.float32], rect: Rect) -> RgbImage:
    """Blend a heatmap into an image.

    Args:
        image: (H, W, 3) RGB uint8.
        map_hw: (h, w) float32 in 0..1, stretched over `rect`.
        rect: Where the heatmap belongs, in the image's pixels; may reach beyond the image.

    Returns:
        A new image; unchanged where the heatmap is 0, outside `rect`, or where that is out of all proportion.
    """
    x, y, width, height = rect
    if width * height > MAX_IMAGE_PX:
        return image.copy()
    heat = np.clip(cv2.resize(map_hw, (width, height), interpolation=cv2.INTER_CUBIC), 0.0, 1.0)
    left, top = max(0, x), max(0, y)
    right, bottom = min(image.shape[1], x + width), min(image.shape[0], y + height)
    result = image.copy()
    if right <= left or bottom <= top:
        return result
    heat = heat[top - y : bottom - y, left - x : right - x]
    # up to 225: the colour map darkens again beyond
    colours = cv2.cvtColor(cv2.applyColorMap((heat * 225).astype(np.uint8), cv2.COLORMAP_TURBO), cv2.COLOR_BGR2RGB)
    alpha = (_MAX_ALPHA * np.sqrt(heat))[..., np.newaxis]
    below = result[top:bottom, left:right]
    result[top:bottom, left:right] = np.round(below * (1 - alpha) + colours * alpha).astype(np.uint8)
    cv2.rectangle(result, (left, top), (right - 1, bottom - 1), _FAINT, 1)
    return result


def decode_picture(frame: FrameMessage) -> RgbImage | None:
    """Return the image, (H, W, 3) RGB uint8; None where it is damaged or larger than any source's."""
    try:
        with Image.open(io.BytesIO(frame.jpeg), formats=["JPEG"]) as picture:
            is_sound = picture.width * picture.height <= MAX_IMAGE_PX
            return np.asarray(picture.convert("RGB")) if is_sound else None
    except (OSError, ValueError, Image.DecompressionBombError):
        return None


def _base_image(evidence: Evidence | None, frame: FrameMessage | None) -> tuple[RgbImage, Rect]:
    """Return the image to draw on, RGB, and where in it the heatmap belongs."""
    decoded = decode_picture(frame) if frame is not None else None
    if decoded is not None and frame is not None and frame.roi_px is not None:
        x, y, width, height = evidence.roi_px if evidence else frame.roi_px
        # the daemon may send a JPEG smaller than the part of the source that it shows
        shrink = decoded.shape[1] / frame.roi_px[2]
        return decoded, _scaled((x - frame.roi_px[0], y - frame.roi_px[1], width, height), shrink)
    roi = evidence.roi_px if evidence else (0, 0, 1, 1)
    _, _, width, height = _scaled(roi, min(1.0, _MAX_IMAGE_WIDTH_PX / max(roi[2:])))
    return np.zeros((height, width, 3), np.uint8), (0, 0, width, height)


def _scaled(rect: Rect, scale: float) -> Rect:
    x, y, width, height = (round(value * scale) for value in rect)
    return x, y, max(1, width), max(1, height)


def _title(prediction: PredictionMessage) -> list[Line]:
    side = "POSITIVE: at or above" if prediction.positive else "NEGATIVE: below"
    return [
        (f"{prediction.classes[-1]}  {prediction.probability:.1%}", _TITLE_PX, _INK),
        (f"{side} the threshold {prediction.threshold:.1%}; state {prediction.sent_state}", _TEXT_PX, _INK),
    ]


def _notes(
    prediction: PredictionMessage, evidence: Evidence | None, frame: FrameMessage | None, source: str
) -> list[Line]:
    wall = datetime.datetime.fromtimestamp(prediction.t_wall_ns / 1e9).astimezone()
    engine = prediction.header.get("engine") or {}
    window = f"window: frames {prediction.first_index} to {prediction.last_index} of stream {prediction.stream}"
    if frame is not None:
        window += f"; shown: frame {frame.index}"
    return [
        *([] if frame is not None else [("No frame came, so this is the heatmap alone", _TEXT_PX, _WARNING)]),
        *([] if frame is not None else [("(edge-infer --frames 30 publishes frames).", _TEXT_PX, _WARNING)]),
        (_place(evidence), _TEXT_PX, _FAINT),
        (window, _TEXT_PX, _FAINT),
        (f"source: {source or 'not known'}", _TEXT_PX, _FAINT),
        (f"engine: {engine.get('name')}, {engine.get('backend')} {engine.get('precision')}", _TEXT_PX, _FAINT),
        (f"captured {wall:%Y-%m-%d %H:%M:%S %z}; edge-watch {__version__}", _TEXT_PX, _FAINT),
    ]


def _place(evidence: Evidence | None) -> str:
    if evidence is None:
        return "no evidence in this window, no heatmap"
    x, y = evidence.peak_px
    peak = f"peak at x {x}, y {y}" if evidence.map_hw.any() else "no evidence in it"
    return f"heatmap: frame {evidence.frame_index}, {evidence.num_frames_back} before the newest; {peak}"


def _compose(image: RgbImage, above: list[Line], below: list[Line]) -> Image.Image:
    """Put lines of text above and below an image."""
    height, width = image.shape[:2]
    total_width = max(width, _MIN_WIDTH_PX) + 2 * _MARGIN_PX
    heights = [sum(_line_height(line) for line in lines) + 2 * _MARGIN_PX for lines in (above, below)]
    canvas = Image.new("RGB", (total_width, heights[0] + height + heights[1]), _BACKGROUND)
    canvas.paste(Image.fromarray(image), ((total_width - width) // 2, heights[0]))
    _write(canvas, _MARGIN_PX, above)
    _write(canvas, heights[0] + height + _MARGIN_PX, below)
    return canvas


def _write(canvas: Image.Image, top: int, lines: list[Line]) -> None:
    pen = ImageDraw.Draw(canvas)
    for line in lines:
        text, size, colour = line
        pen.text(
            (_MARGIN_PX, top), _fit(text, size, canvas.width - 2 * _MARGIN_PX), colour, ImageFont.load_default(size)
        )
        top += _line_height(line)


def _fit(text: str, size: int, width: int) -> str:
    """Shorten a text from its end until it fits."""
    font = ImageFont.load_default(size)
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def _line_height(line: Line) -> int:
    return round(1.4 * line[1])
