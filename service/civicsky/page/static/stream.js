// One stream of events from the service. It ends and comes back; what is told after that begins anew.

const EVENTS = "/page/events";
const SILENCE = 20_000; // ms; a state comes every two seconds, a heartbeat at least every fifteen
const HIDDEN = 60_000; // ms after which a page that nobody sees lets go
const PAUSES = [300, 600, 1200, 2500, 5000];

// `handlers` by an event's name; `tell(state)` is one of "wait", "live", "lost", "full", "rests".
export function watch(handlers, tell) {
  let source = null;
  let heard = 0;
  let tries = 0;
  let timer = null;

  function close() {
    clearTimeout(timer);
    if (source) source.close();
    source = null;
  }

  function again() {
    close();
    tell("lost");
    timer = setTimeout(open, PAUSES[Math.min(tries++, PAUSES.length - 1)]);
  }

  async function open() {
    close();
    let answer;
    try {
      answer = await fetch(EVENTS, { method: "HEAD", cache: "no-store" });
    } catch {
      again();
      return;
    }
    if (answer.status === 401) {
      location.reload(); // to sign in
    } else if (answer.status === 503) {
      tell("full");
      timer = setTimeout(open, 10_000);
    } else if (!answer.ok) {
      again();
    } else if (!source) {
      start();
    }
  }

  function start() {
    source = new EventSource(EVENTS);
    heard = performance.now();
    for (const [name, handle] of Object.entries(handlers)) {
      source.addEventListener(name, (event) => {
        heard = performance.now();
        if (tries || name === "hello") tell("live");
        tries = 0;
        handle(JSON.parse(event.data));
      });
    }
    source.onerror = again;
  }

  setInterval(() => {
    if (source && performance.now() - heard > SILENCE) again();
  }, 2000);

  let hiding = null;
  document.addEventListener("visibilitychange", () => {
    clearTimeout(hiding);
    if (document.hidden) {
      hiding = setTimeout(() => { close(); tell("rests"); }, HIDDEN);
    } else if (!source) {
      open();
    }
  });
  open();
}
