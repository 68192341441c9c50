#include "linear.h"

#include <algorithm>
#include <vector>

#include "entry.h"
#include "threads.h"

namespace xlnet_fast::cpu {
namespace {

std::vector<const LinearKernels*> all_kernels() {
  return {
#if defined(XLNET_FAST_VECTOR_KERNELS)
      &linear_baseline,
#endif
#if defined(XLNET_FAST_X86_KERNELS)
      &linear_avx2,
      &linear_avx512,
      &linear_avx512_bf16,
#endif
  };
}

// The fastest kernel for this dtype that is not above `isa`, or null. There is none for float16,
// nor for bfloat16 where no instruction multiplies it.
const LinearKernels* find(Dtype dtype, const std::string& isa) {
  const LinearKernels* best = nullptr;
  for (const std::string& name : attention_isa_available()) {
    for (const LinearKernels* kernels : all_kernels()) {
      const Dtype takes = kernels->multiplies_bfloat16 ? Dtype::kBFloat16 : Dtype::kFloat32;
      if (name == kernels->isa && takes == dtype) best = kernels;
    }
    if (name == isa) break;
  }
  return best;
}

const LinearKernels* pick(Dtype dtype, const std::string& isa) {
  if (isa != "auto") return find(dtype, isa);
  static const LinearKernels* const kFloats = find(Dtype::kFloat32, isa);
  static const LinearKernels* const kBFloats = find(Dtype::kBFloat16, isa);
  return dtype == Dtype::kFloat32 ? kFloats : dtype == Dtype::kBFloat16 ? kBFloats : nullptr;
}

// Shapes and dtypes are checked where the tensors are; this refuses what no tensor can be.
void check(const LinearParams& p, int threads) {
  require(threads >= 1, "threads must be at least 1, got " + std::to_string(threads));
  require(p.rows >= 1 && p.terms >= 1 && p.columns >= 1, "rows, terms, columns must be positive");
  require(p.x != nullptr && p.weight != nullptr && p.out != nullptr,
          "x, weight and out must not be null");
  require(p.x_row == 1 || p.x_term == 1, "rows or terms of x must be contiguous");
  require(p.weight_column == 1 || p.weight_term == 1,
          "columns or terms of weight must be contiguous");
  require(!p.gelu || p.residual == nullptr, "GELU and a residual exclude each other");
  if (p.dtype == Dtype::kFloat32) return;
  const bool pairs = p.terms % 2 == 0 && p.x_term == 1 && (p.rows == 1 || p.x_row % 2 == 0) &&
                     (p.weight_column == 1 || p.columns == 1 || p.weight_column % 2 == 0);
  require(pairs, "pairs of bfloat16 must not be parted");
}

// Of many rows a panel; of few as many as there is room for, as long pieces of the weight's rows
// are read faster than short ones.
int64_t columns_of_a_task(const LinearParams& p, int threads, int64_t panel) {
  if (p.rows >= kLeastPackedRows) return panel;
  const int64_t unit = kFewPanels * panel;
  const int64_t room =
      std::min<int64_t>(kFewResults / std::min(p.rows, kFewRows), 4096) / unit * unit;
  const int64_t share = threads == 1 ? p.columns : p.columns / (4 * threads) + 1;
  return std::min(room, (share + unit - 1) / unit * unit);
}

}  // namespace

bool linear_takes(Dtype dtype, const std::string& isa) { return pick(dtype, isa) != nullptr; }

void linear(const LinearParams& params, int threads, const std::string& isa) {
  check(params, threads);
  const LinearKernels* kernels = pick(params.dtype, isa);
  require(kernels != nullptr, "no kernel for this dtype and isa " + isa);
  // Starting a team takes microseconds: a thread should have more than that to do.
  constexpr int64_t kProductsOfAThread = 1 << 18;
  const int64_t useful = 1 + params.rows * params.columns * params.terms / kProductsOfAThread;
  threads = static_cast<int>(std::min<int64_t>(threads, useful));
  // A task is some columns of a block of rows; each thread wants several. All columns of a block
  // come first: its rows stay in the caches.
  const int64_t width = columns_of_a_task(params, threads, kernels->panel);
  const int64_t pieces = (params.columns + width - 1) / width;
  const int64_t most = params.rows < kLeastPackedRows ? kFewRows : kLinearRows;
  const int64_t wanted = std::min((4 * threads - 1) / pieces + 1, (params.rows + 47) / 48);
  const int64_t blocks = std::max(wanted, (params.rows + most - 1) / most);
  const int64_t tasks = pieces * blocks, bytes = kernels->scratch_bytes;
  const Memory scratch = allocate(bytes * threads);
  run_in_parallel(threads, [&](int part, int parts) {
    for (int64_t task = tasks * part / parts; task < tasks * (part + 1) / parts; ++task) {
      const int64_t first = task % pieces * width, block = task / pieces;
      const Range rows{params.rows * block / blocks, params.rows * (block + 1) / blocks};
      const Range columns{first, std::min(first + width, params.columns)};
      kernels->forward(params, rows, columns, scratch.get() + bytes * part);
    }
  });
}

}  // namespace xlnet_fast::cpu
