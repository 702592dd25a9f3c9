"use strict";
// Tables sort by the column whose heading is pressed; without this script they stand in their own order.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = Array.from(table.tHead.rows[0].cells);
  const key = (row, column) => {
    const cell = row.cells[column];
    const number = cell.dataset.sort;
    return number === undefined ? cell.textContent.trim().toLowerCase() : Number(number);
  };
  const compare = (left, right) =>
    typeof left === "number" && typeof right === "number"
      ? (left > right) - (left < right)
      : String(left).localeCompare(String(right), "en", { numeric: true });
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = Array.from(body.rows);
      const absent = (value) => value === Infinity;
      rows.sort((first, second) => {
        const left = key(first, column);
        const right = key(second, column);
        // What was not measured stays at the end, whichever way the rest is sorted.
        if (absent(left) || absent(right)) return absent(left) - absent(right);
        return down ? compare(right, left) : compare(left, right);
      });
      body.append(...rows);
    });
  });
}
