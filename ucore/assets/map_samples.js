"use strict";
// The samples of a map: clusters, single marks, footprints and pictures, and the popup of a sample.
// Everything that comes from the data set is put into the page as text (textContent), never as HTML.

const CLUSTER_CELL = 64; // pixels of a grid cell
const CLUSTER_REACH = 44; // pixels: a neighbouring cell whose centre lies closer joins

// An element with properties, attributes (names with "-" or "role") and children; strings become text.
function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
}

// Traces the mark of a domain around (x, y); half: half its size.
function traceShape(context, shape, x, y, half) {
  const corners = {
    square: [[-0.9, -0.9], [0.9, -0.9], [0.9, 0.9], [-0.9, 0.9]],
    triangle: [[0, -1.15], [1.1, 0.85], [-1.1, 0.85]],
    diamond: [[0, -1.25], [1.25, 0], [0, 1.25], [-1.25, 0]],
    wedge: [[0, 1.15], [1.1, -0.85], [-1.1, -0.85]],
    plus: [[-0.4, -1.1], [0.4, -1.1], [0.4, -0.4], [1.1, -0.4], [1.1, 0.4], [0.4, 0.4], [0.4, 1.1], [-0.4, 1.1],
      [-0.4, 0.4], [-1.1, 0.4], [-1.1, -0.4], [-0.4, -0.4]],
  }[shape];
  context.beginPath();
  if (corners) corners.forEach(([dx, dy]) => context.lineTo(x + dx * half, y + dy * half));
  else context.arc(x, y, half, 0, 2 * Math.PI);
  context.closePath();
}

const Samples = CanvasLayer.extend({
  initialize(data) {
    this.data = data;
    const places = data.lon.map((lon, row) => mercator(lon, data.lat[row]));
    this.x = Float64Array.from(places, (place) => place[0]);
    this.y = Float64Array.from(places, (place) => place[1]);
    this.corners = data.footprints.map((ring) => ring && Samples.ring(ring));
    this.pictures = new Map();
    this.showFootprints = true;
    this.select(data.lon.map((_, row) => row));
  },
  // Shows the given rows only.
  select(rows) {
    this.rows = rows;
    this.byZoom = new Map();
    this.redraw();
  },
  bounds(rows) {
    const bounds = L.latLngBounds([]);
    for (const row of rows) bounds.extend([this.data.lat[row], this.data.lon[row]]);
    return bounds;
  },
  // Groups of rows that would overlap at a zoom, in Mercator units; those of a cell of the grid, then close neighbours.
  clusters(zoom) {
    if (this.byZoom.has(zoom)) return this.byZoom.get(zoom);
    const scale = (256 * 2 ** zoom) / CLUSTER_CELL;
    const cells = new Map();
    for (const row of this.rows) {
      const key = Math.floor(this.x[row] * scale) * 2 ** 25 + Math.floor(this.y[row] * scale);
      let cell = cells.get(key);
      if (!cell) cells.set(key, (cell = { key, rows: [], sumX: 0, sumY: 0 }));
      cell.rows.push(row);
      cell.sumX += this.x[row];
      cell.sumY += this.y[row];
    }
    const reach = CLUSTER_REACH / CLUSTER_CELL / scale;
    const close = (one, other) =>
      Math.hypot(
        one.sumX / one.rows.length - other.sumX / other.rows.length,
        one.sumY / one.rows.length - other.sumY / other.rows.length,
      ) < reach;
    for (const cell of [...cells.values()].sort((a, b) => b.rows.length - a.rows.length)) {
      if (!cells.has(cell.key)) continue;
      for (const step of [-1, 1, -(2 ** 25), 2 ** 25, -(2 ** 25) - 1, 1 - 2 ** 25, 2 ** 25 - 1, 2 ** 25 + 1]) {
        const other = cells.get(cell.key + step);
        if (!other || !close(cell, other)) continue;
        for (const row of other.rows) cell.rows.push(row);
        cell.sumX += other.sumX;
        cell.sumY += other.sumY;
        cells.delete(other.key);
      }
    }
    const found = [...cells.values()].map(({ rows, sumX, sumY }) => ({ rows, x: sumX / rows.length, y: sumY / rows.length }));
    this.byZoom.set(zoom, found);
    return found;
  },
  draw(context, { to, box, scale }) {
    this.drawn = [];
    if (this.showFootprints) this.drawFootprints(context, to, box, scale);
    for (const cluster of this.clusters(this._map.getZoom())) {
      if (cluster.x < box[0] || cluster.x > box[2] || cluster.y < box[1] || cluster.y > box[3]) continue;
      const [x, y] = to(cluster.x, cluster.y);
      const count = cluster.rows.length;
      const radius = count === 1 ? 7 : Math.min(30, 13 + 3 * Math.log10(count) ** 1.5);
      if (count === 1) this.drawMark(context, this.data.domain[cluster.rows[0]], x, y, radius);
      else this.drawCluster(context, cluster.rows, x, y, radius);
      this.drawn.push({ cluster, radius });
    }
  },
  drawMark(context, domain, x, y, half) {
    const { colour, shape } = this.data.domains[domain];
    traceShape(context, shape, x, y, half);
    context.fillStyle = colour;
    context.strokeStyle = "#ffffff";
    context.lineWidth = 4;
    context.stroke();
    context.fill();
    context.strokeStyle = "#222222";
    context.lineWidth = 1;
    context.stroke();
  },
  // A ring with the domains' shares, the count and the code of the largest domain.
  drawCluster(context, rows, x, y, radius) {
    const counts = new Array(this.data.domains.length).fill(0);
    for (const row of rows) counts[this.data.domain[row]] += 1;
    let angle = -Math.PI / 2;
    counts.forEach((count, domain) => {
      if (!count) return;
      const next = angle + (2 * Math.PI * count) / rows.length;
      context.beginPath();
      context.moveTo(x, y);
      context.arc(x, y, radius + 5, angle, next);
      context.closePath();
      context.fillStyle = this.data.domains[domain].colour;
      context.fill();
      angle = next;
    });
    context.beginPath();
    context.arc(x, y, radius, 0, 2 * Math.PI);
    context.fillStyle = "#ffffff";
    context.fill();
    context.fillStyle = "#222222";
    context.textAlign = "center";
    context.textBaseline = "middle";
    context.font = "bold 12px sans-serif";
    context.fillText(rows.length < 10000 ? rows.length : `${Math.round(rows.length / 1000)}k`, x, y - 4);
    context.font = "9px sans-serif";
    const codes = counts.map((count, domain) => [count, this.data.domains[domain].code]).filter(([count]) => count);
    context.fillText(codes.length === 1 ? codes[0][1] : "mixed", x, y + 7);
  },
  drawFootprints(context, to, box, scale) {
    for (const row of this.rows) {
      const ring = this.corners[row];
      if (!ring || (ring.east - ring.west) * scale < 14) continue;
      if (ring.east < box[0] || ring.west > box[2] || ring.south < box[1] || ring.north > box[3]) continue;
      const [left, top] = to(ring.west, ring.north);
      const [right, bottom] = to(ring.east, ring.south);
      const picture = ring.upright && right - left > 40 && this.picture(row);
      if (picture) context.drawImage(picture, left, top, right - left, bottom - top);
      context.beginPath();
      for (let i = 0; i < ring.points.length; i += 2) context.lineTo(...to(ring.points[i], ring.points[i + 1]));
      context.closePath();
      const { colour } = this.data.domains[this.data.domain[row]];
      context.fillStyle = `${colour}33`;
      if (!picture) context.fill();
      context.strokeStyle = "#ffffff";
      context.lineWidth = 3.5;
      context.stroke();
      context.strokeStyle = colour;
      context.lineWidth = 2;
      context.stroke();
    }
  },
  // The decoded thumbnail of a row, or undefined while it is being decoded or where there is none.
  picture(row) {
    const code = this.data.thumbnails[row];
    if (!code) return undefined;
    if (!this.pictures.has(row)) {
      const image = new Image();
      image.onload = () => this.redraw();
      image.src = `data:image/jpeg;base64,${code}`;
      this.pictures.set(row, image);
    }
    const image = this.pictures.get(row);
    return image.complete ? image : undefined;
  },
  // What is drawn under a point of the map's container, or undefined.
  hit(point) {
    let best;
    for (const { cluster, radius } of this.drawn || []) {
      const centre = this._map.latLngToContainerPoint(this.latLng(cluster));
      const distance = centre.distanceTo(point);
      if (distance <= radius + 5 && (!best || distance < best.distance)) best = { cluster, distance };
    }
    return best && best.cluster;
  },
  latLng({ x, y }) {
    const lat = (Math.atan(Math.sinh(Math.PI * (1 - 2 * y))) * 180) / Math.PI;
    return L.latLng(lat, x * 360 - 180);
  },
  // A click: into a cluster, or the popup of a sample, or of several that no zoom takes apart.
  open(cluster) {
    const bounds = this.bounds(cluster.rows);
    const map = this._map;
    const apart = map.getMaxZoom() - map.getZoom();
    const together = map.project(bounds.getNorthWest()).distanceTo(map.project(bounds.getSouthEast())) * 2 ** apart < 30;
    if (cluster.rows.length === 1 || apart <= 0 || together) return this.popup(cluster.rows, this.latLng(cluster));
    const before = map.getZoom();
    map.fitBounds(bounds, { padding: [40, 40] });
    if (map.getZoom() <= before) map.setView(bounds.getCenter(), before + 1);
  },
  popup(rows, place) {
    const content = make("div", { className: "ucore-popup", tabIndex: -1 });
    const turn = (number) => {
      content.replaceChildren(...this.describe(rows[number]));
      if (rows.length < 2) return;
      const to = (text, target) =>
        make("button", { type: "button", disabled: !rows[target], onclick: () => turn(target) }, text);
      const said = make("span", { role: "status" }, ` ${number + 1} of ${rows.length} here `);
      content.prepend(make("p", {}, to("Previous", number - 1), said, to("Next", number + 1)));
    };
    turn(0);
    L.popup({ maxWidth: 300, minWidth: 240, maxHeight: Math.max(160, this._map.getSize().y - 90) })
      .setLatLng(place)
      .setContent(content)
      .openOn(this._map);
    content.focus({ preventScroll: true });
  },
  // The elements that tell all about a row.
  describe(row) {
    const { data } = this;
    const list = (title, items) =>
      items.length ? [make("b", {}, title), make("ul", {}, ...items.map((item) => make("li", {}, item)))] : [];
    const tags = (numbers) => numbers.map((number) => data.tagNames[number]).join(", ");
    const facts = [
      `${data.domains[data.domain[row]].name}, split ${data.splits[data.split[row]]}`,
      `${data.lat[row].toFixed(5)}, ${data.lon[row].toFixed(5)}`,
      data.gsd[row] === null ? "" : `${data.gsd[row]} m a pixel`,
      data.sources[data.source[row]],
    ];
    return [
      make("h2", {}, data.ids[row]),
      this.image(row),
      ...list(data.captions[row].length > 1 ? "Captions" : "Caption", data.captions[row].map((text) => data.texts[text])),
      ...list("Tags", data.tags[row].length ? [tags(data.tags[row])] : []),
      ...list("Around it", data.around[row].length ? [tags(data.around[row])] : []),
      ...list("Facts", facts.filter(Boolean)),
    ];
  },
  image(row) {
    const code = this.data.thumbnails[row];
    const name = this.data.images[row];
    const alt = `Image of ${this.data.ids[row]}`;
    if (code) return make("img", { src: `data:image/jpeg;base64,${code}`, alt });
    if (this.data.base === null || !name) return make("p", { className: "ucore-none" }, "No thumbnail in this page.");
    const image = make("img", { alt, src: this.data.base + name.split("/").map(encodeURIComponent).join("/") });
    image.onerror = () => image.replaceWith(make("p", { className: "ucore-none" }, "The image file is not there."));
    return image;
  },
});

// A footprint in Mercator units. ring: [west, south, east, north], or [lon, lat, lon, lat, ...] of six numbers or more.
Samples.ring = function (ring) {
  const [west, south, east, north] = ring;
  const flat = ring.length === 4 ? [west, south, east, south, east, north, west, north] : ring;
  const points = [];
  for (let i = 0; i < flat.length; i += 2) points.push(...mercator(flat[i], flat[i + 1]));
  const xs = points.filter((_, i) => i % 2 === 0);
  const ys = points.filter((_, i) => i % 2 === 1);
  return {
    points,
    upright: ring.length === 4,
    west: Math.min(...xs),
    east: Math.max(...xs),
    north: Math.min(...ys),
    south: Math.max(...ys),
  };
};
