// C functions for the CUDA kernels, for callers that have device pointers but no framework: tests, benchmarks, other
// languages. The plugin library exports them.
#pragma once

#include <cstdint>

extern "C" {

// A contiguous tensor in device memory. `type` is a pom::DataType; rank 0 means not given.
struct PomTensor {
  const void* data;
  int32_t type;
  int32_t rank;
  int64_t shape[3];
};

// A call of pom::PolynomialAggregation or, with `gate_activation`, of pom::GatedPolynomialAggregation: attributes as in
// the contract, and inputs in the order of kInputs or kGatedInputs.
struct PomCall {
  const char* form;
  const char* mode;
  const char* gate_activation;  // null: no gate
  int32_t degree;
  int32_t rotary_blocks;
  float epsilon;
  int32_t stateful;  // 0 or 1
  int32_t input_count;
  PomTensor inputs[9];
};

// Both return null, or one line that says what is wrong, which is valid until the thread's next call.
const char* pom_cuda_workspace_bytes(const PomCall* call, int64_t* bytes);

// Enqueues a call on `stream`. `outputs` are in the order of kOutputs, including those of the present only if the call
// is stateful; `workspace` has that many bytes and is 16-byte aligned.
const char* pom_cuda_aggregate(const PomCall* call, void* const* outputs, void* workspace, void* stream);

}  // extern "C"
