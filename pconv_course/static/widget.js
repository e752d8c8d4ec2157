// The canvas of the widget: three layers (result, picture before, hole), a pen, a cursor for the keyboard.
// Python holds the state. What arrives: the traits below, redrawn when `version` changes. What leaves: messages {do: ...}.
const HOLE = "#d4339e";

// -- layers
function layers(model, el) {
  el.innerHTML = `<div class="pconv-stage"><img class="pconv-after"><img class="pconv-before" alt="" aria-hidden="true">
    <canvas tabindex="0" role="application" aria-roledescription="drawing area"></canvas><div class="pconv-cursor" hidden></div></div>
    <div class="pconv-say" aria-live="polite"></div>`;
  const [after, before] = el.querySelectorAll("img"), canvas = el.querySelector("canvas");
  return { after, before, canvas, stage: el.querySelector(".pconv-stage"), pen: canvas.getContext("2d", { willReadFrequently: true }),
           cursor: el.querySelector(".pconv-cursor"), say: text => el.querySelector(".pconv-say").textContent = text };
}
function show(img, bytes) {
  URL.revokeObjectURL(img.src);
  img.hidden = !bytes.byteLength;
  if (bytes.byteLength) img.src = URL.createObjectURL(new Blob([bytes], { type: "image/png" }));
}
async function redraw(model, at) {
  const version = model.get("version"), hole = model.get("hole"), [width, height] = model.get("size");
  const bitmap = hole.byteLength ? await createImageBitmap(new Blob([hole], { type: "image/png" })) : null;
  if (version !== model.get("version")) return;                                     // a later one is on its way
  Object.assign(at.canvas, { width, height });                                      // this also clears it
  bitmap && at.pen.drawImage(bitmap, 0, 0), at.xy &&= within(at, at.xy), label(model, at);
  at.stage.style.width = `${Math.max(width, Math.min(384, 384*width/height))}px`;   // a small photo is shown larger
}
const within = (at, [x, y]) => [Math.min(Math.max(x, 0), at.canvas.width), Math.min(Math.max(y, 0), at.canvas.height)];
const label = (model, at) => at.canvas.setAttribute("aria-label", `${at.after.alt = model.get("label")}. ${model.get("help")}`);
function pictures(model, at) {
  show(at.after, model.get("picture")), show(at.before, model.get("before"));
  at.before.style.clipPath = `inset(0 ${100 - 100*model.get("split")}% 0 0)`;
  at.canvas.style.opacity = model.get("tint");
}

// -- pen
function line(model, at, ...ends) {
  const thin = model.get("brush") <= 1, mid = (v, end) => Math.min(Math.floor(v), end - 1) + .5;   // of a pixel: elsewhere a thin pen marks none
  const [a, b] = ends.map(([x, y]) => thin ? [mid(x, at.canvas.width), mid(y, at.canvas.height)] : [x, y]);
  Object.assign(at.pen, { lineWidth: model.get("brush"), lineCap: "round", strokeStyle: HOLE, fillStyle: HOLE,
                          globalCompositeOperation: model.get("erase") ? "destination-out" : "source-over" });
  at.pen.beginPath(), at.pen.moveTo(...a), at.pen.lineTo(...b), at.pen.stroke();
  at.pen.beginPath(), at.pen.arc(...b, model.get("brush")/2, 0, 7), at.pen.fill(); // a click: not every browser draws a line of no length
}
function snap(at) {                                                                 // no half-transparent edges: hole or not
  const d = at.pen.getImageData(0, 0, at.canvas.width, at.canvas.height);
  for (let i = 3; i < d.data.length; i += 4) d.data[i] = d.data[i] < 128 ? 0 : 255;
  at.pen.putImageData(d, 0, 0);
}
function position(at, e) {
  const r = at.canvas.getBoundingClientRect();
  return [(e.clientX - r.left)*at.canvas.width/r.width, (e.clientY - r.top)*at.canvas.height/r.height];
}
function pointer(model, at, done) {
  let last = null, finger;
  at.canvas.onpointerdown = e => {
    if (model.get("busy") || e.button || last && e.pointerId !== finger) return;
    at.canvas.setPointerCapture(finger = e.pointerId), at.canvas.focus({ preventScroll: true }), at.cursor.hidden = true;
    line(model, at, last = position(at, e), last);
  };
  at.canvas.onpointermove = e => {
    for (const p of last && e.pointerId === finger ? e.getCoalescedEvents?.() ?? [e] : []) line(model, at, last, last = position(at, p));
  };
  at.canvas.onpointerup = at.canvas.onpointercancel = at.canvas.onlostpointercapture = e => { if (last && e.pointerId === finger) at.xy = last, last = null, done(); };
}

// -- keyboard
const middle = at => [Math.round(at.canvas.width/2), Math.round(at.canvas.height/2)];
const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1], Home: [0, 0] };
const KEYS = { Enter: "run", z: "undo", y: "redo", Delete: "clear", e: "toggle", "[": "thinner", "]": "thicker" };
function keyboard(model, at, done, post) {
  let down = false, lift = () => { if (down) down = false, done(); };
  const place = () => {
    const r = at.canvas.getBoundingClientRect(), s = r.width/at.canvas.width, d = Math.max(6, model.get("brush")*s), [x, y] = at.xy;
    Object.assign(at.cursor.style, { left: `${x*s}px`, top: `${y*s}px`, width: `${d}px`, height: `${d}px` });
    at.cursor.hidden = false, at.cursor.classList.toggle("pconv-down", down);
    at.say(`${down ? "drawing" : "cursor"} at ${Math.round(x)}, ${Math.round(y)}`);
  };
  at.canvas.onfocus = () => { if (at.canvas.matches(":focus-visible")) at.xy ??= middle(at), place(); };
  at.canvas.onblur = () => { lift(), at.cursor.hidden = true; };
  at.canvas.onkeydown = e => {
    const step = STEPS[e.key], deed = KEYS[e.key.length > 1 ? e.key : e.key.toLowerCase()];
    if (e.altKey || !(step || deed || e.key === " " || e.key === "Escape") || model.get("busy")) return;
    e.preventDefault(), at.xy ??= middle(at);
    if (step) {
      const n = e.shiftKey ? 1 : Math.max(1, Math.round(model.get("brush")/2)), from = e.key === "Home" ? middle(at) : at.xy;
      at.xy = within(at, from.map((v, i) => v + n*step[i]));
      if (down) line(model, at, from, at.xy);
    } else if (e.key === " ") down ? lift() : (down = true, line(model, at, at.xy, at.xy));
    else if (lift(), deed && !(e.repeat && deed === "run")) post({ do: e.shiftKey && deed === "undo" ? "redo" : deed });
    if (step || e.key === " ") place();
  };
}

// -- messages
function render({ model, el }) {
  const at = layers(model, el);
  let queue = Promise.resolve();                                                    // one after the other, in the order of the user
  const post = (message, blob) => { queue = queue.then(async () => model.send(message, undefined, blob ? [await (await blob).arrayBuffer()] : [])); };
  const done = () => { snap(at), post({ do: "draw" }, new Promise(ok => at.canvas.toBlob(ok, "image/png"))); };
  const save = (message, [bytes]) => Object.assign(document.createElement("a"), { download: message.save, href: URL.createObjectURL(new Blob([bytes])) }).click();
  const listen = { "change:version": () => redraw(model, at), "change:label": () => label(model, at), "msg:custom": save,
                   "change:picture change:before change:split change:tint": () => pictures(model, at) };
  const ours = e => el.closest(".widget-vbox")?.contains(e.target) && e.target.setAttribute("data-lm-suppress-shortcuts", "true");
  pointer(model, at, done), keyboard(model, at, done, post), redraw(model, at), pictures(model, at);
  document.addEventListener("focusin", ours);                                       // else Notebook 7 takes the arrows for its cells
  for (const [what, f] of Object.entries(listen)) model.on(what, f);
  return () => { for (const [what, f] of Object.entries(listen)) model.off(what, f); document.removeEventListener("focusin", ours); };
}
export default { render };
