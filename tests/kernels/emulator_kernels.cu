// Tiny kernels that are right or wrong in one way each, for the tests of the emulation itself; and
// its conversions, matrix loads and products as Python functions.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "cuda/launch.h"
#include "cuda/primitives.cuh"

namespace py = pybind11;

namespace xlnet_fast::cuda {
namespace {

struct Call {
  const char* in;  // [bytes]
  char* out;       // [bytes]
  bool wrong;      // do what the kernel is about wrongly
};

uint32_t own_slot() { return static_cast<uint32_t>(4 * thread_index()); }
int lane() { return thread_index() % 32; }

void store_own(const Call& call, float x) {
  store(reinterpret_cast<float*>(call.out) + thread_index(), x);
}

// --- barriers ---

void between_warps(Call call) {  // of two warps: each thread reads what the other warp wrote
  store_shared(own_slot(), static_cast<float>(thread_index()));
  if (!call.wrong) block_barrier();
  store_own(call, load_shared<float>(own_slot() ^ 128));
}
void between_warps_by_a_warp_barrier(Call call) {
  store_shared(own_slot(), static_cast<float>(thread_index()));
  call.wrong ? warp_barrier() : block_barrier();
  store_own(call, load_shared<float>(own_slot() ^ 128));
}
void between_lanes(Call call) {
  store_shared(own_slot(), static_cast<float>(thread_index()));
  if (!call.wrong) warp_barrier();
  store_own(call, load_shared<float>(own_slot() ^ 4));
}
void overwritten(Call call) {  // a lane writes what its neighbour may not have read yet
  store_shared(own_slot(), static_cast<float>(thread_index()));
  warp_barrier();
  const float x = load_shared<float>(own_slot() ^ 4);
  if (!call.wrong) warp_barrier();
  store_shared(own_slot(), 0.0f);
  store_own(call, x);
}
void matrix_of_others(Call call) {  // ldmatrix reads for the warp what each lane wrote
  for (int part = 0; part < 4; ++part) {
    store_shared<uint32_t>(static_cast<uint32_t>(16 * thread_index() + 4 * part), 0);
  }
  if (!call.wrong) warp_barrier();
  uint32_t words[4];
  ldmatrix(words, static_cast<uint32_t>(16 * thread_index()));
  store_own(call, static_cast<float>(words[0]));
}
void leaving_before_a_barrier(Call call) {
  if (call.wrong && thread_index() < 32) return;
  block_barrier();
  store_own(call, 1.0f);
}
void votes(Call call) {
  if (call.wrong ? lane() == 5 : thread_index() < 0) {
    warp_barrier();
  } else {
    store_own(call, ballot(lane() == 3) == 8 && any_of_block(thread_index() == 40) ? 1.0f : 0.0f);
  }
}
void meeting_in_two_operations(Call call) {
  if (call.wrong && lane() == 7) warp_barrier();
  store_own(call, shuffle_xor(static_cast<float>(lane()), 1));
}
void parting(Call call) {  // some lanes at a barrier of the block, others at an operation
  if (call.wrong && lane() == 31) block_barrier();
  store_own(call, shuffle_xor(static_cast<float>(lane()), 1));
  block_barrier();
}

// --- memory ---

void reading_beyond(Call call) {
  store_own(call, load(reinterpret_cast<const float*>(call.in) + (call.wrong ? 64 : 63)));
}
void reading_before(Call call) {
  store_own(call, load(reinterpret_cast<const float*>(call.in) - (call.wrong ? 1 : 0)));
}
void writing_what_is_read(Call call) {
  auto* to = reinterpret_cast<float*>(call.wrong ? const_cast<char*>(call.in) : call.out);
  store(to + thread_index(), 1.0f);
}
void misaligned_global(Call call) {
  store_own(call,
            static_cast<float>(
                load(reinterpret_cast<const Chunk*>(call.in + (call.wrong ? 8 : 16))).word[0]));
}
void misaligned_shared(Call call) {
  store_shared(call.wrong ? 2u + own_slot() : own_slot(), 1.0f);
  store_own(call, 1.0f);
}
void beyond_shared(Call call) {
  store_shared(call.wrong ? 4096u : own_slot(), 1.0f);
  store_own(call, 1.0f);
}
void unwritten_shared(Call call) { store_own(call, load_shared<float>(own_slot())); }

// --- copies ---

void copying(Call call) {
  const auto at = static_cast<uint32_t>(16 * thread_index());
  copy_async(at, call.in, thread_index() % 2 == 0);
  commit_copies();
  if (!call.wrong) wait_copies<0>();
  const float x = load_shared<float>(at);
  wait_copies<0>();
  store_own(call, x);
}
void waiting_for_the_group_before(Call call) {
  const auto at = static_cast<uint32_t>(16 * thread_index());
  copy_async(at, call.in, true);
  commit_copies();
  copy_async(at + 2048, call.in, true);
  commit_copies();
  wait_copies<1>();
  const float x = load_shared<float>(call.wrong ? at + 2048 : at);
  wait_copies<0>();
  store_own(call, x);
}
void overwriting_a_copy(Call call) {
  const auto at = static_cast<uint32_t>(16 * thread_index());
  copy_async(at, call.in, true);
  commit_copies();
  if (!call.wrong) wait_copies<0>();
  store_shared(at, 1.0f);
  wait_copies<0>();
  store_own(call, 1.0f);
}
void copies_of_others(Call call) {
  copy_async(static_cast<uint32_t>(16 * thread_index()), call.in, true);
  commit_copies();
  wait_copies<0>();
  if (!call.wrong) block_barrier();
  store_own(call, load_shared<float>(static_cast<uint32_t>(16 * thread_index()) ^ 512));
}
void never_waiting(Call call) {
  copy_async(static_cast<uint32_t>(16 * thread_index()), call.in, true);
  commit_copies();
  if (!call.wrong) wait_copies<0>();
  store_own(call, 1.0f);
}
void copying_from_beyond(Call call) {
  copy_async(static_cast<uint32_t>(16 * thread_index()), call.in + (call.wrong ? 256 : 240), true);
  commit_copies();
  wait_copies<0>();
  store_own(call, 1.0f);
}

using Kernel = void (*)(Call);
#define KERNEL(name) {#name, name}
const std::map<std::string, Kernel> kKernels = {
    KERNEL(between_warps),
    KERNEL(between_warps_by_a_warp_barrier),
    KERNEL(between_lanes),
    KERNEL(overwritten),
    KERNEL(matrix_of_others),
    KERNEL(leaving_before_a_barrier),
    KERNEL(votes),
    KERNEL(meeting_in_two_operations),
    KERNEL(parting),
    KERNEL(reading_beyond),
    KERNEL(reading_before),
    KERNEL(writing_what_is_read),
    KERNEL(misaligned_global),
    KERNEL(misaligned_shared),
    KERNEL(beyond_shared),
    KERNEL(unwritten_shared),
    KERNEL(copying),
    KERNEL(waiting_for_the_group_before),
    KERNEL(overwriting_a_copy),
    KERNEL(copies_of_others),
    KERNEL(never_waiting),
    KERNEL(copying_from_beyond),
};
#undef KERNEL

// --- matrices, by one warp ---

struct Matrices {
  const char* in;  // [32 rows, 8 elements of two bytes]
  char* out;       // [32 lanes, 4 words]
  bool transposed;
};

void matrices(Matrices p) {
  const Chunk row = load(reinterpret_cast<const Chunk*>(p.in) + lane());
  store_shared(static_cast<uint32_t>(16 * lane()), row);
  warp_barrier();
  uint32_t words[4];
  if (p.transposed) {
    ldmatrix_transposed(words, static_cast<uint32_t>(16 * lane()));
  } else {
    ldmatrix(words, static_cast<uint32_t>(16 * lane()));
  }
  store(reinterpret_cast<Chunk*>(p.out) + lane(), Chunk{{words[0], words[1], words[2], words[3]}});
}

struct Product {
  const char* a;  // [16, 16] of two bytes
  const char* b;  // [16, 8] of two bytes, column after column
  float* c;       // [16, 8]
};

template <class Element>
void product(Product p) {
  const int g = lane() / 4, t = lane() % 4;
  const auto pair = [](const char* row, int element) {
    return load(reinterpret_cast<const uint32_t*>(row + 2 * element));
  };
  uint32_t a[4], b[2];
  for (int word = 0; word < 4; ++word) {
    a[word] = pair(p.a + 32 * (g + 8 * (word % 2)), 2 * t + 8 * (word / 2));
  }
  for (int word = 0; word < 2; ++word) b[word] = pair(p.b + 32 * g, 2 * t + 8 * word);
  float c[4];
  for (int part = 0; part < 4; ++part) {
    c[part] = load(p.c + 8 * (g + 8 * (part / 2)) + 2 * t + part % 2);
  }
  mma(Element{}, c, a, b[0], b[1]);
  for (int part = 0; part < 4; ++part) {
    store(p.c + 8 * (g + 8 * (part / 2)) + 2 * t + part % 2, c[part]);
  }
}

// --- conversions ---

// Words of two halves to pairs of floats, and back.
template <class Element>
void unpack_words(uintptr_t words, uintptr_t floats, int64_t count) {  // [count], [count, 2]
  for (int64_t i = 0; i < count; ++i) {
    const Pair pair = unpack(Element{}, reinterpret_cast<const uint32_t*>(words)[i]);
    reinterpret_cast<float*>(floats)[2 * i] = pair.low;
    reinterpret_cast<float*>(floats)[2 * i + 1] = pair.high;
  }
}
template <class Element>
void pack_words(uintptr_t words, uintptr_t floats, int64_t count) {
  const auto* x = reinterpret_cast<const float*>(floats);
  for (int64_t i = 0; i < count; ++i) {
    reinterpret_cast<uint32_t*>(words)[i] = pack(Element{}, x[2 * i], x[2 * i + 1]);
  }
}

template <class Parameters>
void run(void (*kernel)(Parameters), int threads, int shared_bytes, const Parameters& parameters) {
  launch(kernel, Grid{1, threads, shared_bytes}, 0, parameters);
}

}  // namespace
}  // namespace xlnet_fast::cuda

PYBIND11_MODULE(_emulator_kernels, m) {
  using namespace xlnet_fast::cuda;
  m.def("names", [] {
    std::vector<std::string> names;
    for (const auto& [name, kernel] : kKernels) names.push_back(name);
    return names;
  });
  m.def("set_regions", [](const std::vector<std::tuple<uintptr_t, uintptr_t, bool>>& regions) {
    emulation::session().regions.clear();
    for (const auto& [begin, end, writable] : regions) {
      emulation::session().regions.push_back({begin, end, writable});
    }
  });
  m.def("set_downwards", [](bool downwards) { emulation::session().downwards = downwards; });
  m.def("run", [](const std::string& name, uintptr_t in, uintptr_t out, bool wrong) {
    const Call call{reinterpret_cast<const char*>(in), reinterpret_cast<char*>(out), wrong};
    run(kKernels.at(name), 64, 4096, call);
  });
  m.def("matrices", [](uintptr_t in, uintptr_t out, bool transposed) {
    run(matrices, 32, 512,
        Matrices{reinterpret_cast<const char*>(in), reinterpret_cast<char*>(out), transposed});
  });
  m.def("product", [](bool bfloat16, uintptr_t a, uintptr_t b, uintptr_t c) {
    const Product parameters{reinterpret_cast<const char*>(a), reinterpret_cast<const char*>(b),
                             reinterpret_cast<float*>(c)};
    run(bfloat16 ? product<BFloat16> : product<Float16>, 32, 0, parameters);
  });
  m.def("unpack", [](bool bfloat16, uintptr_t words, uintptr_t floats, int64_t count) {
    (bfloat16 ? unpack_words<BFloat16> : unpack_words<Float16>)(words, floats, count);
  });
  m.def("pack", [](bool bfloat16, uintptr_t words, uintptr_t floats, int64_t count) {
    (bfloat16 ? pack_words<BFloat16> : pack_words<Float16>)(words, floats, count);
  });
}
