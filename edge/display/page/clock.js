// The server's clock on this page's: how old a message is, however long it was under way.

const SPAN_MS = 30000;

/**
 * This page's time less the server's is known within two bounds. What came from the server was sent before: it is at most
 * as large as the quickest bundle says, which on a slow link may itself have been long under way. What went to the server
 * came after: it is at least as large as the quickest confirmation says, which is short. The latter bound is taken where it
 * is known, so that an age is never told too small.
 */
export class ServerClock {
  constructor() {
    this.turnMs = performance.now();
    // of this span and of the last: the clocks drift, and an old bound must not count for ever
    this.atMost = [Infinity, Infinity];
    this.atLeast = [-Infinity, -Infinity];
  }

  /**
   * @param {number} serverMs when a bundle was sent, on the server's clock
   * @param {number} aheadMs this page's time less the server's when the server last heard from it; NaN before
   */
  note(serverMs, aheadMs) {
    const now = performance.now();
    if (now - this.turnMs > SPAN_MS) {
      this.turnMs = now;
      this.atMost = [Infinity, this.atMost[0]];
      this.atLeast = [-Infinity, this.atLeast[0]];
    }
    this.atMost[0] = Math.min(this.atMost[0], now - serverMs);
    if (!Number.isNaN(aheadMs)) this.atLeast[0] = Math.max(this.atLeast[0], aheadMs);
  }

  /** Return a time of the server's clock as one of `performance.now()`. */
  toPage(serverMs) {
    const [atLeast, atMost] = [Math.max(...this.atLeast), Math.min(...this.atMost)];
    // where they contradict each other this page's clock stood still, with the tablet's: the upper one saw it at once
    return serverMs + (atLeast > -Infinity ? Math.min(atLeast, atMost) : atMost);
  }
}
