"use strict";
// Hands on the page: files, pasting, dropping, drawing, buttons. Starts with the first sample, or a blank sheet.

function drawing() {
  return $("draw").getAttribute("aria-pressed") === "true";
}

function setDrawing(on) {
  $("draw").setAttribute("aria-pressed", String(on));
  $("colours").hidden = INK || !on;
  $("picture").classList.toggle("drawing", on);
  $("picture").tabIndex = on ? 0 : -1;
  $("hint").textContent = on ?
    "Draw with the pointer or a finger. With the keyboard: arrows move the pen, Space puts it down or lifts it." :
    "Or drop a picture anywhere, or paste one. The network gets its central square.";
}

function clearSheet() {
  paper.fillStyle = INK ? "#000" : "#e8e6e1";
  paper.fillRect(0, 0, sheet.width, sheet.height);
  begin({ blank: true });
}

/** A stroke of the brush. What is drawn on a sample makes it another picture, whose label is not known. */
function stroke(from, to) {
  if (INK && !state.blank) clearSheet();
  Object.assign(state, { exact: null, truth: null });
  paper.strokeStyle = INK ? "#fff" : COLOURS[state.colour];
  paper.lineWidth = sheet.width / (INK ? 12 : 14);
  paper.lineCap = paper.lineJoin = "round";
  paper.beginPath();
  paper.moveTo(...from);
  paper.lineTo(...to);
  paper.stroke();
  if (!stroke.frame) stroke.frame = requestAnimationFrame(() => { stroke.frame = 0; changed(); });
}

function listenToPen() {
  const canvas = $("picture");
  let last = null;
  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * sheet.width, ((event.clientY - box.top) / box.height) * sheet.height];
  };
  canvas.addEventListener("pointerdown", (event) => {
    if (!drawing() || event.button) return;
    canvas.setPointerCapture(event.pointerId);
    last = at(event);
    stroke(last, last);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!last) return;
    const to = at(event);
    stroke(last, to);
    last = to;
  });
  for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => { last = null; });

  let pen = [sheet.width / 2, sheet.height / 2], down = false;
  canvas.addEventListener("keydown", (event) => {
    if (!drawing()) return;
    const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!move && event.key !== " ") return;
    event.preventDefault();
    const to = pen.map((value, i) => {
      const size = [sheet.width, sheet.height][i];
      return Math.min(size, Math.max(0, value + (move ? (move[i] * size) / 24 : 0)));
    });
    if (!move) down = !down;
    if (down) stroke(pen, to);
    pen = to;
    paint();
    const context = canvas.getContext("2d");  // where the pen is
    context.strokeStyle = down ? "#ff7a1a" : "#3aa0ff";
    context.lineWidth = 4;
    context.strokeRect(pen[0] - 8, pen[1] - 8, 16, 16);
  });
}

function listenToFiles() {
  $("file").addEventListener("change", ({ target }) => {
    if (target.files.length) open(target.files[0]);
    target.value = "";  // so that the same file can be chosen again
  });
  let depth = 0;
  const drag = (by) => {
    depth = by ? Math.max(0, depth + by) : 0;
    document.body.classList.toggle("dragging", depth > 0);
  };
  addEventListener("dragenter", (event) => { event.preventDefault(); drag(1); });
  addEventListener("dragleave", () => drag(-1));
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    drag(0);
    open(event.dataTransfer.files[0]);
  });
  addEventListener("paste", (event) => {
    const file = event.clipboardData.files[0];
    if (file) open(file);
    else complain("There is no picture on the clipboard.");
  });
}

function makeSamples() {
  $("samples-section").hidden = !D.samples.length;
  for (const { image, label } of D.samples) {
    const button = document.createElement("button"), picture = new Image();
    button.type = "button";
    button.className = "sample";
    picture.src = image;
    picture.alt = D.classes[label];
    button.title = D.classes[label];
    button.append(picture);
    button.addEventListener("click", async () => {
      await picture.decode();
      place(await createImageBitmap(picture), label);
      button.setAttribute("aria-pressed", "true");
    });
    $("samples").append(button);
  }
}

function makeButtons() {
  for (let i = 0; i < Math.min(5, D.classes.length); i++) {
    const item = document.createElement("li"), button = document.createElement("button");
    button.type = "button";
    button.className = "answer";
    for (const name of ["bar", "name", "share"]) button.append(Object.assign(document.createElement("span"), { className: name }));
    pointed(button, () => ofClass(Number(button.dataset.k)));
    button.addEventListener("click", () => pin(Number(button.dataset.k)));
    item.append(button);
    $("answers").append(item);
  }
  for (const { name } of D.layers) {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: name });
    button.addEventListener("click", () => {
      state.layer = name;
      for (const other of $("layers").children) other.setAttribute("aria-pressed", String(other === button));
      if (state.answer) layerTiles();
    });
    button.setAttribute("aria-pressed", String(name === state.layer));
    $("layers").append(button);
  }
  for (const [name, value] of Object.entries(COLOURS)) {
    const button = Object.assign(document.createElement("button"), { type: "button", title: name });
    button.setAttribute("aria-label", name);
    button.setAttribute("aria-pressed", String(name === state.colour));
    button.style.background = value;
    button.addEventListener("click", () => {
      state.colour = name;
      for (const other of $("colours").children) other.setAttribute("aria-pressed", String(other === button));
    });
    $("colours").append(button);
  }
  $("draw").addEventListener("click", () => setDrawing(!drawing()));
  $("clear").addEventListener("click", () => { clearSheet(); setDrawing(true); changed(); });
  $("strength").addEventListener("input", paint);
}

$("subject").textContent = D.subject;
$("about").textContent = D.about;
$("seen").setAttribute("aria-label", "The network's image");
makeButtons();
makeSamples();
listenToFiles();
listenToPen();
setDrawing(INK);
if (D.samples.length) {
  $("samples").firstChild.click();
} else {
  clearSheet();
  changed();
}
