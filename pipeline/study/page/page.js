"use strict";
// Sorts a table by the column whose button is pressed, and hides the lines that lack the text of the search field.
const number = (text) => (/^[+-]?[\d,.]+$/.test(text) ? Number(text.replaceAll(",", "")) : NaN);
const compare = (one, two) => {
  const [a, b] = [number(one), number(two)];
  if (Number.isNaN(a) && Number.isNaN(b)) return one.localeCompare(two);
  return Number.isNaN(a) ? 1 : Number.isNaN(b) ? -1 : a - b;
};
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.parentElement, body = head.closest("table").tBodies[0];
    const falling = head.getAttribute("aria-sort") === "ascending";
    for (const other of head.parentElement.children) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", falling ? "descending" : "ascending");
    const lines = [...body.rows].sort((a, b) => compare(a.cells[head.cellIndex].textContent, b.cells[head.cellIndex].textContent));
    body.append(...(falling ? lines.reverse() : lines));
  });
}
for (const field of document.querySelectorAll("input[data-table]")) {
  field.addEventListener("input", () => {
    const lines = [...document.getElementById(field.dataset.table).tBodies[0].rows];
    for (const line of lines) line.hidden = !line.textContent.toLowerCase().includes(field.value.toLowerCase());
    field.closest("p").querySelector("output").textContent = `${lines.filter((line) => !line.hidden).length} of ${lines.length} lines`;
  });
}
