// SPDX-License-Identifier: Apache-2.0
"use strict";
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const value = (row, column) => row.cells[column].dataset.v ?? row.cells[column].textContent;
  heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
    const isName = column === heads.length - 1;
    const was = head.getAttribute("aria-sort");
    const isDown = was ? was === "ascending" : !isName;
    const sign = isDown ? -1 : 1;
    const order = isName
      ? (a, b) => sign * value(a, column).localeCompare(value(b, column))
      : (a, b) => sign * (value(a, column) - value(b, column));
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", isDown ? "descending" : "ascending");
    body.append(...[...body.rows].sort(order));
  }));
}
const search = document.querySelector("input[type=search]");
search?.addEventListener("input", () => {
  const wanted = search.value.toLowerCase();
  for (const row of document.querySelector("table").tBodies[0].rows) {
    row.hidden = !row.lastElementChild.textContent.toLowerCase().includes(wanted);
  }
});
