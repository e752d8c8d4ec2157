// Offline: the page's own small files come from the network while there is one, else from the cache; files with a hash in their
// address (program, network) never change, so what worker.js has kept is taken first. Nothing is fetched that the page didn't ask for.
const KEPT = "pconv-demo";
const SHELL = ["./", "demo.css", "demo.js", "photo.js", "engine.js", "worker.js", "windows.js", "widget.js", "widget.css",
               "assets.json", "portrait.jpg", "icon.svg", "weights-licence.txt"];

self.addEventListener("install", e => e.waitUntil((async () => {
  await (await caches.open(KEPT)).addAll(SHELL.map(f => new Request(f, { cache: "no-cache" })));
  await self.skipWaiting();
})()));
self.addEventListener("activate", e => e.waitUntil(self.clients.claim()));
self.addEventListener("fetch", e => {
  const url = new URL(e.request.url);
  if (e.request.method !== "GET" || url.origin !== location.origin) return;
  e.respondWith(url.search.startsWith("?v=") ? kept(e.request) : fresh(e.request));
});

async function kept(request) {
  const cache = await caches.open(KEPT), hit = await cache.match(request.url);
  if (hit) return hit;
  const answer = await fetch(request);
  if (answer.ok && new URL(request.url).pathname.endsWith("js")) await cache.put(request.url, answer.clone());   // worker.js keeps the large ones
  return answer;
}
async function fresh(request) {
  const cache = await caches.open(KEPT);
  try {
    const answer = await fetch(request);
    if (answer.ok && answer.status === 200) await cache.put(request.url, answer.clone());
    return answer;
  } catch (e) {
    const hit = await cache.match(request.url, { ignoreSearch: true });
    if (hit) return hit;
    throw e;
  }
}
