"use strict";
// Charts as inline SVG, redrawn to the width they are given. A spec: {type: "lines" | "points", x, y, series}.

// Every chart has a legend with one: so the page holds no address at all.
const SVG = document.querySelector("svg")?.namespaceURI;

function svg(name, attributes, parent, text) {
  const node = document.createElementNS(SVG, name);
  for (const key in attributes) node.setAttribute(key, attributes[key]);
  if (text !== undefined) node.textContent = text;
  if (parent) parent.append(node);
  return node;
}

function ticks(low, high, count) {
  const raw = (high - low) / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map(m => m * power).find(s => s >= raw * 0.999);
  const found = [];
  for (let v = Math.ceil(low / step - 1e-9) * step; v <= high + step * 1e-9; v += step) found.push(v);
  return { found, digits: Math.max(0, -Math.floor(Math.log10(step) + 1e-9)) };
}

function range(values, zero) {
  let low = Math.min(...values), high = Math.max(...values);
  if (zero) { low = Math.min(0, low); high = Math.max(0, high); }
  if (low === high) { low -= Math.abs(low) * 0.1 || 1; high += Math.abs(high) * 0.1 || 1; }
  const pad = (high - low) * 0.06;
  return [zero && low === 0 ? 0 : low - pad, zero && high === 0 ? 0 : high + pad];
}

function overlap(a, b) {
  return a.x < b.x + b.width && b.x < a.x + a.width && a.y < b.y + b.height && b.y < a.y + a.height;
}

// Axes with the ticks that have room; `box` gets the left edge that the widest number leaves.
function axes(root, spec, box, xr, yr) {
  const y = v => box.bottom - (v - yr[0]) / (yr[1] - yr[0]) * (box.bottom - box.top);
  const ys = ticks(...yr, 5);
  const numbers = ys.found.map(v => svg("text", { y: y(v) + 4, "text-anchor": "end", class: "quiet" }, root, v.toFixed(ys.digits)));
  box.left = Math.max(...numbers.map(n => n.getBBox().width), 12) + 16;
  for (const number of numbers) number.setAttribute("x", box.left - 6);
  for (const v of ys.found) svg("line", { x1: box.left, x2: box.right, y1: y(v), y2: y(v), class: "grid" }, root);
  const x = v => box.left + (v - xr[0]) / (xr[1] - xr[0]) * (box.right - box.left);
  const xs = ticks(...xr, Math.max(2, Math.floor((box.right - box.left) / 70)));
  let end = -Infinity;
  for (const v of xs.found) {
    svg("line", { x1: x(v), x2: x(v), y1: box.top, y2: box.bottom, class: "grid" }, root);
    const number = svg("text", { x: x(v), y: box.bottom + 16, "text-anchor": "middle", class: "quiet" }, root, v.toFixed(xs.digits));
    const room = number.getBBox();
    if (room.x < end + 8 || room.x + room.width > box.right + 16) number.remove();
    else end = room.x + room.width;
  }
  svg("text", { x: (box.left + box.right) / 2, y: box.bottom + 36, "text-anchor": "middle" }, root, spec.x.label);
  svg("text", { x: 10, y: 18 }, root, spec.y.label);
  return { x, y };
}

// A name at the first free place beside its point, never over an edge. Where there is none it stays out: the point's
// title has it.
function label(root, text, x, y, taken, box) {
  const node = svg("text", { class: "label" }, root, text), { width } = node.getBBox();
  for (const [dx, dy] of [[10, 4], [-10 - width, 4], [-width / 2, -11], [-width / 2, 20], [8, -11], [8, 20], [-8 - width, -11], [-8 - width, 20]]) {
    node.setAttribute("x", Math.max(box.left + 2, Math.min(x + dx, box.right - width - 2)));
    node.setAttribute("y", y + dy);
    const room = node.getBBox();
    const inside = room.x > box.left && room.y > box.top && room.y + room.height < box.bottom;
    if (inside && !taken.some(other => overlap(room, other))) { taken.push(room); return; }
  }
  node.remove();
}

function drawChart(figure, spec) {
  const holder = figure.querySelector(".plot"), width = Math.floor(holder.clientWidth) - 2;
  if (width < 1 || figure.drawn === width) return;
  figure.drawn = width;
  const points = spec.series.flatMap(s => s.points), height = 28 + Math.min(320, 150 + width * 0.22);
  const root = svg("svg", { role: "img", "aria-label": figure.dataset.alt, viewBox: `0 0 ${width} ${Math.ceil(height)}` });
  holder.replaceChildren(root); // Before anything is drawn: only what is on the page can be measured.
  const box = { right: width - 18, top: 28, bottom: height - 46 };
  let xr = range(points.map(p => p[0]));
  if (spec.type === "lines") xr = [Math.min(...points.map(p => p[0])), Math.max(...points.map(p => p[0]))];
  if (xr[0] === xr[1]) xr = [xr[0] - 1, xr[1] + 1];
  const yr = range(points.flatMap(p => p[3] == null ? [p[1]] : [p[1], p[3], p[4]]), spec.y.zero);
  const { x, y } = axes(root, spec, box, xr, yr), names = [], taken = [];
  for (const one of spec.series) {
    const group = svg("g", { class: "s" + one.colour }, root);
    if (spec.type === "lines") {
      svg("polyline", { points: one.points.map(p => x(p[0]).toFixed(1) + "," + y(p[1]).toFixed(1)).join(" "), class: "stroke" }, group);
      continue;
    }
    for (const [px, py, name, low, high] of one.points) {
      if (low != null) svg("line", { x1: x(px), x2: x(px), y1: y(low), y2: y(high), class: "stroke" }, group);
      const dot = svg("circle", { cx: x(px), cy: y(py), r: 5, class: one.hollow ? "hollow" : "fill" }, group);
      svg("title", {}, dot, `${name}: ${+px.toPrecision(4)}, ${+py.toPrecision(4)}`);
      taken.push({ x: x(px) - 7, y: y(py) - 7, width: 14, height: 14 });
      if (!one.quiet) names.push([name, x(px), y(py)]);
    }
  }
  for (const [name, px, py] of names) label(root, name, px, py, taken, box);
  const cursor = svg("line", { y1: box.top, y2: box.bottom, class: "cursor", visibility: "hidden" }, root);
  figure.mark = v => {
    for (const key of ["x1", "x2"]) cursor.setAttribute(key, x(v));
    cursor.setAttribute("visibility", "visible");
  };
  if (figure.marked !== undefined) figure.mark(figure.marked);
}
