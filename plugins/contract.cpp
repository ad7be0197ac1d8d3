#include "pom/contract.h"

#include <cstdio>
#include <string>

#include "pom/gated.h"

namespace {

template <typename Names>
std::string json_list(const Names& names) {
  std::string text = "[";
  for (const char* name : names) {
    text += (text.size() > 1 ? ",\"" : "\"") + std::string(name) + "\"";
  }
  return text + "]";
}

std::string json_number(float value) {
  char text[32];
  std::snprintf(text, sizeof text, "\"%g\"", static_cast<double>(value));
  return text;
}

std::string signature() {
  return std::string("{\"domain\":\"") + pom::kDomain + "\",\"op\":\"" + pom::kOpName +
         "\",\"names\":" + json_list(pom::kOpNames) + ",\"version\":" + std::to_string(pom::kOpVersion) +
         ",\"plugin_version\":\"" + pom::kPluginVersion + "\",\"plugin_namespace\":\"" + pom::kPluginNamespace +
         "\",\"inputs\":" + json_list(pom::kInputs) + ",\"outputs\":" + json_list(pom::kOutputs) +
         ",\"attributes\":" + json_list(pom::kAttributes) + ",\"forms\":" + json_list(pom::kForms) +
         ",\"modes\":" + json_list(pom::kModes) + ",\"min_degree\":" + std::to_string(pom::kMinDegree) +
         ",\"max_degree\":" + std::to_string(pom::kMaxDegree) +
         ",\"max_rotary_blocks\":" + std::to_string(pom::kMaxRotaryBlocks) +
         ",\"leaky_slope\":" + json_number(pom::kLeakySlope) + ",\"clamp_low\":" + json_number(pom::kClampLow) +
         ",\"clamp_high\":" + json_number(pom::kClampHigh) + ",\"weight_scale\":" + json_number(pom::kWeightScale) +
         ",\"divisor_limit\":" + json_number(pom::kDivisorLimit) + "}";
}

std::string gated_signature() {
  return std::string("{\"op\":\"") + pom::kGatedOpName + "\",\"names\":" + json_list(pom::kGatedOpNames) +
         ",\"inputs\":" + json_list(pom::kGatedInputs) + ",\"outputs\":" + json_list(pom::kGatedOutputs) +
         ",\"attributes\":" + json_list(pom::kGatedAttributes) +
         ",\"gate_activations\":" + json_list(pom::kGateActivations) + "}";
}

}  // namespace

extern "C" __attribute__((visibility("default"))) const char* pom_contract() {
  static const std::string text = signature();
  return text.c_str();
}

extern "C" __attribute__((visibility("default"))) const char* pom_gated_contract() {
  static const std::string text = gated_signature();
  return text.c_str();
}
