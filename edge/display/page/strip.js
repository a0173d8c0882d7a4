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
    for (const thumbnail of this.thumbnails.values()) this.paint(thumbnail);
  }

  /** Paint into an image: a canvas would be a layer of its own, which costs at each frame of the live picture. */
  async paint(thumbnail) {
    const { image, view } = thumbnail;
    thumbnail.isOld = true;
    if (!view?.bitmap.width || thumbnail.isPainting) return;
    thumbnail.isPainting = true;
    try {
      while (thumbnail.isOld && view.bitmap.width) {
        thumbnail.isOld = false;
        const canvas = new OffscreenCanvas(view.bitmap.width, view.bitmap.height);
        draw(canvas, view, this.look.opacity);
        const url = URL.createObjectURL(await canvas.convertToBlob({ type: "image/jpeg", quality: 0.9 }));
        image.src = url;
        await image.decode().catch(() => null); // it was removed meanwhile
        URL.revokeObjectURL(url);
      }
    } finally {
      thumbnail.isPainting = false;
    }
  }

  thumbnail({ id, probability, positive, t_wall_ms }) {
    const [item, button, image, text] = ["li", "button", "img", "span"].map((name) => document.createElement(name));
    const caption = `${positive ? "▲" : "▽"} ${percent(probability)} % · ${clock(t_wall_ms)}`;
    text.textContent = caption;
    button.type = "button";
    button.setAttribute("aria-label", `Enlarge: ${caption}`);
    image.alt = "";
    button.append(image, text);
    item.append(button);
    const thumbnail = { item, image, view: null, isLost: false, isPainting: false, isOld: false, remove };
    const shown = fetchView(id).then((view) => {
      Object.assign(thumbnail, { view, isLost: view === null });
      this.paint(thumbnail);
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
  return response?.ok ? decodeView(decode(new Uint8Array(await response.arrayBuffer()))).catch(() => null) : null;
}

/** Return the time of day of a wall time in ms. */
export function clock(t_ms) {
  return new Date(t_ms).toLocaleTimeString("en-GB");
}
