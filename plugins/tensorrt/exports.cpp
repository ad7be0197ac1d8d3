// What TensorRT looks for in a plugin library. Everything else is hidden, see exports.map.
#include <NvInferRuntime.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <utility>

#include "creator.h"
#include "logger.h"

#define POM_EXPORT __attribute__((visibility("default")))

namespace {

using pom::tensorrt::Creator;
using pom::tensorrt::Op;

// One for each of an op's names.
template <std::size_t... kIndices>
std::array<Creator, sizeof...(kIndices)> creators_of(Op op, std::index_sequence<kIndices...>) {
  return {Creator(op, pom::tensorrt::names_of(op)[kIndices])...};
}

}  // namespace

extern "C" POM_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) {
  pom::tensorrt::set_logger_finder(finder);
}

extern "C" POM_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
  // Arrays, which need no allocation, because nobody above could catch a failed one.
  static auto plain = creators_of(Op::kAggregation, std::make_index_sequence<pom::kNameCount>());
  static auto gated = creators_of(Op::kGated, std::make_index_sequence<pom::kNameCount>());
  static const auto creators = [] {
    std::array<nvinfer1::IPluginCreatorInterface*, plain.size() + gated.size()> all{};
    const auto pointer = [](Creator& creator) { return &creator; };
    std::transform(gated.begin(), gated.end(), std::transform(plain.begin(), plain.end(), all.begin(), pointer),
                   pointer);
    return all;
  }();
  count = static_cast<int32_t>(creators.size());
  return creators.data();
}

// For hosts that only open a plugin library, such as ONNX Runtime's TensorRT provider: adds the creators to the
// registry of the TensorRT 10 that the process uses. Returns false if it did not accept one.
extern "C" POM_EXPORT bool pom_register_creators(nvinfer1::IPluginRegistry* registry) {
  int32_t count = 0;
  nvinfer1::IPluginCreatorInterface* const* creators = getCreators(count);
  return registry != nullptr && std::all_of(creators, creators + count, [&](auto* creator) {
           const auto* one = static_cast<nvinfer1::IPluginCreatorV3One*>(creator);
           const auto* there = registry->getCreator(one->getPluginName(), pom::kPluginVersion, pom::kPluginNamespace);
           return there != nullptr || registry->registerCreator(*creator, pom::kPluginNamespace);
         });
}
