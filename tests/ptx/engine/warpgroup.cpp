// wgmma: what products of a warpgroup have under way, and the instructions that order them.
#include "warpgroup.h"

#include <algorithm>
#include <string>

namespace xlnet_fast::ptx {
namespace {

bool is_same_shape(const Instruction& a, const Instruction& b) { return a.name == b.name; }

// The registers must have come to rest: behind a fence, and of no other product's but the sums of
// one of the same shape.
void check_registers(const Step& step) {
  const Instruction& own = step.instruction;
  const ProductRegisters& registers = *step.warp.products;
  if (registers.fences == 0) fail(step, 0, "has no wgmma.fence before it");
  for (size_t i = 0; i < own.constants.size(); ++i) {
    const uint32_t number = register_number(own.constants[i]);
    const bool is_sum = i < own.at[kRegistersOfD];
    const auto& sums = registers.sums[number];
    if (registers.accessed[number] == registers.fences) {
      fail(step, 0,
           std::string("has ") + (is_sum ? "an accumulator" : "a fragment") +
               " in a register that was read or written since the last wgmma.fence");
    }
    if (is_sum ? registers.fragments[number].count != 0 ||
                     (sums.count != 0 && !is_same_shape(*sums.latest, own))
               : sums.count != 0) {
      fail(step, 0, "has a register that another product has, which is under way");
    }
  }
}

void note_reads_of(const Step& step, const std::vector<uint64_t>& chunks) {
  const Now now(step);
  for (size_t at = 0; at < chunks.size(); at += kLanes) {
    const size_t count = std::min<size_t>(kLanes, chunks.size() - at);
    const Lanes lanes = count == kLanes ? kAllLanes : (Lanes{1} << count) - 1;
    Addresses address{};
    std::copy_n(chunks.begin() + static_cast<ptrdiff_t>(at), count, address.begin());
    each_region(step, lanes, Space::kShared, address, kChunk,
                [&](const Region& region, Lanes here) {
                  note_reads(step, region, now, here, address, kChunk);
                });
  }
}

// --- groups ---

void fence(const Step& step) { ++step.warp.products->fences; }

void commit(const Step& step) {
  ProductRegisters& registers = *step.warp.products;
  registers.groups.push_back(std::move(registers.open));
  registers.open.clear();
}

void finish(const Step& step, Product& product) {
  ProductRegisters& registers = *step.warp.products;
  const Instruction& own = *product.instruction;
  for (size_t i = 0; i < own.constants.size(); ++i) {
    auto& uses = i < own.at[kRegistersOfD] ? registers.sums : registers.fragments;
    --uses[register_number(own.constants[i])].count;
  }
  note_reads_of(step, product.chunks);  // until now
  product.waiting &= ~(1u << step.warp.number % kGroupWarps);
  if (product.waiting == 0) step.block.memory->proxy->end_reads(product.chunks);
}

// at[0]: how many of the latest groups may be under way still.
void wait(const Step& step) {
  ProductRegisters& registers = *step.warp.products;
  for (; registers.groups.size() > step.instruction.at[0]; registers.groups.pop_front()) {
    for (const auto& product : registers.groups.front()) finish(step, *product);
  }
}

void fence_proxy(const Step& step) {
  AsyncProxy* const proxy = step.block.memory->proxy.get();
  if (proxy == nullptr) return;
  for_lanes(step.active, [&](int lane) {
    const auto epoch = static_cast<uint32_t>(step.warp.block_epoch[lane]);
    proxy->fence(step.warp.thread(lane), step.block.memory->begin + epoch);
  });
}

// --- decoding ---

void decode_order(Instruction& instruction) {
  const std::string& what = instruction.name[1];
  instruction.kind = Kind::kTogether;
  if (what == "wait_group") {
    if (instruction.operands.size() != 1 || !single(instruction, 0).is_immediate) {
      fail(instruction, "has not the number of groups that may be under way");
    }
    instruction.at[0] = static_cast<uint32_t>(single(instruction, 0).bits);
    instruction.run = wait;
    return;
  }
  if (!instruction.operands.empty()) fail(instruction, "has operands");
  instruction.run = what == "fence" ? fence : commit;
}

}  // namespace

ProductRegisters::ProductRegisters(size_t register_bytes)
    : accessed(register_number(static_cast<uint32_t>(register_bytes)) + 1),
      sums(accessed.size()),
      fragments(accessed.size()) {}

void issue_product(const Step& step, const std::vector<uint64_t>& chunks) {
  const Instruction& own = step.instruction;
  const auto product = std::make_shared<Product>(Product{&own, chunks, 0});
  each_warp(step, [&](const Step& each) {
    check_registers(each);
    note_reads_of(each, chunks);
    ProductRegisters& registers = *each.warp.products;
    for (size_t i = 0; i < own.constants.size(); ++i) {
      auto& uses = i < own.at[kRegistersOfD] ? registers.sums : registers.fragments;
      auto& use = uses[register_number(own.constants[i])];
      ++use.count;
      use.latest = &own;
    }
    registers.open.push_back(product);
    product->waiting |= 1u << each.warp.number % kGroupWarps;
  });
  step.block.memory->proxy->check_fenced(step, chunks);
  step.block.memory->proxy->begin_reads(chunks);
  step.block.counters->shared_read += static_cast<int64_t>(chunks.size() * kChunk);
}

bool run_warpgroup(const Step& step, int pc) {
  if (first_warp(step) + kGroupWarps > static_cast<int>(step.block.warps.size())) {
    fail(step, 0, "is of a warp without a whole warpgroup");
  }
  if (step.active != kAllLanes) fail(step, 0, "is not run by all threads of the warpgroup");
  step.warp.at_warpgroup = pc;
  bool all_here = true;
  each_warp(step, [&](const Step& each) {
    if (each.warp.at_warpgroup < 0) {
      all_here = false;
    } else if (each.warp.at_warpgroup != pc) {
      fail_meeting(step);
    }
  });
  if (!all_here) return false;
  step.instruction.run(step);
  each_warp(step, [&](const Step& each) {
    each.warp.at.fill(pc + 1);
    each.warp.at_warpgroup = -1;
  });
  return true;
}

void fail_meeting(const Step& step) {
  fail(step, 0, "waits for the other warps of its warpgroup, which never come here");
}

void watch_registers(const Step& step) {
  ProductRegisters& registers = *step.warp.products;
  for (const uint32_t number : step.instruction.registers) {
    for (const auto* uses : {&registers.sums, &registers.fragments}) {
      if ((*uses)[number].count == 0) continue;
      const Instruction& product = *(*uses)[number].latest;
      fail(step, std::countr_zero(step.active),
           std::string("touches ") + (uses == &registers.sums ? "an accumulator" : "a fragment") +
               " of the product of line " + std::to_string(product.line) +
               ", which is under way: wgmma.mma_async was issued and not waited for");
    }
    registers.accessed[number] = registers.fences;
  }
}

void watch_exit(const Step& step) {
  const ProductRegisters& registers = *step.warp.products;
  if (!registers.open.empty() || !registers.groups.empty()) {
    fail(step, std::countr_zero(step.active), "ends while a product is under way");
  }
}

const Value& single(const Instruction& instruction, size_t operand) {
  const Operand& found = instruction.operands.at(operand);
  if (found.values.size() != 1 || found.is_address) {
    fail(instruction, "has not one value as operand " + std::to_string(operand + 1));
  }
  return found.values[0];
}

bool decode_warpgroup(Instruction& instruction, Loader& loader) {
  const auto& name = instruction.name;
  if (name.size() > 2 && name[0] == "fence" && name[1] == "proxy" && name[2] == "async") {
    if (name.size() > 4 || (name.size() == 4 && !name[3].starts_with("shared"))) {
      fail(instruction, "is a fence that is not known");
    }
    instruction.run = fence_proxy;
    return true;
  }
  if (name[0] != "wgmma") return false;
  const bool is_together = name.size() > 3 && name[2] == "sync" && name[3] == "aligned";
  if (is_together && name[1] == "mma_async") {
    decode_product(instruction, loader);
  } else if (is_together && name.size() == 4 &&
             (name[1] == "fence" || name[1] == "commit_group" || name[1] == "wait_group")) {
    decode_order(instruction);
  } else {
    fail(instruction, "is not known");
  }
  return true;
}

}  // namespace xlnet_fast::ptx
