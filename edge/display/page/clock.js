// The server's clock on this page's: how old a message is, however long it was under way.

const SPAN_MS = 30000;

export class ServerClock {
  constructor() {
    this.turnMs = performance.now();
    this.least = [Infinity, Infinity]; // this page's time less the server's, of this span and of the last
  }

  /** Note the time that a bundle was sent at; the quickest bundle tells the clocks' difference. */
  note(serverMs) {
    const now = performance.now();
    if (now - this.turnMs > SPAN_MS) {
      // the clocks drift: an old difference must not count for ever
      this.turnMs = now;
      this.least = [Infinity, this.least[0]];
    }
    this.least[0] = Math.min(this.least[0], now - serverMs);
  }

  /** Return a time of the server's clock as one of `performance.now()`. */
  toPage(serverMs) {
    return serverMs + Math.min(...this.least);
  }
}
