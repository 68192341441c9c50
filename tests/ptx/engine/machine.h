// A machine that runs PTX on the host: blocks one after the other, warps in a random order, the
// 32 lanes of a warp at once. What a GPU would not tell ends a launch with a `Fault`.
//
// `machine.cpp` schedules, `arithmetic.cpp`, `exchange.cpp`, `memory.cpp`, `matrix.cpp` and
// `warpgroup.cpp` have the instructions. Each registers by name: `decode_*` looks at an instruction
// once, when a kernel is loaded, and leaves in it the function that runs it for a whole warp.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

namespace xlnet_fast::ptx {

constexpr int kLanes = 32;
constexpr uint32_t kAllLanes = 0xffffffffu;

// Where the first byte of shared and of local memory is, in the spaces of their own: symbols of
// .shared and .local have addresses from here on, the dynamic part of shared memory comes last.
// The .param space begins at 0. Generic addresses of them are memory.cpp's to choose.
constexpr uint64_t kSharedBase = 0x1000;
constexpr uint64_t kLocalBase = 0x2000;

class Block;
struct Warp;
struct Instruction;
class Loader;
struct ProductRegisters;

// A set of lanes of a warp, a bit each.
using Lanes = uint32_t;

// A value as an instruction names it: 32 lanes side by side in the warp's registers, each `bytes`
// wide (2, 4, 8 or 16). An immediate, a special register and the address of a symbol are registers
// that nobody writes. A predicate is one `Lanes`: 4 bytes in all, and `bytes` is 0.
struct Value {
  uint32_t at = 0;  // byte in the warp's registers
  uint8_t bytes = 0;
  bool is_immediate = false;  // then `bits` is what it is, and `at` is set by `Loader::constant`
  bool negated = false;       // "!%p1" as an operand
  bool is_sink = false;       // "_": there is room for 16 bytes a lane at `at`; nobody reads it
  uint64_t bits = 0;          // of a float as the text has it ("0f3F800000", "0d...": those bits)
};

// One comma-separated operand: "%r1" has one value, "{%r1, %r2}" and "%p1|%p2" several,
// "[%rd1+16]" one, the base, and an offset. "_" is a value that is written and never read.
struct Operand {
  std::vector<Value> values;
  bool is_address = false;
  int64_t offset = 0;
};

// What a step of a warp has at hand.
struct Step {
  Block& block;
  Warp& warp;
  const Instruction& instruction;
  Lanes active;  // lanes that do it: those here whose guard holds; never none
};

using Run = void (*)(const Step&);

// What the scheduler does with an instruction.
enum class Kind : uint8_t {
  kPlain,      // calls `run` for the lanes that are here
  kTogether,   // the same, once all lanes of the warp that have not exited are here (".aligned")
  kMembers,    // the same, once those of the member mask in the register `members` are here
  kWarpgroup,  // calls `run` once for four warps, when all their lanes are here
  kBranch,
  kTable,  // brx.idx
  kBarrier,
  kExit,
};

struct alignas(64) Instruction {
  // What a step reads, in one line of the cache.
  Run run = nullptr;             // set by decode_*
  std::array<uint32_t, 6> at{};  // for decode_*: bytes in the warp's registers, or what it likes
  Value guard;
  int target = -1;            // of a branch
  mutable uint32_t runs = 0;  // how often a warp ran it
  uint32_t members = 0;       // where the member mask of Kind::kMembers is
  bool guarded = false, guard_negated = false;
  Kind kind = Kind::kPlain;  // decode_* may make it kTogether or kMembers

  int line = 0;                     // of the text, from 1
  std::string text;                 // as it stands there
  std::vector<std::string> name;    // "ld.global.v4.b32" -> {"ld", "global", "v4", "b32"}
  std::vector<Operand> operands;    // first what is written
  std::vector<uint32_t> constants;  // for decode_*: whatever its function wants to know
  std::vector<uint32_t> registers;  // that it touches, by number, in a kernel with products of
                                    // warpgroups
};

// What is wrong with a kernel or its text: where, and who did it.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Throws a Fault that names instruction, block, thread (warp and lane) and what is wrong.
[[noreturn]] void fail(const Step& step, int lane, const std::string& what);
// The same of a text that cannot be decoded.
[[noreturn]] void fail(const Instruction& instruction, const std::string& what);

// While a kernel is loaded: makes room for constants.
class Loader {
 public:
  virtual ~Loader() = default;
  // A register of `bytes` that holds an immediate's bits in all lanes; `value` otherwise, which
  // must be as wide. Integers are cut to the width; a 32-bit float arrives as its 32 bits.
  Value constant(const Value& value, int bytes) { return constant_of(nullptr, value, bytes); }
  // The same, and a value of another width fails by naming the instruction.
  Value constant(const Instruction& instruction, const Value& value, int bytes) {
    return constant_of(&instruction, value, bytes);
  }

 protected:
  virtual Value constant_of(const Instruction* instruction, const Value& value, int bytes) = 0;
};

// Each looks at an instruction of its own names, and returns false at the others. It throws by
// `fail` at what it does not know of a name of its own: a modifier, a width, a count of operands.
bool decode_arithmetic(Instruction&, Loader&);  // one lane at a time: numbers, bits, predicates
bool decode_exchange(Instruction&, Loader&);    // shfl, vote, activemask, match, redux, bar.warp
bool decode_memory(Instruction&, Loader&);      // ld, st, atom, red, cp.async, cvta, ldmatrix, ..
bool decode_matrix(Instruction&, Loader&);      // mma.sync
bool decode_warpgroup(Instruction&, Loader&);   // wgmma, fence.proxy.async

// A warp: its registers, and where its lanes are.
struct Warp {
  int number = 0;                // within the block
  std::vector<uint64_t> memory;  // what `registers` points into
  char* registers = nullptr;     // of all lanes, as `Value` has it (aligned for vectors)
  std::array<int, kLanes> at{};  // next instruction of each lane, while none of them runs
  // Lanes that are done (or never were), that wait for the block, and for other lanes of the warp.
  Lanes exited = 0, at_barrier = 0, waiting = 0;
  // How many barriers each lane has passed: two accesses of the same memory by two threads of a
  // block are in order where one thread's count of block barriers differs, or, within a warp, that
  // of its own barriers (bar.warp.sync).
  std::array<int32_t, kLanes> block_epoch{}, warp_epoch{};
  // Once some lanes alone have passed a barrier of the warp: met[a][b] is how many of lane b's own
  // barriers are behind it for lane a, which met it or others that did.
  bool has_parted = false;
  std::array<std::array<int32_t, kLanes>, kLanes> met{};
  // Where it waits for the other warps of its warpgroup, or -1.
  int at_warpgroup = -1;
  std::shared_ptr<ProductRegisters> products;  // null in a kernel that has none of warpgroups

  // Whether what lane `other` did at its own `epoch`, of which the low `bits` bits are known, comes
  // before what `lane` does now, by barriers of the warp.
  bool is_behind(int lane, int other, uint32_t epoch, int bits) const {
    const auto latest = static_cast<uint32_t>(warp_epoch[other]);
    const uint32_t ago = (latest - epoch) & ((1u << bits) - 1);
    const int32_t behind = has_parted ? met[lane][other] : warp_epoch[lane];
    return behind > static_cast<int32_t>(latest - ago);
  }

  template <class T>
  T* lanes(const Value& value) {
    return reinterpret_cast<T*>(registers + value.at);
  }
  template <class T>
  T* lanes(uint32_t at) {
    return reinterpret_cast<T*>(registers + at);
  }
  int thread(int lane) const { return number * kLanes + lane; }
};

// Calls f(lane) for every active lane; without a branch where all are, so that it can be vectors.
template <class F>
inline void for_lanes(Lanes active, F&& f) {
  if (active == kAllLanes) {
    for (int lane = 0; lane < kLanes; ++lane) f(lane);
  } else {
    for (Lanes rest = active; rest != 0; rest &= rest - 1) f(std::countr_zero(rest));
  }
}

// What a launch did, for those who look whether it did what they meant. memory.cpp adds the bytes.
struct Counters {
  int64_t barriers = 0;                                                              // of blocks
  int64_t global_read = 0, global_written = 0, shared_read = 0, shared_written = 0;  // bytes
};

// --- memory (memory.h has the rest) ---

class BlockMemory;  // shared and local memory of a block, and who touched what

// What runs now. One at a time.
class Block {
 public:
  int threads = 0;
  int64_t number = 0;               // among the grid's blocks, in the order of %ctaid
  std::array<uint32_t, 3> index{};  // %ctaid
  std::vector<Warp> warps;
  const char* parameters = nullptr;  // the .param space
  size_t parameter_bytes = 0;
  size_t shared_bytes = 0;              // from kSharedBase on, static and dynamic
  size_t local_bytes = 0;               // of each thread, from kLocalBase on
  std::shared_ptr<BlockMemory> memory;  // made by `begin_block`
  std::mt19937* random = nullptr;
  Counters* counters = nullptr;
  const std::string* kernel = nullptr;  // its name
  bool has_products = false;            // of warpgroups
};

// What memory.cpp does at the edges: before the first block of a launch and after the last, before
// and after each block, and when all threads of a block have passed a barrier (their epochs are
// counted by then). `end_launch` is called after a Fault too.
void begin_launch(const std::string& kernel);
void end_launch();
void begin_block(Block& block);
void end_block(Block& block);
void passed_barrier(Block& block);

}  // namespace xlnet_fast::ptx
