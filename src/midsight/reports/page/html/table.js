const EXTRA_ROWS = 8;
const CELL_TEXT = 300;
const scroller = byId("scroll");
const body = byId("body");
const cells = ["question", "answer", "reference", "label", "risk", "confidence"].filter((key) => columns.has(key));
const hasPictures = data.pictures.length > 0;
const table = { current: 0, opened: 0, from: -1, to: -1, height: 64 };

function drawHead() {
  const head = byId("head");
  if (hasPictures) head.append(headCell("picture", make("span", "hidden", "picture")));
  for (const key of cells) {
    const button = make("button", "", columns.get(key).name);
    button.type = "button";
    button.addEventListener("click", () => sortBy(key, filters.sort === key && !filters.reversed));
    head.append(headCell(key, button));
  }
}

function headCell(key, content) {
  const cell = make("th", key);
  cell.scope = "col";
  cell.setAttribute("role", "columnheader");
  cell.dataset.key = key;
  cell.append(content);
  return cell;
}

function markSorted() {
  for (const cell of byId("head").children) {
    if (cell.dataset.key === filters.sort) cell.setAttribute("aria-sort", filters.reversed ? "descending" : "ascending");
    else cell.removeAttribute("aria-sort");
  }
}

function spacer(rows) {
  const line = make("tr", "spacer");
  line.setAttribute("aria-hidden", "true");
  line.style.height = `${rows * table.height}px`;
  return line;
}

function picture(row) {
  const image = make("img");
  image.alt = "";
  image.src = data.pictures[data.picture[row]];
  return image;
}

function cellOf(key, row) {
  const cell = make("td", key);
  cell.setAttribute("role", "cell");
  const text = shown(columns.get(key), row);
  if (key === "label") cell.classList.add(text === "right" || text === "wrong" ? text : "none");
  if (key !== "question") cell.dataset.name = columns.get(key).name;
  const content = make("div", "text");
  content.append(isolated(text.length > CELL_TEXT ? `${text.slice(0, CELL_TEXT)}…` : text));
  cell.append(content);
  return cell;
}

function lineOf(place) {
  const row = order[place];
  const line = make("tr");
  line.setAttribute("role", "row");
  line.setAttribute("aria-rowindex", place + 2);
  line.dataset.place = place;
  line.tabIndex = place === table.current ? 0 : -1;
  if (hasPictures) {
    const cell = make("td", "picture");
    cell.setAttribute("role", "cell");
    if (data.picture[row] !== null) cell.append(picture(row));
    line.append(cell);
  }
  line.append(...cells.map((key) => cellOf(key, row)));
  return line;
}

// Only the rows in view, and a few around them, are in the document; two spacers stand for the others.
function drawRows(force) {
  const from = Math.max(0, Math.floor(scroller.scrollTop / table.height) - EXTRA_ROWS);
  const to = Math.min(order.length, from + Math.ceil(scroller.clientHeight / table.height) + 2 * EXTRA_ROWS);
  if (!force && from === table.from && to === table.to) return;
  Object.assign(table, { from, to });
  const hadFocus = body.contains(document.activeElement);
  const lines = Array.from({ length: to - from }, (_, at) => lineOf(from + at));
  body.replaceChildren(spacer(from), ...lines, spacer(order.length - to));
  if (hadFocus) (lineAt(table.current) ?? scroller).focus({ preventScroll: true });
}

function lineAt(place) {
  return body.querySelector(`tr[data-place="${place}"]`);
}

function drawTable() {
  body.parentElement.setAttribute("aria-rowcount", order.length + 1);
  table.current = 0;
  scroller.scrollTop = 0;
  drawRows(true);
}

function measureRows() {
  const height = parseFloat(getComputedStyle(scroller).getPropertyValue("--row"));
  if (height && height !== table.height) table.height = height;
  drawRows(true);
}

function moveTo(place) {
  if (!order.length) return;
  table.current = Math.max(0, Math.min(order.length - 1, place));
  const top = table.current * table.height;
  const room = scroller.clientHeight - byId("head").offsetHeight - table.height;
  if (top < scroller.scrollTop) scroller.scrollTop = top;
  if (top > scroller.scrollTop + room) scroller.scrollTop = top - room;
  drawRows(true);
  lineAt(table.current).focus({ preventScroll: true });
}

function onTableKey(event) {
  const page = Math.max(1, Math.floor(scroller.clientHeight / table.height) - 1);
  const inRow = body.contains(document.activeElement);
  const start = inRow ? table.current : table.current - 1;
  const moves = { ArrowDown: start + 1, ArrowUp: table.current - 1, PageDown: table.current + page,
    PageUp: table.current - page, Home: 0, End: order.length - 1 };
  if (event.target.closest("button")) return;
  if (event.key in moves) moveTo(moves[event.key]);
  else if (inRow && (event.key === "Enter" || event.key === " ")) openDetails(table.current);
  else return;
  event.preventDefault();
}

function openDetails(place) {
  const row = order[place];
  table.opened = place;
  byId("details-title").replaceChildren("Sample ", isolated(shown(columns.get("id"), row)));
  const facts = make("dl", "facts");
  for (const column of data.columns.filter((one) => one.key !== "id")) {
    const pair = make("div");
    const value = make("dd");
    value.append(isolated(shown(column, row)));
    pair.append(make("dt", "", column.name), value);
    facts.append(pair);
  }
  byId("details-content").replaceChildren(...(data.picture[row] === null ? [] : [picture(row)]), facts);
  byId("previous").disabled = place === 0;
  byId("next").disabled = place === order.length - 1;
  if (!byId("details").open) byId("details").showModal();
}

function startTable() {
  drawHead();
  measureRows();
  scroller.addEventListener("scroll", () => requestAnimationFrame(() => drawRows(false)));
  scroller.addEventListener("keydown", onTableKey);
  body.addEventListener("click", (event) => {
    const line = event.target.closest("tr[data-place]");
    if (line && !String(getSelection())) openDetails(Number(line.dataset.place));
  });
  body.addEventListener("focusin", (event) => {
    table.current = Number(event.target.closest("tr").dataset.place);
  });
  byId("previous").addEventListener("click", () => openDetails(table.opened - 1));
  byId("next").addEventListener("click", () => openDetails(table.opened + 1));
  byId("close").addEventListener("click", () => byId("details").close());
  byId("details").addEventListener("close", () => moveTo(table.opened));
  addEventListener("resize", () => requestAnimationFrame(measureRows));
}
