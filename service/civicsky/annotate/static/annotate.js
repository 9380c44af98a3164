// One person's desk. Whatever others wrote is put in as text, never as markup. It asks nobody but the command.
"use strict";

(() => {
  const at = (id) => document.getElementById(id);
  const CANNOT_TELL = "?";
  const wide = matchMedia("(min-width: 68rem)");
  let tab = sessionStorage.getItem("tab") || "";
  let desk = null;
  let view = null;
  let answers = {};
  let english = null; // null: not said; false: not English
  let note = "";
  let kept = ""; // the note as the command has it
  let busy = false;
  let round = 0; // how often the page came in
  let seen = 0; // milliseconds that this post was visible
  let since = null;

  // ---- the command -------------------------------------------------------------------------------------------------

  async function ask(path, said) {
    const response = await fetch("/api/" + path, {
      method: "POST",
      headers: { "content-type": "application/json", "x-civicsky-tab": tab },
      body: JSON.stringify(said || {}),
    });
    if (!response.ok) {
      throw Object.assign(new Error((await response.text()).trim()), { status: response.status });
    }
    return response.json();
  }

  async function enter() {
    const key = location.hash.slice(1);
    round += 1;
    occupied(false);
    try {
      if (key) {
        history.replaceState(null, "", "/");
        tab = (await ask("key", { key })).tab;
        sessionStorage.setItem("tab", tab);
      }
      desk = await ask("begin");
    } catch (error) {
      alarm(error.status ? "Not let in: " + error.message + "." : "The command does not answer. Is it still running?");
      return;
    }
    alarm("");
    begin();
    const waiting = JSON.parse(sessionStorage.getItem("waiting") || "null");
    if (waiting && waiting.desk === desk.desk) {
      await send(waiting.vote, "Kept what was not saved before.");
    } else {
      show(desk.view, "");
    }
  }

  function occupied(is) {
    busy = is;
    at("desk").setAttribute("aria-busy", String(is));
  }

  async function get(path, said) {
    if (busy) return;
    const mine = round;
    occupied(true);
    try {
      const found = await ask(path, said);
      if (mine !== round) return;
      alarm("");
      show(found, "");
    } catch (error) {
      alarm(trouble(error));
    }
    occupied(false);
  }

  // An answer is sent until the command says that it has it; under the same token it is the same vote.
  async function send(vote, told) {
    const mine = round;
    occupied(true);
    sessionStorage.setItem("waiting", JSON.stringify({ desk: desk.desk, vote }));
    for (;;) {
      try {
        const next = await ask("vote", vote);
        if (mine !== round) return; // another round has sent it, too, under the same token
        sessionStorage.removeItem("waiting");
        alarm("");
        show(next, told);
        occupied(false);
        return;
      } catch (error) {
        if (mine !== round) return;
        const again = !error.status || error.status === 503;
        alarm((again ? "Not saved yet; it is tried again. " : "Not saved. ") + trouble(error));
        if (error.status === 400) sessionStorage.removeItem("waiting");
        if (!again) {
          occupied(false);
          return;
        }
        await new Promise((done) => setTimeout(done, 1000));
      }
    }
  }

  function trouble(error) {
    if (!error.status) return "The command does not answer.";
    if (error.status === 401) return "Open the address that the terminal shows, in this tab; your answer is kept.";
    return error.message;
  }

  // ---- drawing -----------------------------------------------------------------------------------------------------

  function make(name, text, kind) {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (kind) made.className = kind;
    return made;
  }

  function button(label, key, pressed, act) {
    const made = make("button");
    made.type = "button";
    if (key) {
      const shown = make("kbd", key);
      shown.setAttribute("aria-hidden", "true");
      made.append(shown);
      made.setAttribute("aria-keyshortcuts", key);
    }
    made.append(make("span", label));
    if (pressed !== null) made.setAttribute("aria-pressed", String(pressed));
    made.addEventListener("click", act);
    return made;
  }

  function alarm(text) {
    at("alarm").textContent = text;
    at("alarm").hidden = !text;
  }

  function begin() {
    at("who").textContent = desk.person;
    document.title = (desk.adjudicates ? "Decide" : "Label posts") + " - civicsky";
    document.querySelector("h1").textContent = desk.adjudicates ? "Decide" : "Label posts";
    const book = at("codebook-text");
    book.replaceChildren(make("p", desk.task.definition));
    for (const field of desk.task.fields) {
      book.append(make("h3", words(field.name)), make("p", field.description));
      const values = make("p");
      field.values.forEach((one, n) => values.append(n ? ", " : "", make("span", one.value, "value")));
      const only = Object.entries(field.only_if).map(([name, value]) => words(name) + " is " + value);
      if (only.length) values.append(make("span", " (only when " + only.join(" and ") + ")", "why"));
      book.append(values);
    }
    if (desk.task.cases.length) book.append(make("h3", "Cases"));
    const list = make("dl");
    for (const one of desk.task.cases) {
      const post = make("dt", one.post);
      post.dir = "auto";
      const said = make("dd");
      said.append(make("span", spoken(one.answer), "value"));
      list.append(post, said);
      if (one.why) list.append(make("dd", one.why, "why"));
    }
    if (desk.task.cases.length) book.append(list);
    book.append(make("p", "Task " + desk.task.name + ", version " + desk.task.version, "why"));
    open(wide.matches);
    at("desk").hidden = false;
  }

  function show(next, told) {
    view = next;
    const { of, done, skipped, away } = view.progress;
    const more = [skipped ? skipped + " skipped" : "", away ? away + " no longer there" : ""].filter(Boolean);
    at("far").textContent = [done + " of " + of + " done", ...more].join(", ");
    at("bar").max = of || 1;
    at("bar").value = done;
    const said = view.said;
    english = said ? said.english : null;
    answers = said ? { ...said.answers } : {};
    note = kept = said ? said.note : "";
    at("note").value = note;
    at("note-box").hidden = true;
    const text = at("text");
    text.replaceChildren();
    if (view.over) {
      at("place").textContent = desk.adjudicates ? "Nothing is left to decide" : "Nothing is left to label";
      text.append(make("p", "Thank you. You may close this page, and end the command with Ctrl-C.", "words"));
    } else {
      at("place").textContent = "Post " + view.place + " of " + of;
      if (view.post.text) text.append(piece(view.post.text, "words"));
      if (view.post.link) text.append(piece(view.post.link, "card", "Link"));
      for (const alt of view.post.alts) text.append(piece(alt, "alt", "Image, as described"));
    }
    voted(view.votes);
    const why = { gone: "That post is gone; nothing was kept of it.", edited: "The post was edited meanwhile: please read it again." };
    at("status").textContent = why[view.told] || told;
    render();
    seen = 0;
    since = document.hidden ? null : performance.now();
    scrollTo(0, 0);
    at("post").focus({ preventScroll: true });
  }

  function piece(words, kind, label) {
    const made = make("p", undefined, kind);
    made.dir = "auto";
    if (label) made.append(make("span", label, "kind"));
    made.append(words);
    return made;
  }

  function voted(votes) {
    at("votes").hidden = !votes;
    at("voted").replaceChildren();
    for (const vote of votes || []) {
      const row = make("li");
      const said = make("span", vote.english ? spoken(vote.answers) : "not English");
      if (vote.note) {
        const quoted = make("q", vote.note);
        quoted.dir = "auto";
        said.append(quoted);
      }
      row.append(make("b", vote.letter), said);
      at("voted").append(row);
    }
  }

  const words = (name) => name.replaceAll("_", " ");
  const meant = (value) => (value === CANNOT_TELL ? desk.commands["0"] : value);
  const spoken = (said) => Object.entries(said).map(([name, value]) => words(name) + ": " + meant(value)).join(", ");

  const applies = (field, said) => Object.entries(field.only_if).every(([name, value]) => said[name] === value);

  function asked() {
    return english === false ? [] : desk.task.fields.filter((field) => applies(field, answers));
  }

  const current = () => (view.over ? undefined : asked().find((field) => !(field.name in answers)));
  const complete = () => english === false || (english === true && !current());

  function render() {
    const within = document.activeElement && at("fields").contains(document.activeElement);
    const now = current();
    at("fields").replaceChildren();
    for (const field of view.over ? [] : asked()) {
      const row = make("fieldset", undefined, field === now ? "field now" : "field");
      row.append(make("legend", words(field.name)), make("p", field.description, "about"));
      const values = make("div", undefined, "values");
      for (const one of [...field.values, { key: "0", value: CANNOT_TELL }]) {
        const key = field === now ? one.key : "";
        values.append(button(meant(one.value), key, answers[field.name] === one.value, () => answer(field, one.value)));
      }
      row.append(values);
      at("fields").append(row);
      if (field === now) break;
    }
    commands();
    if (within) (at("fields").querySelector(".now button") || at("post")).focus();
  }

  function commands() {
    const list = [
      ["x", english === false, () => foreign()],
      ["u", null, () => undo()],
      ["b", null, () => get("step", { at: view.at, back: true })],
      ["f", null, () => get("step", { at: view.at, back: false })],
      ["s", null, () => skip()],
      ["n", !at("note-box").hidden, () => write()],
      ["c", at("desk").classList.contains("with-codebook"), () => open(at("codebook").hidden, true)],
    ].filter(([key]) => !view.over || "uc".includes(key));
    at("commands").replaceChildren(
      ...list.map(([key, pressed, act]) => button(desk.commands[key] + (key === "n" && note ? " (written)" : ""), key, pressed, act)),
    );
  }

  // ---- answering ---------------------------------------------------------------------------------------------------

  function answer(field, value) {
    if (busy || view.over) return;
    const fields = desk.task.fields;
    const before = fields.slice(0, fields.indexOf(field));
    answers = Object.fromEntries(before.filter((one) => one.name in answers).map((one) => [one.name, answers[one.name]]));
    answers[field.name] = value;
    english = true;
    at("status").textContent = "";
    if (complete()) vote();
    else render();
  }

  function vote() {
    const seconds = elapsed();
    const said = english ? answers : null;
    const told = "Saved: " + (english ? spoken(answers) : "not English") + ".";
    render();
    send({ at: view.at, seen: view.seen, kind: "vote", token: token(), english, answers: said, note, seconds }, told);
  }

  function foreign() {
    if (busy || view.over) return;
    english = false;
    answers = {};
    vote();
  }

  function skip() {
    if (busy || view.over) return;
    send({ at: view.at, seen: view.seen, kind: "skip", token: token(), seconds: elapsed(), note: "" }, "Skipped; it comes again at the end.");
  }

  function undo() {
    if (busy) return;
    const given = view.over ? [] : desk.task.fields.filter((field) => field.name in answers);
    if (given.length || english === false) {
      if (given.length) delete answers[given.at(-1).name];
      if (!Object.keys(answers).length) english = null;
      at("status").textContent = "Taken back here; saved when you answer again.";
      render();
    } else {
      back();
    }
  }

  async function back() {
    await get("last");
    if (view.said) {
      const given = desk.task.fields.filter((field) => field.name in answers);
      if (given.length) delete answers[given.at(-1).name];
      if (!Object.keys(answers).length) english = null;
      at("status").textContent = "Your last answer is taken back here; it stays saved until you answer again.";
      render();
    }
  }

  function write() {
    if (view.over) return;
    if (at("note-box").hidden) {
      at("note-box").hidden = false;
      at("note").focus();
      commands();
    } else {
      written();
    }
  }

  function written() {
    note = at("note").value.trim();
    at("note-box").hidden = true;
    at("post").focus({ preventScroll: true });
    commands();
    if (note !== kept && view.said && complete() && !busy) vote();
    else if (note !== kept) at("status").textContent = "The note is saved with your answer.";
  }

  function open(shown, byHand) {
    at("codebook").hidden = !shown;
    at("desk").classList.toggle("with-codebook", shown);
    if (view) commands();
    if (!byHand) return;
    if (shown && !wide.matches) {
      at("codebook-title").focus();
      at("codebook").scrollIntoView();
    } else {
      at("post").focus({ preventScroll: false });
    }
  }

  function elapsed() {
    return (seen + (since === null ? 0 : performance.now() - since)) / 1000;
  }

  function token() {
    return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
  }

  // ---- keys --------------------------------------------------------------------------------------------------------

  function press(key) {
    const field = current() || (view.said && !view.over ? desk.task.fields[0] : undefined);
    const found = field && [...field.values, { key: "0", value: CANNOT_TELL }, { key: "?", value: CANNOT_TELL }].find((one) => one.key === key);
    if (found) {
      answer(field, found.value);
      return true;
    }
    const name = { ArrowLeft: "b", ArrowRight: "f" }[key] || key;
    const known = [...at("commands").children].find((one) => one.getAttribute("aria-keyshortcuts") === name);
    if (known) known.click();
    return Boolean(known);
  }

  document.addEventListener("keydown", (event) => {
    if (!view || event.repeat || event.isComposing || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target === at("note")) {
      if (event.key === "Escape") written();
      return;
    }
    if (event.key === "Escape" && !wide.matches && !at("codebook").hidden) {
      open(false, true);
      return;
    }
    if (!at("keys").checked) return;
    if (press(event.key.length === 1 ? event.key.toLowerCase() : event.key)) event.preventDefault();
  });

  document.addEventListener("visibilitychange", () => {
    if (document.hidden && since !== null) {
      seen += performance.now() - since;
      since = null;
    } else if (!document.hidden && since === null) {
      since = performance.now();
    }
  });

  at("keys").addEventListener("change", () => document.body.classList.toggle("no-keys", !at("keys").checked));
  wide.addEventListener("change", () => desk && open(wide.matches));
  addEventListener("hashchange", () => location.hash.length > 1 && enter());
  enter();
})();
