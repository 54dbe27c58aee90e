const canvas = byId("canvas");
const MARGIN = 14;
const NEAR = 14;
const plane = { x: [], y: [], rows: [], drag: null, frame: null };

function placePoints() {
  const { x, y } = data.map;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  plane.rows = x.map((_, row) => row).filter((row) => x[row] !== null);
  const most = (values) => plane.rows.reduce((high, row) => Math.max(high, values[row]), 1);
  const unit = Math.min((width - 2 * MARGIN) / most(x), (height - 2 * MARGIN) / most(y));
  const [left, top] = [(width - unit * most(x)) / 2, (height + unit * most(y)) / 2];
  plane.x = x.map((value) => left + unit * value);
  plane.y = y.map((value) => top - unit * value);
}

function drawMap() {
  if (!canvas) return;
  placePoints();
  const ratio = devicePixelRatio || 1;
  canvas.width = canvas.clientWidth * ratio;
  canvas.height = canvas.clientHeight * ratio;
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  const groups = groupsOf(byId("colour").value);
  const inOrder = new Uint8Array(data.rows);
  for (const row of order) inOrder[row] = 1;
  const radius = plane.rows.length > 5000 ? 1.8 : plane.rows.length > 800 ? 2.6 : 3.6;
  const style = getComputedStyle(document.documentElement);
  drawPoints(pen, plane.rows.filter((row) => !inOrder[row]), radius, style.getPropertyValue("--faint"), 0.5);
  groups.names.forEach((_, at) => {
    const rows = plane.rows.filter((row) => inOrder[row] && groups.of[row] === at);
    drawPoints(pen, rows, radius, style.getPropertyValue(`--${groups.colours[at]}`), 0.85);
  });
}

function drawPoints(pen, rows, radius, colour, opacity) {
  pen.fillStyle = colour;
  pen.globalAlpha = opacity;
  pen.beginPath();
  for (const row of rows) {
    pen.moveTo(plane.x[row] + radius, plane.y[row]);
    pen.arc(plane.x[row], plane.y[row], radius, 0, 2 * Math.PI);
  }
  pen.fill();
}

function drawLegend() {
  const key = byId("colour").value;
  const groups = groupsOf(key);
  const counts = groups.names.map(() => 0);
  for (const group of groups.of) counts[group] += 1;
  byId("legend").replaceChildren(...groups.names.map((name, at) => {
    const button = make("button");
    button.type = "button";
    const pressed = filters.column === key && filters.group === at;
    button.setAttribute("aria-pressed", pressed);
    button.dataset.group = at;
    button.append(make("span", `swatch ${groups.colours[at]}`), isolated(name), make("span", "quiet", counts[at].toLocaleString("en")));
    button.addEventListener("click", () => filterBy(key, pressed ? -1 : at, `#legend button[data-group="${at}"]`));
    const item = make("li");
    item.append(button);
    return { item, count: counts[at] };
  }).filter((one) => one.count).map((one) => one.item));
}

function nearest(x, y) {
  let [best, distance] = [null, NEAR * NEAR];
  for (const row of plane.rows) {
    const away = (plane.x[row] - x) ** 2 + (plane.y[row] - y) ** 2;
    if (away < distance) [best, distance] = [row, away];
  }
  return best;
}

function hideTip() {
  byId("tip").hidden = byId("ring").hidden = true;
}

function showTip(row) {
  const tip = byId("tip");
  tip.replaceChildren(...["question", "answer", "label", "risk"].filter((key) => columns.has(key)).map((key) => {
    const line = make("p");
    const text = shown(columns.get(key), row);
    line.append(make("span", "quiet", `${columns.get(key).name}: `), isolated(text.length > 160 ? `${text.slice(0, 160)}…` : text));
    return line;
  }));
  if (data.picture[row] !== null) tip.prepend(picture(row));
  tip.hidden = byId("ring").hidden = false;
  const [x, y] = [plane.x[row], plane.y[row]];
  Object.assign(byId("ring").style, { left: `${x}px`, top: `${y}px` });
  tip.style.left = `${Math.max(0, Math.min(canvas.clientWidth - tip.offsetWidth, x + 14))}px`;
  tip.style.top = y > canvas.clientHeight / 2 ? `${y - tip.offsetHeight - 14}px` : `${y + 14}px`;
}

function within(frame) {
  const [left, right] = [Math.min(frame.x0, frame.x1), Math.max(frame.x0, frame.x1)];
  const [top, bottom] = [Math.min(frame.y0, frame.y1), Math.max(frame.y0, frame.y1)];
  return plane.rows.filter((row) => plane.x[row] >= left && plane.x[row] <= right && plane.y[row] >= top && plane.y[row] <= bottom);
}

function showFrame(frame) {
  const box = byId("frame");
  box.hidden = !frame;
  if (frame) {
    Object.assign(box.style, { left: `${Math.min(frame.x0, frame.x1)}px`, top: `${Math.min(frame.y0, frame.y1)}px`,
      width: `${Math.abs(frame.x1 - frame.x0)}px`, height: `${Math.abs(frame.y1 - frame.y0)}px` });
  }
}

function select(frame) {
  plane.frame = frame;
  showFrame(frame);
  filters.selection = frame && new Set(within(frame));
  update();
}

function onMapKey(event) {
  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  if (event.key === "Escape" && filters.selection) select(null);
  else if (event.key in steps) {
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    const frame = plane.frame ?? { x0: width / 3, y0: height / 3, x1: (2 * width) / 3, y1: (2 * height) / 3 };
    const [dx, dy] = [steps[event.key][0] * width * 0.05, steps[event.key][1] * height * 0.05];
    if (event.shiftKey) select({ ...frame, x1: Math.max(frame.x0 + 10, frame.x1 + dx), y1: Math.max(frame.y0 + 10, frame.y1 + dy) });
    else select({ x0: frame.x0 + dx, x1: frame.x1 + dx, y0: frame.y0 + dy, y1: frame.y1 + dy });
  } else return;
  event.preventDefault();
}

function onPointerMove(event) {
  if (!plane.drag) {
    const row = nearest(event.offsetX, event.offsetY);
    if (row === null) hideTip();
    else showTip(row);
    return;
  }
  Object.assign(plane.drag, { x1: event.offsetX, y1: event.offsetY });
  hideTip();
  showFrame(plane.drag);
}

function onPointerUp(event) {
  const drag = plane.drag;
  plane.drag = null;
  if (!drag) return;
  if (Math.hypot(drag.x1 - drag.x0, drag.y1 - drag.y0) > 4) return select(drag);
  const row = nearest(event.offsetX, event.offsetY);
  if (row === null) return select(null);
  showFrame(plane.frame);
  showTip(row);
  if (event.pointerType === "mouse" && order.includes(row)) openDetails(order.indexOf(row));
}

function startMap() {
  if (!canvas) return;
  canvas.addEventListener("pointermove", onPointerMove);
  canvas.addEventListener("pointerleave", hideTip);
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    plane.drag = { x0: event.offsetX, y0: event.offsetY, x1: event.offsetX, y1: event.offsetY };
  });
  canvas.addEventListener("pointerup", onPointerUp);
  canvas.addEventListener("pointercancel", () => { plane.drag = null; showFrame(plane.frame); });
  canvas.addEventListener("keydown", onMapKey);
  byId("colour").addEventListener("change", () => { drawMap(); drawLegend(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawMap);
  addEventListener("resize", () => requestAnimationFrame(() => { if (plane.frame) select(null); else drawMap(); }));
}
