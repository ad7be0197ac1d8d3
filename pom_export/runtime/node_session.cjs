// Run a model in onnxruntime-web or onnxruntime-node, for pom_export/runtime/node.py.
//
// Arguments: the package's folder, the model, and its files of external weights. Each line on stdin is a JSON object of
// inputs by name, { type, dims, data }, with the data's bytes in base64; each line on stdout answers with the outputs in
// the same form, or { error }. The first line on stdout says that the model is loaded.
const fs = require("node:fs");
const path = require("node:path");
const readline = require("node:readline");

const ARRAYS = {
  float32: Float32Array,
  float64: Float64Array,
  float16: Uint16Array,
  int64: BigInt64Array,
  int32: Int32Array,
  bool: Uint8Array,
};
const answer = (object) => process.stdout.write(`${JSON.stringify(object)}\n`);

function tensorOf(ort, { type, dims, data }) {
  const bytes = Uint8Array.from(Buffer.from(data, "base64")); // copied, so that it is aligned
  const array = new ARRAYS[type](bytes.buffer);
  return new ort.Tensor(type, type === "float16" && globalThis.Float16Array ? new Float16Array(bytes.buffer) : array, dims);
}

function encoded({ type, dims, data }) {
  return { type, dims, data: Buffer.from(data.buffer, data.byteOffset, data.byteLength).toString("base64") };
}

async function main([folder, model, ...weights]) {
  const ort = require(folder);
  const externalData = weights.map((file) => ({ path: path.basename(file), data: fs.readFileSync(file) }));
  const web = path.basename(folder) === "onnxruntime-web";
  if (web) ort.env.wasm.numThreads = 1;
  const options = { logSeverityLevel: 4, ...(web && externalData.length ? { externalData } : {}) };
  const session = await ort.InferenceSession.create(web ? fs.readFileSync(model) : model, options);
  answer({ loaded: true });
  for await (const line of readline.createInterface({ input: process.stdin })) {
    try {
      const feed = Object.fromEntries(Object.entries(JSON.parse(line)).map(([name, value]) => [name, tensorOf(ort, value)]));
      const outputs = await session.run(feed);
      answer(Object.fromEntries(Object.entries(outputs).map(([name, value]) => [name, encoded(value)])));
    } catch (error) {
      answer({ error: `${error.message ?? error}` });
    }
  }
}

main(process.argv.slice(2)).catch((error) => {
  answer({ error: `${error.message ?? error}` });
  process.exit(1);
});
