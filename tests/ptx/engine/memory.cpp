// Where addresses lead, and the instructions that load, store and ask about addresses.
#include "memory.h"

#include <algorithm>
#include <cstdio>
#include <string>

#include "warpgroup.h"

namespace xlnet_fast::ptx {

// --- a launch and its blocks ---

namespace {

// Kept from block to block and launch to launch: most are of the same size.
std::shared_ptr<BlockMemory> kept;
bool is_unfinished = false;  // the last block that began has not ended

}  // namespace

BlockMemory::BlockMemory(int threads, size_t shared_bytes, size_t local_bytes)
    : threads(threads),
      shared(shared_bytes),
      local(local_bytes * threads),
      local_bytes(local_bytes),
      copies(threads) {
  shadow.begin(shared_bytes, false);
}

void BlockMemory::start(const Block& block) {
  begin = launch.latest + 1;
  launch.latest = begin;
  launch.blocks.emplace_back(begin, block.number);
  std::fill(shared.begin(), shared.end(), char(0xff));
  std::fill(local.begin(), local.end(), char(0xff));
  for (Copies& of_thread : copies) {
    for (size_t i = of_thread.arrived; i < of_thread.all.size(); ++i) {
      const Copy& copy = of_thread.all[i];
      const auto first = static_cast<ptrdiff_t>((copy.to - kSharedBase) >> shadow.shift);
      std::fill_n(shadow.writes.begin() + first, copy.bytes >> shadow.shift, 0);
    }
    of_thread = {};
  }
  proxy = block.has_products ? std::make_shared<AsyncProxy>(threads, shared.size()) : nullptr;
}

void begin_launch(const std::string&) {
  // Moments have 32 bits, and one launch takes far fewer than the last quarter of them.
  if (launch.latest > 0xc0000000u) {
    launch.latest = 0;
    forget_global();
    kept.reset();
  }
  launch.begin = launch.latest + 1;
  launch.blocks.clear();
}

void end_launch() {}

void begin_block(Block& block) {
  // A Fault may leave writes under way that no copy has been noted for yet.
  if (is_unfinished) kept.reset();
  is_unfinished = true;
  if (!kept || kept->threads != block.threads || kept->shared.size() != block.shared_bytes ||
      kept->local_bytes != block.local_bytes) {
    kept = std::make_shared<BlockMemory>(block.threads, block.shared_bytes, block.local_bytes);
  }
  kept->start(block);
  block.memory = kept;
}

void end_block(Block&) { is_unfinished = false; }

void passed_barrier(Block&) {}

// --- addresses ---

void read_addresses(const Step& step, const Operand& operand, Addresses& address) {
  const Value& base = operand.values[0];
  const auto offset = static_cast<uint64_t>(operand.offset);
  if (base.bytes == 8) {
    const uint64_t* lanes = step.warp.lanes<uint64_t>(base);
    for (int lane = 0; lane < kLanes; ++lane) address[lane] = lanes[lane] + offset;
  } else {
    const uint32_t* lanes = step.warp.lanes<uint32_t>(base);
    for (int lane = 0; lane < kLanes; ++lane) {
      address[lane] = static_cast<uint32_t>(lanes[lane] + static_cast<uint32_t>(offset));
    }
  }
}

namespace {

std::string hex(uint64_t address) {
  char text[24];
  std::snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(address));
  return text;
}

[[noreturn]] void fail_bounds(const Step& step, int lane, const char* what, uint64_t address,
                              uint64_t begin, size_t size, uint32_t bytes) {
  const auto offset = static_cast<int64_t>(address - begin);
  fail(step, lane,
       "goes out of bounds: " + std::to_string(bytes) + " bytes at byte " + std::to_string(offset) +
           " of " + what + " of " + std::to_string(size) + " bytes (address " + hex(address) + ")");
}

Region global_region(const Step& step, int lane, uint64_t address, uint32_t bytes) {
  Buffer* const buffer = find_global(address);
  if (buffer == nullptr) {
    fail(step, lane,
         "goes out of bounds: " + hex(address) +
             " is no memory of the device: a tensor that was made outside of memory(), or no "
             "tensor at all");
  }
  if (!buffer->is_live) {
    fail(step, lane,
         "goes out of bounds: " + hex(address) + " is in or near a buffer of " +
             std::to_string(buffer->bytes) + " bytes that has been freed");
  }
  if (address - buffer->begin > buffer->bytes || buffer->bytes < bytes ||
      address - buffer->begin > buffer->bytes - bytes) {
    fail_bounds(step, lane, "a buffer", address, buffer->begin, buffer->bytes, bytes);
  }
  if (buffer->shadow.bytes == 0) buffer->shadow.begin(buffer->bytes, true);
  return {Space::kGlobal,  reinterpret_cast<char*>(buffer->begin),
          buffer->begin,   buffer->bytes,
          &buffer->shadow, launch.begin};
}

}  // namespace

void fail_alignment(const Step& step, int lane, uint64_t address, uint32_t bytes) {
  fail(step, lane,
       "is misaligned: " + hex(address) + " is not a multiple of " + std::to_string(bytes));
}

Region region_of(const Step& step, int lane, Space space, uint64_t address, uint32_t bytes) {
  if (space == Space::kGlobal) return global_region(step, lane, address, bytes);
  BlockMemory& memory = *step.block.memory;
  const bool is_shared = space == Space::kShared;
  const uint64_t begin = is_shared ? kSharedBase : kLocalBase;
  const size_t size = is_shared ? memory.shared.size() : memory.local_bytes;
  if (size < bytes || address - begin > size - bytes) {
    fail_bounds(step, lane, is_shared ? "shared memory" : "local memory", address, begin, size,
                bytes);
  }
  if (is_shared) {
    return {space, memory.shared.data(), begin, size, &memory.shadow, memory.begin};
  }
  char* const mine = memory.local.data() + step.warp.thread(lane) * memory.local_bytes;
  return {space, mine, begin, size, nullptr, 0};
}

void each_region(const Step& step, Lanes lanes, Space space, Addresses& address, uint32_t bytes,
                 const ForRegion& f) {
  if (space == Space::kGeneric) {
    Lanes in_shared = 0, in_local = 0;
    for_lanes(lanes, [&](int lane) {
      in_shared |= Lanes{address[lane] >> 56 == 1} << lane;
      in_local |= Lanes{address[lane] >> 57 == 1} << lane;
      address[lane] &= kSharedWindow - 1;
    });
    if (in_shared) each_region(step, in_shared, Space::kShared, address, bytes, f);
    if (in_local) each_region(step, in_local, Space::kLocal, address, bytes, f);
    lanes &= ~(in_shared | in_local);
    space = Space::kGlobal;
  }
  uint64_t low_bits = 0;
  for_lanes(lanes, [&](int lane) { low_bits |= address[lane]; });
  if ((low_bits & (bytes - 1)) != 0) [[unlikely]] {
    for_lanes(lanes, [&](int lane) {
      if ((address[lane] & (bytes - 1)) != 0) fail_alignment(step, lane, address[lane], bytes);
    });
  }
  while (lanes != 0) {
    const int first = std::countr_zero(lanes);
    const Region region = region_of(step, first, space, address[first], bytes);
    Lanes inside = lanes;
    if (space == Space::kLocal) {
      inside = Lanes{1} << first;
    } else {
      const uint64_t last = region.bytes - bytes;  // region_of has seen that it is not negative
      bool any_outside = false;
      for_lanes(lanes, [&](int lane) { any_outside |= address[lane] - region.begin > last; });
      if (any_outside) [[unlikely]] {
        for_lanes(lanes, [&](int lane) {
          if (address[lane] - region.begin > last) inside &= ~(Lanes{1} << lane);
        });
      }
    }
    f(region, inside);
    lanes &= ~inside;
  }
}

void prepare_address(Instruction& instruction, size_t operand, Loader& loader) {
  if (operand >= instruction.operands.size() || !instruction.operands[operand].is_address) {
    fail(instruction, "has no address as operand " + std::to_string(operand + 1));
  }
  Value& base = instruction.operands[operand].values.at(0);
  if (base.is_immediate) base = loader.constant(instruction, base, 8);
  if (base.bytes != 4 && base.bytes != 8) {
    fail(instruction, "has an address of " + std::to_string(base.bytes) + " bytes");
  }
}

bool read_space(const std::string& part, Space& space) {
  if (part == "global") {
    space = Space::kGlobal;
  } else if (part == "shared" || part == "shared::cta") {
    space = Space::kShared;
  } else if (part == "local") {
    space = Space::kLocal;
  } else {
    return false;
  }
  return true;
}

// --- ld and st ---

namespace {

// The elements at the addresses, to a register as wide. One loop each, of locals alone.
template <int Element>
void gather(Lanes lanes, const char* from, const uint64_t* address, char* to) {
  if (lanes == kAllLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      std::memcpy(to + lane * Element, from + address[lane], Element);
    }
    return;
  }
  for (Lanes rest = lanes; rest != 0; rest &= rest - 1) {
    const int lane = std::countr_zero(rest);
    std::memcpy(to + lane * Element, from + address[lane], Element);
  }
}

// The same to a wider one, which is filled with the sign or with zeros.
template <int Element>
void extend(Lanes lanes, const char* from, const uint64_t* address, char* to, int width,
            bool is_signed) {
  for (Lanes rest = lanes; rest != 0; rest &= rest - 1) {
    const int lane = std::countr_zero(rest);
    char* const place = to + lane * width;
    std::memcpy(place, from + address[lane], Element);
    const bool is_negative = is_signed && static_cast<signed char>(place[Element - 1]) < 0;
    std::memset(place + Element, is_negative ? 0xff : 0, width - Element);
  }
}

// at[0]: the space; at[1]: whether loads extend the sign.
template <int Element, int Count>
void load(const Step& step) {
  constexpr uint32_t kBytes = Element * Count;
  const Operand& to = step.instruction.operands[0];
  Addresses address;
  read_addresses(step, step.instruction.operands[1], address);
  const Now now(step);
  const auto space = static_cast<Space>(step.instruction.at[0]);
  each_region(step, step.active, space, address, kBytes, [&](const Region& region, Lanes lanes) {
    note_reads(step, region, now, lanes, address, kBytes);
    for (int i = 0; i < Count; ++i) {
      const char* const from = region.data - region.begin + i * Element;
      char* const register_ = step.warp.lanes<char>(to.values[i]);
      const int width = to.values[i].bytes;
      if (width == Element) {
        gather<Element>(lanes, from, address.data(), register_);
      } else {
        extend<Element>(lanes, from, address.data(), register_, width, step.instruction.at[1] != 0);
      }
    }
    Counters& counters = *step.block.counters;
    const int64_t moved = int64_t{kBytes} * std::popcount(lanes);
    if (region.space == Space::kGlobal) counters.global_read += moved;
    if (region.space == Space::kShared) counters.shared_read += moved;
  });
}

template <int Element, int Count>
void store(const Step& step) {
  constexpr uint32_t kBytes = Element * Count;
  const Operand& from = step.instruction.operands[1];
  Addresses address;
  read_addresses(step, step.instruction.operands[0], address);
  alignas(64) char data[kLanes * kBytes];
  for (int i = 0; i < Count; ++i) {
    const char* const register_ = step.warp.lanes<char>(from.values[i]);
    const int width = from.values[i].bytes;
    for (int lane = 0; lane < kLanes; ++lane) {
      std::memcpy(data + lane * kBytes + i * Element, register_ + lane * width, Element);
    }
  }
  const Now now(step);
  const auto space = static_cast<Space>(step.instruction.at[0]);
  each_region(step, step.active, space, address, kBytes, [&](const Region& region, Lanes lanes) {
    write(step, region, now, lanes, address, kBytes, data);
    Counters& counters = *step.block.counters;
    const int64_t moved = int64_t{kBytes} * std::popcount(lanes);
    if (region.space == Space::kGlobal) counters.global_written += moved;
    if (region.space == Space::kShared) counters.shared_written += moved;
  });
}

template <int Element>
Run load_of(int count) {
  if (count == 1) return load<Element, 1>;
  if (count == 2) return load<Element, 2>;
  if constexpr (Element <= 8) {
    if (count == 4) return load<Element, 4>;
  }
  if constexpr (Element <= 4) {
    if (count == 8) return load<Element, 8>;
  }
  return nullptr;
}

template <int Element>
Run store_of(int count) {
  if (count == 1) return store<Element, 1>;
  if (count == 2) return store<Element, 2>;
  if constexpr (Element <= 8) {
    if (count == 4) return store<Element, 4>;
  }
  if constexpr (Element <= 4) {
    if (count == 8) return store<Element, 8>;
  }
  return nullptr;
}

Run run_of(bool is_load, int element, int count) {
  switch (element) {
    case 1:
      return is_load ? load_of<1>(count) : store_of<1>(count);
    case 2:
      return is_load ? load_of<2>(count) : store_of<2>(count);
    case 4:
      return is_load ? load_of<4>(count) : store_of<4>(count);
    case 8:
      return is_load ? load_of<8>(count) : store_of<8>(count);
    default:
      return is_load ? load_of<16>(count) : store_of<16>(count);
  }
}

bool is_one_of(const std::string& part, std::initializer_list<const char*> known) {
  return std::any_of(known.begin(), known.end(), [&](const char* each) { return part == each; });
}

// What a cache may do with an access changes nothing here.
bool is_cache_hint(const std::string& part) {
  return part.starts_with("L1::") || part.starts_with("L2::") ||
         is_one_of(part, {"ca", "cg", "cs", "lu", "cv", "wb", "wt"});
}

// "b32", "u8", "f16x2": its letters and bytes; 0 if it is no type.
int type_bytes(const std::string& part, char& letter) {
  letter = part.empty() ? ' ' : part[0];
  if (letter != 'b' && letter != 'u' && letter != 's' && letter != 'f') return 0;
  const std::string bits = part.substr(1);
  for (const int bytes : {1, 2, 4, 8, 16}) {
    if (bits == std::to_string(bytes * 8)) return bytes;
  }
  return 0;
}

void decode_access(Instruction& instruction, Loader& loader) {
  const bool is_load = instruction.name[0] == "ld";
  Space space = Space::kGeneric;
  int element = 0, count = 1;
  bool is_signed = false, has_policy = false;
  for (size_t i = 1; i < instruction.name.size(); ++i) {
    const std::string& part = instruction.name[i];
    char letter = ' ';
    if (const int bytes = type_bytes(part, letter); bytes != 0 && element == 0) {
      element = bytes;
      is_signed = letter == 's';
    } else if (is_one_of(part, {"v2", "v4", "v8"})) {
      count = part[1] - '0';
    } else if (part == "L2::cache_hint") {
      has_policy = true;
    } else if (!read_space(part, space) && !is_cache_hint(part) &&
               !is_one_of(part, {"weak", "volatile"}) && !(is_load && part == "nc")) {
      fail(instruction, "has a modifier that is not known: ." + part);
    }
  }
  if (element == 0) fail(instruction, "lacks a type");
  instruction.run = run_of(is_load, element, count);
  if (instruction.run == nullptr) fail(instruction, "moves more bytes than one access can");
  if (instruction.operands.size() != size_t{2} + has_policy) {
    fail(instruction, "has not two operands, and a policy if it says so");
  }
  prepare_address(instruction, is_load ? 1 : 0, loader);
  std::vector<Value>& values = instruction.operands[is_load ? 0 : 1].values;
  if (values.size() != static_cast<size_t>(count)) {
    fail(instruction, "has not " + std::to_string(count) + " registers");
  }
  for (Value& value : values) {
    if (value.is_immediate) value = loader.constant(instruction, value, std::max(element, 2));
    if (value.is_sink) value.bytes = static_cast<uint8_t>(std::max(element, 2));
    if (value.bytes < element) fail(instruction, "has a register narrower than its type");
  }
  instruction.at[0] = static_cast<uint32_t>(space);
  instruction.at[1] = is_signed;
}

// --- addresses as numbers, and what has nothing to do here ---

uint64_t window_of(Space space) {
  if (space == Space::kShared) return kSharedWindow;
  return space == Space::kLocal ? kLocalWindow : 0;
}

template <class T>
void convert_address(const Step& step) {
  T* const to = step.warp.lanes<T>(step.instruction.operands[0].values[0]);
  const T* const from = step.warp.lanes<T>(step.instruction.operands[1].values[0]);
  const uint64_t window = window_of(static_cast<Space>(step.instruction.at[0]));
  const bool is_to_space = step.instruction.at[1] != 0;
  for_lanes(step.active, [&](int lane) {
    const uint64_t address = from[lane];
    if (is_to_space && window != 0 && (address & ~(window - 1)) != window) [[unlikely]] {
      fail(step, lane, "converts an address to a space that it is not of");
    }
    to[lane] = static_cast<T>(is_to_space ? address - window : address + window);
  });
}

void decode_conversion(Instruction& instruction, Loader& loader) {
  const auto& name = instruction.name;
  const bool is_to_space = name.size() > 1 && name[1] == "to";
  Space space;
  if (name.size() != size_t{3} + is_to_space || !read_space(name[1 + is_to_space], space) ||
      name.back() != "u64") {
    fail(instruction, "is not known: only cvta{.to}.{global,shared,local}.u64 are known");
  }
  if (instruction.operands.size() != 2) fail(instruction, "has not two operands");
  Operand& from = instruction.operands[1];
  if (from.is_address || from.offset != 0) fail(instruction, "converts an address with an offset");
  from.values[0] = loader.constant(instruction, from.values[0], 8);
  if (instruction.operands[0].values[0].bytes != 8) fail(instruction, "does not write to 64 bits");
  instruction.run = convert_address<uint64_t>;
  instruction.at[0] = static_cast<uint32_t>(space);
  instruction.at[1] = is_to_space;
}

void ask_space(const Step& step) {
  Lanes& to = *step.warp.lanes<Lanes>(step.instruction.operands[0].values[0]);
  const uint64_t* const address = step.warp.lanes<uint64_t>(step.instruction.operands[1].values[0]);
  const uint64_t window = window_of(static_cast<Space>(step.instruction.at[0]));
  Lanes found = 0;
  for_lanes(step.active, [&](int lane) {
    found |= Lanes{(address[lane] & ~(kSharedWindow - 1)) == window} << lane;
  });
  to = (to & ~step.active) | found;
}

void decode_question(Instruction& instruction, Loader& loader) {
  Space space;
  if (instruction.name.size() != 2 || !read_space(instruction.name[1], space)) {
    fail(instruction, "is not known: only isspacep.{global,shared,local} are known");
  }
  if (instruction.operands.size() != 2 || instruction.operands[0].values[0].bytes != 0) {
    fail(instruction, "has not a predicate and an address");
  }
  instruction.operands[1].values[0] =
      loader.constant(instruction, instruction.operands[1].values[0], 8);
  instruction.run = ask_space;
  instruction.at[0] = static_cast<uint32_t>(space);
}

void do_nothing(const Step&) {}

// A policy of a cache: any number will do.
void make_policy(const Step& step) {
  uint64_t* const to = step.warp.lanes<uint64_t>(step.instruction.operands[0].values[0]);
  for_lanes(step.active, [&](int lane) { to[lane] = 0; });
}

bool is_known_fence(const std::vector<std::string>& name) {
  const auto is_scope = [](const std::string& part) {
    return is_one_of(part, {"cta", "cluster", "gpu", "sys"});
  };
  if (name[0] == "membar") return name.size() == 2 && is_one_of(name[1], {"cta", "gl", "sys"});
  return name.size() == 3 && is_one_of(name[1], {"sc", "acq_rel"}) && is_scope(name[2]);
}

}  // namespace

bool decode_memory(Instruction& instruction, Loader& loader) {
  const std::string& first = instruction.name[0];
  if (first == "ld" || first == "st") {
    if (instruction.name.size() > 1 && instruction.name[1].starts_with("param")) return false;
    decode_access(instruction, loader);
  } else if (first == "cvta") {
    decode_conversion(instruction, loader);
  } else if (first == "isspacep") {
    decode_question(instruction, loader);
  } else if (first == "membar" || first == "fence") {
    // Blocks run one after the other, and what a thread does is done at once.
    if (!is_known_fence(instruction.name)) fail(instruction, "is a fence that is not known");
    instruction.run = do_nothing;
  } else if (first == "prefetch" || first == "prefetchu") {
    instruction.run = do_nothing;
  } else if (first == "createpolicy") {
    if (instruction.operands.at(0).values.at(0).bytes != 8)
      fail(instruction, "does not write to 64 bits");
    instruction.run = make_policy;
  } else {
    return decode_atomics(instruction, loader) || decode_copies(instruction, loader) ||
           decode_tiles(instruction, loader);
  }
  return true;
}

}  // namespace xlnet_fast::ptx
