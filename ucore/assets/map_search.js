"use strict";
// A query over the tiles of a map: colours by score, numbered results beside it, areas drawn as filters.
// One layer a query; two stand side by side and move together. Everything from the data is put in as text.

// Matplotlib's cividis in nine steps: even to the eye, and the same for those who do not see red and green apart.
const CIVIDIS = [[0, 34, 78], [18, 53, 112], [59, 73, 108], [87, 93, 109], [112, 113, 115], [138, 134, 120],
  [165, 156, 116], [195, 179, 105], [254, 232, 56]]; // prettier-ignore

function cividis(share) {
  const at = Math.max(0, Math.min(1, share)) * (CIVIDIS.length - 1);
  const low = Math.min(Math.floor(at), CIVIDIS.length - 2);
  const mixed = CIVIDIS[low].map((value, i) => Math.round(value + (at - low) * (CIVIDIS[low + 1][i] - value)));
  return `rgb(${mixed.join(",")})`;
}

function decoded(code) {
  return code ? Uint8Array.from(atob(code), (letter) => letter.charCodeAt(0)) : new Uint8Array(0);
}

// A colour a tile, the highest scores on top, and the numbers of the results.
const Heat = CanvasLayer.extend({
  initialize(tiles) {
    this.tiles = tiles;
    const places = tiles.lon.map((lon, row) => mercator(lon, tiles.lat[row]));
    this.x = Float64Array.from(places, (place) => place[0]);
    this.y = Float64Array.from(places, (place) => place[1]);
    this.rings = tiles.footprints.map((ring) => ring && Samples.ring(ring));
    this.opacity = 0.75;
    this.chosen = null;
    this.show({ scores: "", results: [] });
  },
  // update: {scores, low, high, results}
  show(update) {
    this.levels = decoded(update.scores);
    this.results = update.results;
    this.low = update.low;
    this.high = update.high;
    const rows = this.tiles.lon.map((_, row) => row);
    this.order = this.levels.length ? rows.sort((a, b) => (this.levels[a] + 1) % 256 - (this.levels[b] + 1) % 256) : rows;
    this.redraw();
  },
  bounds(rows) {
    const bounds = L.latLngBounds([]);
    for (const row of rows) bounds.extend([this.tiles.lat[row], this.tiles.lon[row]]);
    return bounds;
  },
  draw(context, { to, box, scale }) {
    const half = 4;
    for (const row of this.order) {
      const ring = this.rings[row];
      const wide = ring ? (ring.east - ring.west) * scale : 0;
      const pad = half / scale;
      const [west, east] = ring ? [ring.west, ring.east] : [this.x[row], this.x[row]];
      const [north, south] = ring ? [ring.north, ring.south] : [this.y[row], this.y[row]];
      if (east < box[0] - pad || west > box[2] + pad || south < box[1] - pad || north > box[3] + pad) continue;
      const level = this.levels.length ? this.levels[row] : 255;
      context.globalAlpha = level === 255 ? 0.35 : this.opacity;
      context.fillStyle = level === 255 ? "#aab2b8" : cividis(level / 254);
      context.beginPath();
      if (wide >= 2 * half) {
        for (let i = 0; i < ring.points.length; i += 2) context.lineTo(...to(ring.points[i], ring.points[i + 1]));
        context.closePath();
      } else {
        const [x, y] = to(this.x[row], this.y[row]);
        context.rect(x - half, y - half, 2 * half, 2 * half);
      }
      context.fill();
    }
    context.globalAlpha = 1;
    for (const result of [...this.results].reverse()) this.drawNumber(context, to, result);
  },
  drawNumber(context, to, result) {
    if (result.tile === null) return;
    const [x, y] = to(this.x[result.tile], this.y[result.tile]);
    const chosen = this.chosen === result.rank;
    context.beginPath();
    context.arc(x, y, chosen ? 14 : 11, 0, 2 * Math.PI);
    context.fillStyle = chosen ? "#222222" : "#ffffff";
    context.strokeStyle = chosen ? "#ffffff" : "#222222";
    context.lineWidth = 2;
    context.fill();
    context.stroke();
    context.fillStyle = chosen ? "#ffffff" : "#222222";
    context.font = "bold 12px sans-serif";
    context.textAlign = "center";
    context.textBaseline = "middle";
    context.fillText(result.rank, x, y + 0.5);
    if (!result.right) return;
    context.fillText("✓", x + 16, y - 8);
  },
  // The row of the tile at a point of the map's container, or undefined.
  hit(point) {
    const place = this._map.containerPointToLatLng(point);
    const [x, y] = mercator(place.lng, place.lat);
    const reach = 12 / (256 * 2 ** this._map.getZoom());
    const marked = this.results.find(
      ({ tile }) => tile !== null && Math.hypot(this.x[tile] - x, this.y[tile] - y) < reach,
    );
    if (marked) return marked.tile;
    let best;
    for (const row of this.order) {
      const ring = this.rings[row];
      const inside = ring && x >= ring.west && x <= ring.east && y >= ring.north && y <= ring.south;
      const distance = Math.hypot(this.x[row] - x, this.y[row] - y);
      if ((inside || distance < reach / 2) && (!best || distance < best.distance)) best = { row, distance };
    }
    return best && best.row;
  },
  score(row) {
    const level = this.levels.length ? this.levels[row] : 255;
    if (level === 255) return "no score";
    if (level === 0) return `score at most ${this.low.toFixed(3)}`;
    return `score ${(this.low + (level / 254) * (this.high - this.low)).toFixed(3)}`;
  },
});

// One map with its heat, and what a click on it does. talk: sends to a notebook, or null.
class HeatView {
  constructor(map, page, layer, talk) {
    Object.assign(this, { map, talk });
    L.control.scale({ imperial: false, position: "bottomright" }).addTo(map);
    map.attributionControl.setPrefix(false);
    new Graticule().addTo(map);
    if (page.tiles) this.online(page.tiles);
    if (page.features.length) new Features(page.features).addTo(map);
    this.heat = new Heat(layer.tiles).addTo(map);
    map.on("click", (event) => {
      if (map.drawing) return;
      const row = this.heat.hit(event.containerPoint);
      if (row !== undefined) this.popup(row);
    });
    map.on("mousemove", (event) => {
      if (!map.drawing) map.getContainer().style.cursor = this.heat.hit(event.containerPoint) === undefined ? "" : "pointer";
    });
  }
  online(url) {
    const tiles = L.tileLayer(url, { maxZoom: 20, maxNativeZoom: 19, attribution: "© OpenStreetMap contributors" });
    let arrived = 0;
    tiles.on("tileload", () => (arrived += 1));
    tiles.on("tileerror", () => arrived || tiles.remove());
    tiles.addTo(this.map);
  }
  fit() {
    const rows = this.heat.tiles.lon.map((_, row) => row);
    if (rows.length) this.map.fitBounds(this.heat.bounds(rows), { maxZoom: 17, padding: [30, 30] });
  }
  show(update) {
    this.heat.show(update);
  }
  popup(row) {
    const { tiles } = this.heat;
    const result = this.heat.results.find(({ tile }) => tile === row);
    const content = make("div", { className: "ucore-popup", tabIndex: -1 }, make("h2", {}, tiles.ids[row]));
    if (result) content.append(resultPicture(result));
    const facts = [this.heat.score(row), tiles.domain[row], `${tiles.lat[row].toFixed(5)}, ${tiles.lon[row].toFixed(5)}`];
    content.append(make("p", {}, facts.filter(Boolean).join(" · ")));
    if (tiles.said.length) content.append(make("p", {}, tiles.said[row]));
    if (this.talk) {
      const ask = (what, text) =>
        make("button", { type: "button", onclick: () => this.talk({ [what]: tiles.ids[row] }) }, text);
      content.append(ask("like", "Find more like this"), " ", ask("read", "What is written about it?"));
    }
    L.popup({ maxWidth: 280, minWidth: 200 }).setLatLng([tiles.lat[row], tiles.lon[row]]).setContent(content).openOn(this.map);
    content.focus({ preventScroll: true });
  }
}

function resultPicture(result) {
  const alt = `Image of ${result.id}`;
  if (!result.picture) return make("p", { className: "ucore-none" }, `The image ${result.image} cannot be read.`);
  return make("img", { src: `data:image/jpeg;base64,${result.picture}`, alt });
}

// The list of results beside the map, linked with it.
class Results {
  constructor(view, letter, talk) {
    Object.assign(this, { view, letter, talk });
    this.title = make("h3");
    this.legend = make("div", { className: "ucore-legend" });
    this.list = make("ol", { className: "ucore-results" });
    this.element = make("section", {}, this.title, this.legend, this.list);
  }
  show(update) {
    this.view.show(update);
    this.words = update.asked === "text"; // what an image finds has no words to explain
    this.title.textContent = `${this.letter}${update.title}`;
    this.legend.replaceChildren();
    if (update.low !== null && update.low !== undefined) {
      const bar = make("div", { className: "ucore-scale", "aria-hidden": "true" });
      bar.style.background = `linear-gradient(to right, ${[0, 0.25, 0.5, 0.75, 1].map(cividis).join(", ")})`;
      const ends = make("div", { className: "ucore-ends" }, make("span", {}, `${update.low.toFixed(2)} and less`),
        make("span", {}, update.high.toFixed(2))); // prettier-ignore
      this.legend.append(bar, ends);
    }
    this.list.replaceChildren(...update.results.map((result) => this.card(result)));
    if (!update.results.length) this.list.append(make("li", { className: "ucore-none" }, "Nothing to show yet."));
  }
  card(result) {
    const sure = result.sure === null || result.sure === undefined ? "" : ` · sure ${Math.round(100 * result.sure)} %`;
    const right = result.right ? " · ✓ known to be right" : "";
    const times = result.times > 1 ? ` · ×${result.times}` : "";
    const facts = `${result.rank}. ${result.score.toFixed(3)}${sure}${times}${right}`;
    const { heat, map } = this.view;
    const choose = () => {
      if (result.tile === null) return;
      map.setView([heat.tiles.lat[result.tile], heat.tiles.lon[result.tile]], Math.max(map.getZoom(), 15));
      this.view.popup(result.tile);
    };
    const mark = (rank) => {
      heat.chosen = rank;
      heat.redraw();
    };
    const button = make("button", { type: "button", className: "ucore-card", onclick: choose }, resultPicture(result),
      make("span", {}, make("b", {}, facts), make("br"), `${result.id}: ${result.said}`)); // prettier-ignore
    button.onmouseenter = button.onfocus = () => mark(result.rank);
    button.onmouseleave = button.onblur = () => mark(null);
    const item = make("li", result.right ? { className: "ucore-right" } : {}, button);
    if (this.talk && this.words) {
      const why = () => this.talk({ why: result.item });
      item.append(make("button", { type: "button", className: "ucore-why", onclick: why }, "Why?"));
    }
    return item;
  }
}

// Buttons that lead to the domains in which results lie, where the map has several: no heat is seen across a continent.
class Domains {
  constructor(views) {
    Object.assign(this, { views, element: make("nav", { className: "ucore-domains", "aria-label": "Go to" }) });
  }
  // Lists the domains of the results, a list of them a view, and goes to that of the first one.
  show(results, go) {
    const placed = results.map((of) => of.filter(({ tile }) => tile !== null).map(({ domain }) => domain));
    const found = [...new Set(placed.flat())];
    const several = found.length > 0 && new Set(this.views.flatMap(({ heat }) => heat.tiles.domain)).size > 1;
    const button = (text, act) => make("button", { type: "button", onclick: act }, text);
    const count = (name) => placed.map((of) => of.filter((one) => one === name).length).join(" and ");
    const names = several ? found : [];
    this.element.replaceChildren(...names.map((name) => button(`${name || "elsewhere"} (${count(name)})`, () => this.go(name))));
    if (several) this.element.append(button("everywhere", () => this.fit((tiles) => tiles.domain.map((_, row) => row))));
    if (go && several) this.go(names[0]);
    else if (go) this.views[0].fit();
  }
  go(name) {
    this.fit((tiles) => tiles.domain.map((_, row) => row).filter((row) => tiles.domain[row] === name));
  }
  // Shows the tiles that `rows` chooses, of all views; the others follow the first one.
  fit(rows) {
    const bounds = L.latLngBounds([]);
    for (const { heat } of this.views) bounds.extend(heat.bounds(rows(heat.tiles)));
    this.views[0].map.fitBounds(bounds, { maxZoom: 17, padding: [30, 30] });
  }
}

function ucoreSearch(map, page) {
  const talk = page.linked ? talkTo(page.linked) : null;
  const views = page.layers.map((layer, number) => {
    if (!number) return new HeatView(map, page, layer, talk);
    const beside = make("div", { className: "folium-map ucore-second" });
    map.getContainer().after(beside);
    return new HeatView(L.map(beside, { maxZoom: 20, minZoom: 1, zoomAnimation: false, worldCopyJump: true }), page, layer, null);
  });
  const two = views.length > 1;
  const lists = views.map((view, number) => new Results(view, two ? `${"AB"[number]}: ` : "", talk));
  const domains = new Domains(views);
  const fade = make("input", { type: "range", min: 0, max: 1, step: 0.05, value: 0.75 });
  fade.oninput = () => views.forEach(({ heat }) => ((heat.opacity = Number(fade.value)), heat.redraw()));
  const notes = make("div", {}, ...page.notes.map((note) => make("p", { className: "ucore-none" }, note)));
  const panel = make("details", { className: "ucore-panel ucore-wide" },
    make("summary", {}, "Where is it like this?"), make("label", {}, "Colour", fade), domains.element, ...lists.map(({ element }) => element),
    notes); // prettier-ignore
  L.DomEvent.disableClickPropagation(panel);
  L.DomEvent.disableScrollPropagation(panel);
  views[views.length - 1].map.getContainer().after(panel);
  if (two) document.body.classList.add("ucore-pair");
  const settle = () => views.forEach(({ map: each }) => each.invalidateSize());
  if (two) views.forEach(({ map: each }, number) => each.getContainer().append(make("div", { className: "ucore-letter" }, "AB"[number])));
  if (two) {
    let moving = false; // one follows the other, not both each other
    const follow = (from, other) =>
      from.on("moveend", () => {
        if (moving) return;
        moving = true;
        other.setView(from.getCenter(), from.getZoom(), { animate: false });
        moving = false;
      });
    follow(views[0].map, views[1].map);
    follow(views[1].map, views[0].map);
  }
  lists.forEach((list, number) => list.show(page.layers[number]));
  onceSized(() => {
    panel.open = hasRoom();
    settle();
    panel.ontoggle = settle;
    views.forEach((view) => view.fit());
    domains.show(page.layers.map(({ results }) => results), true);
  });
  if (page.simulated) map.getContainer().after(make("div", { className: "ucore-simulated" }, "Simulated data"));
  if (talk) {
    new Drawing(map, talk);
    const shown = (update) => {
      lists[0].show(update);
      domains.show([update.results], false);
      notes.replaceChildren(...update.notes.map((note) => make("p", { className: "ucore-none" }, note)));
      const places = update.results.map(({ tile }) => tile).filter((tile) => tile !== null);
      if (!update.zoom || !places.length) return;
      const first = places.filter((tile) => views[0].heat.tiles.domain[tile] === views[0].heat.tiles.domain[places[0]]);
      map.fitBounds(views[0].heat.bounds(first), { maxZoom: 15, padding: [50, 50] });
    };
    onceSized(() => followBox(page.linked, shown)); // after the first view, which would hide what was asked meanwhile
  }
  return lists;
}
