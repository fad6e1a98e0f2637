"use strict";
// The page of runs: asks the server for what is new every two seconds and draws it. No library, no build step.

const byId = (id) => document.getElementById(id);
const state = { runs: [], ticked: new Set(), seen: new Set(), rows: new Map(), configs: new Map(), colours: new Map() };
const COLOURS = 6;

function make(tag, attributes = {}, ...children) {
  const svg = ["svg", "path", "line", "text", "g"].includes(tag);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== null && value !== false) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

async function ask(path, options) {
  const reply = await fetch(path, options);
  const text = await reply.text();
  let content;
  try { content = JSON.parse(text); } catch { content = { error: text || reply.statusText }; }
  if (!reply.ok) throw new Error(content.error || reply.statusText);
  return content;
}

const number = (value, digits = 2) => (typeof value === "number" ? value.toFixed(digits) : "");
const percent = (value) => (typeof value === "number" ? `${value.toFixed(2)} %` : "");

function duration(seconds) {
  if (typeof seconds !== "number") return "";
  const s = Math.round(seconds), h = Math.floor(s / 3600), m = Math.floor((s % 3600) / 60);
  return h ? `${h} h ${String(m).padStart(2, "0")} min` : m ? `${m} min ${String(s % 60).padStart(2, "0")} s` : `${s} s`;
}

const evaluated = (run) => Object.keys(run.last).filter((split) => split !== "train").map((split) => run.last[split])[0] || {};
const colour = (key) => {
  if (!state.colours.has(key)) state.colours.set(key, state.colours.size % COLOURS);
  return `k${state.colours.get(key)}`;
};

function drawRuns() {
  const body = byId("runs").tBodies[0];
  const focused = document.activeElement && document.activeElement.dataset ? document.activeElement.dataset.key : null;
  body.replaceChildren(...state.runs.map((run) => {
    const box = make("input", {
      type: "checkbox", "data-key": run.key, "aria-label": `draw ${run.name}`,
      onchange: () => { box.checked ? state.ticked.add(run.key) : state.ticked.delete(run.key); refresh(); },
    });
    box.checked = state.ticked.has(run.key);
    const mark = make("span", { class: state.ticked.has(run.key) ? `swatch ${colour(run.key)}` : "swatch", "aria-hidden": "true" });
    const cell = (text) => make("td", {}, text);
    return make("tr", {}, make("td", {}, box), make("th", { scope: "row" }, mark, run.name),
      make("td", {}, make("span", { class: `state ${run.state}` }, run.state)),
      cell(`${number(run.epoch, 0)} / ${number(run.epochs, 0)}`), cell(percent((run.last.train || {}).error_pct)),
      cell(percent(evaluated(run).error_pct)), cell(run.images_per_s ? Math.round(run.images_per_s).toLocaleString("en") : ""),
      cell(duration(run.seconds_left)));
  }));
  if (focused) { const again = body.querySelector(`[data-key="${CSS.escape(focused)}"]`); if (again) again.focus(); }
  const chosen = byId("chosen");
  const keys = state.runs.map((run) => run.key).join();
  if (chosen.dataset.keys !== keys) {
    const kept = chosen.value;
    chosen.replaceChildren(...state.runs.map((run) => make("option", { value: run.key }, run.name)));
    if (state.runs.some((run) => run.key === kept)) chosen.value = kept;
    chosen.dataset.keys = keys;
  }
}

function ticks(low, high, count) {
  const raw = (high - low || 1) / count, unit = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((f) => f * unit).find((s) => s >= raw);
  const found = [];
  for (let t = Math.ceil(low / step) * step; t <= high + 1e-9 * step; t += step) found.push(Number(t.toPrecision(12)));
  return found;
}

function chart(title, field, unit) {
  const W = byId("charts").firstElementChild.clientWidth || 400, H = 260, L = 46, R = 10, T = 10, B = 30; // a unit is a pixel
  const series = [];
  for (const run of state.runs.filter((r) => state.ticked.has(r.key))) {
    const known = state.rows.get(run.key);
    const splits = new Map();
    for (const row of known ? known.rows : []) {
      if (typeof row[field] !== "number" || typeof row.epoch !== "number") continue;
      if (field === "learning_rate" && row.split !== "train") continue; // the same
      if (!splits.has(row.split)) splits.set(row.split, []);
      splits.get(row.split).push([row.epoch, row[field]]);
    }
    for (const [split, points] of splits) series.push({ run, split, points });
  }
  const figure = make("figure", {}, make("figcaption", {}, title));
  if (!series.length) { figure.append(make("p", { class: "note" }, "nothing to draw yet")); return figure; }
  const xs = series.flatMap((s) => s.points.map((p) => p[0])), ys = series.flatMap((s) => s.points.map((p) => p[1]));
  const xMax = xs.reduce((a, b) => Math.max(a, b), 1), sorted = [...ys].sort((a, b) => a - b);
  const top = sorted[Math.floor(0.99 * (sorted.length - 1))] * 1.05 || 1; // one wild epoch does not flatten the rest
  const x = (v) => L + (W - L - R) * v / xMax, y = (v) => H - B - (H - B - T) * Math.min(v, top) / top;
  const svg = make("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", tabindex: "0",
    "aria-label": `${title}: ${series.map((s) => `${s.run.name} ${s.split} ${number(s.points.at(-1)[1])}${unit} at epoch ${s.points.at(-1)[0]}`).join("; ")}` });
  for (const t of ticks(0, top, 5)) {
    svg.append(make("line", { class: "grid", x1: L, x2: W - R, y1: y(t), y2: y(t) }), make("text", { x: L - 6, y: y(t) + 4, "text-anchor": "end" }, String(t)));
  }
  for (const t of ticks(0, xMax, Math.min(6, xMax))) svg.append(make("text", { x: x(t), y: H - 10, "text-anchor": "middle" }, String(t)));
  for (const s of series) {
    const d = s.points.map((p, i) => `${i ? "L" : "M"}${x(p[0]).toFixed(1)} ${y(p[1]).toFixed(1)}`).join("");
    svg.append(make("path", { d, class: `${colour(s.run.key)} ${s.split === "train" && field !== "learning_rate" ? "train" : "test"}` }));
  }
  const cross = make("line", { class: "cross", y1: T, y2: H - B, visibility: "hidden" });
  svg.append(cross);
  const reading = make("div", { class: "reading" }, "epoch");
  let at = xMax;
  const show = (epoch) => {
    at = Math.min(Math.max(epoch, 0), xMax);
    cross.setAttribute("x1", x(at)); cross.setAttribute("x2", x(at)); cross.setAttribute("visibility", "visible");
    reading.replaceChildren(`epoch ${number(at, 0)}`, ...series.flatMap((s) => {
      const near = s.points.reduce((a, b) => (Math.abs(b[0] - at) < Math.abs(a[0] - at) ? b : a));
      return [make("span", { class: `swatch ${colour(s.run.key)}` }), `${s.split} ${number(near[1], 3)}${unit}`];
    }));
  };
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    show(xMax * ((event.clientX - box.left) / box.width * W - L) / (W - L - R));
  });
  svg.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (move) { event.preventDefault(); show(at + move * Math.max(1, Math.round(xMax / 50))); }
  });
  figure.append(svg, reading);
  return figure;
}

function drawCharts() {
  const charts = byId("charts");
  const inside = charts.contains(document.activeElement) ? [...charts.querySelectorAll("svg")].indexOf(document.activeElement) : -1;
  charts.replaceChildren(chart("Error (%)", "error_pct", " %"), chart("Loss (nats)", "loss", ""), chart("Learning rate", "learning_rate", ""));
  if (inside >= 0) { const again = charts.querySelectorAll("svg")[inside]; if (again) again.focus(); }
}

function drawDifferences() {
  const runs = state.runs.filter((run) => state.ticked.has(run.key) && state.configs.has(run.key));
  const place = byId("differences");
  if (runs.length < 2) { place.replaceChildren(make("p", { class: "note" }, "Tick two runs or more to compare them.")); return; }
  const keys = [...new Set(runs.flatMap((run) => Object.keys(state.configs.get(run.key))))].sort();
  const differing = keys.filter((key) => new Set(runs.map((run) => state.configs.get(run.key)[key])).size > 1);
  if (!differing.length) { place.replaceChildren(make("p", { class: "note" }, "Their configs are the same.")); return; }
  place.replaceChildren(make("table", {},
    make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "key"), ...runs.map((run) =>
      make("th", { scope: "col" }, make("span", { class: `swatch ${colour(run.key)}`, "aria-hidden": "true" }), run.name)))),
    make("tbody", {}, ...differing.map((key) => make("tr", {}, make("th", { scope: "row" }, key),
      ...runs.map((run) => make("td", {}, state.configs.get(run.key)[key] ?? "not set")))))));
}

let asking = null;

async function refresh() {
  if (asking) return asking;
  asking = update().finally(() => { asking = null; });
  return asking;
}

async function update() {
  try {
    state.runs = await ask("runs");
    for (const run of state.runs.filter((r) => !state.seen.has(r.key))) { // the newest runs are drawn from the start
      state.seen.add(run.key);
      if (state.ticked.size < 3) state.ticked.add(run.key);
    }
    const before = JSON.stringify([...state.ticked].map((key) => [key, (state.rows.get(key) || {}).mark]));
    await Promise.all([...state.ticked].map(async (key) => {
      const known = state.rows.get(key) || { rows: [], mark: "" };
      const news = await ask(`runs/${key}/rows?since=${encodeURIComponent(known.mark)}`);
      state.rows.set(key, { rows: news.all ? news.rows : known.rows.concat(news.rows), mark: news.mark });
      if (!state.configs.has(key)) state.configs.set(key, await ask(`runs/${key}/config`));
    }));
    const after = JSON.stringify([...state.ticked].map((key) => [key, state.rows.get(key).mark]));
    drawRuns();
    if (before !== after || drawn !== after) { drawn = after; drawCharts(); drawDifferences(); }
    const training = state.runs.filter((run) => run.state === "training").length;
    say(state.runs.length ? `${state.runs.length} runs, ${training} training` : "no runs here yet");
  } catch (error) {
    say(`the server does not answer (${error.message})`);
  }
}

let drawn = "";
function say(line) { if (byId("status").textContent !== line) byId("status").textContent = line; } // a screen reader hears changes only

function layered(image, evidence, alt) {
  return make("span", { class: "picture" }, make("img", { src: image, alt }), evidence ? make("img", { src: evidence, alt: "" }) : null);
}

async function look(file) {
  const place = byId("answer"), key = byId("chosen").value;
  if (!file || !key) return;
  if (file.size > 20 * 2 ** 20) { place.replaceChildren(make("p", { class: "error" }, "This file is larger than 20 MiB.")); return; }
  place.replaceChildren(make("p", { class: "note" }, "computing"));
  try {
    const type = file.type.startsWith("image/") ? file.type : "image/unknown";
    const found = await ask(`runs/${key}/answer`, { method: "POST", headers: { "Content-Type": type }, body: file });
    const shown = make("div", { class: "answer" });
    const show = (guess, button) => {
      shown.querySelector(".picture").replaceWith(layered(found.image, guess.evidence, `your picture, with the evidence for ${guess.name}`));
      for (const other of shown.querySelectorAll("button")) other.setAttribute("aria-pressed", other === button);
    };
    shown.append(layered(found.image, null, "your picture"), make("ul", { class: "bars" }, ...found.top.map((guess) => {
      const button = make("button", { type: "button", "aria-pressed": "false", onclick: () => show(guess, button),
        onpointerenter: () => show(guess, button), onfocus: () => show(guess, button) },
        make("span", {}, guess.name), make("span", { class: "share" }, ` ${(100 * guess.probability).toFixed(1)} %`),
        make("meter", { min: 0, max: 1, value: guess.probability, "aria-label": `probability of ${guess.name}` }));
      return make("li", {}, button);
    })));
    place.replaceChildren(shown);
    show(found.top[0], shown.querySelector("button"));
  } catch (error) {
    place.replaceChildren(make("p", { class: "error" }, error.message));
  }
}

function confusion(classes, counts) {
  const most = Math.max(1, ...counts.flatMap((row, i) => row.filter((_, j) => i !== j)));
  const head = make("tr", {}, make("th", {}, "true \\ predicted"), ...classes.map((name) => make("th", { scope: "col" }, name)));
  return make("table", { class: "confusion" }, make("caption", { class: "hidden" }, "Images by true class and by predicted class"),
    make("thead", {}, head), make("tbody", {}, ...counts.map((row, i) => make("tr", {}, make("th", { scope: "row" }, classes[i]),
      ...row.map((count, j) => {
        const cell = make("td", { class: i === j ? "right" : null }, count ? String(count) : "·");
        if (i !== j && count) cell.style.background = `rgb(213 94 0 / ${0.08 + 0.5 * count / most})`;
        return cell;
      })))));
}

async function evaluate() {
  const place = byId("report"), key = byId("chosen").value, button = byId("evaluate");
  if (!key) return;
  button.disabled = true;
  place.replaceChildren(make("p", { class: "note" }, "evaluating: this takes from seconds to a minute"));
  try {
    const found = await ask(`runs/${key}/report`);
    place.replaceChildren(
      make("h3", {}, `Step ${found.step}: error ${found.error_pct.toFixed(2)} % of ${found.examples} images of ${found.split}`),
      ...(found.confusion ? [make("h3", {}, "Confusion"), make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "confusion matrix" }, confusion(found.classes, found.confusion))] : []),
      make("h3", {}, "Worst mistakes"),
      make("p", { class: "note" }, "On the left the evidence for the predicted class, on the right that for the true one."),
      make("div", { class: "mistakes" }, ...found.mistakes.map((m) => make("figure", {},
        layered(m.image, m.evidence[m.named], `evidence for ${m.named}`), layered(m.image, m.evidence[m.label], `evidence for ${m.label}`),
        make("figcaption", {}, `predicted ${m.named} (${(100 * m.probability).toFixed(0)} %), true ${m.label}`)))),
      ...(found.filters.length ? [make("h3", {}, "Filters of the first layer"), make("div", { class: "filters" }, ...found.filters.map((src) => make("img", { src, alt: "" })))] : []));
  } catch (error) {
    place.replaceChildren(make("p", { class: "error" }, error.message));
  } finally {
    button.disabled = false;
  }
}

byId("evaluate").addEventListener("click", evaluate);
byId("picture").addEventListener("change", (event) => look(event.target.files[0]));
byId("chosen").addEventListener("change", () => { byId("answer").replaceChildren(); byId("report").replaceChildren(); });
document.addEventListener("dragover", (event) => { event.preventDefault(); byId("drop").classList.add("over"); });
document.addEventListener("dragleave", () => byId("drop").classList.remove("over"));
document.addEventListener("drop", (event) => { event.preventDefault(); byId("drop").classList.remove("over"); look(event.dataTransfer.files[0]); });
document.addEventListener("paste", (event) => look([...event.clipboardData.files][0]));

addEventListener("resize", drawCharts);

async function live() {
  if (!document.hidden) await refresh();
  setTimeout(live, 2000);
}
live();
