// What products of a warpgroup do behind its back: `wgmma.mma_async` reads registers and shared
// memory, and writes registers, at any time from when it is issued until its group is waited for.
#pragma once

#include <deque>
#include <memory>
#include <vector>

#include "memory.h"

namespace xlnet_fast::ptx {

constexpr int kGroupWarps = 4;
constexpr uint32_t kChunk = 16;  // bytes of a matrix in shared memory that lie side by side

// A product's `instruction.constants` are the registers of D, as many as `at[kRegistersOfD]` says,
// and those of A if it is in registers.
constexpr size_t kRegistersOfD = 0;

// A product that has been issued.
struct Product {
  const Instruction* instruction;
  std::vector<uint64_t> chunks;  // addresses in shared memory of what it reads, 16 bytes each
  uint32_t waiting = 0;          // warps of the group that have not waited for it, a bit each
};

// The registers of a warp, as its products see them. Each has a number (`register_number`).
struct ProductRegisters {
  // Products under way that have a register, and the latest of them.
  struct Use {
    int count = 0;
    const Instruction* latest = nullptr;
  };

  uint32_t fences = 0;             // wgmma.fence so far
  std::vector<uint32_t> accessed;  // by number: `fences` when another instruction last touched it
  std::vector<Use> sums, fragments;
  std::vector<std::shared_ptr<Product>> open;                // of no group yet
  std::deque<std::vector<std::shared_ptr<Product>>> groups;  // committed, the oldest first

  explicit ProductRegisters(size_t register_bytes);
};

// Registers begin at multiples of 64 bytes.
constexpr uint32_t register_number(uint32_t at) { return at / 64; }

inline int first_warp(const Step& step) { return step.warp.number / kGroupWarps * kGroupWarps; }

// Calls f with a step of each warp of the group.
template <class F>
void each_warp(const Step& step, F&& f) {
  for (int i = first_warp(step); i < first_warp(step) + kGroupWarps; ++i) {
    f(Step{step.block, step.block.warps[static_cast<size_t>(i)], step.instruction, kAllLanes});
  }
}

// Runs an instruction for the warps of a group when the last of them comes to it, at `pc`, and lets
// all go on; false where one is not here yet.
bool run_warpgroup(const Step& step, int pc);
[[noreturn]] void fail_meeting(const Step& step);

// A product begins to read its registers and these bytes of shared memory; fails if one of them
// may not be read yet.
void issue_product(const Step& step, const std::vector<uint64_t>& chunks);

// Fails if an instruction touches a register that a product under way has, and notes what it does.
void watch_registers(const Step& step);
// Fails if a warp ends with a product under way.
void watch_exit(const Step& step);

// Of decode_warpgroup: wgmma.mma_async. And an operand that has one value.
void decode_product(Instruction& instruction, Loader& loader);
const Value& single(const Instruction& instruction, size_t operand);

// A block's shared memory, as the async proxy sees it: what the other instructions, the generic
// proxy, wrote there is there for a product only behind a `fence.proxy.async`.
class AsyncProxy {
 public:
  AsyncProxy(int threads, size_t shared_bytes);

  // A thread passes a fence.proxy.async.
  void fence(int thread, uint32_t moment);
  // Lanes write to shared memory (or begin to, where `is_done` is false), as any thread does.
  void note_writes(const Step& step, Lanes lanes, const Addresses& address, uint32_t bytes,
                   bool is_done);
  // A lane's write to shared memory is done.
  void note_written(int thread, uint64_t address, uint32_t bytes);
  // Products read, from their issue to the last wait; `step` is of the warp that issues.
  void check_fenced(const Step& step, const std::vector<uint64_t>& chunks) const;
  void begin_reads(const std::vector<uint64_t>& chunks);
  void end_reads(const std::vector<uint64_t>& chunks);

 private:
  struct Fences {
    uint32_t count = 0;    // so far
    uint32_t earlier = 0;  // before `moment`
    uint32_t moment = 0;   // of the latest
  };
  std::vector<Fences> fences_;     // of each thread
  std::vector<uint32_t> written_;  // of two bytes: how many fences their writer had passed
  std::vector<uint16_t> readers_;  // of 16 bytes: products under way that read them
  size_t under_way_ = 0;
};

}  // namespace xlnet_fast::ptx
