// The list of posts: thousands are held, some tens are drawn. Filters run over all that are held.

import { byId, el, link, percent, say, time, visible, whole } from "./dom.js";

const PAGE = 20; // posts drawn at once
const PAUSE = 250; // ms between two drawings, however fast posts come

const held = new Map(); // by id
const nodes = new Map(); // by id, those that are drawn
let order = []; // all, the newest first
let found = []; // those that fit
let first = null; // the post that the page begins with; null: the newest
let shown = null; // while not followed: the number of the newest post that may be shown
let fields = []; // what can be chosen
let wanted = {}; // by field the value
let words = "";
let timer = null;
let drawn = -PAUSE; // when it was last drawn

export function setTasks(tasks) {
  const key = JSON.stringify(tasks);
  if (byId("choices").dataset.key === key) return;
  byId("choices").dataset.key = key;
  fields = tasks.flatMap((task) => task.fields.map((field) => ({ ...field, task: task.name, label: tasks.length > 1 ? `${task.name}: ${field.name}` : field.name })));
  byId("choices").replaceChildren(...fields.map((field, at) => choice(field, at)));
  wanted = {};
}

function choice(field, at) {
  const name = field.label.replaceAll("_", " ");
  if (at === 0 && field.values.length <= 3) {
    const options = ["", ...field.values].map((value) => {
      const input = el("input", { type: "radio", name: "choice-0", value, checked: value === "" });
      input.addEventListener("change", () => choose(field, value));
      return el("label", {}, input, el("span", {}, value || "all"));
    });
    return el("fieldset", { class: "segments" }, el("legend", { class: "visually-hidden" }, name), ...options);
  }
  const select = el("select", {}, el("option", { value: "" }, "any"), ...field.values.map((value) => el("option", { value }, value)));
  select.addEventListener("change", () => choose(field, select.value));
  return el("label", {}, `${name} `, select);
}

function choose(field, value) {
  wanted[`${field.task}/${field.name}`] = value;
  first = null;
  draw(true);
}

export function reset() {
  held.clear();
  order = [];
  first = null;
  shown = null;
  later();
}

export function add(posts) {
  for (const post of posts) {
    post.low = post.text.toLowerCase();
    post.said = Object.entries(post.labels).flatMap(([task, label]) => Object.entries(label.fields).map(([name, pair]) => [`${task}/${name}`, ...pair]));
    held.set(post.id, post);
    const node = nodes.get(post.id);
    if (node) {
      node.remove();
      nodes.delete(post.id);
    }
  }
  order = null;
  later();
}

export function remove(ids) {
  for (const id of ids) held.delete(id);
  order = null;
  later();
}

function later() {
  timer ??= setTimeout(() => { timer = null; draw(false); }, Math.max(0, PAUSE - (performance.now() - drawn)));
}

function fits(post) {
  for (const [name, value] of Object.entries(wanted)) {
    if (value && !post.said.some((one) => one[0] === name && one[1] === value)) return false;
  }
  return !words || post.low.includes(words);
}

function draw(asked) {
  drawn = performance.now();
  order ??= [...held.values()];
  order.sort((a, b) => b.n - a.n);
  const following = byId("follow").checked;
  if (following) shown = null;
  else shown ??= order.length ? order[0].n : null;
  const all = order.filter(fits);
  found = shown === null ? all : all.filter((post) => post.n <= shown);
  let begin = first === null ? 0 : Math.max(0, found.findIndex((post) => post.n <= first));
  if (begin >= found.length) begin = 0;
  const page = found.slice(begin, begin + PAGE);
  reconcile(byId("list"), page);
  const range = page.length ? `${whole(begin + 1)} to ${whole(begin + page.length)} of ${whole(found.length)}` : "no posts";
  say(byId("range"), found.length === order.length ? range : `${range} that fit, of ${whole(order.length)}`);
  byId("newer").disabled = begin === 0;
  byId("older").disabled = begin + PAGE >= found.length;
  const more = all.length - found.length;
  byId("fresh").hidden = !more;
  if (more) say(byId("fresh"), `Show ${whole(more)} newer`);
  if (asked) say(byId("matches"), `${whole(found.length)} posts fit`);
}

// Bring the list to these posts with as few changes as can be: what has the focus, or is being read, stays where it is.
function reconcile(list, page) {
  const wantedNodes = page.map((post) => nodes.get(post.id) ?? card(post));
  const keep = new Set(wantedNodes);
  for (const node of [...list.children]) if (!keep.has(node)) node.remove();
  wantedNodes.forEach((node, at) => {
    if (list.children[at] !== node) list.insertBefore(node, list.children[at] ?? null);
  });
  nodes.clear();
  page.forEach((post, at) => nodes.set(post.id, wantedNodes[at]));
}

function card(post) {
  const chips = post.said.map(([name, value, probability], at) => {
    const field = name.split("/")[1].replaceAll("_", " ");
    const known = fields.find((one) => `${one.task}/${one.name}` === name);
    const rank = known ? known.values.indexOf(value) : -1;
    const sure = probability === null ? null : el("span", { class: "sure" }, ` ${percent(probability, 0)}`);
    const title = at ? el("span", { class: "of" }, `${field} `) : null;
    return el("span", { class: `chip ${at ? "" : "main"}`, "data-rank": String(rank) }, title, visible(value), sure);
  });
  return el(
    "li", { class: "post", "data-id": post.id },
    el("p", { class: "text" }, el("bdi", { dir: "auto" }, visible(post.text))),
    el("div", { class: "about" }, el("span", { class: "chips" }, ...chips), el("span", { class: "where" }, time(post.at), link(post.id, "on Bluesky"))),
  );
}

function turn(by) {
  const at = first === null ? 0 : Math.max(0, found.findIndex((post) => post.n <= first));
  const begin = Math.min(Math.max(0, at + by), Math.max(0, found.length - 1));
  first = begin === 0 ? null : found[begin].n;
  draw(true);
  byId("posts").scrollIntoView({ block: "start" });
}

export function begin() {
  byId("newer").addEventListener("click", () => turn(-PAGE));
  byId("older").addEventListener("click", () => turn(PAGE));
  byId("follow").addEventListener("change", () => draw(true));
  byId("fresh").addEventListener("click", () => {
    shown = order.length ? order[0].n : null;
    first = null;
    draw(true);
    byId("list").querySelector("a")?.focus();
  });
  let typing = null;
  byId("search").addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => {
      words = byId("search").value.trim().toLowerCase();
      first = null;
      draw(true);
    }, 150);
  });
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  draw(false);
}
