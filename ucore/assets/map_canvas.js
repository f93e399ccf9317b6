"use strict";
// What lies under the samples of a map: a canvas that follows the view, a graticule and vector features.

// Positions are kept in Web Mercator units: x and y in [0, 1] over the whole world, y downwards.
function mercator(lon, lat) {
  const s = Math.sin((Math.max(-85, Math.min(85, lat)) * Math.PI) / 180);
  return [(lon + 180) / 360, 0.5 - Math.log((1 + s) / (1 - s)) / (4 * Math.PI)];
}

// A frame may run before the page around it is laid out, and is then 0 pixels wide: what depends on room waits for some.
function onceSized(settle) {
  if (window.innerWidth) settle();
  else window.addEventListener("resize", () => onceSized(settle), { once: true });
}
const hasRoom = () => window.innerWidth > 560; // for a panel beside the map, as map.css has it

// A layer that draws into one canvas, a little larger than the view, whenever the view has moved.
const CanvasLayer = L.Layer.extend({
  onAdd() {
    this.canvas = L.DomUtil.create("canvas", "ucore-canvas", this.getPane());
    this.redraw();
  },
  onRemove() {
    this.canvas.remove();
  },
  getEvents() {
    return { moveend: this.redraw, zoom: this.redraw, viewreset: this.redraw, resize: this.redraw };
  },
  redraw() {
    if (!this._map) return;
    const view = this._map.getSize();
    const margin = view.multiplyBy(0.25).round();
    const size = view.add(margin.multiplyBy(2));
    const corner = this._map.containerPointToLayerPoint(margin.multiplyBy(-1));
    const ratio = window.devicePixelRatio || 1;
    this.canvas.width = size.x * ratio;
    this.canvas.height = size.y * ratio;
    this.canvas.style.width = `${size.x}px`;
    this.canvas.style.height = `${size.y}px`;
    L.DomUtil.setPosition(this.canvas, corner);
    const context = this.canvas.getContext("2d");
    context.scale(ratio, ratio);
    const origin = this._map.getPixelOrigin().add(corner);
    const scale = 256 * 2 ** this._map.getZoom();
    // `to` gives canvas pixels of a Mercator position; `box` is the canvas in Mercator units.
    const to = (x, y) => [x * scale - origin.x, y * scale - origin.y];
    const box = [origin.x / scale, origin.y / scale, (origin.x + size.x) / scale, (origin.y + size.y) / scale];
    this.draw(context, { to, box, scale, size, margin, view });
  },
});

// Lines of longitude and latitude with their degrees at the edges of the view.
const Graticule = CanvasLayer.extend({
  STEPS: [45, 30, 15, 10, 5, 2, 1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001, 0.0005, 0.0002],
  draw(context, { to, size, margin, view }) {
    const bounds = this._map.getBounds().pad(0.3);
    const degreesPerPixel = (bounds.getEast() - bounds.getWest()) / size.x;
    const step = this.STEPS.filter((each) => each > 110 * degreesPerPixel).pop() || 45;
    const digits = Math.max(0, Math.ceil(-Math.log10(step) - 1e-9));
    context.strokeStyle = "#d3d8dc";
    context.fillStyle = "#5b646b";
    context.font = "11px sans-serif";
    const label = (value, plus, minus) => `${Math.abs(value).toFixed(digits)}° ${value < 0 ? minus : plus}`;
    for (let k = Math.ceil(Math.max(-180, bounds.getWest()) / step); k * step <= Math.min(180, bounds.getEast()); k++) {
      const x = Math.round(to(...mercator(k * step, 0))[0]) + 0.5;
      this.line(context, x, 0, x, size.y);
      context.fillText(label(k * step, "E", "W"), x + 3, margin.y + view.y - 6);
    }
    for (let k = Math.ceil(Math.max(-80, bounds.getSouth()) / step); k * step <= Math.min(80, bounds.getNorth()); k++) {
      const y = Math.round(to(...mercator(0, k * step))[1]) + 0.5;
      this.line(context, 0, y, size.x, y);
      context.fillText(label(k * step, "N", "S"), margin.x + 6, y - 3);
    }
  },
  line(context, x1, y1, x2, y2) {
    context.beginPath();
    context.moveTo(x1, y1);
    context.lineTo(x2, y2);
    context.stroke();
  },
});

// Vector features. kinds: [{fill, line, width (pixels at zoom 16), paths: [[lon, lat, dlon, dlat, ...], ...]}], in
// millionths of a degree: a first position, then steps.
const Features = CanvasLayer.extend({
  initialize(kinds) {
    this.kinds = kinds.map((kind) => ({ ...kind, paths: kind.paths.map(Features.unpack) }));
  },
  draw(context, { to, box, scale }) {
    const zoom = Math.log2(scale / 256);
    context.lineJoin = context.lineCap = "round";
    for (const { fill, line, width, paths } of this.kinds) {
      context.fillStyle = fill;
      context.strokeStyle = line;
      context.lineWidth = Math.max(0.4, width * 2 ** Math.min(1.5, zoom - 16));
      context.beginPath();
      for (const { points, west, north, east, south } of paths) {
        const seen = east > box[0] && west < box[2] && south > box[1] && north < box[3];
        if (!seen || Math.max(east - west, south - north) * scale < 1.5) continue;
        for (let i = 0; i < points.length; i += 2) {
          const [x, y] = to(points[i], points[i + 1]);
          if (i) context.lineTo(x, y);
          else context.moveTo(x, y);
        }
      }
      if (fill) context.fill("evenodd");
      if (line) context.stroke();
    }
  },
});

Features.unpack = function (steps) {
  const points = new Float64Array(steps.length);
  const path = { points, west: 2, north: 2, east: -1, south: -1 };
  for (let i = 0, lon = 0, lat = 0; i < steps.length; i += 2) {
    lon += steps[i];
    lat += steps[i + 1];
    const [x, y] = mercator(lon / 1e6, lat / 1e6);
    [points[i], points[i + 1]] = [x, y];
    path.west = Math.min(path.west, x);
    path.east = Math.max(path.east, x);
    path.north = Math.min(path.north, y);
    path.south = Math.max(path.south, y);
  }
  return path;
};
