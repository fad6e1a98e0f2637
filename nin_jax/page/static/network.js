"use strict";
// The network: float16 weights in, logits and every map out. Runs in a worker, in the page where there are no workers,
// and in Node. Maps are float32 [height, width, channels] in one array; sums are taken in float64.

/** float32 of IEEE half-precision bits, by a table of all 65,536. */
function halves(bits) {
  const table = Float32Array.from({ length: 65536 }, (_, half) => {
    const exponent = (half >> 10) & 31, fraction = half & 1023;
    const size = exponent ? 2 ** (exponent - 25) * (1024 + fraction) : 2 ** -24 * fraction;
    return half & 0x8000 ? -size : size;
  });
  const out = new Float32Array(bits.length);
  for (let i = 0; i < bits.length; i++) out[i] = table[bits[i]];
  return out;
}

/** The network of a description, with its kernels cut out of the bytes of all weights (little-endian float16) and each map's
 *  gain multiplied into them. */
function build(description, bytes) {
  const weights = halves(new Uint16Array(bytes));
  let first = 0;
  const layers = description.layers.map((layer) => {
    if (layer.op !== "conv") return layer;
    const depth = layer.size ** 2 * layer.channels;
    const kernel = weights.subarray(first, (first += layer.maps * depth));
    layer.gain.forEach((gain, k) => { for (let i = k * depth; i < (k + 1) * depth; i++) kernel[i] *= gain; });
    return { ...layer, kernel, bias: Float32Array.from(layer.bias) };
  });
  return { ...description, layers };
}

/** out[i, j] = bias[j] + the dot product of row i of a and row j of b, both of `depth`; 4 x 4 of them at a time. */
function product(a, rows, b, columns, depth, bias, relu) {
  const out = new Float32Array(rows * columns);
  const least = relu ? 0 : -Infinity;
  for (let i = 0; i < rows; i += 4) {
    // Beyond the last row or column the last one is computed again.
    const i1 = Math.min(i + 1, rows - 1), i2 = Math.min(i + 2, rows - 1), i3 = Math.min(i + 3, rows - 1);
    for (let j = 0; j < columns; j += 4) {
      const j1 = Math.min(j + 1, columns - 1), j2 = Math.min(j + 2, columns - 1), j3 = Math.min(j + 3, columns - 1);
      let p = i * depth, p1 = i1 * depth, p2 = i2 * depth, p3 = i3 * depth;
      let q = j * depth, q1 = j1 * depth, q2 = j2 * depth, q3 = j3 * depth;
      let c00 = bias[j], c01 = bias[j1], c02 = bias[j2], c03 = bias[j3];
      let c10 = c00, c11 = c01, c12 = c02, c13 = c03, c20 = c00, c21 = c01, c22 = c02, c23 = c03;
      let c30 = c00, c31 = c01, c32 = c02, c33 = c03;
      for (const end = p + depth; p < end; p++, p1++, p2++, p3++, q++, q1++, q2++, q3++) {
        const b0 = b[q], b1 = b[q1], b2 = b[q2], b3 = b[q3];
        let x = a[p];
        c00 += x * b0; c01 += x * b1; c02 += x * b2; c03 += x * b3;
        x = a[p1];
        c10 += x * b0; c11 += x * b1; c12 += x * b2; c13 += x * b3;
        x = a[p2];
        c20 += x * b0; c21 += x * b1; c22 += x * b2; c23 += x * b3;
        x = a[p3];
        c30 += x * b0; c31 += x * b1; c32 += x * b2; c33 += x * b3;
      }
      let o = i * columns;
      out[o + j] = Math.max(c00, least); out[o + j1] = Math.max(c01, least);
      out[o + j2] = Math.max(c02, least); out[o + j3] = Math.max(c03, least);
      o = i1 * columns;
      out[o + j] = Math.max(c10, least); out[o + j1] = Math.max(c11, least);
      out[o + j2] = Math.max(c12, least); out[o + j3] = Math.max(c13, least);
      o = i2 * columns;
      out[o + j] = Math.max(c20, least); out[o + j1] = Math.max(c21, least);
      out[o + j2] = Math.max(c22, least); out[o + j3] = Math.max(c23, least);
      o = i3 * columns;
      out[o + j] = Math.max(c30, least); out[o + j1] = Math.max(c31, least);
      out[o + j2] = Math.max(c32, least); out[o + j3] = Math.max(c33, least);
    }
  }
  return out;
}

/** Convolution as a product: a row for each position holds the window under the kernel, zeros beyond the edges. */
function convolve(x, { size, stride, pad, kernel, bias, relu, maps }) {
  const height = Math.floor((x.height + 2 * pad - size) / stride) + 1;
  const width = Math.floor((x.width + 2 * pad - size) / stride) + 1;
  const depth = size * size * x.channels;
  let patches = x.values;
  if (size > 1 || stride > 1 || pad > 0) {
    patches = new Float32Array(height * width * depth);
    for (let row = 0, at = 0; row < height; row++) {
      for (let column = 0; column < width; column++) {
        for (let k = 0; k < size; k++, at += size * x.channels) {
          const y = row * stride + k - pad, left = column * stride - pad;
          if (y < 0 || y >= x.height) continue;
          const from = Math.max(left, 0), to = Math.min(left + size, x.width);
          if (from >= to) continue;
          const values = x.values.subarray((y * x.width + from) * x.channels, (y * x.width + to) * x.channels);
          patches.set(values, at + (from - left) * x.channels);
        }
      }
    }
  }
  return { height, width, channels: maps, values: product(patches, height * width, kernel, maps, depth, bias, relu) };
}

/** First and last element (exclusive) of each window along an axis of n; the last one may hang over the edge. */
function windows(n, { size, stride, start }) {
  let count = Math.max(0, Math.ceil((n - start - size) / stride)) + 1;
  if ((count - 1) * stride >= n - start) count--;
  return Array.from({ length: count }, (_, i) => {
    const first = start + i * stride;
    return [Math.max(first, 0), Math.min(first + size, n)];
  });
}

/** Largest or mean value of each window; the mean counts what lies inside the image, or with `count_zeros` all. */
function pool(x, layer) {
  const rows = windows(x.height, layer), columns = windows(x.width, layer), c = x.channels;
  const values = new Float32Array(rows.length * columns.length * c);
  let at = 0;
  for (const [top, bottom] of rows) {
    for (const [left, right] of columns) {
      const count = layer.count_zeros ? layer.size ** 2 : (bottom - top) * (right - left);
      for (let k = 0; k < c; k++) {
        let best = -Infinity, sum = 0;
        for (let y = top; y < bottom; y++) {
          for (let i = (y * x.width + left) * c + k; i < (y * x.width + right) * c; i += c) {
            best = Math.max(best, x.values[i]);
            sum += x.values[i];
          }
        }
        values[at++] = layer.op === "max" ? best : sum / count;
      }
    }
  }
  return { height: rows.length, width: columns.length, channels: c, values };
}

/** Logits and the maps of every layer, for the pixels [height, width, channels] of an image, 0 to 255. */
function forward(network, pixels) {
  const [height, width, channels] = network.shape, { scale, shift } = network;
  const values = new Float32Array(pixels.length);
  for (let i = 0; i < pixels.length; i++) {
    values[i] = pixels[i] * scale[i % scale.length] + shift[i % shift.length];
  }
  let x = { height, width, channels, values };
  const maps = network.layers.map((layer) => {
    x = layer.op === "conv" ? convolve(x, layer) : pool(x, layer);
    return { name: layer.name, ...x };
  });
  const logits = new Float64Array(x.channels), positions = x.height * x.width;
  x.values.forEach((value, i) => { logits[i % x.channels] += value; });
  return { logits: logits.map((sum) => sum / positions), maps };
}

if (typeof importScripts === "function") {
  let network;
  onmessage = ({ data }) => {
    if (data.description) {
      network = build(data.description, data.bytes);
    } else {
      const start = performance.now(), answer = forward(network, data.pixels);
      const milliseconds = performance.now() - start;
      postMessage({ ...answer, number: data.number, milliseconds }, answer.maps.map((map) => map.values.buffer));
    }
  };
}
