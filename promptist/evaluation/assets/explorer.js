// All prompts of the evaluation: filter by set, full-text search, order, noise, training seed. Cards are made when they
// come near the screen. Everything that is shown is set as text, never as markup.
"use strict";
(() => {
  const STEP = 24; // cards made at a time
  const MINUS = "\u2212";
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("data").textContent);
  const rows = data.prompts.map(([x, set, cells], place) => ({
    x, set, cells, place,
    text: [x, ...cells.flatMap((cell) => (cell ? cell[1].map((replica) => replica[0]) : []))].join("\n").toLowerCase(),
  }));
  const user = data.methods.findIndex(([name]) => name === "user");
  const list = byId("cards");
  const more = byId("more");
  const controls = ["query", "set", "order", "seed", "replica"];
  const control = Object.fromEntries(controls.map((name) => [name, byId(name)]));
  let thumbnails = null; // they stand behind this script: search and filter need not wait for megabytes of pictures
  const waiting = [];
  let found = [];
  let made = 0;

  function element(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value !== null && value !== undefined) node.setAttribute(name, value);
    }
    node.append(...children);
    return node;
  }

  function options(select, entries) {
    select.append(...entries.map(([value, label]) => element("option", { value }, label)));
    select.closest("label").hidden = entries.length < 2;
  }

  const fixed = (value, digits, sign) => {
    const text = Math.abs(value).toFixed(digits);
    if (Number(text) === 0) return text;
    return (value < 0 ? MINUS : sign ? "+" : "") + text;
  };
  const bare = (word) => word.replace(/^[,.;:!?"'()]+|[,.;:!?"'()]+$/g, "").toLowerCase();

  // The words of y; those that the user did not write in <em>, those that were searched for in <mark>.
  function words(y, x, terms) {
    const known = x === null ? null : new Set(x.split(/\s+/).map(bare));
    return y.split(/\s+/).filter(Boolean).flatMap((word, i) => {
      let node = document.createTextNode(word);
      if (terms.some((term) => word.toLowerCase().includes(term))) node = element("mark", {}, word);
      if (known && !known.has(bare(word))) node = element("em", {}, node);
      return i ? [" ", node] : [node];
    });
  }

  function picture(place, alt) {
    const image = element("img", { alt, loading: "lazy", decoding: "async" });
    if (thumbnails) show(image, place);
    else waiting.push([image, place]);
    return element("a", { href: data.pictures[place] }, image);
  }

  function show(image, place) {
    image.src = thumbnails[place] ? "data:image/webp;base64," + thumbnails[place] : data.pictures[place];
  }

  function method(index, row, cell, seed, wanted, terms) {
    const [name, label] = data.methods[index];
    const box = element("div", { class: "method" }, element("h4", {}, label));
    if (!cell) {
      box.append(element("div", { class: "none" }, "This prompt has none."));
      return box;
    }
    const [mean, replicas] = cell;
    const [y, scores, pictures] = replicas[Math.min(wanted, replicas.length - 1)];
    const painted = y || row.x;
    const figure = element("figure");
    const place = seed < pictures.length ? pictures[seed] : -1;
    if (place >= 0) {
      figure.append(picture(place, `${label}, noise ${data.seeds[seed]}: picture painted from “${painted}”`));
    }
    const caption = element("figcaption");
    (scores[seed] || []).forEach((value, i) => {
      if (value === null) return;
      const [metric, title, digits] = data.scores[i];
      caption.append(element("span", {}, `${title} ${fixed(value, digits, metric.endsWith("reward"))}`), " ");
    });
    if (mean !== null) caption.append(element("span", { class: "mean" }, `mean reward ${fixed(mean, 2, true)}`));
    figure.append(caption);
    box.append(figure);
    const text = element("p");
    if (name === "user") text.append(...words(row.x, null, terms));
    else if (y) text.append(...words(y, row.x, terms));
    else text.append("left as it is");
    box.append(text);
    return box;
  }

  function card(row, terms) {
    const title = `p${row.place}`;
    const seed = Number(control.seed.value || 0);
    const wanted = Number(control.replica.value || 0);
    const heading = element("h3", { id: title }, ...words(row.x, null, terms));
    const columns = element("div", { class: "methods few" });
    row.cells.forEach((cell, i) => columns.append(method(i, row, cell, seed, wanted, terms)));
    return element(
      "article", { class: "case", "aria-labelledby": title, tabindex: "-1" },
      element("header", {}, heading, element("span", { class: "tag" }, data.sets[row.set])), columns,
    );
  }

  const searched = () => control.query.value.toLowerCase().split(/\s+/).filter(Boolean);

  function extend() {
    const terms = searched();
    const next = found.slice(made, made + STEP);
    list.append(...next.map((row) => card(row, terms)));
    made += next.length;
    more.hidden = made >= found.length;
  }

  function update() {
    const terms = searched();
    const set = control.set.value;
    const [way, index] = control.order.value.split(" ");
    found = rows.filter((row) => (set === "" || row.set === Number(set)) && terms.every((term) => row.text.includes(term)));
    if (way !== "file") {
      const change = (row) => {
        const [cell, plain] = [row.cells[Number(index)], row.cells[user]];
        return cell && plain && cell[0] !== null && plain[0] !== null ? cell[0] - plain[0] : null;
      };
      const keyed = found.map((row) => [change(row), row]).filter(([key]) => key !== null);
      found = keyed.sort((a, b) => (way === "best" ? b[0] - a[0] : a[0] - b[0])).map(([, row]) => row);
    }
    byId("count").textContent = `${found.length} of ${rows.length} prompts`;
    list.replaceChildren();
    made = 0;
    extend();
  }

  function step(by) {
    const cards = [...list.children];
    const here = cards.indexOf(document.activeElement.closest?.("article") ?? null);
    if (here + by >= cards.length) extend();
    const target = list.children[Math.max(0, here + by)];
    if (target) {
      target.focus();
      target.scrollIntoView({ block: "start" });
    }
  }

  function key(event) {
    const typing = event.target.matches?.("input, select, textarea");
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape" && event.target === control.query) {
      control.query.value = "";
      update();
    } else if (!typing && event.key === "/") {
      event.preventDefault();
      control.query.focus();
      byId("prompts").scrollIntoView();
    } else if (!typing && (event.key === "j" || event.key === "k")) {
      step(event.key === "j" ? 1 : -1);
    }
  }

  options(control.set, [["", "all"], ...data.sets.map((name, i) => [String(i), name])]);
  const orders = data.methods.flatMap(([name, label], i) =>
    name === "user" ? [] : [[`best ${i}`, `largest gain of ${label}`], [`worst ${i}`, `largest loss of ${label}`]]);
  options(control.order, [["file file", "as in the evaluation"], ...(user >= 0 ? orders : [])]);
  options(control.seed, data.seeds.map((seed, i) => [String(i), String(seed)]));
  const most = data.replicas.reduce((a, b) => (b.length > a.length ? b : a), []);
  options(control.replica, most.map((replica, i) => [String(i), String(replica)]));
  control.query.addEventListener("input", update);
  controls.slice(1).forEach((name) => control[name].addEventListener("change", update));
  byId("search").addEventListener("submit", (event) => event.preventDefault());
  more.addEventListener("click", extend);
  document.addEventListener("keydown", key);
  // Ahead of the reader by about a screen.
  new IntersectionObserver((seen) => seen.some((entry) => entry.isIntersecting) && extend(), { rootMargin: "900px" }).observe(more);
  byId("search").hidden = false;
  update();
  performance.mark("usable");
  document.addEventListener("DOMContentLoaded", () => {
    thumbnails = byId("thumbnails").textContent.split("\n");
    waiting.splice(0).forEach(([image, place]) => show(image, place));
    performance.mark("complete");
  });
})();
