// The exam of one stream: what it gave so far, and the buttons that begin, end and annotate it.

import { percent, say } from "./say.js";

const SURE_MS = 4000; // an exam that was ended cannot be opened again: a second press within this time ends it

export class ExamBar {
  /**
   * @param {HTMLElement} bar
   * @param {(tell: (note: string) => void) => void} askNote opens the dialog for a note
   */
  constructor(bar, askNote) {
    this.bar = bar;
    this.address = null;
    this.facts = null;
    this.trouble = "";
    this.t_ms = 0;
    this.isAsking = false;
    this.part = (name) => bar.querySelector(`.exam-${name}`);
    this.part("start").onclick = () => this.act("exam-start");
    this.part("stop").onclick = () => this.end();
    this.part("note").onclick = () => askNote((note) => this.act("exam-note", note));
  }

  /** Take in what the server says of the exam, once a second. */
  onExam({ address, exam, trouble }) {
    Object.assign(this, { address, facts: exam, trouble, t_ms: performance.now() });
    this.bar.hidden = false;
    const isOpen = exam?.is_open ?? false;
    if (!isOpen) this.ask(false);
    const hadFocus = this.bar.contains(document.activeElement);
    this.part("start").hidden = isOpen;
    this.part("stop").hidden = this.part("note").hidden = !isOpen;
    for (const button of this.bar.querySelectorAll("button")) button.disabled = trouble !== "";
    // a button that goes loses the keyboard: it stays at the bar, where one press too many does nothing
    if (hadFocus && !document.activeElement.matches(":enabled:not([hidden])")) this.bar.focus();
  }

  /** Say what is known; called ten times a second. */
  drawWords(link) {
    if (this.bar.hidden) return;
    const text = link === "up" ? this.words() : "Exam: no word from the display server";
    say(this.part("facts"), text);
  }

  /** End the exam where this was asked twice. */
  end() {
    const isSure = this.isAsking;
    this.ask(!isSure);
    if (isSure) this.act("exam-stop");
  }

  ask(isAsking) {
    clearTimeout(this.timer);
    this.isAsking = isAsking;
    this.part("stop").textContent = isAsking ? "Press again to end" : "End exam";
    this.part("stop").classList.toggle("asking", isAsking);
    if (isAsking) this.timer = setTimeout(() => this.ask(false), SURE_MS);
  }

  words() {
    const { facts, trouble } = this;
    if (trouble) return `Exam: ${trouble}`;
    if (facts === null) return "No exam is open";
    const span_s = facts.span_s + (facts.is_open ? (performance.now() - this.t_ms) / 1000 : 0);
    const name = facts.is_open ? "Exam" : "Last exam";
    return [`${name} ${clock(span_s)}`, result(facts), notes(facts.num_notes)].filter(Boolean).join(" · ");
  }

  async act(command, note = null) {
    const body = JSON.stringify({ address: this.address, command, note });
    const headers = { "Content-Type": "application/json" };
    let error = "";
    try {
      const response = await fetch("/exam", { method: "POST", headers, body });
      if (!response.ok) error = await response.text();
    } catch {
      error = "the display server does not answer";
    }
    this.bar.classList.toggle("refused", error !== "");
    this.part("error").textContent = error && `Not done: ${error}`;
  }
}

/** Let a person write a note; an empty one is none. */
export function setUpNote(dialog) {
  const text = dialog.querySelector("textarea");
  return (tell) => {
    text.value = "";
    dialog.returnValue = "";
    dialog.onclose = () => dialog.returnValue === "save" && text.value.trim() && tell(text.value.trim());
    dialog.showModal();
  };
}

function result({ probability, interval, num_windows, positive }) {
  if (probability === null) return "no window yet";
  const span = interval === null ? "" : ` (95 %: ${percent(interval[0])} to ${percent(interval[1])} %)`;
  return `${positive ? "▲" : "▽"} ${percent(probability)} %${span} over ${num_windows} windows`;
}

function notes(number) {
  return number ? `${number} note${number === 1 ? "" : "s"}` : "";
}

function clock(s) {
  const whole = Math.max(0, Math.floor(s));
  const two = (number) => String(number).padStart(2, "0");
  const hours = Math.floor(whole / 3600);
  return `${hours ? `${hours}:` : ""}${two(Math.floor(whole / 60) % 60)}:${two(whole % 60)}`;
}
