#include "cuda_kernel.h"

#include <cuda_runtime_api.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "aggregate_cuda.h"
#include "enqueue.h"
#include "inputs.h"
#include "status.h"

namespace pom::onnxruntime {
namespace {

// Memory from ONNX Runtime, on a tensor's device. It is requested for the call's stream, so that no other stream gets
// it while kernels of this one still use it.
class Workspace {
 public:
  Workspace(const Ort::KernelContext& context, const OrtKernelContext* raw, const Ort::ConstValue& tensor,
            std::size_t bytes) {
    if (bytes == 0) {
      return;
    }
    const Ort::ConstMemoryInfo place = tensor.GetTensorMemoryInfo();
    allocator_.reset(context.GetAllocator(*place));
    // Without a stream, there is none to request it for.
    if (context.GetGPUComputeStream() == nullptr) {
      memory_ = allocator_->Alloc(allocator_.get(), bytes);
    } else {
      Ort::ThrowOnError(Ort::GetApi().KernelContext_GetScratchBuffer(raw, place, bytes, &memory_));
    }
    if (memory_ == nullptr) {
      throw std::runtime_error("ONNX Runtime has no memory for a workspace of " + std::to_string(bytes) + " bytes");
    }
  }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  ~Workspace() {
    if (memory_ != nullptr) {
      allocator_->Free(allocator_.get(), memory_);
    }
  }

  [[nodiscard]] void* get() const { return memory_; }

 private:
  struct Release {
    void operator()(OrtAllocator* allocator) const { Ort::GetApi().ReleaseAllocator(allocator); }
  };
  std::unique_ptr<OrtAllocator, Release> allocator_;
  void* memory_ = nullptr;
};

}  // namespace

void CudaKernel::compute(OrtKernelContext* raw) const {
  const Ort::KernelContext context(raw);
  const Inputs inputs(node_.signature(), context);
  const OpCall call = node_.describe(inputs.infos());
  const auto outputs = make_outputs(call, context);
  if (is_empty(call)) {
    return;
  }
  const Workspace workspace(context, raw, context.GetInput(kX), cuda::workspace_bytes(call.problem, call.gate));
  std::vector<const void*> pointers;
  for (size_t i = 0; i < node_.signature().inputs; ++i) {
    pointers.push_back(inputs.data(i));
  }
  cuda::enqueue(call, pointers.data(), outputs.data(), workspace.get(),
                static_cast<cudaStream_t>(context.GetGPUComputeStream()));
}

OrtStatus* CudaKernel::ComputeV2(OrtKernelContext* context) const noexcept {
  return status_of(Ort::GetApi(), node_.signature().name, [&] { compute(context); });
}

}  // namespace pom::onnxruntime
