// The page's side of worker.js: one worker, one deed at a time, and a way to stop it.
export class Engine {
  #worker = null;
  #loaded = null;                                                  // "wasm" or "webgpu", once it is there
  #reject = null;

  #ask(message, transfer, listen) {
    this.#worker ??= new Worker(new URL("worker.js", import.meta.url), { type: "module" });
    return new Promise((resolve, reject) => {
      this.#reject = reject;
      this.#worker.onmessage = ({ data }) => {
        if ("answer" in data) resolve(data.answer);
        else if ("error" in data) reject(new Error(data.error));
        else listen(data);
      };
      this.#worker.onerror = e => reject(new Error(e.message || "the program can't be fetched"));  // without a message its file didn't come
      this.#worker.postMessage(message, transfer);
    });
  }

  async load(assets, gpu, listen = () => {}) {                     // listen({loaded, total}), bytes
    const kind = gpu ? "webgpu" : "wasm";
    if (this.#loaded === kind) return;
    if (this.#loaded) this.stop();
    try { await this.#ask({ do: "load", assets, gpu }, [], listen); } catch (e) { this.stop(); throw e; }
    this.#loaded = kind;
  }

  async fill({ data, width, height }, hole, listen = () => {}) {   // listen({windows, total}) or ({note}); the photo itself is not changed
    const image = { data: data.slice(), width, height };
    try { return await this.#ask({ do: "fill", image, hole }, [image.data.buffer], listen); } catch (e) { this.stop(); throw e; }
  }

  stop() {                                                         // what runs ends at once; the next fill starts anew, from the cache
    this.#worker?.terminate(), this.#worker = this.#loaded = null;
    this.#reject?.(new DOMException("stopped", "AbortError"));
  }
}
