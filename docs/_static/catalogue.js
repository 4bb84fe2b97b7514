// Filters and sorts the table of the catalogue. Without JavaScript the table is complete, in the order of names.
"use strict";

// Columns by their heading, and how each is filtered: by a choice among its values, or not at all.
const CHOICES = ["kind", "family", "causal", "streams", "grid", "properties"];

function enhance(table) {
  const heads = [...table.querySelectorAll("thead th")];
  const body = table.querySelector("tbody");
  const columns = heads.map((head) => head.textContent.trim());
  const rows = [...body.rows].map((row) => {
    const cells = [...row.cells].map((cell) => cell.textContent.trim());
    return { row, cells, text: cells.join(" ").toLowerCase() };
  });
  const valuesOf = (row, column) => row.cells[columns.indexOf(column)].split(", ").filter(Boolean);

  const form = document.createElement("form");
  form.className = "catalogue-filter";
  form.setAttribute("role", "search");
  form.addEventListener("submit", (event) => event.preventDefault());
  const labelled = (words, control) => {
    const label = document.createElement("label");
    label.append(words, control);
    form.append(label);
    control.addEventListener("input", show);
    return control;
  };
  const find = document.createElement("input");
  find.type = "search";
  find.placeholder = "any word";
  labelled("find", find);
  const choices = CHOICES.map((column) => {
    const select = document.createElement("select");
    select.name = column;
    const values = [...new Set(rows.flatMap((row) => valuesOf(row, column)))].sort();
    for (const value of ["", ...values]) select.add(new Option(value || "all", value));
    return [column, labelled(column, select)];
  });
  const count = document.createElement("output");
  form.append(count);

  function show() {
    const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    let visible = 0;
    for (const row of rows) {
      const fits =
        words.every((word) => row.text.includes(word)) &&
        choices.every(([column, select]) => !select.value || valuesOf(row, column).includes(select.value));
      row.row.hidden = !fits;
      visible += fits;
    }
    count.textContent = `${visible} of ${rows.length}`;
  }

  function sortBy(index) {
    const head = heads[index];
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const order = (a, b) => a.cells[index].localeCompare(b.cells[index], "en", { numeric: true });
    rows.sort((a, b) => (down ? order(b, a) : order(a, b)));
    body.append(...rows.map((row) => row.row));
  }

  heads.forEach((head, index) => {
    const button = document.createElement("button");
    button.type = "button";
    button.title = `sort by ${columns[index]}`;
    button.textContent = columns[index];
    button.addEventListener("click", () => sortBy(index));
    head.replaceChildren(button);
  });
  (table.closest(".pst-scrollable-table-container") || table).before(form);
  show();
}

document.querySelectorAll("table.catalogue").forEach(enhance);
