#include "aggregate_cuda.h"

#include <cstdint>

#include "call.h"

namespace pom::cuda {
namespace {

constexpr int32_t kVectorBytes = 16;

bool aligned(const void* pointer) { return reinterpret_cast<std::uintptr_t>(pointer) % kVectorBytes == 0; }

// Channels of one access: 16 bytes of x where runs of channels and pointers allow, else one.
int32_t choose_width(const Problem& problem, const Buffers& buffers) {
  const int32_t width = kVectorBytes / (problem.data_type == DataType::kFloat32 ? 4 : 2);
  const bool fits = run_channels(problem) % width == 0 && aligned(buffers.x) && aligned(buffers.y) &&
                    aligned(buffers.cos) && aligned(buffers.sin);
  return fits ? width : 1;
}

}  // namespace

cudaError_t aggregate(const Problem& problem, const Buffers& buffers, cudaStream_t stream) {
  if (problem.batch == 0 || problem.output_tokens() == 0) {
    return cudaSuccess;
  }
  const Call call{problem, buffers, make_plan(problem, choose_width(problem, buffers))};
  if (problem.attributes.mode == Mode::kFeatures) {
    return write_features(call, stream);
  }
  if (const cudaError_t status = sum_chunks(call, stream); status != cudaSuccess) {
    return status;
  }
  return problem.attributes.mode == Mode::kMean ? finish_mean(call, stream) : finish_causal(call, stream);
}

}  // namespace pom::cuda
