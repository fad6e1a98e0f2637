"use strict";
// What one sees and touches. The picture lies on `sheet`, `FACTOR` times as large as the network's image.

const $ = (id) => document.getElementById(id);
const D = JSON.parse($("description").textContent);
const [HEIGHT, WIDTH, CHANNELS] = D.shape;
const FACTOR = Math.max(1, Math.round(384 / Math.max(HEIGHT, WIDTH)));
const [sheet, paper] = newCanvas(WIDTH * FACTOR, HEIGHT * FACTOR);
const INK = CHANNELS === 1;  // drawn in white on black
const COLOURS = { black: "#111", white: "#fff", red: "#c8372d", yellow: "#e5b53c", green: "#4d8b3a", blue: "#4a86c5", brown: "#7a5230" };
const MOST_TILES = 48;
const HEAT = [[27, 12, 65], [120, 28, 109], [207, 68, 70], [251, 155, 6], [252, 255, 164]];

const state = {
  exact: null,      // pixels of a picture that has the network's size already
  truth: null,      // label of a sample
  blank: false,     // nothing but what was drawn
  picture: 0,       // counts the pictures
  answer: null,     // { logits, shares, order, maps, most }: classes in order, and what is largest in their maps
  pinned: null,     // class whose map stays over the picture; null: the most probable one
  shown: null,      // map under the pointer or the focus: { map, channel, most, text }
  layer: D.layers[0].name,
  colour: "red",
};

// ---- computing: in a worker, and one question at a time; of those that come meanwhile, the last is asked

const compute = (() => {
  const code = $("network-code").textContent;
  const text = atob($("weights").textContent), { buffer: bytes } = new Uint8Array(text.length);
  for (let i = 0, view = new Uint8Array(bytes); i < text.length; i++) view[i] = text.charCodeAt(i);
  let network = null, worker = null, busy = false, waiting = null, asked = null;
  const done = (answer) => {
    busy = false;
    if (asked === state.picture) show(answer);  // else another picture has been chosen meanwhile
    if (waiting) ask(waiting);
  };
  const here = () => {  // where there are no workers
    worker = null;
    network = build(D, bytes);
    if (busy) { busy = false; ask(waiting ?? currentPixels()); }
  };
  function ask(pixels) {
    if (busy) { waiting = pixels; return; }
    [busy, waiting, asked] = [true, null, state.picture];
    if (worker) { worker.postMessage({ pixels }); return; }
    setTimeout(() => {
      const start = performance.now(), answer = forward(network, pixels);
      done({ ...answer, milliseconds: performance.now() - start });
    });
  }
  try {
    worker = new Worker(URL.createObjectURL(new Blob([code], { type: "text/javascript" })));
    worker.onmessage = ({ data }) => done(data);
    worker.onerror = here;
    worker.postMessage({ description: D, bytes });
  } catch {
    here();
  }
  return ask;
})();

// ---- the picture

function currentPixels() {
  if (state.exact) return state.exact;
  const canvas = INK && D.ink ? normaliseInk(sheet, FACTOR, D.ink) : sheet;
  const { data } = canvas.getContext("2d").getImageData(0, 0, sheet.width, sheet.height);
  return shrink(data, WIDTH, HEIGHT, FACTOR, CHANNELS);
}

function changed() {
  state.shown = null;
  const pixels = currentPixels();
  const seen = $("seen"), context = seen.getContext("2d");
  [seen.width, seen.height] = [WIDTH, HEIGHT];
  const image = context.createImageData(WIDTH, HEIGHT);
  for (let i = 0; i < WIDTH * HEIGHT; i++) {
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = pixels[i * CHANNELS + (INK ? 0 : c)];
    image.data[4 * i + 3] = 255;
  }
  context.putImageData(image, 0, 0);
  $("icon").href = seen.toDataURL();
  compute(pixels);
  paint();
}

/** Lays a picture on the sheet: the largest part of its middle that has the sheet's shape, or all of it where the network saw all. */
function place(bitmap, truth = null) {
  const { width, height } = bitmap, zoom = Math.max(sheet.width / width, sheet.height / height);
  const fits = width === WIDTH && height === HEIGHT;
  paper.imageSmoothingEnabled = zoom < 1 || !fits;
  paper.imageSmoothingQuality = "high";
  paper.fillStyle = D.ground;  // behind what is transparent
  paper.fillRect(0, 0, sheet.width, sheet.height);
  const [w, h] = D.whole ? [sheet.width, sheet.height] : [width * zoom, height * zoom];
  paper.drawImage(bitmap, (sheet.width - w) / 2, (sheet.height - h) / 2, w, h);
  begin({ truth });
  if (fits) {
    const [, context] = newCanvas(WIDTH, HEIGHT);
    context.fillStyle = D.ground;
    context.fillRect(0, 0, WIDTH, HEIGHT);
    context.drawImage(bitmap, 0, 0);
    state.exact = shrink(context.getImageData(0, 0, WIDTH, HEIGHT).data, WIDTH, HEIGHT, 1, CHANNELS);
  }
  changed();
}

/** Another picture: nothing is known of it yet. */
function begin({ truth = null, blank = false }) {
  Object.assign(state, { truth, blank, exact: null, pinned: null, shown: null, answer: null, picture: state.picture + 1 });
  for (const button of $("samples").children) button.setAttribute("aria-pressed", "false");
  complain("");
}

async function open(file) {
  complain("");
  try {
    if (!file) throw new Error("That is no picture file. This page never goes online: save the picture, then drop the file.");
    place(await decode(file));
  } catch (error) {
    complain(error.message);
  }
}

function complain(line) {
  $("error").textContent = line;
  $("error").hidden = !line;
}

// ---- the answer

function show({ logits, maps, milliseconds }) {
  const largest = Math.max(...logits), powers = Array.from(logits, (z) => Math.exp(z - largest));
  const sum = powers.reduce((a, b) => a + b), shares = powers.map((p) => p / sum);
  const order = [...shares.keys()].sort((a, b) => logits[b] - logits[a]);
  state.answer = { logits, shares, order, maps, most: maps.at(-1).values.reduce((a, b) => Math.max(a, b)) };
  [...$("answers").children].forEach((item, i) => {
    const button = item.firstChild, [bar, name, share] = button.children, k = order[i];
    button.dataset.k = k;
    bar.style.transform = `scaleX(${shares[k]})`;
    name.textContent = D.classes[k];
    share.textContent = percent(shares[k]);
  });
  $("status").textContent = order.slice(0, 3).map((k) => `${D.classes[k]} ${percent(shares[k])}`).join(", ");
  const right = order[0] === state.truth;
  $("verdict").textContent = state.truth === null ? "" :
    `The data set says ${D.classes[state.truth]}: ${right ? "right." : "the network is wrong."}`;
  $("seen-text").textContent = `What the network gets: ${WIDTH} × ${HEIGHT} pixels${INK ? " in grey" : ""}. ` +
    `It answered in ${Math.max(1, Math.round(milliseconds))} ms on this device.`;
  const { dataset } = document.body;  // for whoever drives the page: the logits, how many answers, when the first one came
  dataset.answer = JSON.stringify(Array.from(logits));
  dataset.first ??= performance.now();
  dataset.count = 1 + Number(dataset.count ?? 0);
  tiles();
  layerTiles();
  paint();
}

/** A probability as people write it; neither 0 nor 1 while it is not. */
function percent(share) {
  if (share < 0.0005) return "< 0.1 %";
  return share > 0.9995 ? "> 99.9 %" : `${(100 * share).toFixed(1)} %`;
}

const classMaps = () => state.answer.maps.at(-1);

/** The map of a class, as `state.shown` holds it. */
function ofClass(k) {
  const map = classMaps(), { most } = state.answer;
  const rank = state.answer.order.indexOf(k) + 1;
  const text = `Where the network sees “${D.classes[k]}” (${percent(state.answer.shares[k])}). The mean of this map is the score ` +
    `of the class, ${state.answer.logits[k].toFixed(2)}: rank ${rank} of ${D.classes.length}.`;
  return { map, channel: k, most, text };
}

/** A map as a small canvas, from dark (0 or less) to bright (`most`); `clear` is the share of the opacity where it is dark. */
function heat({ map, channel, most }, opacity, clear = 0.4) {
  const [canvas, context] = newCanvas(map.width, map.height), image = context.createImageData(map.width, map.height);
  for (let i = 0; i < map.width * map.height; i++) {
    const t = most > 0 ? Math.min(1, Math.max(0, map.values[i * map.channels + channel] / most)) : 0;
    const place = t * (HEAT.length - 1), low = Math.min(HEAT.length - 2, Math.floor(place));
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = HEAT[low][c] + (place - low) * (HEAT[low + 1][c] - HEAT[low][c]);
    image.data[4 * i + 3] = 255 * opacity * (clear + (1 - clear) * t);
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

/** The picture with the map over it that is pointed at, else the pinned class's, else the most probable one's. */
function paint() {
  const canvas = $("picture"), context = canvas.getContext("2d");
  if (canvas.width !== sheet.width) [canvas.width, canvas.height] = [sheet.width, sheet.height];
  context.drawImage(sheet, 0, 0);
  if (!state.answer) return;
  const k = state.pinned ?? state.answer.order[0], shown = state.shown ?? ofClass(k);
  context.imageSmoothingQuality = "high";
  context.drawImage(heat(shown, $("strength").value / 100), 0, 0, canvas.width, canvas.height);
  $("caption").textContent = shown.text;
  canvas.setAttribute("aria-label", `The picture under a map. ${shown.text} ${where(shown)}`);
  const marked = state.shown?.map === classMaps() ? state.shown.channel : state.shown ? null : k;
  for (const button of document.querySelectorAll("[data-k]")) {
    button.setAttribute("aria-pressed", String(Number(button.dataset.k) === marked));
  }
}

/** In words, for a screen reader: where a map is largest. */
function where({ map, channel, most }) {
  let best = 0;
  for (let i = 0; i < map.width * map.height; i++) {
    if (map.values[i * map.channels + channel] > map.values[best * map.channels + channel]) best = i;
  }
  if (map.values[best * map.channels + channel] <= 0.05 * most) return "It is empty.";
  const third = (at, size, names) => names[Math.min(2, Math.floor((3 * (at + 0.5)) / size))];
  const row = third(Math.floor(best / map.width), map.height, ["top", "middle", "bottom"]);
  return `It is strongest at the ${row} ${third(best % map.width, map.width, ["left", "centre", "right"])}.`;
}

// ---- tiles: small maps that one points at

function tile(label, pick, pin) {
  const button = document.createElement("button"), [canvas] = newCanvas(96, Math.round((96 * HEIGHT) / WIDTH));
  button.type = "button";
  button.className = "tile";
  button.append(canvas);
  button.setAttribute("aria-label", label);
  pointed(button, pick);
  if (pin) button.addEventListener("click", pin);
  return button;
}

/** Shows what `pick` returns while an element is pointed at or has the focus. */
function pointed(element, pick) {
  const enter = () => { if (state.answer) { state.shown = pick(); paint(); } };
  const leave = () => { state.shown = null; paint(); };
  element.addEventListener("pointerenter", (event) => { if (event.pointerType !== "touch") enter(); });
  element.addEventListener("pointerleave", leave);
  element.addEventListener("focus", enter);
  element.addEventListener("blur", leave);
}

function fill(button, shown, clear) {
  const canvas = button.querySelector("canvas"), context = canvas.getContext("2d");
  context.drawImage(sheet, 0, 0, canvas.width, canvas.height);
  context.drawImage(heat(shown, 1, clear), 0, 0, canvas.width, canvas.height);
}

function pin(k) {
  state.pinned = k;
  state.shown = null;
  paint();
}

function tiles() {
  const box = $("classes");
  box.classList.toggle("ten", D.classes.length <= 10);
  D.classes.forEach((name, k) => {
    let button = box.children[k];
    if (!button) {
      button = tile(`Map of ${name}`, () => ofClass(k), () => pin(k));
      button.dataset.k = k;
      button.append(Object.assign(document.createElement("span"), { textContent: name }));
      box.append(button);
    }
    fill(button, ofClass(k), 0.5);
  });
}

function layerTiles() {
  const map = state.answer.maps.find(({ name }) => name === state.layer);
  const sums = new Float64Array(map.channels);
  map.values.forEach((value, i) => { sums[i % map.channels] += value; });
  const order = [...sums.keys()].sort((a, b) => sums[b] - sums[a]).slice(0, MOST_TILES);
  const box = $("channels");
  while (box.children.length > order.length) box.lastChild.remove();
  order.forEach((channel, i) => {
    let most = 0;
    for (let j = channel; j < map.values.length; j += map.channels) most = Math.max(most, map.values[j]);
    const name = `Map ${channel + 1} of ${map.channels} of ${map.name}`;
    let button = box.children[i];
    if (!button) {
      button = tile(name, () => button.shown);
      box.append(button);
    }
    button.setAttribute("aria-label", name);
    button.shown = { map, channel, most, text: `${name}: bright where the picture excites it.` };
    fill(button, button.shown, 1);
  });
  const layer = D.layers.find(({ name }) => name === state.layer), side = `${layer.size} × ${layer.size}`;
  const what = layer.op === "conv" ? `${side} convolution${layer.relu ? " with ReLU" : ""}` :
    `${layer.op === "max" ? "largest" : "mean"} value of ${side}, every ${layer.stride}`;
  const few = map.channels > MOST_TILES ? ` The ${MOST_TILES} that are strongest in this picture:` : "";
  $("layer-text").textContent = `${map.name}: ${what}; ${map.channels} maps of ${map.width} × ${map.height}.${few}`;
}
