"use strict";
// Plays a trace: frames with masks and windows, stock and sparse side by side.

const COLOURS = [[255, 138, 76], [90, 170, 255], [130, 210, 90], [230, 110, 220], [250, 210, 70], [90, 220, 210]];

function make(name, attributes, parent, text) {
  const node = document.createElement(name);
  for (const key in attributes) node.setAttribute(key, attributes[key]);
  if (text !== undefined) node.textContent = text;
  if (parent) parent.append(node);
  return node;
}

class Player {
  constructor(root, trace, key) {
    Object.assign(this, { root, trace, key, at: 0, timer: null, images: [] });
    this.arms = ["dense", "sparse"].filter(arm => trace.frames.some(f => f.ms?.[arm] != null ||
      Object.values(f.masks).some(m => m[arm])));
    if (!this.arms.length) this.arms = ["sparse"];
    const views = make("div", { class: "views" }, root), [height, width] = trace.size;
    views.classList.toggle("wide", width > 1.3 * height);
    this.views = this.arms.map(arm => this.view(views, arm));
    this.controls();
    this.legend();
    this.read = make("output", { "aria-live": "polite" }, root);
    if (trace.images.some(Boolean)) this.wait();
    // The first frame on which something was skipped says more than the first one, which is always whole.
    const all = trace.grid ? trace.grid[0] * trace.grid[1] : 0;
    this.show(Math.max(0, trace.frames.findIndex(frame => frame.windows && frame.windows.length < all)));
  }

  // Loading begins when the player comes into sight, and nothing plays before every picture is decoded: a slow device
  // waits here, not between frames.
  wait() {
    this.loading = make("p", { class: "loading", role: "status" }, this.views[0].canvas.parentElement, "Loading frames");
    for (const part of this.bar.querySelectorAll("button, input")) part.disabled = true;
    const seen = new IntersectionObserver(entries => {
      if (!entries.some(entry => entry.isIntersecting)) return;
      seen.disconnect();
      this.load();
    }, { rootMargin: "50%" });
    seen.observe(this.root);
  }

  async load() {
    const sources = this.trace.images;
    for (const [index, source] of sources.entries()) {
      if (!source) continue;
      const image = new Image();
      image.src = source;
      await image.decode().catch(() => {});
      if (!image.naturalWidth) continue;
      this.images[index] = image;
      this.loading.textContent = `Loading frames: ${index + 1} of ${sources.length}`;
      if (index === this.at) this.show(index);
    }
    this.loading.remove();
    this.loading = null;
    for (const part of this.bar.querySelectorAll("button, input")) part.disabled = false;
    this.show(this.at);
  }

  view(parent, arm) {
    const figure = make("figure", {}, parent);
    make("figcaption", {}, figure, arm === "dense" ? "stock" : "sparse");
    const stage = make("div", { class: "stage" }, figure);
    const canvas = make("canvas", { role: "img", width: this.trace.size[1], height: this.trace.size[0] }, stage);
    const meters = make("div", { class: "meters" }, figure), found = {};
    for (const [name, text] of [["windows", "windows computed"], ["keys", "memory keys read"]]) {
      const id = `${this.key}-${arm}-${name}`;
      make("label", { for: id }, meters, text);
      const share = make("span", {}, meters);
      found[name] = [make("meter", { id, min: 0, max: 1, value: 1 }, meters), share];
    }
    return { arm, canvas, meters: found };
  }

  // Marks are explained while they are drawn.
  legend() {
    const list = make("ul", { class: "legend" }, this.root), sparse = this.arms.includes("sparse");
    this.marks = [];
    const add = (what, text, colour) => {
      const item = make("li", {}, list), swatch = make("i", { class: "swatch " + what }, item);
      if (colour) swatch.style.background = `rgb(${colour})`;
      item.append(text);
      this.marks.push([what, item]);
    };
    this.trace.objects.forEach((name, number) => add("masks", "object " + name, COLOURS[number % COLOURS.length]));
    if (sparse && this.trace.grid) add("windows", "window not computed: its last output is used again");
    if (sparse && this.trace.tokens) add("memory", "token of this frame that memory keeps");
  }

  controls() {
    const bar = this.bar = make("div", { class: "controls" }, this.root);
    const button = (label, text, action) => {
      const made = make("button", { type: "button", "aria-label": label, title: label }, bar, text);
      made.addEventListener("click", action);
      return made;
    };
    button("Previous frame", "‹", () => this.step(-1));
    this.play = button("Play", "Play", () => this.toggle());
    button("Next frame", "›", () => this.step(1));
    this.slide = make("input", { "aria-label": "Frame", type: "range", min: 0, max: this.trace.frames.length - 1, value: 0 }, bar);
    this.slide.addEventListener("input", () => this.show(+this.slide.value));
    for (const what of this.trace.tokens ? ["masks", "windows", "memory"] : ["masks", "windows"]) {
      const label = make("label", {}, bar);
      this[what] = make("input", { type: "checkbox" }, label);
      this[what].checked = what !== "memory";
      label.append(" " + (what === "memory" ? "kept tokens" : what));
      this[what].addEventListener("change", () => this.show(this.at));
    }
  }

  step(by) { this.show((this.at + by + this.trace.frames.length) % this.trace.frames.length); }

  toggle() {
    const next = () => { this.timer = setTimeout(next, 1000 / Math.min(30, this.trace.fps || 8)); this.step(1); };
    if (this.timer) { clearTimeout(this.timer); this.timer = null; }
    else next();
    const label = this.timer ? "Pause" : "Play";
    this.play.textContent = label;
    this.play.setAttribute("aria-label", label);
    this.play.title = label;
    this.read.setAttribute("aria-live", this.timer ? "off" : "polite");
  }

  show(index) {
    this.at = index;
    const frame = this.trace.frames[index], image = this.images[index];
    this.slide.value = index;
    for (const [what, item] of this.marks) item.hidden = !this[what].checked;
    const grid = this.trace.grid, all = grid ? grid[0] * grid[1] : null;
    const kept = frame.windows ? frame.windows.length : all;
    for (const view of this.views) {
      this.draw(view, frame, image);
      const sparse = view.arm === "sparse";
      const windows = sparse && all ? kept / all : 1, keys = sparse && frame.keys_kept != null ? frame.keys_kept : 1;
      for (const [name, value] of [["windows", windows], ["keys", keys]]) {
        view.meters[name][0].value = value;
        view.meters[name][1].textContent = Math.round(100 * value) + "%";
      }
    }
    const ms = this.arms.filter(arm => frame.ms?.[arm] != null).map(arm => `${arm === "dense" ? "stock" : arm} ${frame.ms[arm].toFixed(1)} ms`);
    const sparse = this.arms.includes("sparse");
    this.read.textContent = [`Frame ${index + 1} of ${this.trace.frames.length} (${frame.name})`,
      this.trace.images.length && !image && !this.loading ? "no picture of it" : null,
      sparse && all ? `${kept} of ${all} windows` : null, frame.dense_reason ? `whole frame: ${frame.dense_reason}` : null,
      frame.widened_reason ? `more windows: ${frame.widened_reason}` : null,
      frame.restored_reason ? `all memory: ${frame.restored_reason}` : null,
      frame.keys_kept != null ? `${Math.round(100 * frame.keys_kept)}% of memory keys` : null,
      this.trace.tokens && frame.tokens_kept ? `${frame.tokens_kept.length} of ${this.trace.tokens[0] * this.trace.tokens[1]} tokens kept` : null,
      ...ms].filter(Boolean).join(" · ");
    for (const figure of document.querySelectorAll(`[data-follow="${this.key}"]`)) {
      figure.marked = frame.index;
      if (figure.mark) figure.mark(frame.index);
    }
  }

  draw(view, frame, image) {
    const pen = view.canvas.getContext("2d"), [height, width] = this.trace.size;
    pen.clearRect(0, 0, width, height);
    if (image) pen.drawImage(image, 0, 0, width, height);
    if (this.windows.checked && view.arm === "sparse" && this.trace.grid) this.drawWindows(pen, frame);
    if (this.masks.checked) this.drawMasks(pen, view.arm, frame);
    if (this.trace.tokens && this.memory.checked && view.arm === "sparse" && frame.tokens_kept) this.drawTokens(pen, frame.tokens_kept);
    view.canvas.setAttribute("aria-label", `${view.arm === "dense" ? "Stock" : "Sparse"}, frame ${frame.name}: ` +
      `${Object.keys(frame.masks).length} objects`);
  }

  drawWindows(pen, frame) {
    const [rows, columns] = this.trace.grid, cover = this.trace.cover || 1, [height, width] = this.trace.size;
    const w = width * cover / columns, h = height * cover / rows, kept = new Set(frame.windows || [...Array(rows * columns).keys()]);
    pen.fillStyle = "rgba(8, 12, 16, 0.62)";
    pen.strokeStyle = "rgba(255, 255, 255, 0.35)";
    pen.lineWidth = Math.max(1, width / 500);
    for (let id = 0; id < rows * columns; id++) {
      const x = id % columns * w, y = Math.floor(id / columns) * h;
      if (!kept.has(id)) pen.fillRect(x, y, w, h);
      pen.strokeRect(x, y, w, h);
    }
  }

  drawTokens(pen, tokens) {
    const [rows, columns] = this.trace.tokens, [height, width] = this.trace.size;
    const w = width / columns, h = height / rows, side = Math.max(2, Math.min(w, h) / 3);
    for (const id of tokens) {
      const x = (id % columns + 0.5) * w - side / 2, y = (Math.floor(id / columns) + 0.5) * h - side / 2;
      pen.fillStyle = "rgba(0, 0, 0, 0.75)";
      pen.fillRect(x - 1, y - 1, side + 2, side + 2);
      pen.fillStyle = "rgb(255, 255, 255)";
      pen.fillRect(x, y, side, side);
    }
  }

  drawMasks(pen, arm, frame) {
    const [height, width] = this.trace.size;
    const layer = this.layer ??= make("canvas", { width, height }), inner = layer.getContext("2d");
    const picture = inner.createImageData(width, height);
    this.trace.objects.forEach((name, number) => {
      const runs = frame.masks[name]?.[arm], colour = COLOURS[number % COLOURS.length];
      if (!runs) return;
      const inside = new Uint8Array(width * height);
      let from = 0;
      runs.forEach((length, place) => { inside.fill(place % 2, from, from + length); from += length; });
      for (let p = inside.indexOf(1); p >= 0; p = inside.indexOf(1, p + 1)) {
        const edge = !inside[p - 1] || !inside[p + 1] || !inside[p - width] || !inside[p + width];
        picture.data.set(colour, 4 * p);
        picture.data[4 * p + 3] = edge ? 255 : 130;
      }
    });
    inner.putImageData(picture, 0, 0);
    pen.drawImage(layer, 0, 0);
  }
}

for (const root of document.querySelectorAll(".player")) new Player(root, DATA[root.dataset.player], root.dataset.player);
