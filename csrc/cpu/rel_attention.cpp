#include "rel_attention.h"

#include <algorithm>
#include <stdexcept>

#include "entry.h"
#include "threads.h"

namespace xlnet_fast::cpu {
namespace {

struct Variant {
  const AttentionKernels* kernels;
  bool runs_here;
  bool by_name_only = false;  // an emulation, or what no machine has run yet
};

// Slowest first.
const std::vector<Variant>& variants() {
  static const std::vector<Variant> all = [] {
    std::vector<Variant> found;
#if defined(XLNET_FAST_VECTOR_KERNELS)
    found.push_back({&rel_attention_baseline, true});
#endif
#if defined(XLNET_FAST_X86_KERNELS)
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512vl");
    found.push_back({&rel_attention_avx2, avx2});
    found.push_back({&rel_attention_avx512, avx512});
    const bool pairs = avx512 && __builtin_cpu_supports("avx512bf16");
    found.push_back({&rel_attention_avx512_bf16, pairs});
    found.push_back({&rel_attention_amx_bf16, pairs && amx_available(), true});
    found.push_back({&rel_attention_amx_emulated, pairs, true});
#endif
    return found;
  }();
  return all;
}

std::vector<std::string> names_of(bool by_name_only) {
  std::vector<std::string> names;
  for (const Variant& variant : variants()) {
    if (variant.runs_here && variant.by_name_only == by_name_only)
      names.emplace_back(variant.kernels->isa);
  }
  return names;
}

// The fastest variant for these tensors that is not above `isa`.
const AttentionKernels& pick(const std::string& isa, Dtype dtype) {
  const AttentionKernels* best = nullptr;
  for (const Variant& variant : variants()) {
    if (!variant.runs_here || (variant.by_name_only && isa != variant.kernels->isa)) continue;
    if (!variant.kernels->multiplies_bfloat16 || dtype == Dtype::kBFloat16) best = variant.kernels;
    if (isa == variant.kernels->isa) return *best;
  }
  if (isa == "auto" && best != nullptr) return *best;
  std::string known = "auto";
  for (const std::string& name : attention_isa_available()) known += ", " + name;
  throw std::invalid_argument("isa must be one of " + known + ", got " + isa);
}

// Shapes and dtypes are checked where the tensors are; this refuses what no tensor can be.
void check(const AttentionCall& call, int threads) {
  const AttentionKeys& k = call.keys;
  require(threads >= 1, "threads must be at least 1, got " + std::to_string(threads));
  require(k.batch >= 1 && k.heads >= 1 && k.head_dim >= 1 && k.keys >= 1 && k.table >= 0,
          "batch, heads, head_dim and keys must be positive");
  require(k.table_start >= 0, "table_start must not be negative");
  require(k.groups >= 1 && k.batch % k.groups == 0, "groups must divide the batch");
  require(0 <= k.apart && k.apart <= k.memory && k.memory <= k.keys,
          "0 <= apart <= memory <= keys must hold");
  require(call.streams == 1 || call.streams == 2, "there must be one stream or two");
  require(k.r.data != nullptr && k.r_w_bias.data != nullptr && k.r_r_bias.data != nullptr,
          "r, r_w_bias and r_r_bias must not be null");
  require(k.apart == k.keys || (k.k.data != nullptr && k.v.data != nullptr),
          "k and v must not be null");
  require(k.apart == 0 || (k.k_memory.data != nullptr && k.v_memory.data != nullptr),
          "k_memory and v_memory must not be null where keys lie apart");
  for (int s = 0; s < call.streams; ++s) {
    require(call.stream[s].rows >= 1 && call.stream[s].q.data != nullptr,
            "a stream must have rows and queries");
    require(call.stream[s].chunk >= 1, "chunk must be positive");
  }
}

// Starting a team takes microseconds: a thread should have more than that to do.
int useful_threads(const AttentionCall& call, int threads) {
  constexpr double kProductsOfAThread = 1 << 18;
  double rows = 0.0;
  for (int s = 0; s < call.streams; ++s) rows += static_cast<double>(call.stream[s].rows);
  const AttentionKeys& k = call.keys;
  const double products =
      rows * static_cast<double>(k.batch * k.heads) * static_cast<double>(k.keys * k.head_dim);
  return static_cast<int>(std::min<double>(threads, 1.0 + products / kProductsOfAThread));
}

}  // namespace

std::vector<std::string> attention_isa_available() { return names_of(false); }

std::vector<std::string> attention_isa_emulated() { return names_of(true); }

void rel_attention_forward(const xlnet_fast::AttentionCall& arguments, int threads,
                           const std::string& isa) {
  const AttentionCall call{arguments, keep_row_of("auto")};
  check(call, threads);
  threads = useful_threads(call, threads);
  const AttentionKernels& kernels = pick(isa, call.keys.dtype);
  const int64_t bytes = whole_lines(kernels.forward_bytes(call));
  const Memory memory = allocate(bytes * threads);
  run_in_parallel(threads, [&](int part, int parts) {
    kernels.forward_part(call, memory.get() + bytes * part, part, parts);
  });
}

void rel_attention_backward(const xlnet_fast::AttentionCall& arguments, int threads,
                            const std::string& isa) {
  const AttentionCall call{arguments, keep_row_of("auto")};
  check(call, threads);
  threads = useful_threads(call, threads);
  const AttentionKernels& kernels = pick(isa, call.keys.dtype);
  const int64_t bytes = whole_lines(kernels.backward_bytes(call));
  const Memory memory = allocate(bytes * threads);
  const Memory shared = allocate(kernels.backward_shared_bytes(call));
  run_in_parallel(threads, [&](int part, int parts) {
    kernels.backward_part(call, memory.get() + bytes * part, shared.get(), part, parts);
  });
  run_in_parallel(threads, [&](int part, int parts) {
    kernels.backward_sums(call, shared.get(), part, parts);
  });
}

}  // namespace xlnet_fast::cpu
