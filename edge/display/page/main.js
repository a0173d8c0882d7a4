// The page: messages go to tiles, the viewer's choices to all of them.

import { setUpNote } from "./exam.js";
import { Link } from "./link.js";
import { draw } from "./picture.js";
import { say } from "./say.js";
import { Tile } from "./tile.js";

const WORDS_MS = 100;

const tiles = new Map();
const askNote = setUpNote(document.getElementById("note"));
const look = { opacity: 0.6, changed: true };
let isDrawing = false;
let settings = { stale_ms: 500, vanish_ms: 2000 };

const handlers = {
  settings: (facts) => {
    if (settings.page && settings.page !== facts.page) {
      link.leave(); // the server was upgraded
      location.reload();
    }
    settings = facts;
  },
  tick: ({ streams }, clock) => {
    const present = new Set(streams.map((stream) => stream.id));
    for (const [id, tile] of tiles) {
      if (!present.has(id)) {
        tile.section.remove();
        tiles.delete(id);
      }
    }
    streams.forEach((stream, k) => {
      const tile = tileOf(stream.id);
      tile.onTick(stream, clock);
      place(tile.section, k);
    });
    document.body.dataset.tiles = String(tiles.size);
    document.body.classList.toggle("many", tiles.size > 2);
  },
  history: (facts, clock) => tileOf(facts.stream).history.restore(facts.past, clock),
  prediction: (facts, clock) => tileOf(facts.stream).onPrediction(facts, clock),
  keyframes: (facts) => tileOf(facts.stream).onKeyframes(facts),
  exam: (facts) => {
    for (const tile of tiles.values()) if (tile.stream?.address === facts.address) tile.exam.onExam(facts);
  },
};

const link = new Link((message, clock) => {
  const { facts } = message;
  if (facts.kind === "view") tileOf(facts.stream).onView(message, clock);
  else handlers[facts.kind]?.(facts, clock);
});

function tileOf(id) {
  if (!tiles.has(id)) {
    const tile = new Tile(id, look, { enlarge, askNote, drawSoon });
    tiles.set(id, tile);
    document.getElementById("tiles").append(tile.section);
  }
  return tiles.get(id);
}

/** Put a tile where the server has it: what is seen on the left stays on the left, whichever daemon comes first. */
function place(section, k) {
  const main = document.getElementById("tiles");
  if (main.children[k] !== section) main.insertBefore(section, main.children[k] ?? null);
}

/** Draw with the screen's next frame: a frame in which nothing is new costs as well. */
function drawSoon() {
  if (isDrawing) return;
  isDrawing = true;
  requestAnimationFrame(() => {
    isDrawing = false;
    for (const tile of tiles.values()) tile.drawPicture();
    look.changed = false;
    if ([...tiles.values()].some((tile) => tile.waiting.length)) drawSoon();
  });
}

function drawWords() {
  const { state } = link;
  const banner = document.getElementById("link");
  banner.hidden = state === "up";
  const trouble = state === "server" ? "The display server is gone" : "No word from the display server";
  say(banner, state === "up" ? "" : `${trouble}: nothing here is current. Trying again.`);
  for (const tile of tiles.values()) tile.drawWords(state, settings);
}

function enlarge({ view, caption }) {
  if (!view?.bitmap.width) return; // it did not come, or was overtaken and closed
  const dialog = document.getElementById("large");
  draw(dialog.querySelector("canvas"), view, look.opacity);
  dialog.querySelector(".caption").textContent = caption;
  dialog.showModal();
}

function remember(key, value) {
  try {
    localStorage.setItem(key, value);
  } catch {
    // a kiosk may forbid it: the choice then lasts as long as the page
  }
}

function recall(key) {
  try {
    return localStorage.getItem(key);
  } catch {
    return null;
  }
}

function setUpControls() {
  const heat = document.getElementById("heat");
  const opacity = document.getElementById("opacity");
  const theme = document.getElementById("theme");
  const apply = () => {
    const isOn = heat.getAttribute("aria-pressed") === "true";
    look.opacity = isOn ? Number(opacity.value) : 0;
    look.changed = true;
    drawSoon();
    opacity.disabled = !isOn;
  };
  heat.onclick = () => {
    heat.setAttribute("aria-pressed", String(heat.getAttribute("aria-pressed") !== "true"));
    apply();
  };
  opacity.value = recall("opacity") ?? opacity.value;
  opacity.oninput = () => {
    remember("opacity", opacity.value);
    apply();
  };
  const paint = (name) => {
    document.documentElement.dataset.theme = name;
    theme.textContent = name === "dark" ? "Light" : "Dark";
  };
  theme.onclick = () => {
    const name = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    remember("theme", name);
    paint(name);
  };
  paint(recall("theme") ?? "dark");
  apply();
}

setUpControls();
setInterval(drawWords, WORDS_MS);
