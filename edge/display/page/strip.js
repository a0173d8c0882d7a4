// The strip of the strongest windows: a button each, with the picture and its heatmap.

import { decode } from "./link.js";
import { decodeView, draw } from "./picture.js";
import { percent } from "./say.js";

export class Strip {
  /**
   * @param {HTMLElement} list
   * @param look what the viewer chose: {opacity}
   * @param {(keyframe: object) => void} onEnlarge
   */
  constructor(list, look, onEnlarge) {
    Object.assign(this, { list, look, onEnlarge });
    this.thumbnails = new Map(); // by id
  }

  /** Show these, the strongest first. What stays is left where it is: a finger or the keyboard may be on it. */
  show(keyframes) {
    const { list } = this;
    const place = [...list.children].indexOf(document.activeElement?.closest("li"));
    const before = this.thumbnails;
    this.thumbnails = new Map(keyframes.map((keyframe) => [keyframe.id, kept(before, keyframe) ?? this.thumbnail(keyframe)]));
    const items = [...this.thumbnails.values()].map(({ item }) => item);
    for (const thumbnail of before.values()) if (!items.includes(thumbnail.item)) thumbnail.remove();
    items.forEach((item, k) => list.children[k] !== item && list.insertBefore(item, list.children[k] ?? null));
    if (place < 0 || list.contains(document.activeElement)) return;
    items[Math.min(place, items.length - 1)]?.querySelector("button").focus({ preventScroll: true });
  }

  /** Draw all again: the viewer chose another look. */
  draw() {
    for (const { canvas, view } of this.thumbnails.values()) if (view) draw(canvas, view, this.look.opacity);
  }

  thumbnail({ id, probability, positive, t_wall_ms }) {
    const [item, button, canvas, text] = ["li", "button", "canvas", "span"].map((name) => document.createElement(name));
    const caption = `${positive ? "▲" : "▽"} ${percent(probability)} % · ${clock(t_wall_ms)}`;
    text.textContent = caption;
    button.type = "button";
    button.setAttribute("aria-label", `Enlarge: ${caption}`);
    button.append(canvas, text);
    item.append(button);
    const thumbnail = { item, canvas, view: null, isLost: false, remove };
    const shown = fetchView(id).then((view) => {
      Object.assign(thumbnail, { view, isLost: view === null });
      if (view?.bitmap.width) draw(canvas, view, this.look.opacity);
      return view;
    });
    button.onclick = async () => this.onEnlarge({ caption, view: await shown });
    function remove() {
      item.remove();
      shown.then((view) => view?.bitmap.close()); // a picture is megabytes, and the collector does not see them
    }
    return thumbnail;
  }
}

/** Return the thumbnail that is there already; one whose picture did not come is fetched again. */
function kept(thumbnails, { id }) {
  const thumbnail = thumbnails.get(id);
  return thumbnail?.isLost ? undefined : thumbnail;
}

async function fetchView(id) {
  const response = await fetch(`/keyframes/${id}`).catch(() => null); // null: the server is gone
  return response?.ok ? decodeView(decode(await response.arrayBuffer())).catch(() => null) : null;
}

/** Return the time of day of a wall time in ms. */
export function clock(t_ms) {
  return new Date(t_ms).toLocaleTimeString("en-GB");
}
