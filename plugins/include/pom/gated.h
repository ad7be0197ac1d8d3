// The contract of the custom op pom::GatedPolynomialAggregation, for C++: the aggregation and its gate in one op.
//
// The counterpart of pom_export/contract.py: a test compares that module's gated_signature() with pom_gated_contract(),
// which each of our libraries exports. Change both or neither.
#pragma once

#include <array>
#include <cstdint>

#include "pom/contract.h"

namespace pom {

inline constexpr char kGatedOpName[] = "GatedPolynomialAggregation";
inline constexpr std::array<const char*, kNameCount> kGatedOpNames{POM_NAMES("GatedPolynomialAggregation")};

inline constexpr std::array<const char*, 9> kGatedInputs{"x",   "gate", "gate_bias",  "coefficients", "mask",
                                                         "cos", "sin",  "past_state", "past_length"};
inline constexpr int32_t kGatedRequiredInputs = 4;
inline constexpr std::array<const char*, 3> kGatedOutputs{"z", "present_state", "present_length"};
inline constexpr std::array<const char*, 9> kGatedAttributes{
    "form",     "degree",          "mode",           "rotary_blocks",   "epsilon",
    "stateful", "gate_activation", "plugin_version", "plugin_namespace"};

// Applied to gate + gate_bias. hardsigmoid(z) = clamp(z / 6 + 1/2, 0, 1).
enum class GateActivation : int32_t { kIdentity = 0, kSigmoid = 1, kHardSigmoid = 2 };
inline constexpr std::array<const char*, 3> kGateActivations{"identity", "sigmoid", "hardsigmoid"};

}  // namespace pom

// The contract as one canonical JSON line; owned by the library, never freed.
extern "C" const char* pom_gated_contract();
