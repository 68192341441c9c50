#include "philox.h"

#include <algorithm>

#include "entry.h"
#include "philox_core.h"
#include "threads.h"

#if defined(__GNUC__) && defined(__x86_64__)
#define XLNET_FAST_X86_VARIANTS 1
#include "philox_x86.h"
#endif

namespace xlnet_fast::cpu {
namespace {

void keep_row_baseline(uint8_t* keep, int64_t keys, const RowCounter& at) {
  keep_row_from(keep, 0, keys, at);
}

#if defined(XLNET_FAST_X86_VARIANTS)
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

struct Variant {
  const char* name;
  KeepRow keep_row;
  bool runs_here;
};

// Slowest first.
const std::vector<Variant>& variants() {
  static const std::vector<Variant> all = [] {
    std::vector<Variant> found = {{"baseline", keep_row_baseline, true}};
#if defined(XLNET_FAST_X86_VARIANTS)
    found.push_back({"avx2", keep_row_avx2, __builtin_cpu_supports("avx2") != 0});
    found.push_back({"avx512", keep_row_avx512, has_avx512()});
#endif
    return found;
  }();
  return all;
}

std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (const auto& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

void check(const KeepMaskParams& p, int threads) {
  constexpr int64_t kWordLimit = int64_t{1} << 32;  // counters are 32-bit words
  require(p.heads >= 0 && p.keys >= 0, "heads and keys must not be negative, got " +
                                           std::to_string(p.heads) + " and " +
                                           std::to_string(p.keys));
  for (const Range& range : {p.batch, p.rows}) {
    require(0 <= range.begin && range.begin <= range.end && range.end < kWordLimit,
            "a range must be (begin, end) with 0 <= begin <= end < 2**32, got (" +
                std::to_string(range.begin) + ", " + std::to_string(range.end) + ")");
  }
  require(p.heads == 0 || p.batch.end <= kWordLimit / p.heads,
          "batch times heads must be below 2**32");
  require(p.keys / 4 < kWordLimit, "keys must be below 2**34");
  require(threads >= 1, "threads must be at least 1, got " + std::to_string(threads));
  const bool empty = p.heads == 0 || p.keys == 0 || p.batch.size() == 0 || p.rows.size() == 0;
  require(empty || p.keep != nullptr, "keep must not be a null pointer");
}

// Rows are numbered ((b - b0) * N + n) * rows.size() + (i - i0), as they lie in memory.
void fill_rows(const KeepMaskParams& p, Range flat_rows, KeepRow fill) {
  const auto seed = static_cast<uint64_t>(p.seed);
  RowCounter at{0, 0, static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32), p.threshold};
  for (int64_t flat = flat_rows.begin; flat < flat_rows.end; ++flat) {
    at.row = static_cast<uint32_t>(p.rows.begin + flat % p.rows.size());
    at.head_flat = static_cast<uint32_t>(p.batch.begin * p.heads + flat / p.rows.size());
    fill(p.keep + flat * p.keys, p.keys, at);
  }
}

}  // namespace

std::vector<std::string> isa_compiled() {
  std::vector<std::string> names;
  for (const auto& variant : variants()) names.emplace_back(variant.name);
  return names;
}

std::vector<std::string> isa_available() {
  std::vector<std::string> names;
  for (const auto& variant : variants()) {
    if (variant.runs_here) names.emplace_back(variant.name);
  }
  return names;
}

KeepRow keep_row_of(const std::string& isa) {
  const std::string wanted = isa == "auto" ? isa_available().back() : isa;
  for (const auto& variant : variants()) {
    if (variant.runs_here && wanted == variant.name) return variant.keep_row;
  }
  throw std::invalid_argument("isa must be auto or one of those that were compiled and run here (" +
                              joined(isa_available()) + "), got " + isa);
}

std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
  const Words w = philox({counter[0], counter[1], counter[2], counter[3]}, key[0], key[1]);
  return {w.x0, w.x1, w.x2, w.x3};
}

void philox_keep_mask(const KeepMaskParams& p, int threads, const std::string& isa) {
  check(p, threads);
  const KeepRow fill = keep_row_of(isa);
  const int64_t flat_rows = p.batch.size() * p.heads * p.rows.size();
  if (flat_rows == 0 || p.keys == 0) return;

  // A thread costs tens of microseconds to start; that many elements take longer to fill.
  constexpr int64_t kElementsPerThread = 1 << 18;
  const int64_t useful = flat_rows * p.keys / kElementsPerThread + 1;
  threads = static_cast<int>(std::min({static_cast<int64_t>(threads), useful, flat_rows}));
  run_in_parallel(threads, [&](int part, int parts) {
    fill_rows(p, {flat_rows * part / parts, flat_rows * (part + 1) / parts}, fill);
  });
}

}  // namespace xlnet_fast::cpu
