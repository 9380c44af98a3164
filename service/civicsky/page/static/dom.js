// Elements, numbers, times, and texts of others made harmless. Text is only ever set as text.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

// An element with attributes and children; a string becomes text.
export function el(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

export function svg(name, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

function filled(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== null && value !== false) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

// Set a text only where it is another one: what does not change is not drawn again, nor read out again.
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// ---- numbers and times ----

const WHOLE = new Intl.NumberFormat("en");
const SHORT = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

export const whole = (n) => WHOLE.format(Math.round(n));

export function rate(n) {
  if (n === null || n === undefined) return "–";
  return n >= 100 ? whole(n) : n >= 10 ? n.toFixed(1) : n === 0 ? "0" : n.toFixed(2);
}

export const short = (n) => (n < 10_000 ? whole(n) : SHORT.format(n));

export function bytes(n) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let at = 0;
  while (n >= 1000 && at < units.length - 1) [n, at] = [n / 1000, at + 1];
  return `${n < 10 && at ? n.toFixed(1) : Math.round(n)} ${units[at]}`;
}

export function seconds(n) {
  if (n === null || n === undefined) return "–";
  if (n < 1) return `${Math.round(n * 1000)} ms`;
  if (n < 10) return `${n.toFixed(1)} s`;
  if (n < 120) return `${Math.round(n)} s`;
  if (n < 7200) return `${Math.round(n / 60)} min`;
  return n < 172_800 ? `${Math.round(n / 3600)} h` : `${Math.round(n / 86_400)} d`;
}

export const percent = (share, digits = 1) => `${(share * 100).toFixed(digits)} %`;

const pad = (n) => String(n).padStart(2, "0");

export function clock(ms) {
  const at = new Date(ms);
  return `${pad(at.getUTCHours())}:${pad(at.getUTCMinutes())}:${pad(at.getUTCSeconds())}`;
}

export function moment(ms) {
  const day = new Date(ms).toISOString().slice(0, 10);
  return day === new Date().toISOString().slice(0, 10) ? clock(ms) : `${day} ${clock(ms)}`;
}

export const time = (ms) => el("time", { datetime: new Date(ms).toISOString() }, moment(ms));

const DAY = new Intl.DateTimeFormat("en-GB", { weekday: "short", day: "numeric", month: "short", timeZone: "UTC" });

export const dayName = (day) => DAY.format(new Date(`${day}T00:00:00Z`));

// ---- texts of others ----

// What would move, hide or turn other text. Joiners make emoji; line breaks are let through.
const UNSEEN = /[\p{Cc}\p{Cf}\p{Co}\p{Cs}\p{Zl}\p{Zp}]/gu;
const MARKS = /(\p{Mn}|\p{Me}){5,}/gu;
const HARMLESS = new Set(["\n", "\u200d", "\u200c", "\ufe0f"]);

// The text with whatever is invisible in it named, and no tower of accents.
export function visible(text) {
  return text
    .replace(UNSEEN, (sign) => (HARMLESS.has(sign) ? sign : `‹U+${sign.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}›`))
    .replace(MARKS, (marks) => [...marks].slice(0, 4).join(""));
}

const NAME = /^(did:[a-z]+:[A-Za-z0-9._:%-]+)\/([A-Za-z0-9._:~-]+)$/;

// Where a post can be read; null for a name that no address can be made of.
export function address(id) {
  const found = NAME.exec(id);
  return found && `https://bsky.app/profile/${found[1]}/post/${found[2]}`;
}

export function link(id, words) {
  const href = address(id);
  if (!href) return el("span", { class: "quiet" }, "no address");
  const name = el("span", { class: "visually-hidden" }, ` (opens bsky.app in a new tab)`);
  return el("a", { href, target: "_blank", rel: "noopener noreferrer" }, words, name);
}

// ---- tables ----

// A table in what can be scrolled sideways where it is too wide; only there the keyboard stops at it.
export const wrapped = (node) => el("div", { class: "wide" }, node);

export function settleWide() {
  for (const node of document.querySelectorAll(".wide")) {
    const over = node.scrollWidth > node.clientWidth + 1;
    for (const [name, value] of [["tabindex", "0"], ["role", "region"], ["aria-label", node.querySelector("caption")?.textContent ?? ""]]) {
      if (over) node.setAttribute(name, value);
      else node.removeAttribute(name);
    }
  }
}

// A table with a caption; rows are lists of strings or nodes, the first of which heads its row.
export function table(caption, heads, rows, numeric = true) {
  return el(
    "table", { class: numeric ? "numbers" : "" },
    el("caption", {}, caption),
    el("thead", {}, el("tr", {}, ...heads.map((head) => el("th", { scope: "col" }, head)))),
    el("tbody", {}, ...rows.map((row) => el("tr", {}, ...row.map((cell, at) => el(at ? "td" : "th", at ? {} : { scope: "row" }, cell)))),
    ),
  );
}
