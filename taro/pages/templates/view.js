// The list of a set's queries: search, filters, order, pages, keys. Rows come from data/*.js, which call taroRows.
// Texts of a set are untrusted: each is put into the page as text, never as markup.
"use strict";
const PAGE = 40, MARKS = 8;  // rows of a page of the list; words that are marked in one row
const rows = [], shown = {list: [], at: 0, terms: [], drawn: new Map()};
const by = id => document.getElementById(id);
const make = (tag, name, text) => {
  const node = document.createElement(tag);
  if (name) node.className = name;
  if (text !== undefined) node.textContent = text;
  return node;
};

// clips: [key, video, duration_s, captions, encoders as numbers, has a sheet, queries], a query:
// [id, text, split, difficulty or null, windows_s, place on the clip's page or -1, mean reward or null]
function taroRows(encoders, clips) {
  for (const [key, video, duration, captions, held, sheet, queries] of clips) {
    const names = held.map(number => encoders[number]);
    for (const [id, text, split, difficulty, windows, place, reward] of queries) {
      rows.push({key, video, duration, captions, encoders: names, sheet, id, text, split, difficulty, windows, place,
        reward, number: rows.length, hay: `${text}\n${id}\n${key}\n${video}`.toLowerCase(),
        film: video.toLowerCase()});
    }
  }
}

const ORDERS = [  // what the order is called, a number of a row or null, whether the largest is first
  ["longest clip first", row => row.duration, true], ["shortest clip first", row => row.duration, false],
  ["hardest first", row => row.difficulty, true], ["easiest first", row => row.difficulty, false],
  ["highest reward first", row => row.reward, true], ["lowest reward first", row => row.reward, false]];
const FIELDS = ["text", "split", "encoder", "video", "difficulty-from", "difficulty-to", "duration-from",
  "duration-to", "order"];

function ends(name) {
  const number = id => by(id).value === "" || !Number.isFinite(+by(id).value) ? null : +by(id).value;
  const low = number(`${name}-from`), high = number(`${name}-to`);
  return value => (low === null && high === null)
    || (value !== null && (low === null || value >= low) && (high === null || value <= high));
}

function find() {
  const terms = by("text").value.toLowerCase().split(/\s+/).filter(Boolean);
  const split = by("split").value, encoder = by("encoder").value, film = by("video").value.trim().toLowerCase();
  const difficulty = ends("difficulty"), duration = ends("duration");
  shown.terms = terms;
  shown.list = rows.filter(row => terms.every(term => row.hay.includes(term))
    && (split === "" || row.split === split.slice(1)) && (encoder === "" || row.encoders.includes(encoder.slice(1)))
    && row.film.includes(film) && difficulty(row.difficulty) && duration(row.duration));
  const order = ORDERS[by("order").value - 1];
  if (order) {
    const [, number, most] = order;
    const key = row => number(row) ?? (most ? -Infinity : Infinity);
    shown.list.sort((a, b) => (key(a) === key(b) ? 0 : (key(a) < key(b)) === most ? 1 : -1) || a.number - b.number);
  }
  shown.at = 0;
}

function marked(text) {  // the text, the words that were searched for marked
  const node = make("span", "said"), low = text.toLowerCase();
  let at = 0;
  for (let marks = 0; marks < MARKS && low.length === text.length; marks++) {
    let best = -1, size = 0;
    for (const term of shown.terms) {
      const found = low.indexOf(term, at);
      if (found >= 0 && (best < 0 || found < best || (found === best && term.length > size))) {
        best = found;
        size = term.length;
      }
    }
    if (best < 0) break;
    node.append(text.slice(at, best), make("mark", "", text.slice(best, best + size)));
    at = best + size;
  }
  node.append(text.slice(at));
  return node;
}

const seconds = value => `${+value.toFixed(1)} s`;

function drawn(row, index) {
  const item = make("li"), link = make("a", "row"), picture = make("span", "picture"), what = make("span", "what");
  link.href = `clips/${row.key}.html${row.place < 0 ? "" : `#q${row.place}`}`;
  link.dataset.index = index;
  const share = value => Math.min(Math.max(value / (row.duration || 1), 0), 1) * 100;
  if (row.sheet) {
    const image = make("img");
    image.alt = "";
    image.loading = "lazy";
    image.src = `sheets/${row.key}.jpg`;
    const [first] = row.windows;
    image.style.objectPosition = `${first ? share((first[0] + first[1]) / 2) : 50}% 0`;
    picture.append(image);
  }
  const axis = make("span", "axis-small");
  for (const [start, end] of row.windows) {
    const bar = make("i");
    bar.style.left = `${share(start)}%`;
    bar.style.width = `${Math.max(share(end) - share(start), 0.5)}%`;
    axis.append(bar);
  }
  picture.append(axis);
  const [window] = row.windows, more = row.windows.length - 1;
  const facts = [window && `${seconds(window[0])} to ${seconds(window[1])}${more > 0 ? ` and ${more} more` : ""}`,
    `clip of ${seconds(row.duration)}`, row.split && `split ${row.split}`,
    row.difficulty !== null && `difficulty ${+row.difficulty.toFixed(2)}`,
    `${row.captions} caption${row.captions === 1 ? "" : "s"}`,
    row.reward !== null && `mean reward ${row.reward.toFixed(3)}`, row.video];
  what.append(marked(row.text || "(no query)"), make("span", "dim small", facts.filter(Boolean).join(" \u00b7 ")));
  link.append(picture, what);
  item.append(link);
  return item;
}

function placed(item, row, index) {  // a row that is drawn already keeps its picture
  if (!item) return drawn(row, index);
  item.firstChild.dataset.index = index;
  item.querySelector(".said").replaceWith(marked(row.text || "(no query)"));
  return item;
}

function draw() {
  const {list, at} = shown, last = Math.min(at + PAGE, list.length);
  by("list").start = at + 1;
  const before = shown.drawn;
  shown.drawn = new Map(list.slice(at, last).map((row, index) => [row, placed(before.get(row), row, at + index)]));
  by("list").replaceChildren(...shown.drawn.values());
  const all = rows.length.toLocaleString("en"), some = list.length.toLocaleString("en");
  by("count").textContent = list.length === rows.length ? `${all} quer${rows.length === 1 ? "y" : "ies"}`
    : `${some} of ${all} queries`;
  by("none").hidden = list.length > 0;
  by("pages").hidden = list.length <= PAGE;
  by("place").textContent = `${(at + 1).toLocaleString("en")} to ${last.toLocaleString("en")} of ${some}`;
  by("back").disabled = at === 0;
  by("on").disabled = last === list.length;
}

function remember(row) {  // in the address, so that the browser's "back" returns to the same list
  const state = new URLSearchParams();
  for (const id of FIELDS) if (by(id).value !== "") state.set(id, by(id).value);
  if (shown.at) state.set("at", shown.at);
  if (row !== undefined) state.set("row", row);
  try {
    history.replaceState(null, "", `#${state}`);
  } catch { /* a browser that forbids it forgets the search, no more */ }
}

function restore() {
  const state = new URLSearchParams(location.hash.slice(1));
  for (const id of FIELDS) {
    by(id).value = state.get(id) ?? "";
    if (by(id).value !== (state.get(id) ?? "")) by(id).value = "";
  }
  find();
  const at = Math.floor(+(state.get("at") ?? 0) / PAGE) * PAGE;
  shown.at = at > 0 && at < shown.list.length ? at : 0;
  draw();
  const wide = matchMedia("(min-width: 641px)").matches;
  by("filters").open = wide || FIELDS.slice(1).some(id => by(id).value !== "");
  const row = state.get("row");
  if (row !== null) document.querySelector(`a.row[data-index="${CSS.escape(row)}"]`)?.focus();
  if (location.hash === "#/") by("text").focus();
}

function turn(step) {
  const at = shown.at + step * PAGE;
  if (at < 0 || at >= shown.list.length) return false;
  shown.at = at;
  draw();
  remember();
  return true;
}

function move(step) {  // the focus, over the end of a page onto the next one
  const links = [...document.querySelectorAll("a.row")], now = links.indexOf(document.activeElement);
  const next = links[now < 0 ? (step > 0 ? 0 : links.length - 1) : now + step];
  if (next) next.focus();
  else if (now >= 0 && turn(step)) {
    const turned = document.querySelectorAll("a.row");
    turned[step > 0 ? 0 : turned.length - 1].focus();
  } else if (now === 0) by("text").focus();
}

function fill(id, names) {  // values of a set may be empty or "": each has a mark before it
  for (const name of names) {
    const option = make("option", "", name === "" ? "(empty)" : name.length > 60 ? `${name.slice(0, 60)}...` : name);
    option.value = `=${name}`;
    by(id).append(option);
  }
}

function offer() {  // only filters that can tell rows apart
  const distinct = pick => [...new Set(rows.flatMap(pick))].sort();
  const splits = distinct(row => [row.split]).slice(0, 1000), encoders = distinct(row => row.encoders);
  fill("split", splits);
  fill("encoder", encoders);
  ORDERS.forEach(([name, number], index) => {
    if (!rows.some(row => number(row) !== null)) return;
    const option = make("option", "", name);
    option.value = index + 1;
    by("order").append(option);
  });
  const useful = {split: splits.length > 1, encoder: encoders.length > 0,
    difficulty: rows.some(row => row.difficulty !== null)};
  for (const node of document.querySelectorAll("[data-for]")) node.hidden = useful[node.dataset.for] === false;
}

function listen() {
  const again = () => { find(); draw(); remember(); };
  by("find").addEventListener("input", again);
  by("find").addEventListener("submit", event => event.preventDefault());
  by("find").addEventListener("reset", () => setTimeout(again));
  by("back").addEventListener("click", () => { turn(-1); scrollTo(0, 0); });
  by("on").addEventListener("click", () => { turn(1); scrollTo(0, 0); });
  by("list").addEventListener("click", event => remember(event.target.closest("a.row")?.dataset.index));
  addEventListener("hashchange", restore);
  const keys = {j: () => move(1), ArrowDown: () => move(1), k: () => move(-1), ArrowUp: () => move(-1),
    ArrowRight: () => turn(1), ArrowLeft: () => turn(-1), "/": () => { by("text").focus(); by("text").select(); },
    Escape: () => by("text").focus(), Enter: () => {}};
  addEventListener("keydown", event => {
    const field = event.target.closest("input, select, button, summary");
    if (event.key === "Enter" && event.target.id !== "text") return;
    if (event.ctrlKey || event.altKey || event.metaKey || !Object.hasOwn(keys, event.key)) return;
    if (event.target.id === "text" && event.key === "ArrowDown") move(1);
    else if (event.target.id === "text" && event.key === "Enter") document.querySelector("a.row")?.click();
    else if (event.target.id === "text" && event.key === "Escape") { by("text").value = ""; again(); }
    else if (field) return;
    else keys[event.key]();
    event.preventDefault();
  });
}

addEventListener("DOMContentLoaded", () => {
  offer();
  listen();
  restore();
  document.documentElement.dataset.ready = "yes";
});
