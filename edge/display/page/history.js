// The probability over the last minute, with the operating threshold.

export const SPAN_MS = 60000;
const GAP_MS = 1500; // a longer silence is drawn as a gap
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
    const y = (p) => 3 * ratio + (height - 6 * ratio) * (1 - p);
    pen.clearRect(0, 0, width, height);
    pen.font = `${13 * ratio}px system-ui, sans-serif`;
    this.rule(pen, width, y, style, ratio);
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
    pen.fillStyle = style.getPropertyValue("--faint");
    pen.strokeStyle = style.getPropertyValue("--line");
    pen.lineWidth = ratio;
    for (const level of [0, 0.5, 1]) line(pen, width, y(level));
    pen.fillText("60 s ago", 4 * ratio, y(0) - 5 * ratio);
    pen.textAlign = "right";
    pen.fillText("now", width - 4 * ratio, y(0) - 5 * ratio);
    if (this.threshold !== null) {
      pen.setLineDash([6 * ratio, 5 * ratio]);
      pen.strokeStyle = pen.fillStyle = style.getPropertyValue("--accent");
      line(pen, width, y(this.threshold));
      pen.setLineDash([]);
      const text = `threshold ${(100 * this.threshold).toFixed(1)} %`;
      pen.fillText(text, width - 4 * ratio, y(this.threshold) - 5 * ratio);
    }
    pen.textAlign = "left";
  }
}

function line(pen, width, y) {
  pen.beginPath();
  pen.moveTo(0, y);
  pen.lineTo(width, y);
  pen.stroke();
}
