// Brings together the stream and the sections.

import { byId, say, settleWide, visible } from "./dom.js";
import * as posts from "./posts.js";
import * as sections from "./sections.js";
import { watch } from "./stream.js";

const CONNECTION = { wait: "connecting", live: "live", lost: "reconnecting", full: "too many watch already; trying again", rests: "resting while nobody looks" };

let hello = null;
let heard = "";

function tell(state) {
  const words = state === "lost" && heard ? `${CONNECTION.lost}; what is shown is of ${heard} UTC` : CONNECTION[state];
  byId("connection").dataset.state = state;
  say(byId("connection"), words);
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
  sections.flow(told, hello ? hello.stages : {});
  sections.model(told);
  sections.failed(told);
}

async function signOut() {
  await fetch("/page/logout", { method: "POST" });
  location.reload();
}

let settling = null;
function settle() {
  settling ??= setTimeout(() => { settling = null; settleWide(); }, 200);
}
const settled = (show) => (told) => { show(told); settle(); };
addEventListener("resize", settle);
byId("gaps-box").addEventListener("toggle", settle);

posts.begin();
byId("logout").addEventListener("click", signOut);
watch(
  {
    hello: greet,
    state,
    reset: posts.reset,
    posts: posts.add,
    gone: posts.remove,
    shares: settled((told) => sections.shares(told, hello ? hello.unit : "post")),
    coverage: settled(sections.coverage),
    counts: settled(sections.rejects),
    cost: settled(sections.cost),
    drift: settled(sections.drift),
  },
  tell,
);
