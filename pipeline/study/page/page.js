"use strict";
// Makes every head of a column a button that sorts its table, and shows the search fields, which hide the lines without their text.
const number = (text) => parseFloat(text.replaceAll(",", ""));
const compare = (one, two) => {
  const [a, b] = [number(one), number(two)];
  if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
  return a - b;
};
const text = new Intl.Collator(undefined, { numeric: true });
const sort = (head) => {
  const body = head.closest("table").tBodies[0], numeric = head.classList.contains("n"), place = head.cellIndex;
  // numbers fall first: the best stands on top; "none" comes last either way
  const was = head.getAttribute("aria-sort"), order = was === (numeric ? "descending" : "ascending") ? (numeric ? "ascending" : "descending") : (numeric ? "descending" : "ascending");
  for (const other of head.parentElement.children) other.setAttribute("aria-sort", "none");
  head.setAttribute("aria-sort", order);
  const sign = order === "ascending" ? 1 : -1;
  const content = (line) => line.cells[place].textContent;
  const lines = [...body.rows].sort((a, b) => {
    if (!numeric) return sign * text.compare(content(a), content(b));
    const missing = Number.isNaN(number(content(a))) || Number.isNaN(number(content(b)));
    return (missing ? 1 : sign) * compare(content(a), content(b));
  });
  body.append(...lines);
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
