// Fetches onnxruntime and the network when it is told to, keeps them for the next time, and fills photos, all beside the page.
import { fillPhoto } from "./windows.js";

const KEPT = "pconv-demo";                                         // the cache that sw.js answers from when there is no network
let ort, size, files, sessions = {};

async function kept(url) {                                         // private windows may forbid caches: then it is fetched again
  try { return await (await caches.open(KEPT)).match(url); } catch { return undefined; }
}
async function keep(url, bytes, type) {
  try {
    const cache = await caches.open(KEPT), { pathname } = new URL(url);
    for (const old of await cache.keys()) if (new URL(old.url).pathname === pathname) await cache.delete(old);
    await cache.put(url, new Response(bytes, { headers: { "content-type": type } }));
  } catch { /* no room, or not allowed */ }
}

async function download(list, report) {                            // bytes of all files; report(bytes so far, bytes in all)
  const total = list.reduce((sum, f) => sum + f.bytes, 0), got = {};
  let done = 0;
  for (const { name, bytes, hash } of list) {
    const url = new URL(`${name}?v=${hash}`, location).href, hit = await kept(url);
    if (hit) { got[name] = new Uint8Array(await hit.arrayBuffer()), report(done += bytes, total); continue; }
    const answer = await fetch(url);
    if (!answer.ok) throw new Error(`${name} can't be fetched (${answer.status})`);
    const all = new Uint8Array(bytes), reader = answer.body.getReader();
    let at = 0;
    for (let { done: end, value } = await reader.read(); !end; { done: end, value } = await reader.read()) {
      if (at + value.length > bytes) throw new Error(`${name} is longer than it should be; load the page anew`);
      all.set(value, at), at += value.length, report(done + at, total);
    }
    if (at !== bytes) throw new Error(`${name} came in part only; try again`);
    got[name] = all, done += bytes;
    await keep(url, all, answer.headers.get("content-type") ?? "application/octet-stream");
  }
  return got;
}

async function load({ assets, gpu }, report) {
  const { script, wasm } = assets.runtime[gpu ? "webgpu" : "wasm"];
  files = await download([script, wasm, assets.model], report);
  size = assets.size;
  ort = await import(new URL(`${script.name}?v=${script.hash}`, location).href);
  ort.env.wasm.numThreads = 1, ort.env.wasm.wasmBinary = files[wasm.name].buffer, ort.env.logLevel = "error";
  sessions.wasm = await session("wasm", assets);
  if (gpu) sessions.webgpu = await soon(session("webgpu", assets)).catch(() => ({ run: () => Promise.reject() }));   // net() then says so
}
const soon = promise => Promise.race([promise, new Promise((_, no) => setTimeout(no, 60_000))]);   // a graphics card that hangs counts as none
const session = (provider, assets) => ort.InferenceSession.create(files[assets.model.name], { executionProviders: [provider], logSeverityLevel: 3 });

async function run(which, planes, mask) {                          // one window
  const side = [size, size], out = await sessions[which].run({ x: new ort.Tensor("float32", planes, [1, 3, ...side]), m: new ort.Tensor("float32", mask, [1, 1, ...side]) });
  return (await out.out.getData()).slice();
}

async function net(planes, mask) {                                 // the graphics card's first answer has to be that of the processor
  if (sessions.webgpu && !sessions.webgpu.checked) {
    const right = await run("wasm", planes, mask), got = await soon(run("webgpu", planes, mask)).catch(() => right.map(() => NaN));
    if (right.every((v, i) => Math.abs(v - got[i]) < 1/255)) sessions.webgpu.checked = true;
    else delete sessions.webgpu, postMessage({ note: "The graphics card fails or computes something else; the processor did it." });
    return right;
  }
  if (sessions.webgpu) {
    const got = await soon(run("webgpu", planes, mask)).catch(() => null);
    if (got) return got;
    delete sessions.webgpu, postMessage({ note: "The graphics card was lost; the processor goes on." });
  }
  return run("wasm", planes, mask);
}

const deeds = {
  load: message => load(message, (done, total) => postMessage({ loaded: done, total })),
  async fill({ image, hole }) {
    const windows = await fillPhoto(image, hole, net, size, (done, total) => postMessage({ windows: done, total }));
    return { image, windows, by: sessions.webgpu ? "webgpu" : "wasm" };
  },
};
onmessage = async ({ data }) => {
  try {
    const answer = await deeds[data.do](data);
    postMessage({ answer }, answer?.image ? [answer.image.data.buffer] : []);
  } catch (e) { postMessage({ error: e?.message ?? String(e) }); }
};
