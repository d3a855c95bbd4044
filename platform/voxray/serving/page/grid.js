// The voxel grid of a scan as niivue read it, and what is computed on it. Voxels: x fastest; world: RAS mm, as in NIfTI.

// A volume of niivue as plain facts: its voxels in the file's order, its shape, its affine (four rows) and its scale.
export function gridOf(image) {
  const [, nx, ny, nz] = image.hdr.dims;
  return {
    voxels: image.img,
    shape: [nx, ny, nz],
    affine: image.hdr.affine,
    slope: image.hdr.scl_slope || 1,
    intercept: image.hdr.scl_inter || 0,
  };
}

// World mm of a voxel position; whole numbers are centres of voxels.
export const toWorld = (affine, [x, y, z]) =>
  [0, 1, 2].map((row) => affine[row][0] * x + affine[row][1] * y + affine[row][2] * z + affine[row][3]);

// The eight corners of a box in edge voxels (x1 y1 z1 x2 y2 z2), in world mm; bit k of the index says low or high along k.
export function corners(affine, box) {
  return Array.from({ length: 8 }, (_, corner) =>
    toWorld(affine, [0, 1, 2].map((axis) => box[axis + (corner & (1 << axis) ? 3 : 0)] - 0.5)),
  );
}

// Of each label: where it is shown best. That is the slice (along z) with most of it, at the voxel nearest to its middle.
export function bestPlaces(grid) {
  const [nx, ny, nz] = grid.shape;
  const plane = nx * ny;
  const best = new Map();
  for (let z = 0; z < nz; z++) {
    const sums = new Map();
    for (let at = z * plane, end = at + plane; at < end; at++) {
      const value = grid.voxels[at];
      if (!value) continue;
      let sum = sums.get(value);
      if (!sum) sums.set(value, (sum = { count: 0, x: 0, y: 0 }));
      const inPlane = at - z * plane;
      sum.count++;
      sum.x += inPlane % nx;
      sum.y += (inPlane / nx) | 0;
    }
    for (const [value, { count, x, y }] of sums)
      if (!(best.get(value)?.count >= count)) best.set(value, { count, x: x / count, y: y / count, z });
  }
  return new Map([...best].map(([value, place]) => [value, toWorld(grid.affine, nearest(grid, value, place))]));
}

function nearest(grid, value, place) {
  const [nx, ny] = grid.shape;
  let found = [place.x, place.y, place.z];
  let closest = Infinity;
  for (let y = 0, at = place.z * nx * ny; y < ny; y++) {
    for (let x = 0; x < nx; x++, at++) {
      if (grid.voxels[at] !== value) continue;
      const distance = (x - place.x) ** 2 + (y - place.y) ** 2;
      if (distance < closest) [closest, found] = [distance, [x, y, place.z]];
    }
  }
  return found;
}

// A copy with every axis at most `longest` voxels, for the view in 3D: means of CT, the first label that is not 0 of masks.
export function shrink(grid, longest, { labels = false } = {}) {
  const steps = grid.shape.map((length) => Math.ceil(length / longest));
  const shape = grid.shape.map((length, axis) => Math.floor(length / steps[axis]));
  const voxels = new Int16Array(shape[0] * shape[1] * shape[2]);
  const offsets = blockOffsets(grid.shape, steps);
  const [nx, ny] = grid.shape;
  let to = 0;
  for (let z = 0; z < shape[2]; z++) {
    for (let y = 0; y < shape[1]; y++) {
      let from = nx * (y * steps[1] + ny * z * steps[2]);
      for (let x = 0; x < shape[0]; x++, from += steps[0])
        voxels[to++] = labels ? firstLabel(grid.voxels, from, offsets) : mean(grid, from, offsets);
    }
  }
  return { voxels, shape, affine: shrunkAffine(grid.affine, steps), slope: 1, intercept: 0 };
}

function blockOffsets([nx, ny], [sx, sy, sz]) {
  // Two samples an axis are enough for a smooth surface, and keep the time the same for every size of scan.
  const picks = (step) => (step === 1 ? [0] : [0, step - 1]);
  return picks(sz).flatMap((z) => picks(sy).flatMap((y) => picks(sx).map((x) => x + nx * (y + ny * z))));
}

function mean({ voxels, slope, intercept }, from, offsets) {
  let sum = 0;
  for (const offset of offsets) sum += voxels[from + offset];
  return (sum / offsets.length) * slope + intercept;
}

function firstLabel(voxels, from, offsets) {
  for (const offset of offsets) if (voxels[from + offset]) return voxels[from + offset];
  return 0;
}

function shrunkAffine(affine, steps) {
  const origin = toWorld(affine, steps.map((step) => (step - 1) / 2));
  return [0, 1, 2].map((row) => [...steps.map((step, axis) => affine[row][axis] * step), origin[row]]);
}

// A grid of int16 as the bytes of a NIfTI-1 file.
export function niftiBytes({ voxels, shape, affine }) {
  const bytes = new ArrayBuffer(352 + voxels.byteLength);
  const head = new DataView(bytes);
  const spacing = [0, 1, 2].map((axis) => Math.hypot(...[0, 1, 2].map((row) => affine[row][axis])));
  head.setInt32(0, 348, true);
  [3, ...shape, 1, 1, 1, 1].forEach((value, k) => head.setInt16(40 + 2 * k, value, true));
  head.setInt16(70, 4, true); // int16
  head.setInt16(72, 16, true); // bits a voxel
  [1, ...spacing, 1, 1, 1, 1].forEach((value, k) => head.setFloat32(76 + 4 * k, value, true));
  head.setFloat32(108, 352, true); // where the voxels begin
  head.setFloat32(112, 1, true); // slope
  head.setUint8(123, 2); // mm
  head.setInt16(254, 1, true); // the affine below holds
  affine.slice(0, 3).forEach((row, k) => row.forEach((value, axis) => head.setFloat32(280 + 16 * k + 4 * axis, value, true)));
  head.setUint32(344, 0x6e2b3100, false); // n+1
  new Int16Array(bytes, 352).set(voxels);
  return bytes;
}
