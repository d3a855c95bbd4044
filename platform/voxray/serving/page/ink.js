// What is drawn over niivue's pictures: the cross, the patient's sides, the boxes of findings, and rulers that show where
// in the depth of a view they lie.
// A box lies in fractions of the scan (0..1 along its three axes), where every plane that niivue cuts is axis-aligned.

const AXES = [[0, 1, 2], [0, 2, 1], [1, 2, 0]]; // of axial, coronal and sagittal: across, up, depth
const EDGES = Array.from({ length: 8 }, (_, a) => [1, 2, 4].filter((bit) => !(a & bit)).map((bit) => [a, a | bit])).flat();
// Left, right, top and bottom, as radiologists look: from the feet, from the front, from the patient's left.
const SIDES = [["R", "L", "A", "P"], ["R", "L", "S", "I"], ["A", "P", "S", "I"]];
const NAMES = ["Axial", "Coronal", "Sagittal"];
const CROSS = "rgba(110, 195, 225, 0.62)";
const CROSS_GAP = 14;
const HALO = "rgba(3, 7, 12, 0.75)";

// The context of `canvas`, sized to its place on the screen and wiped; measures are CSS pixels from here on.
export function fresh(canvas) {
  const ratio = window.devicePixelRatio || 1;
  const [width, height] = [Math.round(canvas.clientWidth * ratio), Math.round(canvas.clientHeight * ratio)];
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return context;
}

// The planes that niivue has drawn, as rectangles in CSS pixels with a function from fractions to the screen.
export function tiles(nv) {
  const ratio = nv.uiData.dpr || 1;
  return nv.screenSlices
    .filter((slice) => slice.axCorSag <= 2 && slice.AxyzMxy.length >= 4)
    .map((slice) => {
      const [across, up, depth] = AXES[slice.axCorSag];
      let [left, top, width, height] = slice.leftTopWidthHeight.map((value) => value / ratio);
      const mirrored = width < 0;
      if (mirrored) [left, width] = [left + width, -width];
      const toScreen = (fraction) => {
        const mm = nv.frac2mm(fraction, 0, false);
        const share = (mm[across] - slice.leftTopMM[0]) / slice.fovMM[0];
        const rise = (mm[up] - slice.leftTopMM[1]) / slice.fovMM[1];
        return [left + (mirrored ? 1 - share : share) * width, top + (1 - rise) * height];
      };
      return { plane: slice.axCorSag, depth, left, top, width, height, toScreen };
    });
}

// Boxes where the planes cut them: {low, high, colour, label} in fractions; the one at `chosen` stands out.
export function drawPlanes(context, nv, boxes, chosen) {
  const cross = nv.scene.crosshairPos;
  for (const tile of tiles(nv)) {
    context.save();
    context.beginPath();
    context.rect(tile.left, tile.top, tile.width, tile.height);
    context.clip();
    drawCross(context, tile, tile.toScreen(cross));
    drawSides(context, tile);
    boxes.forEach((box, k) => {
      if (cross[tile.depth] < box.low[tile.depth] || cross[tile.depth] > box.high[tile.depth]) return;
      drawRectangle(context, tile, box, k === chosen);
    });
    context.strokeStyle = "#22303d";
    context.lineWidth = 1;
    context.strokeRect(tile.left - 0.5, tile.top - 0.5, tile.width + 1, tile.height + 1);
    if (boxes.length) drawRuler(context, tile, boxes, { chosen, at: cross[tile.depth] });
    context.restore();
  }
}

// With a gap, so that the place itself is seen.
function drawCross(context, { left, top, width, height }, [x, y]) {
  context.fillStyle = CROSS;
  for (const [from, to] of [[left, x - CROSS_GAP], [x + CROSS_GAP, left + width]])
    if (to > from) context.fillRect(from, y - 0.5, to - from, 1);
  for (const [from, to] of [[top, y - CROSS_GAP], [y + CROSS_GAP, top + height]])
    if (to > from) context.fillRect(x - 0.5, from, 1, to - from);
}

function drawSides(context, { plane, left, top, width, height }) {
  const [west, east, north, south] = SIDES[plane];
  context.font = "600 13px system-ui, sans-serif";
  context.textBaseline = "middle";
  for (const [text, x, y, align] of [
    [west, left + 8, top + height / 2, "left"],
    [east, left + width - 20, top + height / 2, "right"],
    [north, left + width / 2, top + 13, "center"],
    [south, left + width / 2, top + height - 13, "center"],
    [NAMES[plane], left + 8, top + 14, "left"],
  ]) {
    context.textAlign = align;
    haloed(context, text, x, y);
  }
  Object.assign(context, { textAlign: "left", textBaseline: "alphabetic" });
}

function haloed(context, text, x, y, colour = "#c9d6e2") {
  context.lineJoin = "round";
  context.lineWidth = 3;
  context.strokeStyle = HALO;
  context.strokeText(text, x, y);
  context.fillStyle = colour;
  context.fillText(text, x, y);
}

function drawRectangle(context, tile, box, isChosen) {
  const [a, b] = [tile.toScreen(box.low), tile.toScreen(box.high)];
  const gap = 3; // beside the finding, not upon its rim
  const [x, y] = [Math.min(a[0], b[0]) - gap, Math.min(a[1], b[1]) - gap];
  const [width, height] = [Math.abs(a[0] - b[0]) + 2 * gap, Math.abs(a[1] - b[1]) + 2 * gap];
  context.beginPath();
  context.roundRect(x, y, width, height, 2);
  stroke(context, box.colour, isChosen ? 2.5 : 1.5);
  drawLabel(context, isChosen ? box.label : box.short, [x, y], { colour: box.colour, tile });
}

function stroke(context, colour, width) {
  context.lineWidth = width + 2.5;
  context.strokeStyle = HALO;
  context.stroke();
  context.lineWidth = width;
  context.strokeStyle = colour;
  context.stroke();
}

// Above (x, y), and wholly in the tile.
function drawLabel(context, text, place, { colour, tile }) {
  context.font = "600 12px system-ui, sans-serif";
  const width = context.measureText(text).width + 10;
  const x = Math.max(tile.left + 2, Math.min(place[0], tile.left + tile.width - width - 12));
  const top = Math.max(tile.top + 2, place[1] - 20);
  context.fillStyle = colour;
  context.beginPath();
  context.roundRect(x - 1, top, width, 17, 3);
  context.fill();
  context.fillStyle = "#0b1016";
  context.fillText(text, x + 4, top + 12.5);
}

// At the right rim: a tick wherever a finding begins and ends along the view's depth, and a mark where the view is.
function drawRuler(context, tile, boxes, { chosen, at }) {
  const [x, top, height] = [tile.left + tile.width - 7, tile.top + 26, tile.height - 52];
  if (height < 40) return;
  const place = (fraction) => top + (1 - fraction) * height;
  context.fillStyle = "rgba(160, 176, 196, 0.28)";
  context.fillRect(x + 2, top, 1.5, height);
  boxes.forEach((box, k) => {
    const [from, to] = [place(box.high[tile.depth]), place(box.low[tile.depth])];
    context.fillStyle = box.colour;
    context.globalAlpha = k === chosen ? 1 : 0.7;
    context.fillRect(k === chosen ? x - 1 : x + 1, from, k === chosen ? 6 : 3.5, Math.max(3, to - from));
  });
  context.globalAlpha = 1;
  context.fillStyle = "#ffffff";
  context.beginPath();
  context.moveTo(x - 7, place(at) - 4.5);
  context.lineTo(x - 1, place(at));
  context.lineTo(x - 7, place(at) + 4.5);
  context.fill();
}

// Boxes in the 3D view of `nv` whose canvas begins at (left, top): {corners in mm, colour, short}.
export function drawRender(context, nv, boxes, { chosen, left, top, width, height }) {
  const [matrix] = nv.calculateMvpMatrix(null, [0, 0, width, height], nv.scene.renderAzimuth, nv.scene.renderElevation);
  const project = ([x, y, z]) => {
    const [u, v] = [0, 1].map((row) => matrix[row] * x + matrix[4 + row] * y + matrix[8 + row] * z + matrix[12 + row]);
    return [left + ((u + 1) / 2) * width, top + ((1 - v) / 2) * height];
  };
  context.save();
  context.beginPath();
  context.rect(left, top, width, height);
  context.clip();
  boxes.forEach((box, k) => {
    const points = box.corners.map(project);
    context.beginPath();
    for (const [a, b] of EDGES) {
      context.moveTo(...points[a]);
      context.lineTo(...points[b]);
    }
    stroke(context, box.colour, k === chosen ? 2 : 1.2);
    const x = Math.max(...points.map((point) => point[0]));
    const y = Math.min(...points.map((point) => point[1]));
    drawLabel(context, box.short, [x + 4, y + 8], { colour: box.colour, tile: { left, top, width, height } });
  });
  drawTripod(context, matrix, { left, top, width, height });
  context.restore();
}

// Where the patient's left, back and head are.
function drawTripod(context, matrix, { left, top, width, height }) {
  const [x, y] = [left + 34, top + height - 34];
  context.font = "600 12px system-ui, sans-serif";
  Object.assign(context, { textAlign: "center", textBaseline: "middle" });
  // RAS: left is -x, back is -y, head is +z.
  const arms = [["L", 0, -1], ["P", 1, -1], ["S", 2, 1]].map(([text, axis, sign]) =>
    [text, matrix[4 * axis] * width * sign, -matrix[4 * axis + 1] * height * sign]);
  const longest = Math.max(...arms.map(([, u, v]) => Math.hypot(u, v)));
  for (const [text, u, v] of arms) {
    const [dx, dy] = [(u / longest) * 17, (v / longest) * 17];
    context.strokeStyle = "#8fa3b6";
    context.lineWidth = 1.5;
    context.beginPath();
    context.moveTo(x, y);
    context.lineTo(x + dx, y + dy);
    context.stroke();
    haloed(context, text, x + dx * 1.55, y + dy * 1.55);
  }
  Object.assign(context, { textAlign: "left", textBaseline: "alphabetic" });
}
