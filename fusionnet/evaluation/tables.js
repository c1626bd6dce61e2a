// Tables that are wider than the window are set tighter, and where that is not enough become lists,
// one entry a row, so that nothing is cut off.

(function () {
  "use strict";
  const tables = [...document.querySelectorAll(".scroll > table")]
    .filter((table) => !table.closest(".live"));

  /** Say in each cell which column it is of. */
  function labelCells(table) {
    const head = table.querySelector("tr:has(th)");
    const labels = head ? [...head.children].map((cell) => cell.innerText.replace(/\s+/g, " ")) : [];
    for (const row of table.rows) {
      [...row.cells].forEach((cell, place) => {
        if (cell.tagName === "TD") cell.dataset.label = labels[place] || "";
      });
    }
  }

  function isCut(table) {
    return table.parentElement.scrollWidth > table.parentElement.clientWidth + 1;
  }

  function fit() {
    for (const table of tables) {
      table.classList.remove("tight", "stacked");
      if (isCut(table)) table.classList.add("tight");
      if (isCut(table)) table.classList.replace("tight", "stacked");
    }
  }

  tables.forEach(labelCells);
  let width = 0;
  window.addEventListener("resize", () => {
    if (window.innerWidth !== width) fit();
    width = window.innerWidth;
  });
  for (const details of document.querySelectorAll("details")) {
    details.addEventListener("toggle", fit); // what is closed has no width
  }
  window.addEventListener("beforeprint", () => {
    tables.forEach((table) => table.classList.remove("stacked"));
  });
  window.addEventListener("afterprint", fit);
  fit();
})();
