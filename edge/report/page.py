"""The exam's result as one HTML page that needs nothing else: to read, to print, to file."""

import base64
import datetime
import html
import io
from pathlib import Path

from PIL import Image

from edge import __version__
from edge.exams.exam import ExamKeyframe, ExamSummary
from edge.report.dicom_images import draw_heatmap

_WIDTH, _HEIGHT, _MARGIN = 720, 180, 44
_STYLE = Path(__file__).with_name("page.css").read_text(encoding="utf-8")


def render_page(summary: ExamSummary) -> str:
    """Return the page."""
    title = f"{summary.finding}: {summary.probability:.1%}"
    keyframes = "".join(_figure(keyframe) for keyframe in summary.keyframes)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{_text(title)}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head><body>
<h1>Exam summary</h1>
<p class="faint">{_text(_when(summary))}</p>
<p class="notice">Research use only, not for diagnosis. Made by research software, not a medical device.</p>
<p>{_text(summary.finding)}</p>
<p class="number">{summary.probability:.1%}</p>
<p>{_text(_verdict(summary))}</p>
<h2>Probability over the exam</h2>{_chart(summary)}
<h2>Strongest windows</h2>{keyframes or "<p>No picture of a strong window was recorded.</p>"}
{_notes(summary)}<h2>How it was made</h2>{_table(_facts(summary))}
</body></html>
"""


def keyframe_png(keyframe: ExamKeyframe) -> bytes:
    """Return a keyframe with its heatmap as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(draw_heatmap(keyframe)).save(buffer, format="PNG")
    return buffer.getvalue()


def _notes(summary: ExamSummary) -> str:
    items = "".join(f"<li>{_text(note)}</li>" for note in summary.notes)
    return f"<h2>Notes</h2><ul>{items}</ul>\n" if items else ""


def _verdict(summary: ExamSummary) -> str:
    side = "At or above" if summary.positive else "Below"
    interval = "too short for an interval"
    if summary.interval is not None:
        low, high = summary.interval
        interval = f"95 % interval {low:.1%} to {high:.1%}"
    threshold = f"{summary.threshold:.1%}{_change_of_threshold(summary)}"
    return f"{side} the operating threshold of {threshold}; {interval}; {summary.num_windows} windows."


def _change_of_threshold(summary: ExamSummary) -> str:
    own = summary.bundle.get("threshold")
    if not isinstance(own, int | float) or not 0 <= own <= 1 or own == summary.threshold:
        return ""
    return f" (set by hand; the network's own is {own:.1%})"


def _when(summary: ExamSummary) -> str:
    start, end = (
        datetime.datetime.fromtimestamp(t_ns / 1e9).astimezone()
        for t_ns in (summary.started_wall_ns, summary.ended_wall_ns)
    )
    return f"{start:%Y-%m-%d %H:%M:%S %z}, {(end - start).total_seconds():.0f} s"


def _figure(keyframe: ExamKeyframe) -> str:
    data = base64.b64encode(keyframe_png(keyframe)).decode()
    text = f"{keyframe.probability:.1%}, frame {keyframe.index}"
    image = f'<img alt="Keyframe with heatmap" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{text}</figcaption></figure>"


def _chart(summary: ExamSummary) -> str:
    span_s = max(summary.history[-1][0], 1e-9)
    points = " ".join(f"{_WIDTH * t_s / span_s:.1f},{_y(probability):.1f}" for t_s, probability in summary.history)
    threshold = _y(summary.threshold)
    box = f"-{_MARGIN} -8 {_WIDTH + _MARGIN} {_HEIGHT + 30}"
    return f"""<svg viewBox="{box}" role="img" aria-label="Probability over time">
<g stroke="#c4ced6"><line x2="{_WIDTH}" y1="{_y(0)}" y2="{_y(0)}"/><line x2="{_WIDTH}" y1="{_y(1)}" y2="{_y(1)}"/></g>
<line x2="{_WIDTH}" y1="{threshold:.1f}" y2="{threshold:.1f}" stroke="#a35b00" stroke-dasharray="6 4"/>
<polyline points="{points}" fill="none" stroke="#0a4f7a" stroke-width="1.6"/>
<g font-size="12" fill="#51606e"><g text-anchor="end"><text x="-6" y="4">100 %</text>
<text x="-6" y="{_HEIGHT + 4}">0 %</text></g><text y="{_HEIGHT + 14}">0 s</text>
<text x="{_WIDTH}" y="{_HEIGHT + 14}" text-anchor="end">{span_s:.0f} s</text>
<text x="{_WIDTH / 2}" y="{_HEIGHT + 14}" text-anchor="middle" fill="#a35b00">threshold {summary.threshold:.1%}</text>
</g></svg>"""


def _y(probability: float) -> float:
    return _HEIGHT * (1 - probability)


def _facts(summary: ExamSummary) -> dict[str, str]:
    bundle, engine = summary.bundle, summary.engine
    return {
        "Network": str(bundle.get("name") or engine.get("name")),
        "Intended use": str(bundle.get("intended_use") or "not told"),
        "Bundle manifest": f"sha256 {bundle.get('manifest_sha256')}",
        "Model file": f"sha256 {engine.get('sha256')}",
        "Engine": f"{engine.get('backend')} {engine.get('precision')}",
        "Source": summary.source,
        "Stream": summary.stream,
        "Probability": "mean of the windows' logits; interval by the block bootstrap over stretches of a clip's length",
        "Software": f"edge-infer {summary.version}; report by edge-report {__version__}",
    }


def _table(facts: dict[str, str]) -> str:
    rows = "".join(f"<tr><th>{_text(name)}</th><td>{_text(value)}</td></tr>" for name, value in facts.items())
    return f"<table>{rows}</table>"


def _text(text: str) -> str:
    return html.escape(text)
