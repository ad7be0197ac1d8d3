// What the library exports: the function that ONNX Runtime looks for, and what a caller may ask about the CPU kernel.
// pom_contract() and pom_gated_contract() are in contract.cpp.
#include <onnxruntime_cxx_api.h>

#include <string>

#include "cpu/dispatch.h"
#include "cpu_kernel.h"
#include "op.h"
#include "status.h"
#if defined(POM_WITH_CUDA)
#include "cuda_kernel.h"
#endif

namespace {

using pom::onnxruntime::AggregationOp;

OrtStatus* too_old(const OrtApiBase& base) {
  const std::string message = "pom needs ONNX Runtime with API version " + std::to_string(ORT_API_VERSION) + " (1." +
                              std::to_string(ORT_API_VERSION) + " or newer); this is ONNX Runtime " +
                              base.GetVersionString();
  const OrtApi* oldest = base.GetApi(1);
  return oldest == nullptr ? nullptr : oldest->CreateStatus(ORT_NOT_IMPLEMENTED, message.c_str());
}

template <typename Kernel>
void add(Ort::CustomOpDomain* domain) {
  static const AggregationOp<pom::onnxruntime::kPlainSignature, Kernel> plain;
  static const AggregationOp<pom::onnxruntime::kGatedSignature, Kernel> gated;
  domain->Add(&plain);
  domain->Add(&gated);
}

void register_ops(OrtSessionOptions* options) {
  static const Ort::CustomOpDomain domain = [] {
    Ort::CustomOpDomain created(pom::kDomain);
    add<pom::onnxruntime::CpuKernel>(&created);
#if defined(POM_WITH_CUDA)
    add<pom::onnxruntime::CudaKernel>(&created);
#endif
    return created;
  }();
  Ort::ThrowOnError(Ort::GetApi().AddCustomOpDomain(options, domain));
}

}  // namespace

extern "C" {

__attribute__((visibility("default"))) OrtStatus* ORT_API_CALL RegisterCustomOps(OrtSessionOptions* options,
                                                                                 const OrtApiBase* base) {
  const OrtApi* api = base->GetApi(ORT_API_VERSION);
  if (api == nullptr) {
    return too_old(*base);
  }
  Ort::InitApi(api);
  return pom::onnxruntime::status_of(*api, "RegisterCustomOps", [&] { register_ops(options); });
}

// The kernel that a session created now would run; empty where there is none, and pom_cpu_kernel_error() says why.
__attribute__((visibility("default"))) const char* pom_cpu_kernel() {
  const pom::cpu::Kernel* kernel = pom::cpu::dispatch().kernel;
  return kernel == nullptr ? "" : kernel->name;
}

// One line, empty where there is a kernel. Valid until the calling thread calls it again.
__attribute__((visibility("default"))) const char* pom_cpu_kernel_error() {
  static thread_local std::string error;
  error = pom::cpu::dispatch().error;
  return error.c_str();
}
}
