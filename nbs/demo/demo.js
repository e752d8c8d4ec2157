// The page. The drawing area is the notebook widget's own (widget.js); what Python is to it there, the desk below is here:
// it holds the state, answers the messages {do: ...} and tells the drawing area what to show.
import drawing from "./widget.js";
import { Engine } from "./engine.js";
import { bytesOf, blobOf, canvas, holeOf, honest, open, stretch, viewOf, viewSize, whole } from "./photo.js";

const NOTHING = new Uint8Array(), MOST = 300e6;                    // bytes of photos that the history may hold
const HELP = "Arrow keys move the cursor, Shift and arrow by one pixel, Home to the middle; space puts the pen down and lifts it; "
           + "Enter fills; z undoes, y redoes; e erases; [ and ] change the brush; Delete clears";
const $ = id => document.getElementById(id);
const mega = bytes => `${(bytes/1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`;

// What the drawing area asks its model for.
class Model {
  #values; #listeners = [];
  constructor(values, answer) { this.#values = values, this.send = (message, _, buffers = []) => answer(message.do, ...buffers); }
  get(name) { return this.#values[name]; }
  set(values) {
    const changed = Object.keys(values).filter(k => this.#values[k] !== values[k]);
    Object.assign(this.#values, values);
    for (const [events, f] of this.#listeners) if (changed.some(k => events.includes(`change:${k}`))) f();
  }
  on(events, f) { this.#listeners.push([events.split(" "), f]); }
  off(events, f) { this.#listeners = this.#listeners.filter(o => o[1] !== f); }
}

// -- state: photos, holes, and the way back
let assets, states = [], at = 0, busy = false, queue = Promise.resolve();
const engine = new Engine(), now = () => states[at];
const model = new Model({ picture: NOTHING, before: NOTHING, hole: NOTHING, size: [1, 1], version: 0, brush: 20, erase: false,
                          split: 0, tint: .7, busy: false, label: "Photo", help: HELP }, (deed, bytes) => act(deed, bytes));

function push(changes) {
  states = [...states.slice(0, at + 1), { ...now(), ...changes }];
  const held = () => [...new Set(states.map(s => s.pixels))].reduce((sum, p) => sum + p.data.length, 0);
  while (states.length > 60 || states.length > 2 && held() > MOST) states.shift();
  at = states.length - 1;
}
function say(text, error = false) {
  $("status").textContent = error ? "" : text, $("error").textContent = error ? text : "";
}
function show() {
  const { pixels, picture, before, hole, share } = now(), size = viewSize(pixels);
  const label = `Photo, ${pixels.width} by ${pixels.height} pixels, ${share > 0 && share < .005 ? "less than 1" : Math.round(100*share)}% of it hole`;
  model.set({ picture, before, hole, size, label, version: model.get("version") + 1 });
  $("left").style.setProperty("--ratio", size[0]/size[1]);
  $("size").textContent = `${pixels.width} × ${pixels.height} px`;
  buttons();
}
function buttons() {
  const { before, share } = now();
  for (const [id, off] of Object.entries({ undo: at === 0, redo: at === states.length - 1, clear: !share, fill: !share, download: false,
                                           split: !before.byteLength, choose: false, portrait: false, brush: false, erase: false }))
    $(id).disabled = off || busy;
  $("stop").hidden = !busy, $("fill").hidden = busy, $("compare").classList.toggle("off", !before.byteLength);
}
function wait(on) { busy = on, model.set({ busy: on }), $("desk").setAttribute("aria-busy", on), buttons(); }
function progress(text, part) {
  $("work").hidden = !text, $("doing").textContent = text, $("bar").value = part ?? 0;
}

// -- deeds
const deeds = {
  async draw(bytes) {
    const hole = new Uint8Array(bytes), drawn = await holeOf(hole, ...model.get("size"));
    push({ hole, share: drawn.reduce((a, b) => a + b, 0)/drawn.length });
    buttons();
  },
  undo() { at = Math.max(at - 1, 0), show(); },
  redo() { at = Math.min(at + 1, states.length - 1), show(); },
  clear() { push({ hole: NOTHING, share: 0 }), show(); },
  toggle() { $("erase").checked = !$("erase").checked, model.set({ erase: $("erase").checked }); },
  thinner() { brush(Math.min(model.get("brush") - 1, Math.round(model.get("brush")/1.25))); },
  thicker() { brush(Math.max(model.get("brush") + 1, Math.round(model.get("brush")*1.25))); },
  async run() {
    if (!now().share) return say("There is no hole yet: draw one on the photo.", true);
    const { pixels, hole, picture } = now(), size = viewSize(pixels), button = document.activeElement === $("fill");
    wait(true);
    if (button) $("stop").focus();                                 // a hidden button must not keep the focus
    try {
      await engine.load(assets, $("gpu").checked, m => progress(`fetching program and network, ${mega(m.loaded)} of ${mega(m.total)}`, m.loaded/m.total));
      progress("filling the hole ...");
      const whole = stretch(await holeOf(hole, ...size), ...size, pixels.width, pixels.height), n = whole.reduce((a, b) => a + b, 0), loaded = performance.now();
      let note = "";
      const { image, windows, by } = await engine.fill(pixels, whole, m => {
        if (m.note) note = ` ${m.note}`;
        else progress(m.total > 1 ? `filling the hole, window ${Math.min(m.windows + 1, m.total)} of ${m.total}` : "filling the hole ...", m.windows/m.total);
      });
      const picturesNow = await viewOf(image);
      push({ pixels: image, picture: picturesNow, before: picture, hole: NOTHING, share: 0 });
      compare(0), show();
      const seconds = (performance.now() - loaded)/1000;
      say(`${n.toLocaleString("en")} pixels filled in ${seconds.toFixed(1)} s, ${windows} window${windows > 1 ? "s" : ""}${by === "webgpu" ? ", by the graphics card" : ""}.${note}`);
      $("cost").hidden = true;
    } finally {
      progress(""), wait(false);
      if (button) $(now().before.byteLength && !now().share ? "split" : "fill").focus();
    }
  },
};
const inWords = e => /fetch|network error|load failed/i.test(e.message) ? "Something can't be fetched. Is there a connection? Then try again." : e.message;
function act(deed, ...args) {                                      // one after the other; what goes wrong becomes one line
  queue = queue.then(async () => {
    say("");
    try { await deeds[deed](...args); } catch (e) {
      if (e?.name === "AbortError") say("Stopped. The hole is still there.");
      else say(inWords(e), true);
    }
  });
  return queue;
}
function brush(px) {
  px = Math.min(Math.max(px, 1), +$("brush").max);
  $("brush").value = px, $("px").textContent = `${px} px`, model.set({ brush: px });
}
function compare(part) {
  $("split").value = Math.round(100*part), model.set({ split: part });
  document.querySelector(".pconv-stage").style.setProperty("--split", `${100*part}%`);
  document.querySelector(".pconv-stage").classList.toggle("split", part > 0 && part < 1);
}

// -- photos
deeds.take = async (file, example) => {
  const { pixels, from, name } = await open(file), size = viewSize(pixels);
  states = [{ pixels, picture: await viewOf(pixels), before: NOTHING, hole: NOTHING, share: 0, name }], at = 0;
  $("brush").max = Math.max(2, Math.floor(Math.max(...size)/4)), brush(Math.max(1, Math.round(Math.max(...size)/16)));
  compare(0), show();
  if (from[0] !== pixels.width) say(`${name} has ${from.join(" × ")} px; this page works at ${pixels.width} × ${pixels.height}. The Python package takes any size.`);
  if (example) await deeds.draw(await scribble(...size)), show();
};
const take = (file, example) => { if (!busy) return act("take", file, example); };
async function portrait(example) {
  const answer = await fetch("portrait.jpg");
  if (!answer.ok) throw new Error(`the portrait can't be fetched (${answer.status})`);
  return take(new File([await answer.blob()], "portrait.jpg"), example);
}
function scribble(w, h) {                                          // first scratches, so that the first click shows something
  const [c, pen] = canvas(w, h), p = (x, y) => [x*w, y*h];
  Object.assign(pen, { lineWidth: w/36, lineCap: "round", strokeStyle: "#d4339e" });
  for (const [a, b, c, d] of [[p(.12, .80), p(.30, .66), p(.50, .78), p(.74, .60)], [p(.36, .36), p(.44, .52), p(.58, .66), p(.60, .93)], [p(.70, .12), p(.80, .22), p(.84, .36), p(.94, .40)]])
    pen.beginPath(), pen.moveTo(...a), pen.bezierCurveTo(...b, ...c, ...d), pen.stroke();
  const d = pen.getImageData(0, 0, w, h);
  for (let i = 3; i < d.data.length; i += 4) d.data[i] = d.data[i] < 128 ? 0 : 255;
  pen.putImageData(d, 0, 0);
  return bytesOf(c);
}
async function save() {
  const a = Object.assign(document.createElement("a"), { download: now().name.replace(/\.\w+$/, "") + "-filled.png", href: URL.createObjectURL(await blobOf(whole(now().pixels))) });
  a.click();
  setTimeout(() => URL.revokeObjectURL(a.href), 60_000);
}

// -- the page comes alive
const file = list => [...list ?? []].find(f => f.type.startsWith("image/") || /\.\w+$/.test(f.name));
function listen() {
  for (const id of ["undo", "redo", "clear"]) $(id).onclick = () => act(id);
  $("fill").onclick = () => act("run"), $("stop").onclick = () => engine.stop();
  $("download").onclick = () => save().catch(e => say(e.message, true));
  $("brush").oninput = () => brush(+$("brush").value);
  $("erase").onchange = () => model.set({ erase: $("erase").checked });
  $("split").oninput = () => compare($("split").value/100);
  $("choose").onclick = () => $("file").click();
  $("file").onchange = () => { const f = file($("file").files); if (f) take(f); $("file").value = ""; };
  $("portrait").onclick = () => portrait(false).catch(e => say(inWords(e), true));
  document.addEventListener("paste", e => { const f = file(e.clipboardData?.files); if (f) e.preventDefault(), take(f); });
  document.addEventListener("dragover", e => { e.preventDefault(), document.body.classList.add("over"); });
  document.addEventListener("dragleave", e => { if (!e.relatedTarget) document.body.classList.remove("over"); });
  document.addEventListener("drop", e => {
    e.preventDefault(), document.body.classList.remove("over");
    const f = file(e.dataTransfer?.files);
    if (f) take(f); else if (!busy) say("That is no picture file: drop a JPEG, PNG or WebP.", true);
  });
}
async function facts() {
  assets = await (await fetch("assets.json")).json();
  const { wasm, webgpu } = assets.runtime, sum = r => r.script.bytes + r.wasm.bytes + assets.model.bytes;
  $("cost").textContent = `The first fill fetches the program and the network, ${mega(sum(wasm))}, once. After that the page works without a connection.`;
  $("licence").textContent = assets.licence;
  const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
  if (webgpu && adapter && !(adapter.info?.isFallbackAdapter ?? adapter.isFallbackAdapter))       // no processor that plays a card
    $("card").hidden = false, $("gpu-cost").textContent = `(WebGPU; a program of ${mega(webgpu.wasm.bytes)} in place of ${mega(wasm.wasm.bytes)})`;
}
drawing.render({ model, el: $("stage") });
listen();
const ready = Promise.all([facts(), portrait(true)]).then(() => {
  if (!honest()) say("This browser alters the pixels that a page reads (protection against tracking): results will look speckled. Allow canvas access for this page.", true);
  document.body.classList.add("ready");
}, () => say("The page is not complete; load it anew.", true));
navigator.serviceWorker?.register("sw.js").catch(() => { /* no offline use, all else works */ });
export { engine, now, ready };                                     // for tests
