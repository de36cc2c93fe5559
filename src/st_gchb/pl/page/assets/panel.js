// Genes, settings and the spot in words: what is beside the slide, and how it changes what is drawn on it.
"use strict";

stGchb.open = (record) => {
  const at = (id) => document.getElementById(id);
  const { spots, genes } = record;
  const slide = new stGchb.Slide(at("slide"), record);
  const confidence = spots.confidence ? stGchb.floatsOf(spots.confidence) : null;
  const tables = Object.fromEntries(Object.entries(record.colors).map(([name, text]) => [name, stGchb.bytesOf(text)]));
  const columns = new Set(genes.columns);
  const count = (n, one, many) => `${n.toLocaleString("en")} ${n === 1 ? one : many}`;
  const position = spots.tiles ? ["position", "positions"] : ["spot", "spots"];
  const state = { gene: -1, values: null, scale: null, ranked: [] };

  // ---- Genes ----

  const options = genes.names.map((name, number) => {
    const option = document.createElement("div");
    option.className = "option";
    option.id = `gene-${number}`;
    option.setAttribute("role", "option");
    option.setAttribute("aria-selected", "false");
    option.dataset.number = number;
    const label = document.createElement("span");
    label.textContent = name;
    option.title = name;
    const bar = document.createElement("span");
    const filled = document.createElement("i");
    const value = document.createElement("span");
    const expected = genes.expected[number];
    bar.className = "bar";
    bar.setAttribute("aria-hidden", "true");
    bar.hidden = expected === null;
    filled.style.width = `${100 * Math.min(Math.max(expected ?? 0, 0), 1)}%`;
    bar.append(filled);
    value.className = "number";
    value.textContent = expected === null ? "" : expected.toFixed(2).replace("-", "−");
    option.append(label, bar, value);
    if (expected === null) bar.replaceWith(document.createElement("span"));
    return option;
  });
  const collator = new Intl.Collator("en", { numeric: true });
  let listed = [];

  function byOrder(a, b) {
    const [one, other] = [genes.expected[a] ?? -2, genes.expected[b] ?? -2];
    if (at("order").value === "expected" && one !== other) return other - one;
    return collator.compare(genes.names[a], genes.names[b]);
  }

  function arrange() {
    const numbers = [...genes.names.keys()].sort(byOrder);
    at("list").replaceChildren(...numbers.map((number) => options[number]));
    search();
  }

  function search() {
    const wanted = at("search").value.trim().toLowerCase();
    listed = [];
    for (const option of at("list").children) {
      const number = Number(option.dataset.number);
      option.hidden = !genes.names[number].toLowerCase().includes(wanted);
      if (!option.hidden) listed.push(number);
    }
    at("found").textContent = listed.length
      ? wanted ? `${listed.length.toLocaleString("en")} of ${count(options.length, "gene", "genes")}` : count(options.length, "gene", "genes")
      : `No gene is called like “${at("search").value.trim()}”. The page holds ${count(options.length, "gene", "genes")}.`;
    options[state.gene]?.scrollIntoView({ block: "nearest" });
  }

  async function choose(number) {
    options[state.gene]?.setAttribute("aria-selected", "false");
    state.gene = number;
    options[number].setAttribute("aria-selected", "true");
    options[number].scrollIntoView({ block: "nearest" });
    for (const id of ["search", "list"]) at(id).setAttribute("aria-activedescendant", options[number].id);
    let values;
    try {
      values = await stGchb.load(number);
    } catch (error) {
      at("problem").textContent = error.message;
      at("problem").hidden = false;
      return;
    }
    // Another gene may have been chosen in the meantime.
    if (state.gene !== number) return;
    at("problem").hidden = true;
    state.values = values;
    state.scale = stGchb.scaleOf(values) ?? { low: 0, high: 1 };
    slide.setValues(values, state.scale);
    rank();
    legend();
    tell();
    // Who goes through the list comes to its neighbors next.
    const place = listed.indexOf(number);
    for (const next of [listed[place + 1], listed[place - 1]]) if (next !== undefined) stGchb.load(next).catch(() => {});
  }

  function step(by) {
    if (!listed.length) return;
    const place = listed.indexOf(state.gene);
    const next = place < 0 ? 0 : Math.min(Math.max(place + by, 0), listed.length - 1);
    choose(listed[next]);
  }

  function keys(event) {
    const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10 };
    const inList = event.target === at("list");
    if (event.key in moves) step(moves[event.key]);
    else if (inList && event.key === "Home") choose(listed[0]);
    else if (inList && event.key === "End") choose(listed.at(-1));
    else if (event.key === "Enter" && listed.length) {
      const wanted = at("search").value.trim().toLowerCase();
      choose(listed.find((number) => genes.names[number].toLowerCase() === wanted) ?? listed[0]);
    } else return;
    event.preventDefault();
  }

  // ---- Legend ----

  function legend() {
    const { gene, scale } = state;
    const name = genes.names[gene];
    const expected = genes.expected[gene];
    at("gene").textContent = name;
    at("gene-expected").textContent =
      expected === null ? "" : `expected correlation ${expected.toFixed(2).replace("-", "−")}`;
    at("unit").textContent = columns.has(gene) ? "column of the table" : `${record.predicted ? "predicted, " : ""}${record.unit}`;
    const stops = Array.from({ length: 17 }, (_, i) => {
      const bin = Math.min(16 * i, 255);
      const [r, g, b] = slide.table.subarray(3 * bin, 3 * bin + 3);
      return `rgb(${r} ${g} ${b})`;
    });
    at("ramp").style.background = `linear-gradient(to right, ${stops.join(", ")})`;
    const tick = (value) => value.toFixed(2).replace("-", "−");
    const texts = [
      (scale.below ? "≤ " : "") + tick(scale.low),
      tick((scale.low + scale.high) / 2),
      (scale.above ? "≥ " : "") + tick(scale.high),
    ];
    at("ticks").replaceChildren(...texts.map((text) => Object.assign(document.createElement("span"), { textContent: text })));
    at("ramp").setAttribute("aria-label", `Colors of ${name} from ${texts[0]} to ${texts[2]}`);
  }

  // ---- Spots ----

  function rank() {
    const { values } = state;
    state.ranked = [...slide.order].filter((i) => slide.shown[i]).sort((a, b) => values[b] - values[a] || a - b);
  }

  function words(spot) {
    const lines = [spots.names[spot], `${genes.names[state.gene]} ${stGchb.written(state.values[spot])}`];
    if (confidence) lines.push(`confidence ${Number.isFinite(confidence[spot]) ? confidence[spot].toFixed(2) : "unknown"}`);
    if (slide.outlier?.[spot]) lines.push("unlike the reference");
    return lines;
  }

  const hint = at("spot").textContent;

  function tell() {
    const spot = slide.selected;
    const place = state.ranked.indexOf(spot);
    if (spot < 0 || !state.values) at("spot").textContent = hint;
    else {
      const [name, ...others] = words(spot);
      const ranked = place < 0 ? "" : `, number ${(place + 1).toLocaleString("en")} of ${state.ranked.length.toLocaleString("en")}`;
      at("spot").textContent = [name + ranked, ...others].join("\n");
    }
    at("higher").disabled = !state.ranked.length || place === 0;
    at("lower").disabled = !state.ranked.length || place === state.ranked.length - 1;
  }

  function select(spot) {
    slide.selected = spot;
    slide.drawSoon();
    tell();
  }

  function stepSpot(by) {
    const place = state.ranked.indexOf(slide.selected);
    const next = place < 0 ? 0 : Math.min(Math.max(place + by, 0), state.ranked.length - 1);
    select(state.ranked[next]);
    slide.reveal(state.ranked[next]);
  }

  function filter() {
    const least = Number(at("confidence").value);
    let n = 0;
    for (let i = 0; i < spots.n; i++) {
      // At 0 all are shown, those without a confidence among them.
      slide.shown[i] = !confidence || least === 0 || confidence[i] >= least ? 1 : 0;
      n += slide.shown[i];
    }
    at("confidence-value").textContent = least.toFixed(2);
    at("shown").textContent = `${n.toLocaleString("en")} of ${count(spots.n, ...position)} shown`;
    if (slide.selected >= 0 && !slide.shown[slide.selected]) slide.selected = -1;
    if (state.values) {
      rank();
      tell();
    }
    slide.drawSoon();
  }

  slide.onselect = select;
  slide.onpoint = (spot, place) => {
    const tip = at("tip");
    tip.hidden = spot < 0 || !state.values;
    if (tip.hidden) return;
    tip.textContent = words(spot).join("\n");
    const { width, height } = at("slide").getBoundingClientRect();
    const left = place.x + 16 + tip.offsetWidth > width ? place.x - 12 - tip.offsetWidth : place.x + 16;
    const top = Math.min(place.y + 16, height - tip.offsetHeight - 8);
    tip.style.transform = `translate(${Math.round(left)}px, ${Math.round(top)}px)`;
  };
  slide.onview = (zoom) => {
    const bar = at("scale-bar");
    bar.hidden = !slide.um;
    if (bar.hidden) return;
    const most = (140 * slide.um) / zoom;
    const power = 10 ** Math.floor(Math.log10(most));
    const length = [5, 2, 1].map((part) => part * power).find((um) => um <= most);
    bar.firstElementChild.style.width = `${(length / slide.um) * zoom}px`;
    bar.firstElementChild.textContent = `${length.toLocaleString("en")} µm`;
  };

  // ---- Settings ----

  function hide(hidden) {
    if (slide.hidden === hidden) return;
    slide.hidden = hidden;
    slide.drawSoon();
  }

  function setColors() {
    slide.table = tables[at("colors").value];
    if (state.values) legend();
    slide.drawSoon();
  }

  function setOpacity() {
    slide.opacity = Number(at("opacity").value) / 100;
    at("opacity-value").textContent = `${at("opacity").value} %`;
    slide.drawSoon();
  }

  function setSize() {
    slide.radius = (slide.trueRadius * Number(at("size").value)) / 100;
    at("size-value").textContent = `${at("size").value} %`;
    slide.drawSoon();
  }

  const names = { gray_r: "gray" };
  at("colors").append(...Object.keys(tables).map((name) => new Option(names[name] ?? name, name)));
  at("order").addEventListener("change", arrange);
  at("search").addEventListener("input", search);
  at("search").addEventListener("keydown", keys);
  at("list").addEventListener("keydown", keys);
  at("list").addEventListener("click", (event) => {
    const option = event.target.closest(".option");
    if (option) choose(Number(option.dataset.number));
  });
  at("opacity").addEventListener("input", setOpacity);
  at("size").addEventListener("input", setSize);
  at("confidence").addEventListener("input", filter);
  at("colors").addEventListener("change", setColors);
  at("outlier").addEventListener("change", () => {
    slide.outline = at("outlier").checked;
    slide.drawSoon();
  });
  at("higher").addEventListener("click", () => stepSpot(-1));
  at("lower").addEventListener("click", () => stepSpot(1));
  at("zoom-in").addEventListener("click", () => slide.viewer.viewport.zoomBy(1.5).applyConstraints());
  at("zoom-out").addEventListener("click", () => slide.viewer.viewport.zoomBy(1 / 1.5).applyConstraints());
  at("fit").addEventListener("click", () => slide.showSpots(false));
  document.addEventListener("keydown", (event) => {
    const typing = event.target.matches?.("input[type=search], select");
    if (event.key.toLowerCase() === "h" && !typing && !event.ctrlKey && !event.metaKey) hide(true);
  });
  document.addEventListener("keyup", (event) => {
    if (event.key.toLowerCase() === "h") hide(false);
  });
  window.addEventListener("blur", () => hide(false));

  // ---- What the page opens with ----

  const n_outliers = slide.outlier ? slide.outlier.filter((flag) => flag > 0).length : 0;
  at("summary").textContent =
    `${record.predicted ? "Expression predicted from H&E, not measured" : "Expression"} · ` +
    `${count(spots.n, ...position)}, ${count(options.length, "gene", "genes")}`;
  at("confidence-setting").hidden = !confidence;
  at("outlier-setting").hidden = !slide.outlier || !n_outliers;
  at("outlier-none").hidden = !slide.outlier || n_outliers > 0;
  at("outlier-count").textContent = `(${n_outliers.toLocaleString("en")})`;
  if (record.verdict && !record.verdict.in_range) {
    at("verdict").textContent = `This slide: ${record.verdict.text}.`;
    at("verdict").hidden = false;
    // A ring around every spot would tell nothing more.
    at("outlier").checked = slide.outline = n_outliers < spots.n;
  }
  const rows = record.provenance.length ? record.provenance : [["Provenance", "none is stored with this prediction"]];
  if (record.verdict) rows.push(["This slide", record.verdict.text]);
  for (const [label, text] of [["Slice", record.slice], ...rows]) {
    const term = Object.assign(document.createElement("dt"), { textContent: label });
    at("provenance").append(term, Object.assign(document.createElement("dd"), { textContent: text }));
  }
  if (genes.expected.every((value) => value === null)) at("order").value = "name";
  stGchb.slide = slide;
  setColors();
  setOpacity();
  setSize();
  filter();
  arrange();
  choose(record.first ?? listed[0]);
};
