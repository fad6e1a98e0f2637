"use strict";
// From a file to the pixels of an image: what cannot be a picture, or is too large, is refused before it is decoded.

const MOST_BYTES = 20e6, MOST_PIXELS = 50e6;
const KINDS = "PNG, JPEG, GIF, WebP or BMP";

/** [width, height] that the header of a picture's file states, or null where these bytes are no such picture. */
function dimensions(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const text = (at, length) => String.fromCharCode(...bytes.subarray(at, at + length));
  const three = (at) => view.getUint16(at, true) + 65536 * view.getUint8(at + 2);
  try {
    if (text(0, 8) === "\x89PNG\r\n\x1a\n") return [view.getUint32(16), view.getUint32(20)];
    if (text(0, 4) === "GIF8") return [view.getUint16(6, true), view.getUint16(8, true)];
    if (text(0, 2) === "BM") return [Math.abs(view.getInt32(18, true)), Math.abs(view.getInt32(22, true))];
    if (text(0, 4) === "RIFF" && text(8, 4) === "WEBP") {
      const kind = text(12, 4);
      if (kind === "VP8X") return [three(24) + 1, three(27) + 1];
      if (kind === "VP8 ") return [view.getUint16(26, true) & 0x3fff, view.getUint16(28, true) & 0x3fff];
      const bits = view.getUint32(21, true);
      return kind === "VP8L" ? [(bits & 0x3fff) + 1, ((bits >> 14) & 0x3fff) + 1] : null;
    }
    if (view.getUint16(0) !== 0xffd8) return null;
    for (let at = 2; ; at += 2 + view.getUint16(at + 2)) {  // the segments of a JPEG
      while (bytes[at] === 0xff && bytes[at + 1] === 0xff) at++;
      const marker = bytes[at + 1];
      if (bytes[at] !== 0xff || marker === 0xd9 || marker === 0xda) return null;
      const frame = marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker);
      if (frame) return [view.getUint16(at + 7), view.getUint16(at + 5)];
    }
  } catch (error) {
    if (error instanceof RangeError) return null;  // the file ends before its header does
    throw error;
  }
}

/** A decoded picture. Throws an Error whose message is one line for the user. */
async function decode(file) {
  const name = file.name || "The picture";
  if (file.size > MOST_BYTES) {
    throw new Error(`${name} has ${Math.ceil(file.size / 1e6)} MB; the most is ${MOST_BYTES / 1e6} MB.`);
  }
  const size = dimensions(new Uint8Array(await file.arrayBuffer()));
  if (!size || !size[0] || !size[1]) throw new Error(`${name} is not a ${KINDS} picture.`);
  if (size[0] * size[1] > MOST_PIXELS) {
    const [width, height] = size.map((n) => n.toLocaleString("en"));
    throw new Error(`${name} has ${width} × ${height} pixels; the most is ${MOST_PIXELS / 1e6} million.`);
  }
  try {
    return await createImageBitmap(file);
  } catch {
    throw new Error(`${name} is broken: it cannot be decoded.`);
  }
}

function newCanvas(width, height) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  return [canvas, canvas.getContext("2d", { willReadFrequently: true })];
}

/** Pixels [height, width, channels] of RGBA data, each the mean of factor x factor of its pixels. */
function shrink(data, width, height, factor, channels) {
  const out = new Uint8Array(width * height * channels), area = factor * factor;
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const sum = [0, 0, 0];
      for (let k = 0; k < factor; k++) {
        let i = ((y * factor + k) * width + x) * factor * 4;
        for (const end = i + factor * 4; i < end; i += 4) for (let c = 0; c < 3; c++) sum[c] += data[i + c];
      }
      const at = (y * width + x) * channels;
      const grey = (299 * sum[0] + 587 * sum[1] + 114 * sum[2]) / 1000;
      if (channels === 1) out[at] = Math.round(grey / area);
      else for (let c = 0; c < 3; c++) out[at + c] = Math.round(sum[c] / area);
    }
  }
  return out;
}

/** Brings white on black, and within the box that the training images keep to, what a canvas shows as ink on paper.
 *  `box` is the side of that box in pixels of the network's image; `centre` is what comes to the middle: "mass" or "box". */
function normaliseInk(canvas, factor, { box, centre }) {
  const { width, height } = canvas;
  const [copy, context] = newCanvas(width, height);
  context.drawImage(canvas, 0, 0);
  const image = context.getImageData(0, 0, width, height);
  const { data } = image, last = 4 * width * height - 4;
  let paper = 0;  // along the edge
  for (let i = 0; i < 4 * width; i += 4) paper += data[i + 1] + data[last - i + 1];
  for (let i = 0; i <= last; i += 4 * width) paper += data[i + 1] + data[last - i + 1];
  const dark = paper / (2 * (width + height)) <= 127;
  let [left, top, right, bottom] = [width, height, -1, -1];
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i += 4) {
      const ink = dark ? data[i + 1] : 255 - data[i + 1];
      data[i] = data[i + 1] = data[i + 2] = ink;
      if (ink < 100) continue;
      if (x < left) left = x;
      if (x > right) right = x;
      if (y < top) top = y;
      bottom = y;
    }
  }
  context.putImageData(image, 0, 0);
  const [result, target] = newCanvas(width, height);
  target.fillRect(0, 0, width, height);
  if (right < 0) return result;  // a blank sheet
  const [w, h] = [right - left + 1, bottom - top + 1], zoom = (box * factor) / Math.max(w, h);
  let [x, y] = [w / 2, h / 2], mass = 0;
  if (centre === "mass") {
    x = y = 0;
    for (let row = top; row <= bottom; row++) {
      for (let column = left; column <= right; column++) {
        const ink = data[4 * (row * width + column)];
        x += ink * (column - left); y += ink * (row - top); mass += ink;
      }
    }
    x /= mass; y /= mass;
  }
  target.imageSmoothingQuality = "high";
  target.drawImage(copy, left, top, w, h, width / 2 - x * zoom, height / 2 - y * zoom, w * zoom, h * zoom);
  return result;
}
