// The page: continues a text, byte by byte. With ?test it reads a fixed text and sends its numbers to the server.

import * as ort from "/ort/ort.wasm.min.mjs";
import { Stream, draw, largest } from "./stream.mjs";

ort.env.wasm.wasmPaths = new URL("/ort/", location).href;
ort.env.wasm.numThreads = 1; // more need a page that is isolated from other origins

const TEST = { text: "The with statement is used to wrap", split: 11, steps: 24 };
const element = (id) => document.getElementById(id);

/** Continue the text in the page until "stop" is pressed. */
async function generate(stream) {
  const decoder = new TextDecoder(); // keeps the bytes of a character that is not complete yet
  const output = element("output");
  stream.reset();
  output.textContent = element("prompt").value;
  let logits = (await stream.read(new TextEncoder().encode(element("prompt").value || "\n"))).at(-1);
  const started = performance.now();
  for (let count = 1; element("stop").disabled === false; count++) {
    const id = draw(logits, Number(element("temperature").value));
    output.textContent += decoder.decode(Uint8Array.of(id), { stream: true });
    [logits] = await stream.read([id]);
    element("speed").textContent = `${((performance.now() - started) / count).toFixed(1)} ms a token, ${count} tokens`;
    if (count % 8 === 0) await new Promise(requestAnimationFrame); // lets the browser draw, and notice "stop"
  }
}

/** Read a text in two calls, then the most likely tokens one by one; return the tokens and the logits after each. */
async function test(stream) {
  const text = [...new TextEncoder().encode(TEST.text)];
  const logits = [...(await stream.read(text.slice(0, TEST.split))), ...(await stream.read(text.slice(TEST.split)))];
  const ids = [...text];
  const started = performance.now();
  for (let step = 0; step < TEST.steps; step++) {
    ids.push(largest(logits.at(-1)));
    logits.push(...(await stream.read([ids.at(-1)])));
  }
  const milliseconds = (performance.now() - started) / TEST.steps;
  const versions = { "onnxruntime-web": ort.env.versions.web, browser: navigator.userAgent };
  return { ids, logits: logits.map((each) => [...each]), milliseconds, versions };
}

async function main() {
  const stream = await Stream.open(ort, "/model.onnx");
  if (new URLSearchParams(location.search).has("test")) {
    return await test(stream);
  }
  element("go").disabled = false;
  element("go").onclick = async () => {
    element("go").disabled = true;
    element("stop").disabled = false;
    try {
      await generate(stream);
    } finally {
      element("go").disabled = false;
      element("stop").disabled = true;
    }
  };
  element("stop").onclick = () => (element("stop").disabled = true);
  element("speed").textContent = "ready";
}

const testing = new URLSearchParams(location.search).has("test");
const answer = (result) => testing && fetch("/result", { method: "POST", body: JSON.stringify(result) });
main().then(answer, (error) => {
  element("speed").textContent = `${error}`;
  return answer({ error: `${error}` });
});
