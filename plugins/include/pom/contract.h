// The contract of the custom op pom::PolynomialAggregation, for C++.
//
// Twin of pom_export/contract.py: a test compares that module's signature() with pom_contract(), which
// each of our libraries exports. Change both or neither.
#pragma once

#include <array>
#include <cstdint>

namespace pom {

inline constexpr char kDomain[] = "pom";
inline constexpr char kOpName[] = "PolynomialAggregation";
inline constexpr int32_t kOpVersion = 1;
inline constexpr char kPluginVersion[] = "1";
inline constexpr char kPluginNamespace[] = "";

inline constexpr std::array<const char*, 7> kInputs{"x",   "coefficients", "mask",       "cos",
                                                    "sin", "past_state",   "past_length"};
inline constexpr int32_t kRequiredInputs = 2;
inline constexpr std::array<const char*, 3> kOutputs{"y", "present_state", "present_length"};
inline constexpr std::array<const char*, 8> kAttributes{"form",    "degree",   "mode",           "rotary_blocks",
                                                        "epsilon", "stateful", "plugin_version", "plugin_namespace"};

enum class Form : int32_t { kPower = 0, kProduct = 1 };
inline constexpr std::array<const char*, 2> kForms{"power", "product"};

enum class Mode : int32_t { kMean = 0, kCausal = 1, kFeatures = 2 };
inline constexpr std::array<const char*, 3> kModes{"mean", "causal", "features"};

inline constexpr int32_t kMinDegree = 1;
inline constexpr int32_t kMaxDegree = 16;
inline constexpr int32_t kMaxRotaryBlocks = 2;

// h = clamp(leaky_relu(x, kLeakySlope), kClampLow, kClampHigh)
inline constexpr float kLeakySlope = 0.01F;
inline constexpr float kClampLow = -0.1F;
inline constexpr float kClampHigh = 6.0F;

// Floating weights, and epsilon with them, count this many times. No mean shows it, but the products of small weights,
// subnormals too, then keep their digits. A mean whose divisor is then beyond the limit is NaN.
inline constexpr float kWeightScale = 0x1p24F;
inline constexpr float kDivisorLimit = 0x1p126F;

}  // namespace pom

// The contract as one canonical JSON line; owned by the library, never freed.
extern "C" const char* pom_contract();
