// One stream on the page.

import { ExamBar } from "./exam.js";
import { History } from "./history.js";
import { judge } from "./judge.js";
import { decodeView, draw } from "./picture.js";
import { percent, say } from "./say.js";
import { clock, Strip } from "./strip.js";

const MAX_WAITING = 2; // views: what comes faster than the screen is left out

export class Tile {
  /**
   * @param {string} id
   * @param look what the viewer chose: {opacity}
   * @param page what the page does for its tiles: {enlarge(keyframe), askNote(tell), drawSoon()}
   */
  constructor(id, look, page) {
    Object.assign(this, { id, look, page });
    this.stream = null;
    this.result = null;
    this.waiting = [];
    this.decoded = Promise.resolve();
    this.view = null;
    this.num_drawn = 0;
    this.section = document.getElementById("tile").content.firstElementChild.cloneNode(true);
    this.section.dataset.stream = id;
    this.part = (name) => this.section.querySelector(`.${name}`);
    this.history = new History(this.part("history"));
    this.strip = new Strip(this.part("keyframes"), look, page.enlarge);
    this.exam = new ExamBar(this.part("exam"), page.askNote);
  }

  onTick(stream, clock) {
    this.stream = { ...stream, spokeMs: stream.t_message_ms === null ? null : clock.toPage(stream.t_message_ms) };
    say(this.part("name"), stream.name);
  }

  onPrediction(facts, clock) {
    this.result = { ...facts, t_ms: clock.toPage(facts.t_ms) };
    this.history.add(facts.probability, facts.threshold, this.result.t_ms);
  }

  onView(message, clock) {
    const decoding = decodeView(message, clock.toPage(message.facts.t_ms)).catch(() => null);
    // several are decoded at a time, and shown in the order in which they came
    this.decoded = this.decoded.then(async () => {
      const view = await decoding;
      if (view === null) return;
      this.waiting.push(view);
      while (this.waiting.length > MAX_WAITING) this.waiting.shift().bitmap.close();
      this.page.drawSoon();
    });
  }

  onKeyframes({ keyframes }) {
    this.strip.show(keyframes);
  }

  /** The age of the result now. */
  get ageMs() {
    return this.result === null ? Infinity : performance.now() - this.result.t_ms;
  }

  /** Draw what is new; called for each frame of the screen. */
  drawPicture() {
    const next = this.waiting.shift();
    if (next) {
      this.view?.bitmap.close();
      this.view = next;
      this.num_drawn += 1;
    }
    if (this.view && (next || this.look.changed)) draw(this.part("picture"), this.view, this.look.opacity);
    if (this.look.changed) this.strip.draw();
    if (next) this.section.dispatchEvent(new CustomEvent("drawn", { bubbles: true, detail: { index: next.index } }));
  }

  /** Say what may be believed now. */
  drawWords(link, settings) {
    const { result, ageMs } = this;
    const stream = this.stream && { ...this.stream, silent_ms: this.silentMs() };
    const verdict = judge({ link, stream, result, ageMs, staleMs: settings.stale_ms, vanishMs: settings.vanish_ms });
    this.section.dataset.state = verdict.key;
    say(this.part("word"), verdict.word);
    this.part("sign").firstElementChild.setAttribute("href", `#${verdict.sign}`);
    say(this.part("reason"), verdict.reason);
    say(this.part("recording"), verdict.isHeard ? unrecorded(stream?.recording) : "");
    say(this.part("unsaved"), verdict.isHeard ? unsaved(stream?.exam_trouble) : "");
    this.drawNumber(verdict);
    this.drawVeil(verdict, settings.vanish_ms);
    say(this.part("small"), this.small(verdict));
    this.history.draw();
    this.exam.drawWords(link);
  }

  silentMs() {
    return this.stream.spokeMs === null ? null : performance.now() - this.stream.spokeMs;
  }

  drawNumber({ showsNumber, isCurrent, key }) {
    const { result } = this;
    this.section.classList.toggle("positive", showsNumber && result.positive);
    say(this.part("finding"), result?.class ?? "");
    say(this.part("number"), showsNumber ? `${percent(result.probability)} %` : "–");
    this.part("number").classList.toggle("past", !isCurrent);
    say(this.part("verdict"), showsNumber ? verdictOf(result) : "");
    say(this.part("age"), result === null ? "" : this.age(key, isCurrent));
  }

  age(key, isCurrent) {
    const seconds = this.ageMs / 1000;
    if (isCurrent) return `result ${Math.max(0, this.ageMs).toFixed(0)} ms old`;
    const then = clock(Date.now() - this.ageMs);
    return `${key === "FROZEN" ? "as of" : "last result at"} ${then}, ${seconds.toFixed(seconds < 10 ? 1 : 0)} s ago`;
  }

  drawVeil({ isCurrent, word, key }, vanishMs) {
    const veil = this.part("veil");
    const hasPicture = this.view !== null;
    const isLive = isCurrent || (key === "WARMUP" && hasPicture);
    // results may go on where pictures do not
    const pictureMs = hasPicture ? performance.now() - this.view.t_ms : 0;
    const isOld = isLive && pictureMs > vanishMs;
    veil.hidden = isLive && hasPicture && !isOld;
    if (isOld) say(veil, `The picture is ${(pictureMs / 1000).toFixed(0)} s old`);
    else say(veil, isLive ? "No picture: start edge-infer with --frames 30" : word);
    this.section.classList.toggle("dim", !isLive || isOld);
  }

  small({ isHeard }) {
    const { stream } = this;
    if (stream === null || !isHeard) return "";
    const { p50, p99 } = stream.latency_ms;
    const engine = stream.engine ? `${stream.engine.name} on ${stream.engine.backend} ${stream.engine.precision}` : "";
    const fps = stream.fps ? `${stream.fps.toFixed(0)} frames/s` : "";
    const latency = p50 === undefined || p99 === undefined ? "" : `latency ${p50.toFixed(0)} ms, p99 ${p99.toFixed(0)} ms`;
    return [fps, latency, engine, stream.source].filter(Boolean).join(" · ");
  }
}

/** What is lost of a recording that was asked for: nobody at the bedside reads the daemon's log. */
function unrecorded(recording) {
  if (recording?.trouble) return `Nothing is recorded any more: ${recording.trouble}`;
  return recording?.num_left_out ? "The recording has gaps: the disk is too slow" : "";
}

/** Why the exam is not on disk, and would end with the daemon. */
function unsaved(trouble) {
  return trouble ? `The exam is not saved: ${trouble}` : "";
}

function verdictOf({ positive, threshold }) {
  const at = `${(100 * threshold).toFixed(1)}\u00a0%`;
  return positive ? `▲ at or above the threshold ${at}` : `▽ below the threshold ${at}`;
}
