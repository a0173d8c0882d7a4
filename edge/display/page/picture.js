// Draws a picture, and over it the heatmap of that very frame, where it belongs.

const RAMP = ramp();

/** Decode a view off the main thread; `t_ms` is when it came, on this page's clock. */
export async function decodeView({ facts, blobs }, t_ms = null) {
  const bitmap = await createImageBitmap(new Blob([blobs[0]], { type: "image/jpeg" }));
  const heat = facts.heat && { ...facts.heat, values: blobs[1] };
  return { bitmap, frame_px: facts.frame_px, heat, index: facts.index, t_ms };
}

/**
 * @param {HTMLCanvasElement} canvas
 * @param view what decodeView gave
 * @param {number} opacity 0: no heatmap
 */
export function draw(canvas, view, opacity) {
  const { bitmap } = view;
  if (canvas.width !== bitmap.width || canvas.height !== bitmap.height) {
    canvas.width = bitmap.width;
    canvas.height = bitmap.height;
  }
  const pen = canvas.getContext("2d", { alpha: false });
  pen.drawImage(bitmap, 0, 0);
  if (view.heat && view.frame_px && opacity > 0) drawHeat(pen, view, opacity);
}

function drawHeat(pen, { bitmap, frame_px, heat }, opacity) {
  const [height, width] = heat.hw;
  const scale = bitmap.width / frame_px[2];
  const [x, y, w, h] = heat.roi_px;
  const place = [(x - frame_px[0]) * scale, (y - frame_px[1]) * scale, w * scale, h * scale];
  const map = new OffscreenCanvas(width, height);
  map.getContext("2d").putImageData(colours(heat.values, width, height), 0, 0);
  pen.save();
  pen.globalAlpha = opacity;
  pen.imageSmoothingEnabled = true;
  pen.imageSmoothingQuality = "low";
  pen.drawImage(map, ...place);
  pen.restore();
}

function colours(values, width, height) {
  const image = new ImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  for (let i = 0; i < values.length; i++) pixels[i] = RAMP[values[i]];
  return image;
}

/** 256 colours, ABGR: clear, then red, orange, yellow, white; brighter and denser with the evidence. */
function ramp() {
  const stops = [[120, 0, 40], [230, 60, 20], [255, 160, 20], [255, 240, 120]];
  return Uint32Array.from({ length: 256 }, (_, value) => {
    const place = (value / 255) * (stops.length - 1);
    const low = Math.min(stops.length - 2, Math.floor(place));
    const [r, g, b] = stops[low].map((c, k) => Math.round(c + (stops[low + 1][k] - c) * (place - low)));
    const a = Math.round(255 * Math.sqrt(value / 255));
    return ((a << 24) | (b << 16) | (g << 8) | r) >>> 0;
  });
}
