// What may be believed: one pure function from all that is known to what the page says.

const WORDS = {
  LIVE: ["LIVE", "live"],
  WARMUP: ["WARMING UP", "warmup"],
  FROZEN: ["FROZEN", "frozen"],
  NO_SIGNAL: ["NO SIGNAL", "no-signal"],
  FAULT: ["FAULT", "fault"],
  STALE: ["STALE", "stale"],
  NO_DAEMON: ["NO DAEMON", "lost"],
  NO_SERVER: ["NO DISPLAY SERVER", "lost"],
  NO_NETWORK: ["NO NETWORK", "lost"],
};

const SILENT_MS = 3000; // a daemon says its status every second

/**
 * @param {object} known
 *   link: "up", "server" (the display server is gone) or "network" (the way to it is)
 *   stream: the server's latest word on the stream, or null
 *   result: the latest prediction, or null; ageMs: its age now
 *   staleMs, vanishMs: ages from which a result is stale, and no longer shown
 * @returns {{key: string, word: string, sign: string, reason: string, showsNumber: boolean, isCurrent: boolean,
 *   isHeard: boolean}} isHeard: what the daemon says of itself is of now
 */
export function judge(known) {
  const [key, reason] = state(known);
  const { stream, result, ageMs, vanishMs } = known;
  const isCurrent = key === "LIVE";
  const isYoung = result !== null && ageMs <= vanishMs;
  // a result from before another image is not the frozen one's
  const isOfFrozen = key === "FROZEN" && !stream.is_result_cut;
  const showsNumber = result !== null && (isCurrent || isOfFrozen || isYoung);
  const [word, sign] = WORDS[key];
  return { key, word, sign, reason, showsNumber, isCurrent, isHeard: !key.startsWith("NO_") || key === "NO_SIGNAL" };
}

function state({ link, stream, result, ageMs, staleMs }) {
  if (link === "server") return ["NO_SERVER", "edge-display has ended or is being started again"];
  if (link === "network") return ["NO_NETWORK", "nothing comes from edge-display: is this device's network up?"];
  if (stream === null) return ["NO_DAEMON", "edge-display has not told of a daemon yet"];
  if (!stream.is_connected) return ["NO_DAEMON", gone(stream)];
  if (stream.silent_ms !== null && stream.silent_ms > SILENT_MS) {
    return ["NO_DAEMON", `edge-infer is connected but has been silent for ${Math.round(stream.silent_ms / 1000)} s`];
  }
  if (stream.state !== null && stream.state !== "LIVE") return [stream.state, stream.reason];
  if (result === null) return ["WARMUP", "no prediction yet"];
  if (ageMs > staleMs) return ["STALE", `the last result is ${(ageMs / 1000).toFixed(1)} s old`];
  return ["LIVE", ""];
}

function gone(stream) {
  if (stream.refusal) return stream.refusal;
  const ended = stream.state === "NO_SIGNAL" || stream.state === "FAULT" ? `; its last word: ${stream.reason}` : "";
  return `edge-infer at ${stream.address} is gone or does not answer${ended}`;
}
