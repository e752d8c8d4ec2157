// Files become pixels and pixels become files; no byte leaves the browser.
export const LONGEST = 4096, AREA = 4096*3072;                     // larger photos are scaled down: phones give a tab little memory
const VIEW = 1024;                                                 // longest side of what is shown and drawn on

export function canvas(width, height) {
  const c = Object.assign(document.createElement("canvas"), { width, height });
  return [c, c.getContext("2d", { willReadFrequently: true })];
}
export const blobOf = (c, type = "image/png") => new Promise((ok, no) => c.toBlob(b => b ? ok(b) : no(new Error("the browser has no memory left for this picture")), type));
export const bytesOf = async c => new Uint8Array(await (await blobOf(c)).arrayBuffer());
export const fits = (w, h) => Math.min(1, LONGEST/Math.max(w, h), Math.sqrt(AREA/(w*h)));

async function isHeic(file) {
  const head = new TextDecoder("latin1").decode(await file.slice(4, 16).arrayBuffer());
  return /^ftyp(hei|hev|mif1|msf1)/.test(head) || /\.hei[cf]$/i.test(file.name ?? "");
}

export async function open(file) {                                 // {pixels: ImageData, from: [w, h], name}; an Error whose message is for people
  let bitmap;
  const name = file.name || "the picture";
  try { bitmap = await createImageBitmap(file); } catch {
    if (await isHeic(file)) throw new Error(`${name} is a HEIC photo, which this browser can't open. Save it as JPEG or PNG first.`);
    throw new Error(`${name} can't be opened as a picture. It may be damaged or of another kind: save it as JPEG or PNG.`);
  }
  const from = [bitmap.width, bitmap.height], scale = fits(...from), [w, h] = from.map(v => Math.max(1, Math.round(v*scale)));
  try {
    const small = scale < 1 ? await createImageBitmap(bitmap, { resizeWidth: w, resizeHeight: h, resizeQuality: "high" }) : bitmap;
    const [, pen] = canvas(w, h);
    pen.fillStyle = "#fff", pen.fillRect(0, 0, w, h), pen.drawImage(small, 0, 0);           // what was transparent is white
    small.close();
    return { pixels: pen.getImageData(0, 0, w, h), from, name };
  } catch { throw new Error(`${name} is too large for this browser (${from.join(" × ")} px). Scale it down first.`); } finally { bitmap.close(); }
}

export function whole(pixels) {                                    // a canvas with all pixels
  const [c, pen] = canvas(pixels.width, pixels.height);
  pen.putImageData(new ImageData(pixels.data, pixels.width, pixels.height), 0, 0);
  return c;
}
export const viewSize = ({ width, height }) => [width, height].map(v => Math.max(1, Math.round(v*Math.min(1, VIEW/Math.max(width, height)))));
export async function viewOf(pixels) {                             // PNG bytes of what is shown
  const [w, h] = viewSize(pixels), full = whole(pixels);
  if (w === pixels.width && h === pixels.height) return bytesOf(full);
  const [c, pen] = canvas(w, h);
  pen.imageSmoothingQuality = "high", pen.drawImage(full, 0, 0, w, h);
  return bytesOf(c);
}

export async function holeOf(png, w, h) {                          // what is drawn: 1 = hole, in the size of the drawing
  const hole = new Uint8Array(w*h);
  if (!png.byteLength) return hole;
  const [, pen] = canvas(w, h);
  pen.drawImage(await createImageBitmap(new Blob([png], { type: "image/png" })), 0, 0);
  const { data } = pen.getImageData(0, 0, w, h);
  for (let i = 0; i < hole.length; i++) hole[i] = data[4*i + 3] >= 128;
  return hole;
}
export function stretch(hole, w, h, W, H) {                        // to the size of the photo: the pixel nearest to each centre, as `resize_nearest`
  if (w === W && h === H) return hole;
  const out = new Uint8Array(W*H), near = (i, old, n) => Math.floor((2*i + 1)*old/(2*n)), xs = Array.from({ length: W }, (_, x) => near(x, w, W));
  for (let y = 0, at = 0; y < H; y++) for (let x = 0, row = near(y, h, H)*w; x < W; x++) out[at++] = hole[row + xs[x]];
  return out;
}

export function honest() {                                         // some browsers blur what a page reads from a canvas, against tracking
  const [, pen] = canvas(16, 16), want = Uint8ClampedArray.from({ length: 1024 }, (_, i) => i%4 === 3 ? 255 : i*37%251);
  pen.putImageData(new ImageData(want, 16, 16), 0, 0);
  return pen.getImageData(0, 0, 16, 16).data.every((v, i) => v === want[i]);
}
