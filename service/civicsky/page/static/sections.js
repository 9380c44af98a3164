// Each section of the page but the posts, from what the service told of it.

import { bytes, byId, clock, dayName, el, link, percent, rate, say, seconds, short, svg, table, time, visible, whole, wrapped } from "./dom.js";

// ---- now ----

const HISTORY = 150; // states: five minutes
const history = { frames: [], labelled: [] };
const tiles = new Map();

export function forget() {
  for (const values of Object.values(history)) values.length = 0;
}

export function now(state) {
  if (state.rates.frames !== null) {
    history.frames.push(state.rates.frames);
    history.labelled.push(state.rates.labelled);
  }
  for (const values of Object.values(history)) if (values.length > HISTORY) values.shift();
  tile("frames", "Frames", `${rate(state.rates.frames)}`, "a second", `${short(state.totals.frames)} since the start`, history.frames);
  tile("kept", "English posts", `${rate(state.rates.kept)}`, "a second", `${rate(state.rates.posts)} posts of all languages`);
  tile("labelled", "Labelled", `${rate(state.rates.labelled)}`, "a second", `${short(state.totals.labelled)} since the start`, history.labelled);
  tile("lag", "Behind", seconds(state.lag), "", state.host || "no relay yet");
  tile("waiting", "Waiting for a label", short(state.waiting), state.waiting === 1 ? "post" : "posts", "pending: in no share below");
  tile("journal", "Journal", bytes(state.journal_bytes), "", `of ${bytes(state.journal_max_bytes)} at most`);
}

function tile(name, title, value, unit, fine, values) {
  let parts = tiles.get(name);
  if (!parts) {
    parts = { value: el("span", { class: "value" }), unit: el("span", { class: "unit" }), fine: el("span", { class: "fine" }) };
    parts.line = values ? svg("polyline", { class: "spark-line", points: "" }) : null;
    const spark = values ? svg("svg", { class: "spark", viewBox: "0 0 150 28", preserveAspectRatio: "none", "aria-hidden": "true" }, parts.line) : null;
    byId("tiles").append(el("li", { class: "tile" }, el("span", { class: "title" }, title), el("span", {}, parts.value, " ", parts.unit), parts.fine, spark));
    tiles.set(name, parts);
  }
  say(parts.value, value);
  say(parts.unit, unit);
  say(parts.fine, fine);
  if (values) {
    const most = Math.max(...values, 0.01);
    parts.line.setAttribute("points", values.map((n, at) => `${150 - (values.length - 1 - at)},${(26 - (n / most) * 24).toFixed(1)}`).join(" "));
  }
}

// ---- flow ----

const COLLECT = new Set(["source", "decode", "worker", "journal"]);
const stages = new Map();

export function flow(state, meanings) {
  for (const stage of state.stages) {
    let parts = stages.get(stage.name);
    if (!parts) {
      parts = { word: el("span", {}), figures: el("dl", {}), why: el("p", { class: "why" }), state: null };
      parts.node = el("li", { class: "stage" }, el("p", { class: "stage-top" }, el("span", { class: "stage-name" }, stage.name), el("span", { class: "state" }, el("span", { class: "dot" }), parts.word)), parts.figures, parts.why);
      byId(COLLECT.has(stage.name) ? "stages-collect" : "stages-label").append(parts.node);
      stages.set(stage.name, parts);
    }
    parts.node.dataset.state = stage.state;
    parts.node.title = meanings[stage.state] ?? "";
    say(parts.word, stage.state);
    say(parts.why, visible(stage.why));
    const values = stage.figures.map(([what, value, unit]) => [what, figure(value, unit)]);
    if (parts.figures.childElementCount !== values.length) {
      parts.figures.replaceChildren(...values.map(() => el("div", {}, el("dt", {}), el("dd", {}))));
    }
    values.forEach(([what, value], at) => {
      say(parts.figures.children[at].children[0], what);
      say(parts.figures.children[at].children[1], visible(value));
    });
  }
}

function figure(value, unit) {
  if (value === null) return "–";
  if (typeof value === "string") return value;
  if (unit === "/s") return `${rate(value)} /s`;
  if (unit === "s") return seconds(value);
  if (unit === "bytes") return bytes(value);
  return `${short(value)} ${unit}`.trim();
}

// ---- shares ----

const PERIODS = { hour: "last hour", day: "last day", week: "last week" };

export function shares(told, unit) {
  const periods = told.periods;
  const task = told.tasks[0];
  if (!task) {
    say(byId("shares-note"), "No task is set, so nothing is labelled here.");
    return;
  }
  const field = task.fields[0];
  const value = field.values[0];
  say(byId("shares-note"), `Estimates of the share among English posts that the firehose brought, with 95 % intervals clustered by author; each post counts by the probability with which it was drawn${unit === "post" ? "" : ` (by ${unit})`}. As of ${clock(told.at)}.`);
  byId("shares-hero").replaceChildren(...Object.entries(PERIODS).map(([name, words]) => hero(value.value, words, value[name], periods[name].tasks[task.name], periods[name].all)));
  byId("shares-tables").replaceChildren(...told.tasks.flatMap((one) => one.fields.map((of) => wrapped(shareTable(one, of, told.tasks.length > 1)))));
  const unknown = Object.values(periods).some((one) => one.weights_unknown);
  const waiting = Object.entries(PERIODS).map(([name, words]) => [periods[name].tasks[task.name].pending, periods[name].all ? "" : "about ", words])
    .filter(([n]) => n).map(([n, about, words]) => `${about}${whole(n)} of the ${words}`);
  say(byId("shares-fine"), [
    waiting.length ? `Pending, and in no figure: ${waiting.join(", ")} still wait for a label.` : "No post of these periods waits for a label.",
    unknown ? "Some posts are no longer in the journal: they count as if none had been left out by chance while the disk was full." : "",
  ].join(" ").trim());
}

function hero(value, words, figureOf, period, all) {
  if (!figureOf) return el("div", { class: "tile" }, el("span", { class: "title" }, `${value}, ${words}`), el("span", { class: "value" }, "–"), el("span", { class: "fine" }, "nothing labelled yet"));
  const n = `n = ${whole(figureOf.n)}, ${all ? "all of this time" : `by lot from about ${short(period.of)}`}`;
  const rough = figureOf.authors < 40 ? `; only ${whole(figureOf.authors)} authors: rough` : "";
  return el(
    "div", { class: "tile" },
    el("span", { class: "title" }, `${value}, ${words}`),
    el("span", { class: "value" }, percent(figureOf.value)),
    interval(figureOf),
    el("span", { class: "fine" }, `${percent(figureOf.low)} to ${percent(figureOf.high)}`),
    el("span", { class: "fine" }, n + rough),
  );
}

function interval(of) {
  const x = (share) => (2 + share * 196).toFixed(1);
  return svg(
    "svg", { class: "interval", viewBox: "0 0 200 10", preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("line", { class: "track", x1: 2, x2: 198, y1: 5, y2: 5 }),
    svg("line", { class: "span", x1: x(of.low), x2: x(of.high), y1: 5, y2: 5 }),
    svg("line", { class: "point", x1: x(of.value), x2: x(of.value), y1: 1, y2: 9 }),
  );
}

function shareTable(task, field, several) {
  const name = field.name.replaceAll("_", " ");
  const among = Object.entries(field.only_if).map(([key, value]) => `${key} is ${value}`).join(" and ");
  const caption = `${several ? `${task.name}: ` : ""}${name}${among ? `, where ${among}` : ""}`;
  const rows = field.values.map((row) => [
    row.value === "" ? "without a label" : visible(row.value),
    ...Object.keys(PERIODS).map((period) => cell(row[period])),
  ]);
  const ns = Object.keys(PERIODS).map((period) => {
    const one = field.values.map((row) => row[period]).find((figureOf) => figureOf);
    return el("span", { class: "quiet" }, one ? whole(one.n) : "0");
  });
  return table(caption, ["", ...Object.values(PERIODS)], [...rows, ["n", ...ns]]);
}

function cell(of) {
  if (!of) return el("span", { class: "quiet" }, "–");
  return el("span", { class: "share" }, el("span", { class: "strong" }, percent(of.value)), el("span", { class: "quiet" }, `${(of.low * 100).toFixed(1)}–${(of.high * 100).toFixed(1)}`));
}

// ---- coverage ----

const WORDS = { gap: "gap", unverified: "unverified", window: "outside of the window", limit: "beyond a limit", not_collected: "not collected" };

export function coverage(told) {
  if (!told.days.length) {
    say(byId("coverage-note"), "Nothing was held yet.");
    return;
  }
  const part = told.whole ? "" : ` Of the newest ${whole(told.connections)} connections only; civicsky status has all.`;
  say(byId("coverage-note"), `What was held of the stream, a cell for each quarter of an hour, by the times of the events. As of ${clock(told.at)}.${part}`);
  byId("days").replaceChildren(...told.days.map(day));
  byId("days-legend").hidden = false;
  byId("gaps-box").hidden = !told.gaps.length;
  const rows = told.gaps.map((gap) => [time(gap.from ?? gap.at), gap.cause.replaceAll("_", " "), gap.from !== null && gap.until !== null ? seconds(Math.max(0, gap.until - gap.from) / 1000) : "not known", visible(gap.host)]);
  byId("gaps").replaceChildren(table("The newest gaps", ["from", "cause", "missing", "relay"], rows, false));
}

function day(told) {
  const missing = Object.entries(told.seconds).filter(([, n]) => n >= 1).map(([kind, n]) => `${seconds(n)} ${WORDS[kind] ?? kind.replaceAll("_", " ")}`);
  const runs = [];
  for (const [at, sign] of [...told.cells].entries()) {
    const last = runs.at(-1);
    if (last && last.sign === sign) last.width += 1;
    else runs.push({ sign, at, width: 1 });
  }
  const bars = runs.filter((run) => run.sign !== ".").map((run) => svg("rect", { class: `cell ${run.sign}`, x: run.at, width: run.width, y: 0, height: 10 }));
  return el(
    "li", {},
    el("time", { class: "day", datetime: told.day }, dayName(told.day)),
    svg("svg", { class: "strip", viewBox: "0 0 96 10", preserveAspectRatio: "none", "aria-hidden": "true" }, svg("rect", { class: "empty", x: 0, y: 0, width: 96, height: 10 }), ...bars),
    el("span", { class: "held" }, told.held === null ? "–" : percent(Math.floor(told.held * 10_000) / 10_000, 2), el("span", { class: "visually-hidden" }, " held")),
    el("span", { class: "missing" }, missing.join(", ")),
  );
}

// ---- model ----

export function model(state) {
  const { n, median, p90 } = state.latency;
  say(byId("latency"), n ? `${seconds(median)} median, ${seconds(p90)} at the 90th percentile` : "–");
  say(byId("latency-note"), n ? `Of the newest ${whole(n)} labels seen here, a call for each; copies of former answers left out.` : "No call was seen yet.");
}

export function cost(told) {
  const today = told.days.find((one) => one.day === told.today) ?? { calls: 0, tokens: 0, cost: 0, posts: 0 };
  const money = (n) => `${n < 1 ? n.toFixed(4) : n.toFixed(2)} ${told.currency}`;
  const parts = [];
  if (told.budget_money) parts.push(budget("money", today.cost, told.budget_money, money));
  if (told.budget_tokens) parts.push(budget("tokens", today.tokens, told.budget_tokens, short));
  if (!parts.length) parts.push(el("p", { class: "figure" }, told.priced ? `${money(today.cost)} today` : `${short(today.tokens)} tokens today`), el("p", { class: "note" }, told.priced ? "No budget is set." : "No budget and no price is set."));
  const rows = told.days.map((one) => [one.day, short(one.posts), short(one.calls), short(one.tokens), money(one.cost)]);
  parts.push(table("The last days (UTC)", ["day", "labels", "calls", "tokens", "cost"], rows.length ? rows : [["nothing yet", "", "", "", ""]]));
  byId("cost").replaceChildren(...parts.map((part) => (part.tagName === "TABLE" ? wrapped(part) : part)));
}

function budget(what, spent, most, show) {
  const share = Math.min(1, spent / most);
  return el(
    "div", { class: "budget" },
    el("p", { class: "figure" }, `${show(spent)} of ${show(most)} today`),
    svg("svg", { class: "meter", viewBox: "0 0 100 6", preserveAspectRatio: "none", "aria-hidden": "true" }, svg("rect", { class: "empty", width: 100, height: 6 }), svg("rect", { class: share >= 0.9 ? "cell g" : "cell h", width: (share * 100).toFixed(1), height: 6 })),
    el("p", { class: "note" }, `${percent(spent / most)} of the day's budget of ${what}`),
  );
}

export function drift(rows) {
  if (!rows.length) {
    byId("drift").replaceChildren(el("p", { class: "note" }, "No probe was asked yet: anchors are asked again once a day, half a day after they were taken."));
    return;
  }
  const shown = rows.slice(0, 10).map((row) => [
    row.day, visible(row.task), `${whole(row.flipped)} of ${whole(row.n)}`,
    row.n ? `${percent(row.flipped / row.n)} (${(row.low * 100).toFixed(1)}–${(row.high * 100).toFixed(1)})` : "–",
    whole(row.failed),
  ]);
  const note = el("p", { class: "note" }, "Posts that are asked about again each day, past the cache: how many get another answer than at first, with the 95 % interval.");
  byId("drift").replaceChildren(note, wrapped(table("Answers that changed", ["day", "task", "changed", "share", "no answer"], shown)));
}

// ---- rejected, failed ----

export function rejects(told) {
  const of = (period) => told[period]["post.rejected"] ?? {};
  const sums = (period) => Object.entries(told[period]).filter(([name]) => name.startsWith("post.")&& name !== "post.received").map(([name, reasons]) => [name.slice(5), Object.values(reasons).reduce((a, b) => a + b, 0)]);
  const day = of("day");
  const most = Math.max(1, ...Object.values(day));
  const reasons = Object.entries(day).sort((a, b) => b[1] - a[1]).map(([reason, n]) => [
    reason.replaceAll("_", " "), whole(of("hour")[reason] ?? 0), whole(n),
    svg("svg", { class: "bar", viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" }, svg("rect", { class: "cell h", width: ((n / most) * 100).toFixed(1), height: 8 })),
  ]);
  const hours = Object.fromEntries(sums("hour"));
  const outcomes = sums("day").sort((a, b) => b[1] - a[1]).map(([name, n]) => [name, whole(hours[name] ?? 0), whole(n)]);
  const heads = ["", `since ${clock(told.hour_since).slice(0, 5)}`, "in 24 hours"];
  byId("rejects").replaceChildren(
    wrapped(table("Posts that were not kept, by reason", [...heads, ""], reasons.length ? reasons : [["none", "0", "0", ""]])),
    wrapped(table("What became of posts", heads, outcomes.length ? outcomes : [["nothing yet", "0", "0"]])),
  );
}

let failuresKey = "";

export function failed(state) {
  say(byId("failed-note"), `${whole(state.totals.failed)} ${state.totals.failed === 1 ? "post" : "posts"} got no label since the start.`);
  const key = JSON.stringify(state.failed);
  if (key === failuresKey) return;
  failuresKey = key;
  if (!state.failed.length) {
    byId("failures").replaceChildren(el("p", { class: "note" }, "None among the newest."));
    return;
  }
  const rows = state.failed.slice(0, 10).map((one) => [time(one.at), visible(one.task), visible(one.reason).replaceAll("_", " "), link(one.id, "post")]);
  byId("failures").replaceChildren(wrapped(table("The newest posts without a label", ["time", "task", "reason", ""], rows, false)));
}
