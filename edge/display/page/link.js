// The one connection to edge-display: messages in, and whether the server or the network is lost.

import { ServerClock } from "./clock.js";

const SILENT_MS = 1500; // the server ticks four times a second
const RETRY_MS = 500;
const PROBE_MS = 1000;

export class Link {
  /** @param {(message: {facts: object, blobs: Uint8Array[]}, clock: ServerClock) => void} onMessage */
  constructor(onMessage) {
    this.onMessage = onMessage;
    this.down = isLocal() ? "server" : "network";
    this.lastMs = -Infinity;
    this.open();
  }

  /** "up", or what is lost: "server" or "network". */
  get state() {
    return performance.now() - this.lastMs <= SILENT_MS ? "up" : this.down;
  }

  open() {
    const clock = new ServerClock();
    const scheme = location.protocol === "https:" ? "wss:" : "ws:";
    const socket = new WebSocket(`${scheme}//${location.host}/live`);
    socket.binaryType = "arraybuffer";
    this.socket = socket;
    const onBundle = (event) => {
      this.lastMs = performance.now();
      const { sentMs, aheadMs, messages } = unpack(event.data);
      clock.note(sentMs, aheadMs);
      // confirmed when it is drawn: the server sends no more than this browser can show; a hidden page, which draws
      // nothing, lets the timers that browsers slow down for it say that it lives
      const later = document.hidden ? setTimeout : requestAnimationFrame;
      later(() => socket.readyState === WebSocket.OPEN && socket.send(`${performance.now()}`));
      for (const message of messages) this.onMessage(message, clock);
    };
    // the settings come first, and never in another form: a page of another release must be able to read them
    socket.onmessage = (event) => {
      this.lastMs = performance.now();
      socket.onmessage = onBundle;
      this.onMessage(decode(new Uint8Array(event.data)), clock);
    };
    const watch = setInterval(() => {
      if (this.state !== "up" && performance.now() - opened > 2 * SILENT_MS) socket.close();
    }, RETRY_MS);
    const opened = performance.now();
    socket.onclose = async () => {
      clearInterval(watch);
      if (this.lastMs > -Infinity) this.lastMs = Math.min(this.lastMs, performance.now() - SILENT_MS - 1);
      this.down = await probe();
      setTimeout(() => this.open(), RETRY_MS);
    };
  }

  /** Read no more of this connection: the page is loaded anew. */
  leave() {
    this.socket.onmessage = null;
  }
}

function isLocal() {
  return ["127.0.0.1", "localhost", "[::1]"].includes(location.hostname);
}

/** A server that is gone is refused at once; a network that is gone does not answer. */
async function probe() {
  if (isLocal()) return "server";
  if (!navigator.onLine) return "network";
  const started = performance.now();
  try {
    await fetch("/healthz", { signal: AbortSignal.timeout(PROBE_MS) });
    return "server"; // it is back, or about to be
  } catch {
    return performance.now() - started < PROBE_MS - 100 ? "server" : "network";
  }
}

/**
 * A bundle: when it was sent, this page's clock less the server's as last heard (float64, ms), and of each message its
 * length (4 bytes) and itself; little-endian.
 */
function unpack(buffer) {
  const view = new DataView(buffer);
  const messages = [];
  for (let offset = 16; offset < buffer.byteLength; ) {
    const length = view.getUint32(offset, true);
    messages.push(decode(new Uint8Array(buffer, offset + 4, length)));
    offset += 4 + length;
  }
  return { sentMs: view.getFloat64(0, true), aheadMs: view.getFloat64(8, true), messages };
}

/** A message: length of the JSON (4 bytes, little-endian), the JSON, blobs whose sizes it tells. */
export function decode(bytes) {
  const size = new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true);
  const facts = JSON.parse(new TextDecoder().decode(bytes.subarray(4, 4 + size)));
  let offset = 4 + size;
  const blobs = facts.blobs.map((length) => {
    const blob = bytes.subarray(offset, offset + length);
    offset += length;
    return blob;
  });
  return { facts, blobs };
}
