"use strict";
// Sorting, choices, tables that scroll, and the first drawing of every chart.

const DATA = JSON.parse(document.getElementById("data").textContent);

function sortTable(table, column, head) {
  const falling = head.getAttribute("aria-sort") === "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", falling ? "descending" : "ascending");
  const rows = [...table.tBodies[0].rows].map(row => ({ row, value: row.cells[column].dataset.value }));
  const numeric = rows.every(r => r.value === "" || Number.isFinite(Number(r.value)));
  rows.sort((a, b) => {
    if (a.value === "" || b.value === "") return (a.value === "") - (b.value === "");
    const order = numeric ? a.value - b.value : a.value.localeCompare(b.value, "en", { numeric: true });
    return falling ? -order : order;
  });
  table.tBodies[0].append(...rows.map(r => r.row));
}

for (const table of document.querySelectorAll("table.sortable"))
  [...table.tHead.rows[0].cells].forEach((head, column) =>
    head.firstElementChild.addEventListener("click", () => sortTable(table, column, head)));

for (const cases of document.querySelectorAll(".cases")) {
  const choice = cases.querySelector("select");
  choice.addEventListener("change", () =>
    [...cases.querySelectorAll(":scope > .case")].forEach((part, number) => { part.hidden = number !== +choice.value; }));
}

// Where a table goes on beyond an edge, that edge is marked.
function mark(box) {
  const edge = box.parentElement.classList;
  edge.toggle("left", box.scrollLeft > 1);
  edge.toggle("right", box.scrollLeft + box.clientWidth < box.scrollWidth - 1);
  edge.toggle("up", box.scrollTop > 1);
  edge.toggle("down", box.scrollTop + box.clientHeight < box.scrollHeight - 1);
}

const watch = new ResizeObserver(entries => {
  for (const { target } of entries) {
    if (target.matches(".scroll")) mark(target);
    else drawChart(target.parentElement, DATA[target.parentElement.dataset.chart]);
  }
});
for (const box of document.querySelectorAll(".scroll")) {
  box.addEventListener("scroll", () => mark(box), { passive: true });
  watch.observe(box);
}
for (const figure of document.querySelectorAll("figure.chart")) {
  drawChart(figure, DATA[figure.dataset.chart]);
  watch.observe(figure.querySelector(".plot"));
}
