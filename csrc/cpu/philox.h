// Dropout keep masks by Philox4x32-10, the same bits as xlnet_fast/philox.py and tl.philox.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "../params.h"
#include "philox_core.h"

namespace xlnet_fast::cpu {

// Instruction-set variants in this build, slowest first; "baseline" is always there.
std::vector<std::string> isa_compiled();

// Those of them that this CPU runs, slowest first; the last one is what "auto" takes.
std::vector<std::string> isa_available();

// Fills params.keep on at most `threads` threads. `isa` is "auto" or one of isa_available().
// Throws std::invalid_argument for sizes or an `isa` that cannot be used.
void philox_keep_mask(const KeepMaskParams& params, int threads, const std::string& isa);

// Fills the keep bytes of `keys` keys of one row, from key 4 * at.group on.
using KeepRow = void (*)(uint8_t* keep, int64_t keys, const RowCounter& at);

// The fastest such function of `isa`, "auto" or one of isa_available(). Throws as above.
KeepRow keep_row_of(const std::string& isa);

// The generator itself: four words from a counter and a key.
std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

}  // namespace xlnet_fast::cpu
