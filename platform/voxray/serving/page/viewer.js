// The views of a scan: three planes on one canvas of niivue, 3D on a second one, and boxes over both.
import { bestPlaces, corners, gridOf, niftiBytes, shrink } from "./grid.js";
import { drawPlanes, drawRender, fresh, tiles } from "./ink.js";

const NIIVUE = "/page/niivue-0.69.0.umd.js";
const LONGEST_IN_3D = 192;
const CT_AROUND_MASKS = 0.12; // its opacity in 3D
export const PLANES = ["Axial", "Coronal", "Sagittal"];
export const LAYOUTS = { all: "All", axial: "Axial", coronal: "Coronal", sagittal: "Sagittal", render: "3D" };
export const WINDOWS = {
  lung: { name: "Lung", low: -1350, high: 150 },
  soft: { name: "Soft tissue", low: -160, high: 240 },
  bone: { name: "Bone", low: -500, high: 1300 },
};
// Bones pale and solid, skin and lungs a breath: what was found must show through.
const RENDER_LOW = -1024;
const RENDER_HIGH = 1400;
const RENDER_COLOURS = {
  R: [0, 70, 90, 120, 190, 225, 245, 255],
  G: [0, 100, 120, 95, 150, 200, 232, 255],
  B: [0, 130, 140, 85, 120, 170, 215, 250],
  A: [0, 0, 3, 3, 5, 40, 90, 130],
  I: [0, 18, 60, 100, 120, 135, 175, 255],
};
const THREE = [
  { sliceType: 0, position: [0, 0, 0.5, 0.5] },
  { sliceType: 1, position: [0.5, 0, 0.5, 0.5] },
  { sliceType: 2, position: [0, 0.5, 0.5, 0.5] },
];

const LABELS = 1002; // NIfTI's intent of a label map: whole numbers, never blended

let library = null;

function loadNiivue() {
  library ??= new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = NIIVUE;
    script.addEventListener("load", () => resolve(window.niivue));
    script.addEventListener("error", () => reject(new Error("the viewer could not be loaded")));
    document.head.append(script);
  });
  return library;
}

// elements: {views, planesPane, planes, renderPane, render, ink}; events: onMove(place), onWindow(low, high), onRead.
export async function openViewer(elements, events) {
  const niivue = await loadNiivue();
  const { DRAG_MODE, NVImage } = niivue;
  const common = {
    logLevel: "silent",
    backColor: [0, 0, 0, 1],
    dragAndDropEnabled: false,
    loadingText: "",
    isRadiologicalConvention: true,
    sagittalNoseLeft: true,
    // The cross and the letters are drawn with the boxes: thin and legible at every zoom.
    crosshairWidth: 0,
    show3Dcrosshair: false,
    isOrientationTextVisible: false,
    viewModeHotKey: "",
    clipPlaneHotKey: "",
    cycleClipPlaneHotKey: "",
    isColorbar: false,
  };
  const planes = new niivue.Niivue(common);
  const render = new niivue.Niivue(common);
  await planes.attachToCanvas(elements.planes);
  await render.attachToCanvas(elements.render);
  planes.setMouseEventConfig({
    leftButton: { primary: DRAG_MODE.crosshair, withShift: DRAG_MODE.pan, withCtrl: DRAG_MODE.measurement },
    rightButton: DRAG_MODE.windowing,
    centerButton: DRAG_MODE.pan,
  });
  planes.setTouchEventConfig({ singleTouch: DRAG_MODE.crosshair, doubleTouch: DRAG_MODE.pan });
  render.addColormap("voxray", RENDER_COLOURS);
  render.setSliceType(4);
  for (const canvas of [elements.planes, elements.render]) canvas.tabIndex = -1; // the views are one stop of the keyboard
  return viewerOf({ NVImage, planes, render, elements, events });
}

// The extent of a plane, with a little air, in the proportions of the place where it is drawn.
function widened(extent, proportion) {
  const { mnMM: low, mxMM: high, fovMM: size } = extent;
  const scale = Math.max(size[0] / proportion, size[1]) * 1.04;
  [scale * proportion, scale].forEach((length, k) => {
    const middle = (low[k] + high[k]) / 2;
    [low[k], high[k], size[k]] = [middle - length / 2, middle + length / 2, length];
  });
  return extent;
}

function viewerOf({ NVImage, planes, render, elements, events }) {
  const state = { layout: elements.views.dataset.layout ?? "all", plane: 0, boxes: [], chosen: -1, grid: null, places: null, colours: null, asked: 0 };

  const inkNow = () => {
    state.asked = 0;
    const context = fresh(elements.ink);
    if (!planes.volumes.length) return;
    if (!isHidden(planes)) drawPlanes(context, planes, state.boxes, state.chosen);
    if (isHidden(render)) return;
    const [outer, inner] = [elements.ink.getBoundingClientRect(), elements.render.getBoundingClientRect()];
    const { width, height } = inner;
    drawRender(context, render, state.boxes, {
      chosen: state.chosen, left: inner.left - outer.left, top: inner.top - outer.top, width, height,
    });
  };
  const inkSoon = () => (state.asked ||= requestAnimationFrame(inkNow));
  const isHidden = (nv) => (nv === planes ? state.layout === "render" : state.layout !== "render" && state.layout !== "all");
  // niivue tells of the cross but not of zoom, pan or size; each of them ends in drawScene.
  for (const nv of [planes, render]) {
    const draw = nv.drawScene.bind(nv);
    nv.drawScene = (...given) => {
      const said = isHidden(nv) ? undefined : draw(...given);
      inkSoon();
      return said;
    };
  }
  // A plane has its whole part of the canvas, not the scan's outline in it, so that a thin slab can be zoomed into.
  const extent = planes.screenFieldOfViewExtendedVox.bind(planes);
  planes.screenFieldOfViewExtendedVox = (plane) => widened(extent(plane), elements.planes.width / elements.planes.height);
  planes.calculateWidthHeight = (_plane, _scale, width, height) => [width, height];

  const sliceFacts = () => {
    const axis = [2, 1, 0][state.plane];
    const count = planes.volumes[0].dimsRAS[axis + 1];
    return { axis, count, number: Math.min(count, Math.floor(planes.scene.crosshairPos[axis] * count) + 1) };
  };

  const tell = () => {
    if (!planes.volumes.length) return;
    const mm = Array.from(planes.frac2mm(planes.scene.crosshairPos, 0, true)).slice(0, 3);
    const values = planes.volumes.map((volume) => {
      const voxel = volume.mm2vox(mm);
      return volume.getValue(voxel[0], voxel[1], voxel[2]);
    });
    const { count, number } = sliceFacts();
    const fraction = Array.from(planes.scene.crosshairPos);
    events.onMove({ mm, fraction, hu: values[0], label: values[1] ?? 0, plane: state.plane, count, number });
  };

  let byHand = true;
  planes.onLocationChange = () => {
    tell();
    if (byHand) {
      const at = Array.from(planes.scene.crosshairPos);
      const hit = state.boxes.findIndex((box) => [0, 1, 2].every((k) => at[k] >= box.low[k] && at[k] <= box.high[k]));
      if (hit >= 0 && hit !== state.chosen) events.onPoint(hit);
    }
  };
  planes.onIntensityChange = (volume) => events.onWindow(volume.cal_min, volume.cal_max);
  elements.planes.addEventListener("pointerdown", (event) => {
    const tile = tiles(planes).find(
      ({ left, top, width, height }) =>
        event.offsetX >= left && event.offsetX <= left + width && event.offsetY >= top && event.offsetY <= top + height,
    );
    if (tile) state.plane = tile.plane;
    tell();
  });

  const moveTo = (mm) => {
    byHand = false;
    planes.scene.crosshairPos = planes.mm2frac([...mm, 1], 0, true);
    planes.drawScene();
    byHand = true;
    tell();
  };

  const labelColours = (labels, hidden) => ({
    R: [0, ...labels.map((entry) => entry.rgb[0])],
    G: [0, ...labels.map((entry) => entry.rgb[1])],
    B: [0, ...labels.map((entry) => entry.rgb[2])],
    A: [0, ...labels.map((entry) => (hidden.has(entry.value) ? 0 : 255))],
    I: [0, ...labels.map((entry) => entry.value)],
  });

  // What changes the volumes is done one after the other: loading waits, and what was begun earlier may not end later.
  let last = Promise.resolve();
  const inTurn = (work) => (last = last.catch(() => null).then(work));

  return {
    // The CT of `bytes` (.nii.gz) in place of what is shown.
    showScan(bytes, window) {
      return inTurn(() => this.loadScan(bytes, window));
    },

    async loadScan(bytes, window) {
      const image = await NVImage.loadFromUrl({
        url: bytes, name: "scan.nii.gz", colormap: "gray", cal_min: window.low, cal_max: window.high,
      });
      for (const nv of [planes, render]) for (const volume of [...nv.volumes]) nv.removeVolume(volume);
      Object.assign(state, { boxes: [], chosen: -1, places: null });
      planes.addVolume(image);
      planes.setInterpolation(false);
      state.grid = gridOf(image);
      const small = await NVImage.loadFromUrl({
        url: niftiBytes(shrink(state.grid, LONGEST_IN_3D)), name: "scan_3d.nii",
        colormap: "voxray", cal_min: RENDER_LOW, cal_max: RENDER_HIGH,
      });
      render.addVolume(small);
      await render.setVolumeRenderIllumination(0.35);
      render.setRenderAzimuthElevation(150, 12);
      this.fit();
      planes.scene.crosshairPos = [0.5, 0.5, 0.5];
      this.setLayout(state.layout);
      tell();
    },

    clear: () => inTurn(() => {
      for (const nv of [planes, render]) for (const volume of [...nv.volumes]) nv.removeVolume(volume);
      Object.assign(state, { boxes: [], chosen: -1, grid: null, places: null });
      inkSoon();
    }),

    clearMasks: () => inTurn(() => {
      for (const nv of [planes, render]) for (const volume of nv.volumes.slice(1)) nv.removeVolume(volume);
      if (render.volumes.length) render.setOpacity(0, 1);
      Object.assign(state, { boxes: [], chosen: -1, places: null });
      inkSoon();
    }),

    // Boxes of findings, of which `box` is in edge voxels of the scan.
    showBoxes(findings) {
      state.boxes = findings.map((finding) => {
        const points = corners(state.grid.affine, finding.box);
        const fractions = points.map((mm) => Array.from(planes.mm2frac([...mm, 1], 0, true)));
        const over = (pick) => [0, 1, 2].map((k) => pick(...fractions.map((fraction) => fraction[k])));
        return { ...finding, corners: points, low: over(Math.min), high: over(Math.max) };
      });
      state.chosen = -1;
      inkSoon();
    },

    choose(index) {
      state.chosen = index;
      inkSoon();
    },

    // The label map of `bytes` over the CT; labels are {value, rgb}.
    showMasks: (bytes, labels) => inTurn(async () => {
      const image = await NVImage.loadFromUrl({ url: bytes, name: "labels.nii.gz", opacity: 0.5 });
      image.hdr.intent_code = LABELS;
      image.setColormapLabel(labelColours(labels, new Set()));
      planes.addVolume(image);
      const grid = gridOf(image);
      state.places = bestPlaces(grid);
      const small = await NVImage.loadFromUrl({
        url: niftiBytes(shrink(grid, LONGEST_IN_3D, { labels: true })), name: "labels_3d.nii", opacity: 1,
      });
      small.hdr.intent_code = LABELS;
      small.setColormapLabel(labelColours(labels, new Set()));
      render.setOpacity(0, CT_AROUND_MASKS);
      render.addVolume(small);
      tell();
    }),

    setMasks(labels, hidden, opacity) {
      for (const nv of [planes, render]) {
        if (nv.volumes.length < 2) continue;
        nv.volumes[1].setColormapLabel(labelColours(labels, hidden));
        if (nv === planes) nv.volumes[1].opacity = opacity;
        nv.updateGLVolume();
      }
    },

    placeOf: (value) => state.places?.get(value) ?? null,
    moveTo,

    setWindow({ low, high }) {
      if (!planes.volumes.length) return;
      planes.volumes[0].cal_min = low;
      planes.volumes[0].cal_max = high;
      planes.updateGLVolume();
      events.onWindow(low, high);
    },

    setLayout(name) {
      state.layout = name;
      elements.views.dataset.layout = name;
      if (name === "all") planes.setCustomLayout(THREE);
      else planes.clearCustomLayout();
      const single = ["axial", "coronal", "sagittal"].indexOf(name);
      if (single >= 0) planes.setSliceType((state.plane = single));
      for (const nv of [planes, render]) nv.resizeListener();
      tell();
    },

    zoom(factor) {
      if (state.layout === "render") {
        render.setScale(Math.min(4, Math.max(0.5, render.scene.volScaleMultiplier * factor)));
        return;
      }
      // The point under the cross stays where it is.
      const [x, y, z, old] = planes.scene.pan2Dxyzmm;
      const next = Math.min(12, Math.max(1, old * factor));
      if (next === 1) return this.fit();
      const mm = planes.frac2mm(planes.scene.crosshairPos, 0, false);
      planes.setPan2Dxyzmm([...[x, y, z].map((pan, k) => pan + (old - next) * mm[k]), next]);
    },

    fit() {
      planes.setPan2Dxyzmm([0, 0, 0, 1]);
      render.setScale(1);
    },

    goToSlice(number) {
      const { axis, count } = sliceFacts();
      const at = Array.from(planes.scene.crosshairPos);
      at[axis] = (Math.min(count, Math.max(1, number)) - 0.5) / count;
      planes.scene.crosshairPos = at;
      planes.drawScene();
      tell();
    },

    step(by) {
      this.goToSlice(sliceFacts().number + by);
    },

    turn(azimuth, elevation) {
      render.setRenderAzimuthElevation(render.scene.renderAzimuth + azimuth, render.scene.renderElevation + elevation);
    },

    get layout() {
      return state.layout;
    },

    // For tests and the curious: what is drawn where.
    facts: () => ({
      shapes: [planes.volumes.map((volume) => volume.dims.slice(1, 4)), render.volumes.length],
      boxes: state.boxes, chosen: state.chosen, tiles: tiles(planes), cross: Array.from(planes.scene.crosshairPos),
    }),
  };
}
