#include "dropout.h"

#include <algorithm>
#include <vector>

#include "entry.h"
#include "pick_kernels.h"
#include "threads.h"

namespace xlnet_fast::cpu {
namespace {

std::vector<const DropoutKernels*> all_kernels() {
  return {
#if defined(XLNET_FAST_VECTOR_KERNELS)
      &dropout_baseline,
#endif
#if defined(XLNET_FAST_X86_KERNELS)
      &dropout_avx2,
      &dropout_avx512,
#endif
  };
}

// Shapes and dtypes are checked where the tensors are; this refuses what no tensor can be.
void check(const DropoutParams& p, int threads) {
  constexpr int64_t kWordLimit = int64_t{1} << 32;  // counters are 32-bit words
  require(threads >= 1, "threads must be at least 1, got " + std::to_string(threads));
  require(p.rows >= 1 && p.width >= 1, "rows and width must be positive");
  require(p.rows < kWordLimit, "rows must be below 2**32, got " + std::to_string(p.rows));
  require(p.width / 4 < kWordLimit, "width must be below 2**34, got " + std::to_string(p.width));
  require(p.rows <= (int64_t{1} << 60) / p.width, "rows times width must be below 2**60");
  require(p.x != nullptr && p.out != nullptr, "x and out must not be null");
  const int dtype = static_cast<int>(p.dtype);
  require(0 <= dtype && dtype <= static_cast<int>(Dtype::kFloat16), "dtype must be 0, 1 or 2");
}

}  // namespace

void dropout(const DropoutParams& params, int threads, const std::string& isa) {
  check(params, threads);
  const DropoutKernels& kernels = pick_kernels(all_kernels(), isa);
  const DropoutCall call{params, keep_row_of(kernels.isa)};
  const int64_t chunks = kernels.chunks(params);
  // Starting a team takes microseconds: a thread should have more than that to do.
  constexpr int64_t kElementsOfAThread = 1 << 14;
  const int64_t useful = std::min(chunks, 1 + params.rows * params.width / kElementsOfAThread);
  threads = static_cast<int>(std::min<int64_t>(threads, useful));
  run_in_parallel(threads, [&](int part, int parts) {
    kernels.run(call, {chunks * part / parts, chunks * (part + 1) / parts});
  });
}

}  // namespace xlnet_fast::cpu
