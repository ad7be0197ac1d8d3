// A stream in JavaScript: a stateful file in onnxruntime-web, in a browser or in Node.
//
// Whatever the file's layers keep, its inputs of the past and its outputs of the present belong together by name, and an
// empty state is zeros. So this class needs to know nothing else about a model than the name of its tokens.

const TOKENS = "input_ids";

/** Return the name of the output that becomes the given input of the past in the next call. */
function presentName(past) {
  return past.startsWith("past_key_values.") ? past.replace("past_key_values", "present") : past.replace("past", "present");
}

export class Stream {
  /**
   * Load a file that was exported with --stateful.
   *
   * @param ort the module onnxruntime-web
   * @param model the file's URL or its bytes
   */
  static async open(ort, model) {
    return new Stream(ort, await ort.InferenceSession.create(model));
  }

  constructor(ort, session) {
    this.ort = ort;
    this.session = session;
    this.past = session.inputMetadata.filter(({ name }) => name.startsWith("past_"));
    const others = session.inputNames.filter((name) => !name.startsWith("past_") && name !== TOKENS);
    if (!this.past.length || others.length) {
      throw new Error(`not a language model exported with --stateful: inputs ${session.inputNames.join(", ")}`);
    }
    this.reset();
  }

  /** Forget all tokens. */
  reset() {
    this.state = {};
    for (const { name, type, shape } of this.past) {
      // One stream; a cache that grows with the tokens begins empty.
      const dims = shape.map((size) => (typeof size === "number" ? size : size === "batch" ? 1 : 0));
      const count = dims.reduce((product, size) => product * size, 1);
      const zeros = type === "int64" ? new BigInt64Array(count) : new Float32Array(count);
      this.state[name] = new this.ort.Tensor(type, zeros, dims);
    }
  }

  /** Read tokens, any number of them, and return the logits after each: one Float32Array a token. */
  async read(ids) {
    const tokens = new this.ort.Tensor("int64", BigInt64Array.from(ids, BigInt), [1, ids.length]);
    const outputs = await this.session.run({ [TOKENS]: tokens, ...this.state });
    // Only now, so that a call that fails leaves the state as it was.
    this.state = Object.fromEntries(this.past.map(({ name }) => [name, outputs[presentName(name)]]));
    const { data, dims } = outputs.logits;
    return Array.from({ length: dims[1] }, (_, token) => data.slice(token * dims[2], (token + 1) * dims[2]));
  }
}

/** Return the index of the largest number. */
export function largest(logits) {
  return logits.reduce((best, value, index) => (value > logits[best] ? index : best), 0);
}

/** Draw a token from softmax(logits / temperature); a temperature of 0 takes the most likely one. */
export function draw(logits, temperature, random = Math.random) {
  if (temperature <= 0) return largest(logits);
  const top = logits[largest(logits)];
  const weights = Array.from(logits, (value) => Math.exp((value - top) / temperature));
  let rest = random() * weights.reduce((sum, weight) => sum + weight, 0);
  const index = weights.findIndex((weight) => (rest -= weight) < 0);
  return index < 0 ? largest(logits) : index;
}
