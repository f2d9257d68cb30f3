"use strict";
// Makes every head of a column a button that sorts its table, and shows the search fields, which hide the lines without their text.
const number = (text) => parseFloat(text.replaceAll(",", ""));
const names = new Intl.Collator(undefined, { numeric: true });
const sort = (head) => {
  const body = head.closest("table").tBodies[0], numeric = head.classList.contains("n");
  const [first, second] = numeric ? ["descending", "ascending"] : ["ascending", "descending"]; // of numbers the best on top
  const order = head.getAttribute("aria-sort") === first ? second : first;
  for (const other of head.parentElement.children) other.setAttribute("aria-sort", "none");
  head.setAttribute("aria-sort", order);
  const sign = order === "ascending" ? 1 : -1;
  const text = (line) => line.cells[head.cellIndex].textContent;
  const compare = (one, two) => {
    if (!numeric) return sign * names.compare(text(one), text(two));
    const [a, b] = [number(text(one)), number(text(two))];
    if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b); // what is missing stays below
    return sign * (a - b);
  };
  body.append(...[...body.rows].sort(compare));
};
for (const head of document.querySelectorAll("thead th")) {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...head.childNodes);
  button.addEventListener("click", () => sort(head));
  head.setAttribute("aria-sort", "none");
  head.append(button);
}
for (const field of document.querySelectorAll("input[data-table]")) {
  field.closest("p").hidden = false;
  field.addEventListener("input", () => {
    const lines = [...document.getElementById(field.dataset.table).tBodies[0].rows], wanted = field.value.toLowerCase();
    for (const line of lines) line.hidden = !line.textContent.toLowerCase().includes(wanted);
    field.closest("p").querySelector("output").textContent = `${lines.filter((line) => !line.hidden).length} of ${lines.length} lines`;
  });
}
// a link into what is folded opens it
const unfold = () => document.getElementById(decodeURIComponent(location.hash.slice(1)))?.closest("details")?.setAttribute("open", "");
addEventListener("hashchange", unfold);
unfold();
