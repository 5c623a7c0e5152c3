"use strict";
// Knows prompts, opaque ids and every rater's order; not which method painted what.
(() => {
  const DATA = JSON.parse(document.getElementById("data").textContent);
  const FORMAT = "promptist-humaneval-ratings", VERSION = 1;
  const CHOICES = { left: "A is better", equal: "Equally good", right: "B is better" };
  const KEYS = { 1: "left", ArrowLeft: "left", 2: "right", ArrowRight: "right", 3: "equal", ArrowDown: "equal" };
  const $ = (id) => document.getElementById(id);
  const buttons = [...document.querySelectorAll("[data-choice]")];

  let work = null; // what is saved: {format, version, study, rater, started, saved, answers}
  let at = 0; // the showing on the screen
  let ready = false; // both its pictures are visible
  let unsaved = false; // answers that neither a file nor the browser keeps
  let clock = { since: 0, ms: 0 };

  // ---- keeping -----------------------------------------------------------------------------------------------------
  let storage = (() => {
    try {
      const probe = `${FORMAT}/probe`;
      window.localStorage.setItem(probe, "1");
      window.localStorage.removeItem(probe);
      return window.localStorage;
    } catch {
      return null; // private windows, and some browsers for pages opened from disk
    }
  })();
  const place = (rater) => `${FORMAT}/${DATA.study}/${rater}`;

  function keep() {
    unsaved = true;
    if (storage === null) return;
    try {
      storage.setItem(place(work.rater), JSON.stringify(work));
      unsaved = false;
    } catch {
      storage = null;
      warnStorage();
    }
  }

  function kept(rater) {
    try {
      const text = storage === null ? null : storage.getItem(place(rater));
      return text === null ? null : checked(JSON.parse(text));
    } catch {
      return null; // not ours, or damaged: as if nothing had been kept
    }
  }

  /** `found` if it is a set of ratings of this very study, else an Error that says why not. */
  function checked(found) {
    if (found === null || found.format !== FORMAT || found.version !== VERSION || !Array.isArray(found.answers)) {
      throw new Error("This is not a file that this page saved.");
    }
    if (found.study !== DATA.study) throw new Error(`This file belongs to another study (${found.study}).`);
    const order = DATA.orders[found.rater - 1];
    const fits = order !== undefined && order.length === found.answers.length && order.every(([pair, left, right], i) => {
      const answer = found.answers[i];
      return answer === null
        || (answer.pair === pair && answer.left === left && answer.right === right && Object.hasOwn(CHOICES, answer.choice));
    });
    if (!fits) throw new Error("This file was changed or damaged.");
    return found;
  }

  const fresh = (rater) => ({
    format: FORMAT, version: VERSION, study: DATA.study, rater, started: new Date().toISOString(), saved: "",
    answers: DATA.orders[rater - 1].map(() => null),
  });
  const answered = (of) => of.answers.filter((answer) => answer !== null).length;

  // ---- screens -----------------------------------------------------------------------------------------------------
  function screen(name) {
    for (const id of ["start", "rate", "done"]) $(id).hidden = id !== name;
    $(name).querySelector("h1").focus();
    window.scrollTo(0, 0);
  }

  function notice(text) {
    $("notice").textContent = text;
    $("notice").hidden = text === "";
  }

  function warnStorage() {
    notice("This browser does not let the page keep your choices. Before you close it, press “Save so far”; "
      + "next time choose “Go on from a saved file”.");
  }

  function start() {
    screen("start");
    if (storage === null) {
      warnStorage();
      $("elsewhere").open = true;
    }
    const asked = new URLSearchParams(window.location.search).get("rater");
    if (asked === null) return;
    $("rater").value = asked;
    if ($("rater").value === "") notice(`There is no rater ${asked}: choose a number of 1 to ${DATA.orders.length}.`);
    chosen();
  }

  function chosen() {
    const rater = Number($("rater").value);
    const before = rater === 0 ? null : kept(rater);
    $("go").textContent = before === null ? "Start" : "Go on";
    $("found").textContent = before === null ? ""
      : `This browser has ${answered(before)} of ${before.answers.length} answers of rater ${rater}.`;
  }

  function begin(found) {
    work = found;
    const next = work.answers.indexOf(null);
    if (next === -1) finish();
    else {
      screen("rate");
      show(next);
    }
  }

  function finish() {
    stopClock();
    ready = false;
    $("saved").textContent = "";
    $("text").value = JSON.stringify(work);
    screen("done");
  }

  // ---- rating ------------------------------------------------------------------------------------------------------
  const source = (id) => `pictures/${id}.png`;

  async function show(index) {
    at = index;
    ready = false;
    const order = DATA.orders[work.rater - 1];
    const [pair, left, right] = order[at];
    const where = `Pair ${at + 1} of ${order.length}`;
    $("where").textContent = where;
    $("progress").max = order.length;
    $("progress").value = answered(work);
    $("prompt").textContent = DATA.prompts[pair];
    $("prompt").scrollTop = 0;
    $("pictures").classList.add("waiting");
    for (const button of buttons) {
      button.disabled = true;
      button.setAttribute("aria-pressed", String(work.answers[at]?.choice === button.dataset.choice));
    }
    $("back").disabled = at === 0;
    $("forward").hidden = work.answers[at] === null;
    $("a").src = source(left);
    $("b").src = source(right);
    try {
      await Promise.all([$("a").decode(), $("b").decode()]);
    } catch {
      if (at === index && !$("rate").hidden) {
        notice("A picture of this pair cannot be loaded. The folder “pictures” must be beside this page: copy it whole, "
          + "then reload.");
      }
      return;
    }
    if (at !== index || $("rate").hidden) return; // moved on while they loaded
    $("pictures").classList.remove("waiting");
    for (const button of buttons) button.disabled = false;
    ready = true;
    clock = { since: performance.now(), ms: work.answers[at]?.ms ?? 0 };
    const before = work.answers[at] === null ? "" : ` Your choice was: ${CHOICES[work.answers[at].choice]}.`;
    $("said").textContent = `${where}. The picture should show: ${DATA.prompts[pair]}.${before}`;
    if (at + 1 < order.length) for (const id of order[at + 1].slice(1)) new Image().src = source(id);
  }

  function stopClock() {
    if (clock.since > 0) clock.ms += performance.now() - clock.since;
    clock.since = 0;
  }

  function choose(choice) {
    if (!ready) return;
    stopClock();
    const [pair, left, right] = DATA.orders[work.rater - 1][at];
    work.answers[at] = { pair, left, right, choice, ms: Math.round(clock.ms) };
    keep();
    forward();
  }

  function forward() {
    if (at + 1 < work.answers.length) show(at + 1);
    else if (work.answers.includes(null)) show(work.answers.indexOf(null));
    else finish();
  }

  function back() {
    if (!$("done").hidden) {
      screen("rate");
      show(work.answers.length - 1);
    } else if (at > 0) show(at - 1);
  }

  function save() {
    work.saved = new Date().toISOString();
    const text = JSON.stringify(work, null, 1);
    const part = work.answers.includes(null) ? "unfinished-" : "";
    const name = `${part}ratings-${DATA.study.slice(0, 8)}-rater-${work.rater}.json`;
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    unsaved = false;
    const said = `Saved as ${name}: ${answered(work)} of ${work.answers.length} answers.`;
    $("saved").textContent = said;
    $("said").textContent = said;
  }

  async function open(file) {
    if (file === undefined) return;
    try {
      let found = checked(JSON.parse(await file.text()));
      const here = kept(found.rater);
      notice("");
      if (here !== null && answered(here) > answered(found)) {
        notice(`This browser has more answers of rater ${found.rater} than the file: going on with those.`);
        found = here;
      }
      begin(found);
      keep();
      unsaved = false; // the file has it all
    } catch (error) {
      notice(error instanceof SyntaxError ? "This is not a file that this page saved." : error.message);
    }
  }

  // ---- events ------------------------------------------------------------------------------------------------------
  $("rater").addEventListener("change", () => {
    notice("");
    if (storage === null) warnStorage();
    chosen();
  });
  $("who").addEventListener("submit", (event) => {
    event.preventDefault();
    const rater = Number($("rater").value);
    begin(kept(rater) ?? fresh(rater));
  });
  $("file").addEventListener("change", (event) => open(event.target.files[0]));
  for (const button of buttons) button.addEventListener("click", () => choose(button.dataset.choice));
  $("back").addEventListener("click", back);
  $("again").addEventListener("click", back);
  $("forward").addEventListener("click", forward);
  $("save").addEventListener("click", save);
  $("save-so-far").addEventListener("click", save);
  document.addEventListener("keydown", (event) => {
    if (event.repeat || event.ctrlKey || event.altKey || event.metaKey || !$("start").hidden) return;
    if (event.key === "Backspace") back();
    else if (!$("rate").hidden && Object.hasOwn(KEYS, event.key)) choose(KEYS[event.key]);
    else return;
    event.preventDefault();
  });
  document.addEventListener("visibilitychange", () => {
    if (!ready) return;
    if (document.hidden) stopClock();
    else clock.since = performance.now();
  });
  window.addEventListener("beforeunload", (event) => {
    if (unsaved) event.preventDefault();
  });

  start();
})();
