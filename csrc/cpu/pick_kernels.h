// The choice among the kernels of an op that has some for baseline, AVX2 and AVX-512 alone.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "rel_attention.h"

namespace xlnet_fast::cpu {

// The fastest kernels that are not above `isa`. Instruction sets that only help matrix products,
// the emulated ones among them, have none of their own here. Throws std::invalid_argument.
template <class Kernels>
const Kernels& pick_kernels(const std::vector<const Kernels*>& all, const std::string& isa) {
  const Kernels* best = nullptr;
  std::string known = "auto";
  for (const std::string& name : attention_isa_available()) {
    for (const Kernels* kernels : all) {
      if (name == kernels->isa) best = kernels;
    }
    if (name == isa && best != nullptr) return *best;
    known += ", " + name;
  }
  const std::vector<std::string> emulated = attention_isa_emulated();
  const bool takes_best =
      isa == "auto" || std::find(emulated.begin(), emulated.end(), isa) != emulated.end();
  if (takes_best && best != nullptr) return *best;
  throw std::invalid_argument("isa must be one of " + known + ", got " + isa);
}

}  // namespace xlnet_fast::cpu
