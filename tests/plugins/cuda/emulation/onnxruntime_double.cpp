// The ops' CUDA kernels as kernels of ONNX Runtime's CPU provider: the real ONNX Runtime over emulated kernels.
#include <onnxruntime_cxx_api.h>

#include "onnxruntime/cuda_kernel.h"
#include "onnxruntime/op.h"
#include "onnxruntime/status.h"

namespace {

struct EmulatedKernel : pom::onnxruntime::CudaKernel {
  using CudaKernel::CudaKernel;
  static constexpr const char* kProvider = nullptr;
};

}  // namespace

extern "C" __attribute__((visibility("default"))) OrtStatus* RegisterCustomOps(OrtSessionOptions* options,
                                                                               const OrtApiBase* base) {
  Ort::InitApi(base->GetApi(ORT_API_VERSION));
  return pom::onnxruntime::status_of(Ort::GetApi(), "RegisterCustomOps", [&] {
    using pom::onnxruntime::AggregationOp;
    static const AggregationOp<EmulatedKernel> plain(pom::onnxruntime::plain_signature(pom::kOpName));
    static const AggregationOp<EmulatedKernel> gated(pom::onnxruntime::gated_signature(pom::kGatedOpName));
    static Ort::CustomOpDomain domain(pom::kDomain);
    domain.Add(&plain);
    domain.Add(&gated);
    Ort::ThrowOnError(Ort::GetApi().AddCustomOpDomain(options, domain));
  });
}
