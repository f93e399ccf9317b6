"use strict";
// The panel beside a map of samples: filters, layers, legend, tags and a list; and what puts a page together.

const LISTED = 40; // samples of the view in the list
const TAGS_SHOWN = 8;

// Which rows a text and a tag leave: every word of the text occurs in the captions or the id, as SampleExplorer has it,
// and a tag of the image contains what was typed, whatever the case.
function matcher(data) {
  let searched = null; // one string a row, made when first needed
  return (text, tag) => {
    const words = text.toLowerCase().split(/\s+/).filter(Boolean);
    const wanted = tag.trim().toLowerCase();
    const tags = new Set(data.tagNames.flatMap((name, number) => (name.toLowerCase().includes(wanted) ? [number] : [])));
    if (words.length && !searched)
      searched = data.ids.map((id, row) => [id, ...data.captions[row].map((t) => data.texts[t])].join("\n").toLowerCase());
    return (row) =>
      words.every((word) => searched[row].includes(word)) && (!wanted || data.tags[row].some((each) => tags.has(each)));
  };
}

function swatch({ colour, shape }) {
  const canvas = make("canvas", { width: 36, height: 36, "aria-hidden": "true", className: "ucore-swatch" });
  const context = canvas.getContext("2d");
  traceShape(context, shape, 18, 18, 12);
  context.fillStyle = colour;
  context.fill();
  context.strokeStyle = "#222222";
  context.lineWidth = 2;
  context.stroke();
  return canvas;
}

class Panel {
  constructor(map, data, samples) {
    Object.assign(this, { map, data, samples, match: matcher(data), given: null });
    this.count = make("p", { role: "status", className: "ucore-count" });
    this.text = make("input", { type: "search", placeholder: "words of a caption" });
    this.tag = make("input", { type: "search", placeholder: "building=school" });
    this.tags = make("div");
    this.list = make("ul", { className: "ucore-list" });
    this.domains = data.domains.map((domain) => this.box(`${domain.name} (${domain.code})`, swatch(domain)));
    this.splits = data.splits.map((name) => this.box(name || "(no split)"));
    const later = () => {
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.apply(), 200);
    };
    this.text.oninput = this.tag.oninput = later;
    this.element = this.build();
    L.DomEvent.disableClickPropagation(this.element);
    L.DomEvent.disableScrollPropagation(this.element);
    map.getContainer().after(this.element);
    map.on("moveend", () => this.showList());
    this.apply();
  }
  box(label, ...before) {
    const input = make("input", { type: "checkbox", checked: true, onchange: () => this.apply() });
    return { input, label: make("label", {}, input, ...before, make("span", {}, label)), count: make("span") };
  }
  build() {
    const names = make("datalist", { id: "ucore-tags" });
    names.append(...this.data.tagNames.slice(0, 300).map((value) => make("option", { value })));
    this.tag.setAttribute("list", "ucore-tags");
    const fields = (title, boxes) =>
      make("fieldset", {}, make("legend", {}, title), ...boxes.map(({ label, count }) => make("div", {}, label, count)));
    const footprints = make("input", { type: "checkbox", checked: true });
    footprints.onchange = () => {
      this.samples.showFootprints = footprints.checked;
      this.samples.redraw();
    };
    const filters = [
      make("label", {}, "Text", this.text),
      make("label", {}, "Tag", this.tag, names),
      make("button", { type: "button", onclick: () => this.reset() }, "Show all"),
      make("button", { type: "button", onclick: () => this.fit() }, "Zoom to these"),
    ];
    if (this.data.linked) filters.splice(0, 3); // the notebook's widgets filter
    const notes = this.data.notes.map((note) => make("p", { className: "ucore-none" }, note));
    return make(
      "details",
      { className: "ucore-panel" },
      make("summary", {}, "Samples"),
      this.count,
      ...filters,
      fields("Country", this.domains),
      fields("Split", this.splits),
      make("label", {}, footprints, "Footprints, once large enough"),
      make("h3", {}, "What they show"),
      this.tags,
      make("h3", {}, "In view"),
      this.list,
      ...notes,
    );
  }
  reset() {
    this.text.value = this.tag.value = "";
    for (const { input } of [...this.domains, ...this.splits]) input.checked = true;
    this.apply();
  }
  fit() {
    if (this.samples.rows.length) this.map.fitBounds(this.samples.bounds(this.samples.rows), { maxZoom: 17, padding: [30, 30] });
  }
  // Shows what the filters leave; `given`: rows that the notebook chose, or null.
  apply() {
    const { data } = this;
    const matches = this.match(this.text.value, this.tag.value);
    const every = this.given || data.lon.map((_, row) => row);
    const found = every.filter(matches);
    this.samples.select(
      found.filter((row) => this.domains[data.domain[row]].input.checked && this.splits[data.split[row]].input.checked),
    );
    const rows = this.samples.rows;
    this.count.textContent = `${rows.length.toLocaleString("en")} of ${data.lon.length.toLocaleString("en")} samples`;
    this.tally(this.domains, found, data.domain);
    this.tally(this.splits, found, data.split);
    this.showTags(rows);
    this.showList();
  }
  tally(boxes, rows, of) {
    const counts = new Array(boxes.length).fill(0);
    for (const row of rows) counts[of[row]] += 1;
    boxes.forEach((box, number) => (box.count.textContent = counts[number].toLocaleString("en")));
  }
  showTags(rows) {
    const counts = new Map();
    for (const row of rows) for (const tag of this.data.tags[row]) counts.set(tag, (counts.get(tag) || 0) + 1);
    const most = [...counts].sort((a, b) => b[1] - a[1] || a[0] - b[0]).slice(0, TAGS_SHOWN);
    const bars = most.map(([tag, count]) => {
      const share = (100 * count) / rows.length;
      const name = this.data.tagNames[tag];
      const use = () => {
        this.tag.value = name;
        this.apply();
      };
      const bar = make("button", { type: "button", className: "ucore-bar", onclick: use, disabled: this.data.linked },
        make("span", {}, name), make("span", {}, `${share.toFixed(share < 10 ? 1 : 0)} %`)); // prettier-ignore
      bar.style.setProperty("--share", `${share}%`);
      return bar;
    });
    this.tags.replaceChildren(...(bars.length ? bars : [make("p", { className: "ucore-none" }, "No tags.")]));
  }
  showList() {
    const { data } = this;
    const view = this.map.getBounds();
    const seen = this.samples.rows.filter((row) => view.contains([data.lat[row], data.lon[row]]));
    const items = seen.slice(0, LISTED).map((row) => {
      const said = data.captions[row].length ? data.texts[data.captions[row][0]] : "";
      const open = () => {
        this.map.setView([data.lat[row], data.lon[row]], Math.max(this.map.getZoom(), 15));
        this.samples.popup([row], [data.lat[row], data.lon[row]]);
      };
      return make("li", {}, make("button", { type: "button", onclick: open }, make("b", {}, data.ids[row]), ` ${said}`));
    });
    if (seen.length > LISTED) items.push(make("li", {}, `and ${(seen.length - LISTED).toLocaleString("en")} more`));
    this.list.replaceChildren(...items);
  }
}

// Online tiles, shown only while the server answers.
function onlineTiles(map, url) {
  const tiles = L.tileLayer(url, { maxZoom: 20, maxNativeZoom: 19, attribution: "© OpenStreetMap contributors" });
  let arrived = 0;
  tiles.on("tileload", () => (arrived += 1));
  tiles.on("tileerror", () => arrived || tiles.remove());
  tiles.addTo(map);
}

// Rows that a notebook's SampleExplorer writes into its own page, this frame's parent, as bits in base64.
function followNotebook(panel, link) {
  let last = null;
  const look = () => {
    let note = null;
    try {
      note = window.parent.document.querySelector(`[data-ucore-map="${link}"]`);
    } catch {
      clearInterval(timer); // a page that keeps frames apart: the map shows every sample
    }
    const bits = note && note.dataset.rows;
    if (!note || bits === last) return;
    last = bits;
    const bytes = Uint8Array.from(atob(bits), (letter) => letter.charCodeAt(0));
    panel.given = panel.data.lon.map((_, row) => row).filter((row) => (bytes[row >> 3] >> (7 - (row & 7))) & 1);
    panel.apply();
  };
  const timer = setInterval(look, 150);
  look();
}

function ucoreMap(map, data) {
  L.control.scale({ imperial: false, position: "bottomright" }).addTo(map);
  map.attributionControl.setPrefix(false);
  new Graticule().addTo(map);
  if (data.tiles) onlineTiles(map, data.tiles);
  if (data.features.length) new Features(data.features).addTo(map);
  const samples = new Samples(data).addTo(map);
  const panel = new Panel(map, data, samples);
  onceSized(() => {
    panel.element.open = hasRoom();
    map.invalidateSize(); // the panel takes a part of the width
    panel.element.ontoggle = () => map.invalidateSize();
    panel.fit();
  });
  map.on("click", (event) => {
    const cluster = samples.hit(event.containerPoint);
    if (cluster) samples.open(cluster);
  });
  map.on("mousemove", (event) => {
    const cluster = samples.hit(event.containerPoint);
    const names = new Set((cluster ? cluster.rows : []).map((row) => data.domains[data.domain[row]].name));
    const container = map.getContainer();
    container.style.cursor = cluster ? "pointer" : "";
    container.title = cluster ? `${cluster.rows.length} × ${[...names].join(", ")}` : "";
  });
  if (data.simulated) map.getContainer().after(make("div", { className: "ucore-simulated" }, "Simulated data"));
  if (data.linked) followNotebook(panel, data.linked);
  return panel;
}
