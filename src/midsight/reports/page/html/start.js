function fill(select, options, chosen) {
  select.replaceChildren(...options.map(([value, name]) => {
    const option = make("option", "", name);
    option.value = value;
    option.selected = value === chosen;
    return option;
  }));
}

function groupedColumns() {
  const keys = ["label", "answer", "risk", "confidence"].filter((key) => columns.has(key));
  return [...keys, ...data.columns.filter((column) => column.extra).map((column) => column.key)].map((key) => [key, columns.get(key).name]);
}

function fillValues() {
  const names = filters.column ? groupsOf(filters.column).names : [];
  fill(byId("value"), [["-1", "any"], ...names.map((name, at) => [String(at), name])], String(filters.group));
  byId("value").disabled = !filters.column;
}

function tellStatus() {
  const rows = `${order.length.toLocaleString("en")} of ${data.rows.toLocaleString("en")} samples`;
  const parts = [filters.words && "that match the search", filters.group >= 0 && "of the chosen value", filters.selection && "in the selection"];
  byId("status").textContent = [rows, parts.filter(Boolean).join(", ")].filter(Boolean).join(" ");
}

// Shows what filters and sorting leave, everywhere.
function update() {
  arrange();
  drawTable();
  markSorted();
  tellStatus();
  byId("clear").disabled = !filters.words && filters.group < 0 && !filters.selection;
  if (canvas) {
    drawMap();
    drawLegend();
  }
}

function filterBy(column, group, focused) {
  Object.assign(filters, { column, group });
  byId("column").value = column;
  fillValues();
  update();
  if (focused) document.querySelector(focused)?.focus();
}

function sortBy(key, reversed) {
  Object.assign(filters, { sort: key, reversed });
  byId("sort").value = key;
  byId("direction").setAttribute("aria-pressed", reversed);
  update();
}

function clearFilters() {
  Object.assign(filters, { words: "", selection: null });
  byId("search").value = "";
  if (canvas) {
    plane.frame = null;
    showFrame(null);
  }
  filterBy("", -1);
}

function start() {
  const sorts = data.columns.filter((column) => column.key !== "image").map((column) => [column.key, column.name]);
  if (columns.has("label")) sorts.unshift(["errors", "confident errors first"]);
  filters.sort = sorts.find(([key]) => key === "errors" || key === "row")[0];
  fill(byId("sort"), sorts, filters.sort);
  fill(byId("column"), [["", "any"], ...groupedColumns()], "");
  fillValues();
  if (canvas) fill(byId("colour"), groupedColumns().length ? groupedColumns() : [["row", "row"]], groupedColumns()[0]?.[0] ?? "row");
  let waiting = false;
  byId("search").addEventListener("input", () => {
    if (!waiting) requestAnimationFrame(() => { waiting = false; filters.words = byId("search").value; update(); });
    waiting = true;
  });
  byId("column").addEventListener("change", () => filterBy(byId("column").value, -1));
  byId("value").addEventListener("change", () => filterBy(filters.column, Number(byId("value").value)));
  byId("sort").addEventListener("change", () => sortBy(byId("sort").value, false));
  byId("direction").addEventListener("click", () => sortBy(filters.sort, !filters.reversed));
  byId("clear").addEventListener("click", clearFilters);
  arrange();
  startTable();
  startMap();
  update();
}

start();
