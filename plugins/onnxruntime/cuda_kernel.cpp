#include "cuda_kernel.h"

#include <cuda_runtime_api.h>

#include <memory>
#include <vector>

#include "aggregate_cuda.h"
#include "enqueue.h"
#include "inputs.h"
#include "status.h"

namespace pom::onnxruntime {
namespace {

// Memory where a tensor lies, from ONNX Runtime's own arena: what follows on the stream may have it next.
class Workspace {
 public:
  Workspace(const Ort::KernelContext& context, const Ort::ConstValue& tensor, std::size_t bytes) {
    if (bytes > 0) {
      allocator_.reset(context.GetAllocator(*tensor.GetTensorMemoryInfo()));
      memory_ = allocator_->Alloc(allocator_.get(), bytes);
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

void CudaKernel::compute(const Ort::KernelContext& context) const {
  const Inputs inputs(node_.signature(), context);
  const NodeProblem problem = node_.describe(inputs.infos());
  Ort::UnownedValue output = context.GetOutput(0, problem.output_shape());
  const Workspace workspace(context, context.GetInput(kX), cuda::workspace_bytes(problem.aggregation, problem.gate));
  std::vector<const void*> pointers;
  for (size_t i = 0; i < node_.signature().inputs; ++i) {
    pointers.push_back(inputs.data(i));
  }
  cuda::enqueue(problem.aggregation, problem.gate, pointers.data(), output.GetTensorMutableRawData(), workspace.get(),
                static_cast<cudaStream_t>(context.GetGPUComputeStream()));
}

OrtStatus* CudaKernel::ComputeV2(OrtKernelContext* context) const noexcept {
  return status_of(Ort::GetApi(), node_.signature().name, [&] { compute(Ort::KernelContext(context)); });
}

}  // namespace pom::onnxruntime
