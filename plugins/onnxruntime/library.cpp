// What the library exports: the function that ONNX Runtime looks for, and queries about the CPU kernels. pom_contract()
// and pom_gated_contract() are in contract.cpp.
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cstdio>
#include <deque>
#include <string>

#include "cpu/dispatch.h"
#include "cpu/products/products.h"
#include "cpu_kernel.h"
#include "fused_op.h"
#include "op.h"
#include "status.h"
#if defined(POM_WITH_CUDA)
#include "cuda_kernel.h"
#endif

namespace {

using pom::onnxruntime::AggregationOp;

// Minor version of ONNX Runtime 1. Those before 22 do not support an op with several inputs of any type; pyproject.toml
// has this number too.
constexpr int kOldestMinor = std::max(22, ORT_API_VERSION);

bool is_too_old(const OrtApiBase& base) {
  int major = 1;
  int minor = kOldestMinor;
  std::sscanf(base.GetVersionString(), "%d.%d", &major, &minor);
  return major == 1 && minor < kOldestMinor;
}

OrtStatus* too_old(const OrtApiBase& base) {
  const std::string message = "pom needs ONNX Runtime 1." + std::to_string(kOldestMinor) +
                              " or newer; this is ONNX Runtime " + base.GetVersionString();
  const OrtApi* oldest = base.GetApi(1);
  return oldest == nullptr ? nullptr : oldest->CreateStatus(ORT_NOT_IMPLEMENTED, message.c_str());
}

// Both ops, under all their names.
template <typename Kernel>
void add(Ort::CustomOpDomain* domain) {
  static std::deque<AggregationOp<Kernel>> ops;
  for (const char* name : pom::kOpNames) {
    domain->Add(&ops.emplace_back(pom::onnxruntime::plain_signature(name)));
  }
  for (const char* name : pom::kGatedOpNames) {
    domain->Add(&ops.emplace_back(pom::onnxruntime::gated_signature(name)));
  }
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
  static const Ort::CustomOpDomain runtime_domain = [] {
    static const pom::onnxruntime::FusedOp fused;
    Ort::CustomOpDomain created(pom::onnxruntime::kRuntimeDomain);
    created.Add(&fused);
    return created;
  }();
  Ort::ThrowOnError(Ort::GetApi().AddCustomOpDomain(options, domain));
  Ort::ThrowOnError(Ort::GetApi().AddCustomOpDomain(options, runtime_domain));
}

}  // namespace

extern "C" {

__attribute__((visibility("default"))) OrtStatus* ORT_API_CALL RegisterCustomOps(OrtSessionOptions* options,
                                                                                 const OrtApiBase* base) {
  const OrtApi* api = is_too_old(*base) ? nullptr : base->GetApi(ORT_API_VERSION);
  if (api == nullptr) {
    return too_old(*base);
  }
  Ort::InitApi(api);
  return pom::onnxruntime::status_of(*api, "RegisterCustomOps", [&] { register_ops(options); });
}

// The kernel that a session created now would run; empty if there is none, in which case pom_cpu_kernel_error() says
// why.
__attribute__((visibility("default"))) const char* pom_cpu_kernel() {
  const pom::cpu::Kernel* kernel = pom::cpu::dispatch().kernel;
  return kernel == nullptr ? "" : kernel->name;
}

// One line, or empty if there is a kernel. Valid until the calling thread's next call.
__attribute__((visibility("default"))) const char* pom_cpu_kernel_error() {
  static thread_local std::string error;
  error = pom::cpu::dispatch().error;
  return error.c_str();
}

// The instruction set whose products fused layers would run, if a session were created now; empty as pom_cpu_kernel().
__attribute__((visibility("default"))) const char* pom_cpu_products() {
  const pom::cpu::Kernel* kernel = pom::cpu::dispatch().kernel;
  return kernel == nullptr ? "" : pom::cpu::product_kernel(*kernel).name;
}

// The functions of number `index` among the instruction sets of products that this machine can run, fastest first, or
// null beyond the last: tests call each of them.
__attribute__((visibility("default"))) const pom::cpu::ProductKernel* pom_product_kernel(int index) {
  return pom::cpu::runnable_product_kernel(index);
}
}
