// Brings together the stream and the sections.

import { byId, say, settleWide, visible } from "./dom.js";
import * as posts from "./posts.js";
import * as sections from "./sections.js";
import { watch } from "./stream.js";

const CONNECTION = { wait: "connecting", live: "live", lost: "reconnecting", full: "too many watch already; trying again", rests: "resting while nobody looks" };

const UNHEARD = 120_000; // ms without news of deletions after which no post is shown any more

let hello = null;
let heard = "";
let forgetting = null;

function tell(state) {
  const words = state === "lost" && heard ? `${CONNECTION.lost}; what is shown is of ${heard} UTC` : CONNECTION[state];
  byId("connection").dataset.state = state;
  say(byId("connection"), words);
  if (state !== "live" && heard) {
    byId("health").dataset.state = "calm"; // how it was when it was last heard is not how it is
    say(byId("health-word"), "not known");
  }
  if (state === "live") {
    clearTimeout(forgetting);
    forgetting = null;
  } else {
    forgetting ??= setTimeout(() => posts.reset(), UNHEARD); // some may have been deleted meanwhile
  }
  document.body.dataset.connection = state;
}

function greet(told) {
  if (hello && hello.version !== told.version) location.reload(); // this page is of another version
  if (!hello || hello.started !== told.started) sections.forget();
  hello = told;
  posts.setTasks(told.tasks);
  byId("logout").hidden = !told.signed;
  say(byId("foot"), `civicsky ${told.version}. Times are UTC. Posts that their authors delete, or that are hidden, vanish from here.`);
}

function state(told) {
  heard = new Date(told.at).toISOString().slice(11, 19);
  const wrong = told.reasons.map((one) => one.name.replaceAll("_", " "));
  const [condition, word] = wrong.length ? ["bad", `not ready: ${wrong.join(", ")}`]
    : told.pending.length ? ["wait", told.pending.map((one) => one.name.replaceAll("_", " ")).join(", ")]
    : told.window ? ["calm", "window closed"] : told.quiet ? ["calm", "quiet"] : ["good", "ready"];
  document.title = wrong.length ? `${word} · civicsky` : "civicsky";
  byId("health").dataset.state = condition;
  say(byId("health-word"), word);
  const whys = [...told.reasons, ...told.pending].map((one) => one.why).filter(Boolean);
  if (told.window) whys.push(told.window);
  if (told.why) whys.push(`Figures stand still: ${told.why}`);
  byId("notice").hidden = !whys.length;
  say(byId("notice"), visible(whys.join(" · ")));
  sections.now(told);
  inTurn("flow", () => sections.flow(told, hello ? hello.stages : {}))();
  inTurn("model", () => { sections.model(told); sections.failed(told); })();
}

async function signOut() {
  await fetch("/page/logout", { method: "POST" });
  location.reload();
}

// One section a task, and the newest that was told of each: a page that begins is told of all at once.
const todo = new Map();
let working = null;
function work() {
  working = null;
  const [name, show] = todo.entries().next().value;
  todo.delete(name);
  try {
    show();
  } finally {
    wake();
  }
}
function wake() {
  if (todo.size) working ??= setTimeout(work, 0);
}
const inTurn = (name, show) => (told) => {
  todo.set(name, () => show(told));
  wake();
};

let settling = null;
function settle() {
  settling ??= setTimeout(() => { settling = null; settleWide(); }, 200);
}
const settled = (name, show) => inTurn(name, (told) => { show(told); settle(); });
addEventListener("resize", settle);
byId("gaps-box").addEventListener("toggle", settle);

posts.begin();
byId("logout").addEventListener("click", signOut);
watch(
  {
    hello: greet,
    state: inTurn("state", state),
    reset: posts.reset,
    posts: posts.add,
    gone: posts.remove,
    shares: settled("shares", (told) => sections.shares(told, hello ? hello.unit : "post")),
    coverage: settled("coverage", sections.coverage),
    counts: settled("counts", sections.rejects),
    cost: settled("cost", sections.cost),
    drift: settled("drift", sections.drift),
  },
  tell,
);
