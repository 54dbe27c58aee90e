"use strict";

const MOST_GROUPS = 8;
const NO_VALUE = "no value";
const byId = (id) => document.getElementById(id);
const data = JSON.parse(byId("data").textContent);
const columns = new Map(data.columns.map((column) => [column.key, column]));
const labelNames = new Map([[true, "right"], [false, "wrong"], [null, NO_VALUE]]);
const labelColours = new Map([["right", "c0"], ["wrong", "c1"], [NO_VALUE, "c7"]]);
const riskColours = ["s0", "s1", "s2", "s3", "s4"];
const collator = new Intl.Collator(undefined, { numeric: true });
const filters = { words: "", column: "", group: -1, selection: null, sort: "errors", reversed: false };
let order = [];

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function isolated(text) {
  const element = make("bdi", "", text);
  element.dir = "auto";
  return element;
}

function valueAt(column, row) {
  return column.of ? column.values[column.of[row]] : column.values[row];
}

function shown(column, row) {
  const value = valueAt(column, row);
  if (column.kind === "label") return labelNames.get(value);
  if (value === null) return "";
  if (column.kind === "number" && !Number.isInteger(value)) return value.toFixed(3);
  return String(value);
}

// The values of a column as a few groups with a colour each: truth values, ranges of numbers, or the commonest texts.
function groupsOf(key) {
  const column = columns.get(key);
  if (!column.groups) column.groups = column.kind === "number" ? ranges(column) : commonest(column);
  return column.groups;
}

function ranges(column) {
  const numbers = column.values.filter((value) => value !== null);
  const low = numbers.reduce((a, b) => Math.min(a, b), Infinity);
  const high = numbers.reduce((a, b) => Math.max(a, b), -Infinity);
  const step = (high - low) / riskColours.length || 1;
  const digits = step >= 10 ? 0 : step >= 0.1 ? 1 : 3;
  const names = riskColours.map((_, at) => `${(low + at * step).toFixed(digits)} to ${(low + (at + 1) * step).toFixed(digits)}`);
  const of = Array.from({ length: data.rows }, (_, row) => {
    const value = valueAt(column, row);
    return value === null ? names.length : Math.min(names.length - 1, Math.floor((value - low) / step));
  });
  return { names: [...names, NO_VALUE], colours: [...riskColours, "c7"], of };
}

function commonest(column) {
  const counts = new Map();
  const nameAt = (row) => shown(column, row) || NO_VALUE;
  for (let row = 0; row < data.rows; row++) counts.set(nameAt(row), (counts.get(nameAt(row)) || 0) + 1);
  const names = [...counts.keys()].sort((a, b) => counts.get(b) - counts.get(a));
  const others = names.splice(names.length > MOST_GROUPS ? MOST_GROUPS - 1 : MOST_GROUPS);
  const places = new Map(names.map((name, at) => [name, at]));
  if (others.length) names.push(`${others.length.toLocaleString("en")} others`);
  const colours = names.map((name, at) => (column.kind === "label" ? labelColours.get(name) : `c${at}`));
  const of = Array.from({ length: data.rows }, (_, row) => places.get(nameAt(row)) ?? names.length - 1);
  return { names, colours, of };
}

// A number for each row by which a column is sorted; NaN, for rows without a value, comes last.
function ranksOf(column) {
  if (column.ranks) return column.ranks;
  if (column.kind !== "text") {
    column.ranks = Float64Array.from({ length: data.rows }, (_, row) => Number(valueAt(column, row) ?? NaN));
  } else {
    const distinct = [...new Set(column.values)].filter((text) => text !== null).sort(collator.compare);
    const places = new Map(distinct.map((text, at) => [text, at]));
    column.ranks = Float64Array.from({ length: data.rows }, (_, row) => places.get(valueAt(column, row)) ?? NaN);
  }
  return column.ranks;
}

// Wrong answers first, and among them those that the model, or else the probe, is surest of.
function errorRanks() {
  const label = columns.get("label");
  const sure = columns.get("confidence");
  const risk = columns.get("risk");
  return Float64Array.from({ length: data.rows }, (_, row) => {
    const certainty = sure ? valueAt(sure, row) : risk ? 1 - valueAt(risk, row) : 0;
    return (valueAt(label, row) === false ? 0 : 10) - (certainty ?? 0);
  });
}

function ranks() {
  if (filters.sort === "errors") return errorRanks();
  return ranksOf(columns.get(filters.sort));
}

function found(words) {
  const searched = ["question", "answer", "reference", "id"].map((key) => columns.get(key)).filter(Boolean);
  for (const column of searched) column.lower ??= column.values.map((text) => (text ?? "").toLowerCase());
  const textAt = (column, row) => (column.of ? column.lower[column.of[row]] : column.lower[row]);
  return (row) => words.every((word) => searched.some((column) => textAt(column, row).includes(word)));
}

// Applies filters and sorting, and tells what is left.
function arrange() {
  const words = filters.words.toLowerCase().split(/\s+/).filter(Boolean);
  const matches = found(words);
  const group = filters.group < 0 ? null : groupsOf(filters.column).of;
  const by = ranks();
  const sign = filters.reversed ? -1 : 1;
  order = [];
  for (let row = 0; row < data.rows; row++) {
    if (group && group[row] !== filters.group) continue;
    if (filters.selection && !filters.selection.has(row)) continue;
    if (words.length && !matches(row)) continue;
    order.push(row);
  }
  order.sort((a, b) => {
    const [first, second] = [by[a], by[b]];
    if (Number.isNaN(first) || Number.isNaN(second)) return Number.isNaN(first) - Number.isNaN(second) || a - b;
    return sign * (first - second) || a - b;
  });
}
