// cp.async: global memory to shared memory, behind the thread's back until it waits.
#include <algorithm>
#include <optional>
#include <string>

#include "warpgroup.h"

namespace xlnet_fast::ptx {
namespace {

// at[0]: bytes; at[1]: what the fourth operand is.
enum class Fourth : uint32_t { kNone, kSourceBytes, kIgnoreSource };

Copies& copies_of(const Step& step, int lane) {
  return step.block.memory->copies[step.warp.thread(lane)];
}

// How many bytes each lane reads of its source.
std::array<uint32_t, kLanes> source_bytes(const Step& step, uint32_t bytes) {
  std::array<uint32_t, kLanes> wanted;
  wanted.fill(bytes);
  const auto fourth = static_cast<Fourth>(step.instruction.at[1]);
  if (fourth == Fourth::kNone) return wanted;
  const Value& value = step.instruction.operands[3].values[0];
  if (fourth == Fourth::kSourceBytes) {
    const uint32_t* const lanes = step.warp.lanes<uint32_t>(value);
    for_lanes(step.active, [&](int lane) {
      wanted[lane] = lanes[lane];
      if (lanes[lane] > bytes) {
        fail(step, lane, "reads " + std::to_string(lanes[lane]) + " bytes and writes fewer");
      }
    });
    return wanted;
  }
  const Lanes ignored = *step.warp.lanes<Lanes>(value) ^ (value.negated ? kAllLanes : 0);
  for_lanes(step.active, [&](int lane) { wanted[lane] = ignored >> lane & 1 ? 0 : bytes; });
  return wanted;
}

// Sources of the lanes that read `some` bytes, as they are now.
void read_sources(const Step& step, const Now& now, Lanes lanes, Addresses address, uint32_t bytes,
                  uint32_t some, std::array<Copy, kLanes>& copies) {
  // The address is aligned to the whole copy, however little of it is read.
  for_lanes(lanes, [&](int lane) {
    if (address[lane] % bytes != 0) fail_alignment(step, lane, address[lane], bytes);
  });
  // Pieces of powers of two, from the largest.
  for (uint32_t done = 0; done < some;) {
    const uint32_t piece = std::bit_floor(some - done);
    each_region(step, lanes, Space::kGlobal, address, piece, [&](const Region& region, Lanes here) {
      note_reads(step, region, now, here, address, piece);
      for_lanes(here, [&](int lane) {
        const char* const source = region.data + (address[lane] - region.begin);
        if (done == 0) copies[lane].source = source;
        if (piece == 16) {
          std::memcpy(copies[lane].data.data(), source, 16);
        } else {
          std::memcpy(copies[lane].data.data() + done, source, piece);
        }
      });
    });
    done += piece;
    for_lanes(lanes, [&](int lane) { address[lane] += piece; });
  }
}

void issue(const Step& step) {
  const uint32_t bytes = step.instruction.at[0];
  Addresses to, from;
  read_addresses(step, step.instruction.operands[0], to);
  read_addresses(step, step.instruction.operands[1], from);
  const auto wanted = source_bytes(step, bytes);
  const Now now(step);
  std::array<Copy, kLanes> copies{};
  for (Lanes rest = step.active; rest != 0;) {
    const uint32_t some = wanted[std::countr_zero(rest)];
    Lanes alike = 0;
    for_lanes(rest, [&](int lane) { alike |= Lanes{wanted[lane] == some} << lane; });
    if (some != 0) read_sources(step, now, alike, from, bytes, some, copies);
    step.block.counters->global_read += int64_t{some} * std::popcount(alike);
    rest &= ~alike;
  }
  each_region(step, step.active, Space::kShared, to, bytes, [&](const Region& region, Lanes lanes) {
    begin_writes(step, region, now, lanes, to, bytes);
    for_lanes(lanes, [&](int lane) {
      Copy& copy = copies[lane];
      copy.to = static_cast<uint32_t>(to[lane]);
      copy.bytes = static_cast<uint8_t>(bytes);
      copy.source_bytes = static_cast<uint8_t>(wanted[lane]);
      copies_of(step, lane).all.push_back(copy);
    });
  });
}

void commit(const Step& step) {
  for_lanes(step.active, [&](int lane) {
    Copies& copies = copies_of(step, lane);
    copies.groups.push_back(static_cast<uint32_t>(copies.all.size()));
  });
}

template <size_t Bytes>
void arrive_of(const Step& step, const Now& now, int lane, const Copy& copy) {
  BlockMemory& memory = *step.block.memory;
  const bool is_same = copy.source_bytes == Bytes
                           ? std::memcmp(copy.source, copy.data.data(), Bytes) == 0
                           : std::memcmp(copy.source, copy.data.data(), copy.source_bytes) == 0;
  if (!is_same) {
    fail(step, lane, "waits for a copy whose source has changed since it was issued");
  }
  const size_t offset = copy.to - kSharedBase;
  std::memcpy(memory.shared.data() + offset, copy.data.data(), Bytes);
  const int shift = memory.shadow.shift;
  Record* const writes = memory.shadow.writes.data() + (offset >> shift);
  for (size_t i = 0; i < Bytes >> shift; ++i) writes[i] = now.own[lane];
  if (memory.proxy) memory.proxy->note_written(step.warp.thread(lane), copy.to, Bytes);
  step.block.counters->shared_written += Bytes;
}

void arrive(const Step& step, const Now& now, int lane, const Copy& copy) {
  if (copy.bytes == 16) {
    arrive_of<16>(step, now, lane, copy);
  } else if (copy.bytes == 8) {
    arrive_of<8>(step, now, lane, copy);
  } else {
    arrive_of<4>(step, now, lane, copy);
  }
}

// A lane's copies up to `end` arrive, and its groups up to `groups` are no longer awaited.
void arrive(const Step& step, const Now& now, int lane, size_t end, size_t groups) {
  Copies& copies = copies_of(step, lane);
  for (; copies.arrived < end; ++copies.arrived) {
    arrive(step, now, lane, copies.all[copies.arrived]);
  }
  copies.groups_arrived = groups;
  if (copies.arrived == copies.all.size() && groups == copies.groups.size()) {
    copies.all.clear();
    copies.groups.clear();
    copies.arrived = copies.groups_arrived = 0;
  }
}

// at[0]: how many of the latest groups may be under way still.
void wait_groups(const Step& step) {
  const size_t allowed = step.instruction.at[0];
  const Now now(step);
  for_lanes(step.active, [&](int lane) {
    const Copies& copies = copies_of(step, lane);
    if (copies.groups.size() <= copies.groups_arrived + allowed) return;
    const size_t groups = copies.groups.size() - allowed;
    arrive(step, now, lane, copies.groups[groups - 1], groups);
  });
}

void wait_all(const Step& step) {
  const Now now(step);
  for_lanes(step.active, [&](int lane) {
    const Copies& copies = copies_of(step, lane);
    arrive(step, now, lane, copies.all.size(), copies.groups.size());
  });
}

// "cp.async.cg.shared.global{.L2::..} [to], [from], 16{, source bytes or predicate}{, policy}".
void decode_issue(Instruction& instruction, Loader& loader) {
  const auto& name = instruction.name;
  bool has_policy = false;
  for (size_t i = 5; i < name.size(); ++i) {
    if (name[i] == "L2::cache_hint") {
      has_policy = true;
    } else if (!name[i].starts_with("L2::")) {
      fail(instruction, "has a modifier that is not known: ." + name[i]);
    }
  }
  if (name.size() < 5 || (name[2] != "ca" && name[2] != "cg") ||
      (name[3] != "shared" && name[3] != "shared::cta") || name[4] != "global") {
    fail(instruction, "is not known: only cp.async.{ca,cg}.shared.global is known");
  }
  auto& operands = instruction.operands;
  if (has_policy && !operands.empty()) operands.pop_back();
  if (operands.size() != 3 && operands.size() != 4) {
    fail(instruction, "has not two addresses, its bytes and what it reads of its source");
  }
  prepare_address(instruction, 0, loader);
  prepare_address(instruction, 1, loader);
  const Value& size = operands[2].values.at(0);
  const bool is_known = size.bits == 16 || (name[2] == "ca" && (size.bits == 4 || size.bits == 8));
  if (!size.is_immediate || !is_known) fail(instruction, "copies a number of bytes that it cannot");
  instruction.at[0] = static_cast<uint32_t>(size.bits);
  instruction.at[1] = static_cast<uint32_t>(Fourth::kNone);
  if (operands.size() == 4) {
    Value& value = operands[3].values.at(0);
    const bool is_predicate = !value.is_immediate && value.bytes == 0;
    if (!is_predicate) value = loader.constant(instruction, value, 4);
    instruction.at[1] =
        static_cast<uint32_t>(is_predicate ? Fourth::kIgnoreSource : Fourth::kSourceBytes);
  }
  instruction.run = issue;
}

}  // namespace

bool decode_copies(Instruction& instruction, Loader& loader) {
  const auto& name = instruction.name;
  if (name[0] != "cp") return false;
  if (name.size() < 3 || name[1] != "async")
    fail(instruction, "is not known: only cp.async is known");
  if (name[2] == "commit_group" && name.size() == 3) {
    if (!instruction.operands.empty()) fail(instruction, "has operands");
    instruction.run = commit;
  } else if (name[2] == "wait_group" && name.size() == 3) {
    if (instruction.operands.size() != 1 || !instruction.operands[0].values.at(0).is_immediate) {
      fail(instruction, "has not the number of groups that may be under way");
    }
    instruction.at[0] = static_cast<uint32_t>(instruction.operands[0].values[0].bits);
    instruction.run = wait_groups;
  } else if (name[2] == "wait_all" && name.size() == 3) {
    if (!instruction.operands.empty()) fail(instruction, "has operands");
    instruction.run = wait_all;
  } else {
    decode_issue(instruction, loader);
  }
  return true;
}

}  // namespace xlnet_fast::ptx
