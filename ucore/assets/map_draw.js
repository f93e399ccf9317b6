"use strict";
// How a map asks: areas drawn on it, and what it and a SearchBox around it tell each other.

// Boxes and areas drawn on a map; each is told as {box: [w, s, e, n]}, {polygon: [[lon, lat], ...]} or {box: null}.
class Drawing {
  constructor(map, tell) {
    Object.assign(this, { map, tell, shape: null, points: [] });
    const button = (text, title, act) => make("button", { type: "button", title, onclick: act, "aria-pressed": "false" }, text);
    this.box = button("▭ Box", "Press and drag on the map", () => this.start("box"));
    this.area = button("⬠ Area", "Click corners; click the first one again to close", () => this.start("area"));
    const clear = button("Clear area", "Search everywhere", () => this.clear(true));
    this.element = make("div", { className: "ucore-draw", role: "toolbar", "aria-label": "Draw a filter" }, this.box, this.area, clear);
    L.DomEvent.disableClickPropagation(this.element);
    map.getContainer().append(this.element);
    map.on("mousedown", (event) => this.down(event));
    map.on("mousemove", (event) => this.move(event));
    map.on("mouseup", () => this.up());
    map.on("click", (event) => this.click(event));
  }
  start(mode) {
    this.clear(false);
    this.map.drawing = mode;
    this.map.dragging.disable();
    this.map.doubleClickZoom.disable();
    this.map.getContainer().style.cursor = "crosshair";
    this.box.setAttribute("aria-pressed", mode === "box");
    this.area.setAttribute("aria-pressed", mode === "area");
  }
  stop() {
    this.map.dragging.enable();
    this.map.doubleClickZoom.enable();
    this.map.getContainer().style.cursor = "";
    this.box.setAttribute("aria-pressed", false);
    this.area.setAttribute("aria-pressed", false);
    this.points = [];
    setTimeout(() => (this.map.drawing = null), 50); // the click that ends a drag is no click on a tile
  }
  clear(tell) {
    if (this.shape) this.shape.remove();
    this.shape = this.corner = null;
    if (this.map.drawing) this.stop();
    if (tell) this.tell({ box: null });
  }
  put(shape) {
    if (this.shape) this.shape.remove();
    this.shape = shape.addTo(this.map);
  }
  down(event) {
    if (this.map.drawing === "box") this.corner = event.latlng;
  }
  move(event) {
    const look = { color: "#d55e00", weight: 2, fillOpacity: 0.08, interactive: false };
    if (this.map.drawing === "box" && this.corner) this.put(L.rectangle([this.corner, event.latlng], look));
    if (this.map.drawing === "area" && this.points.length) this.put(L.polyline([...this.points, event.latlng], look));
  }
  up() {
    if (this.map.drawing !== "box" || !this.corner || !this.shape) return;
    const bounds = this.shape.getBounds();
    this.corner = null;
    this.stop();
    this.tell({ box: drawnBox(bounds.getWest(), bounds.getSouth(), bounds.getEast(), bounds.getNorth()) });
  }
  click(event) {
    if (this.map.drawing !== "area") return;
    const near = (place) => this.map.latLngToContainerPoint(place).distanceTo(event.containerPoint) < 12;
    if (this.points.length < 3 || !near(this.points[0])) {
      this.points.push(event.latlng);
      return;
    }
    const ring = this.points.map(({ lng, lat }) => [lng, lat]);
    this.put(L.polygon(this.points, { color: "#d55e00", weight: 2, fillOpacity: 0.08, interactive: false }));
    this.stop();
    this.tell({ polygon: [...ring, ring[0]] });
  }
}

// The edges of a drawn box as a filter takes them: west within 180 degrees, east beyond it where the box crosses the
// antimeridian. A map can be dragged on around the world, so that both may be more than a turn off.
function drawnBox(west, south, east, north) {
  const clipped = [Math.max(south, -90), Math.min(north, 90)];
  if (east - west >= 360) return [-180, clipped[0], 180, clipped[1]];
  const turns = Math.floor((west + 180) / 360);
  return [west - 360 * turns, clipped[0], east - 360 * turns, clipped[1]];
}

// Sends to a SearchBox by writing into its hidden text field, in the page around this frame.
function talkTo(link) {
  let count = 0;
  return (message) => {
    const field = window.parent.document.querySelector(`.${link} input`);
    if (!field) return;
    const setter = Object.getOwnPropertyDescriptor(Object.getPrototypeOf(field), "value").set;
    setter.call(field, JSON.stringify({ ...message, count: (count += 1) }));
    field.dispatchEvent(new Event("input", { bubbles: true }));
    field.dispatchEvent(new Event("change", { bubbles: true }));
  };
}

// Follows what a SearchBox writes into its own page, this frame's parent.
function followBox(link, show) {
  let last = null;
  const look = () => {
    let note = null;
    try {
      note = window.parent.document.querySelector(`[data-ucore-search="${link}"]`);
    } catch {
      clearInterval(timer); // a page that keeps frames apart
    }
    if (!note || note.dataset.version === last) return;
    last = note.dataset.version;
    const bytes = Uint8Array.from(atob(note.dataset.update), (letter) => letter.charCodeAt(0));
    show(JSON.parse(new TextDecoder().decode(bytes)));
  };
  const timer = setInterval(look, 60);
  look();
}
