// inpaint() of the package in JavaScript: squares of the photo ("windows") go through the network, and what it makes of them is
// matched to the border and blended into the hole. Function by function the Python of the chapter on inpainting, same order, same
// rounding, so that both agree to a grey level. A photo is ImageData-like {data (RGBA bytes), width, height}; in `hole` 1 = hole.
const fround = Math.fround;
const clamp = (v, lo, hi) => Math.min(Math.max(v, lo), hi);
const rint = v => { const f = Math.floor(v), d = v - f; return d < .5 ? f : d > .5 ? f + 1 : f + f%2; };   // halves to even, as numpy

// -- which windows
export function holeCells(hole, w, h, n) {                        // a cell of n x n pixels is 1 where it holds a hole
  if (n === 1) return { data: hole, w, h };
  const cw = Math.ceil(w/n), ch = Math.ceil(h/n), data = new Uint8Array(cw*ch);
  for (let y = 0; y < h; y++) for (let x = 0; x < w; x++) if (hole[y*w + x]) data[Math.floor(y/n)*cw + Math.floor(x/n)] = 1;
  return { data, w: cw, h: ch };
}

export function holeParts({ data, w, h }) {                       // labels from 1 on, and of each part its box and thickness in cells
  const labels = new Int32Array(w*h), boxes = [], stack = [];
  const flood = (at, label) => {
    const box = [h, w, 0, 0];
    labels[at] = label, stack.push(at);
    while (stack.length) {
      const p = stack.pop(), y = Math.floor(p/w), x = p%w;
      box[0] = Math.min(box[0], y), box[1] = Math.min(box[1], x), box[2] = Math.max(box[2], y + 1), box[3] = Math.max(box[3], x + 1);
      for (let v = Math.max(y - 1, 0); v < Math.min(y + 2, h); v++)
        for (let u = Math.max(x - 1, 0), q = v*w + u; u < Math.min(x + 2, w); u++, q++)
          if (data[q] && !labels[q]) labels[q] = label, stack.push(q);
    }
    boxes.push(box);
  };
  for (let by = 0; by < h; by += 2) for (let bx = 0; bx < w; bx += 2)                       // OpenCV numbers by blocks of 2 x 2
    for (let y = by; y < Math.min(by + 2, h); y++) for (let x = bx; x < Math.min(bx + 2, w); x++)
      if (data[y*w + x] && !labels[y*w + x]) flood(y*w + x, boxes.length + 1);
  const depth = depths(data, w, h), most = new Array(boxes.length).fill(0);
  labels.forEach((l, i) => { if (l) most[l - 1] = Math.max(most[l - 1], depth[i]); });
  return { labels, boxes, thick: most.map(d => 2*d - 1) };
}

function depths(data, w, h) {                                     // steps to the nearest known cell, diagonal ones count as one
  const d = new Int32Array(w*h), far = Math.max(w, h);
  if (!data.includes(0)) return d.fill(far);
  const at = (y, x) => y < 0 || y >= h || x < 0 || x >= w ? 1e9 : d[y*w + x];
  const pass = (y, x, s) => {
    const i = y*w + x;
    if (d[i]) d[i] = Math.min(d[i], 1 + Math.min(at(y, x - s), at(y - s, x - s), at(y - s, x), at(y - s, x + s)));
  };
  for (let i = 0; i < d.length; i++) d[i] = data[i] ? 1e8 : 0;
  for (let y = 0; y < h; y++) for (let x = 0; x < w; x++) pass(y, x, 1);
  for (let y = h - 1; y >= 0; y--) for (let x = w - 1; x >= 0; x--) pass(y, x, -1);
  return d;
}

function pieces(inside, [y0, x0, y1, x1], n) {                    // boxes on a grid of n cells over a box, where `inside(y, x)` holds
  const cols = Math.ceil((x1 - x0)/n), has = new Uint8Array(cols*Math.ceil((y1 - y0)/n)), found = [];
  for (let y = y0; y < y1; y++) for (let x = x0; x < x1; x++) if (inside(y, x)) has[Math.floor((y - y0)/n)*cols + Math.floor((x - x0)/n)] = 1;
  has.forEach((yes, i) => {
    const y = y0 + Math.floor(i/cols)*n, x = x0 + i%cols*n;
    if (yes) found.push([y, x, Math.min(y + n, y1), Math.min(x + n, x1)]);
  });
  return found;
}

function boxesWithin(labels, w, h, boxes, which, limit) {         // thousands of parts are all cut on one grid
  if (which.length > 2000) {
    const wanted = new Set(which.map(i => i + 1));
    return pieces((y, x) => wanted.has(labels[y*w + x]), [0, 0, h, w], limit);
  }
  return which.flatMap(i => {
    const [y0, x0, y1, x1] = boxes[i];
    return Math.max(y1 - y0, x1 - x0) <= limit ? [boxes[i]] : pieces((y, x) => labels[y*w + x] === i + 1, boxes[i], limit);
  });
}

function mergeBoxes(boxes, limit) {                               // each joined with the first one nearby, if the union is small enough
  const groups = [], near = new Map();
  for (const b of boxes) {
    const cy = Math.floor(b[0]/limit), cx = Math.floor(b[1]/limit);
    const join = () => {
      for (let dy = -1; dy <= 1; dy++) for (let dx = -1; dx <= 1; dx++) for (const g of near.get(`${cy + dy},${cx + dx}`) ?? []) {
        const a = groups[g], u = [Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.max(a[2], b[2]), Math.max(a[3], b[3])];
        if (Math.max(u[2] - u[0], u[3] - u[1]) <= limit) return groups[g] = u;
      }
    };
    if (join()) continue;
    const key = `${cy},${cx}`;
    near.set(key, [...near.get(key) ?? [], groups.length]), groups.push(b);
  }
  return groups;
}

function windowAt(box, scale, size, w, h) {                       // the box in its middle: pushed into the photo, else centred on it
  const side = scale*size;
  const [y, x] = [h, w].map((n, d) => n >= side ? clamp(Math.floor((box[d] + box[d + 2] - side)/2), 0, n - side) : Math.floor((n - side)/2));
  return { y, x, scale, size, box };
}

export function planWindows(hole, w, h, size, context = 4) {
  const longest = Math.max(w, h), cell = Math.ceil(longest/2048), cells = holeCells(hole, w, h, cell);
  const { labels, boxes, thick } = holeParts(cells);
  const whole = Math.max(Math.floor(longest/size), 1), most = Math.max(Math.ceil(longest/whole), size), windows = [];
  const side = thick.map(t => Math.max(Math.ceil(context*t*cell/size), 1)*size).map(n => n < longest ? n : whole*most);
  for (const n of [...new Set(side)].sort((a, b) => b - a)) {
    const [s, px, part] = n < longest ? [n/size, size, Math.floor(n/2)] : [whole, most, longest], limit = Math.max(1, Math.floor(part/cell));
    const which = side.flatMap((v, i) => v === n ? [i] : []);
    for (const b of mergeBoxes(boxesWithin(labels, cells.w, cells.h, boxes, which, limit), limit))
      windows.push(windowAt(b.map((v, i) => Math.min(v*cell, i%2 ? w : h)), s, px, w, h));
  }
  return { windows, cell, sideAt: (y, x) => { const l = labels[Math.floor(y/cell)*cells.w + Math.floor(x/cell)]; return l ? side[l - 1] : 0; } };
}

// -- what the network gets
function reduce(plane, n, size) {                                 // n x n means over areas, at size x size
  if (n === size) return plane;
  const parts = Array.from({ length: size }, (_, i) => {          // which pixels make one, and with what weight
    const from = i*n/size, to = (i + 1)*n/size, first = Math.floor(from + 1e-9), last = Math.min(Math.ceil(to - 1e-9), n);
    return { first, w: Array.from({ length: last - first }, (_, k) => (Math.min(to, first + k + 1) - Math.max(from, first + k))*size/n) };
  });
  const rows = new Float64Array(n*size), out = new Float32Array(size*size);
  for (let y = 0; y < n; y++) parts.forEach(({ first, w }, j) => w.forEach((v, k) => rows[y*size + j] += v*plane[y*n + first + k]));
  parts.forEach(({ first, w }, i) => { for (let j = 0; j < size; j++) out[i*size + j] = w.reduce((sum, v, k) => sum + v*rows[(first + k)*size + j], 0); });
  return out;
}

export function readWindow({ data, width, height }, hole, { y, x, scale, size }, netSize = size) {   // means of the known pixels, three planes; and the mask
  const share = new Float32Array(size*size), sums = [0, 1, 2].map(() => new Float32Array(size*size)), part = 1/(scale*scale);
  for (let i = 0; i < size; i++) for (let j = 0; j < size; j++) {
    let count = 0, r = 0, g = 0, b = 0;
    const v1 = Math.min(y + (i + 1)*scale, height), u0 = Math.max(x + j*scale, 0), u1 = Math.min(x + (j + 1)*scale, width);
    for (let v = Math.max(y + i*scale, 0); v < v1; v++) for (let u = u0; u < u1; u++) {
      const at = v*width + u;
      if (!hole[at]) count++, r += data[4*at], g += data[4*at + 1], b += data[4*at + 2];
    }
    const at = i*size + j;
    share[at] = count*part, sums[0][at] = r*part, sums[1][at] = g*part, sums[2][at] = b*part;
  }
  const known = reduce(share, size, netSize), mask = known.map(v => v > .4999 ? 1 : 0), px = new Float32Array(3*known.length);
  sums.forEach((plane, c) => reduce(plane, size, netSize).forEach((v, i) => { if (mask[i]) px[c*known.length + i] = v/known[i]/255; }));
  return [px, mask];
}

// -- what comes back
function enlarge(out, size, s, top, bottom, left, right) {        // a rectangle of the `s` times enlarged planes, bilinear
  const w = right - left, h = bottom - top, big = new Float32Array(3*w*h);
  const place = p => { const v = clamp((p + .5)/s - .5, 0, size - 1), i = Math.min(Math.floor(v), Math.max(size - 2, 0)); return [i, v - i]; };
  const across = Array.from({ length: w }, (_, x) => place(left + x)), next = size > 1 ? 1 : 0;
  for (let c = 0, at = 0; c < 3; c++) for (let y = 0; y < h; y++) {
    const [i, f] = place(top + y), row = (c*size + i)*size, below = row + next*size;
    for (let x = 0; x < w; x++, at++) {
      const [j, g] = across[x];
      big[at] = (1 - f)*((1 - g)*out[row + j] + g*out[row + j + next]) + f*((1 - g)*out[below + j] + g*out[below + j + next]);
    }
  }
  return big;
}

function boxMean(src, w, h, r, to, rows) {                        // mean over (2r+1) x (2r+1) pixels; what lies outside is 0
  const scale = 1/(2*r + 1)**2, sums = new Float64Array(w);
  for (let y = 0; y < h; y++) {
    let sum = 0;
    for (let x = 0, o = y*w; x < Math.min(r, w); x++) sum += src[o + x];
    for (let x = 0, o = y*w; x < w; x++) {
      if (x + r < w) sum += src[o + x + r];
      if (x - r > 0) sum -= src[o + x - r - 1];
      rows[o + x] = sum;
    }
  }
  const add = (y, sign) => { for (let x = 0, o = y*w; x < w; x++) sums[x] += sign*rows[o + x]; };
  for (let y = 0; y < Math.min(r, h); y++) add(y, 1);
  for (let y = 0; y < h; y++) {
    if (y + r < h) add(y + r, 1);
    if (y - r > 0) add(y - r - 1, -1);
    for (let x = 0, o = y*w; x < w; x++) to[o + x] = sums[x]*scale;
  }
}

export function matchBorder(out, photo, known, w, h, width) {     // in place: plus the mean of photo - out at the border, faded into the hole
  const n = w*h, share = new Float32Array(n), off = new Float32Array(n), mean = new Float32Array(n), rows = new Float64Array(n);
  for (let r = width; r > 0; r >>= 1) {
    const least = 1/(2*r + 1)**2;
    boxMean(known, w, h, r, share, rows);
    for (let c = 0; c < 3; c++) {
      for (let i = 0, at = c*n; i < n; i++, at++) off[i] = known[i] ? photo[at] - out[at] : 0;
      boxMean(off, w, h, r, mean, rows);
      for (let i = 0, at = c*n; i < n; i++, at++) out[at] += mean[i]/Math.max(share[i], least)*Math.min(2*share[i], 1);
    }
  }
}

function ramp(start, stop, lo, hi, width) {                       // 1 from lo to hi - 1, falling to 0 over `width` on either side
  return Float32Array.from({ length: stop - start }, (_, i) => 1 - fround(Math.max(lo - start - i, start + i - hi + 1, 0)/(width + 1)));
}

export function writeWindow(image, hole, plan, win, out, weight, feather = 4) {
  const { data, width, height } = image, { y: wy, x: wx, scale: s, size, box } = win, side = s*size, netSize = Math.sqrt(out.length/3);
  const wide = Math.min(rint(feather*side/netSize), 64), grow = side >> 3, step = Math.max(4*wide, Math.floor(2**19/side), 1);
  const from = (b, o, by) => Math.max(b - by, o, 0), to = (b, o, by, n) => Math.min(b + by, o + side, n);
  const y0 = from(box[0], wy, grow), y1 = to(box[2], wy, grow, height), x0 = from(box[1], wx, grow), x1 = to(box[3], wx, grow, width);
  const left = from(box[1], wx, grow + 2*wide), right = to(box[3], wx, grow + 2*wide, width);
  if (size > netSize) out = enlarge(out, netSize, size/netSize, 0, size, 0, size);
  const across = ramp(x0, x1, box[1], box[3], grow), down = ramp(y0, y1, box[0], box[2], grow), w = right - left;
  for (let i = y0; i < y1; i += step) {
    const j = Math.min(i + step, y1), now = new Uint8Array((j - i)*(x1 - x0));                 // weights of this window
    for (let y = i, at = 0; y < j; y++) for (let x = x0; x < x1; x++, at++)
      if (hole[y*width + x] && plan.sideAt(y, x) === side) now[at] = Math.max(rint(16*Math.min(across[x - x0], down[y - y0])), 0);
    if (!now.some(v => v)) continue;
    const top = Math.max(i - 2*wide, wy, 0), bottom = Math.min(j + 2*wide, wy + side, height), h = bottom - top, n = w*h;
    const value = enlarge(out, size, s, top - wy, bottom - wy, left - wx, right - wx);
    const photo = new Float32Array(3*n), known = new Float32Array(n);
    for (let y = top, at = 0; y < bottom; y++) for (let x = left; x < right; x++, at++) {
      const p = y*width + x;
      if (!hole[p]) { known[at] = 1; for (let c = 0; c < 3; c++) photo[c*n + at] = data[4*p + c]/255; }
    }
    matchBorder(value, photo, known, w, h, wide);
    for (let y = i, at = 0; y < j; y++) for (let x = x0; x < x1; x++, at++) {
      if (!now[at]) continue;
      const p = y*width + x, old = weight[p], part = now[at]/(old + now[at]);
      for (let c = 0; c < 3; c++) {
        const v = old ? data[4*p + c] : 0;
        data[4*p + c] = rint(v + part*(255*clamp(value[c*n + (y - top)*w + x - left], 0, 1) - v));
      }
      weight[p] = Math.min(old + now[at], 255);
    }
  }
}

// -- all of it
export async function fillPhoto(image, hole, net, size, progress = () => {}) {   // in place; net(planes, mask) -> planes; the number of windows
  const { width, height } = image, plan = planWindows(hole, width, height, size), weight = new Uint8Array(width*height);
  for (const [i, win] of plan.windows.entries()) {
    progress(i, plan.windows.length);
    const out = await net(...readWindow(image, hole, win, size));
    if (!out.every(Number.isFinite)) throw new Error("the network returns NaN or infinity");
    writeWindow(image, hole, plan, win, out.map(v => clamp(v, 0, 1)), weight);
  }
  progress(plan.windows.length, plan.windows.length);
  return plan.windows.length;
}
