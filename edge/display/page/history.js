// The probability over the last minute, with the operating threshold.

export const SPAN_MS = 60000;
const GAP_MS = 1500; // a longer silence is drawn as a gap
const LABELS_PX = 16; // the room below the plot
const DRAWN_MS = 250; // a pixel or two further to the left

export class History {
  constructor(canvas) {
    this.canvas = canvas;
    this.points = []; // [ms on this page's clock, probability], oldest first
    this.threshold = null;
    this.drawnMs = -Infinity;
  }

  /** @param {[number, number][]} past time on the server's clock in ms and probability */
  restore(past, clock) {
    this.points = past.map(([ms, probability]) => [clock.toPage(ms), probability]);
  }

  add(probability, threshold, ms) {
    this.threshold = threshold;
    this.points.push([ms, probability]);
  }

  draw() {
    const now = performance.now();
    if (now - this.drawnMs < DRAWN_MS) return;
    this.drawnMs = now;
    while (this.points.length && this.points[0][0] < now - SPAN_MS) this.points.shift();
    const { canvas } = this;
    const ratio = devicePixelRatio || 1;
    const width = Math.round(canvas.clientWidth * ratio);
    const height = Math.round(canvas.clientHeight * ratio);
    if (!width || !height) return;
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const pen = canvas.getContext("2d");
    const style = getComputedStyle(canvas);
    const x = (ms) => width * (1 - (now - ms) / SPAN_MS);
    const y = (p) => 3 * ratio + (height - (6 + LABELS_PX) * ratio) * (1 - p);
    pen.clearRect(0, 0, width, height);
    pen.font = `${13 * ratio}px system-ui, sans-serif`;
    this.rule(pen, width, y, style, ratio);
    this.label(pen, width, height - 4 * ratio, style);
    pen.strokeStyle = style.getPropertyValue("--ink");
    pen.lineWidth = 2 * ratio;
    pen.beginPath();
    let last = -Infinity;
    for (const [ms, probability] of this.points) {
      pen[ms - last > GAP_MS ? "moveTo" : "lineTo"](x(ms), y(probability));
      last = ms;
    }
    pen.stroke();
  }

  rule(pen, width, y, style, ratio) {
    pen.strokeStyle = style.getPropertyValue("--line");
    pen.lineWidth = ratio;
    for (const level of [0, 0.5, 1]) line(pen, width, y(level));
    if (this.threshold === null) return;
    pen.setLineDash([6 * ratio, 5 * ratio]);
    pen.strokeStyle = style.getPropertyValue("--accent");
    line(pen, width, y(this.threshold));
    pen.setLineDash([]);
  }

  /** Write below the plot, where the curve never is; the dashed line's label has its colour. */
  label(pen, width, bottom, style) {
    const [start, end] = ["60 s ago", "now"];
    pen.fillStyle = style.getPropertyValue("--faint");
    pen.textAlign = "left";
    pen.fillText(start, 0, bottom);
    pen.textAlign = "right";
    pen.fillText(end, width, bottom);
    if (this.threshold === null) return;
    const middle = (pen.measureText(start).width + width - pen.measureText(end).width) / 2;
    pen.fillStyle = style.getPropertyValue("--accent");
    pen.textAlign = "center";
    pen.fillText(`threshold ${(100 * this.threshold).toFixed(1)} %`, middle, bottom);
  }
}

function line(pen, width, y) {
  pen.beginPath();
  pen.moveTo(0, y);
  pen.lineTo(width, y);
  pen.stroke();
}
