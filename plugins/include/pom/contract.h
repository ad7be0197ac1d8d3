// The contract of the custom op pom::PolynomialAggregation, for C++.
//
// The counterpart of pom_export/contract.py: a test compares that module's signature() with pom_contract(), which each
// of our libraries exports. Change both or neither.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

// An op's names: its own, then numbered ones for further variants in the same file.
#define POM_NAMES(name)                                                                                     \
  name, name "_2", name "_3", name "_4", name "_5", name "_6", name "_7", name "_8", name "_9", name "_10", \
      name "_11", name "_12", name "_13", name "_14", name "_15", name "_16"

namespace pom {

inline constexpr char kDomain[] = "pom";
inline constexpr char kOpName[] = "PolynomialAggregation";
// All names of the op. It is the same op under each, and its attributes define what it computes. The functions in a
// file have different names, since many runtimes and tools distinguish them by nothing else.
inline constexpr std::size_t kNameCount = 16;
inline constexpr std::array<const char*, kNameCount> kOpNames{POM_NAMES("PolynomialAggregation")};
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

// Floating-point weights, and epsilon with them, are multiplied by this. It does not affect any mean, but keeps
// products with small weights, even subnormal ones, precise. If this puts a divisor beyond the limit, the mean is NaN.
inline constexpr float kWeightScale = 0x1p24F;
inline constexpr float kDivisorLimit = 0x1p126F;

}  // namespace pom

// The contract as one canonical JSON line; owned by the library, never freed.
extern "C" const char* pom_contract();
