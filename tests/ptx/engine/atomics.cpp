// atom and red. What blocks and threads do to the same bytes by them is in any order, and no race.
#include <algorithm>
#include <string>
#include <type_traits>

#include "memory.h"
#include "numbers.h"

namespace xlnet_fast::ptx {
namespace {

enum class Change : uint32_t {
  kAdd,
  kMin,
  kMax,
  kAnd,
  kOr,
  kXor,
  kIncrement,
  kDecrement,
  kExchange,
  kCompareExchange
};

// Two halves side by side, as an atomic adds them.
template <class T>
struct Two {
  T first, second;
};

template <class T>
T sum(T a, T b, bool) {
  if constexpr (std::is_arithmetic_v<T>) {
    return static_cast<T>(a + b);
  } else {
    return Narrow<T>::from(to_float(a) + to_float(b));
  }
}
// One in global memory flushes what is subnormal, one in shared memory does not.
template <>
float sum(float a, float b, bool is_global) {
  return is_global ? flushed(flushed(a) + flushed(b)) : a + b;
}
template <class T>
Two<T> sum(Two<T> a, Two<T> b, bool is_global) {
  return {sum(a.first, b.first, is_global), sum(a.second, b.second, is_global)};
}

template <class T>
T changed(Change change, T old, T b, T c, bool is_global) {
  if constexpr (std::is_integral_v<T>) {
    switch (change) {
      case Change::kMin:
        return std::min(old, b);
      case Change::kMax:
        return std::max(old, b);
      case Change::kAnd:
        return old & b;
      case Change::kOr:
        return old | b;
      case Change::kXor:
        return old ^ b;
      case Change::kIncrement:
        return old >= b ? T{0} : static_cast<T>(old + 1);
      case Change::kDecrement:
        return old == 0 || old > b ? b : static_cast<T>(old - 1);
      case Change::kCompareExchange:
        return old == b ? c : old;
      default:
        break;
    }
  }
  return change == Change::kExchange ? b : sum(old, b, is_global);
}

// at[0]: the space; at[1]: the change; at[2]: whether it returns what was there before.
template <class T>
void run(const Step& step) {
  const auto& operands = step.instruction.operands;
  const bool returns = step.instruction.at[2] != 0;
  const auto change = static_cast<Change>(step.instruction.at[1]);
  const auto& source = operands[returns ? 2 : 1].values;
  const auto count = static_cast<uint32_t>(source.size());
  const uint32_t bytes = count * sizeof(T);
  const bool compares = change == Change::kCompareExchange;
  Addresses address;
  read_addresses(step, operands[returns ? 1 : 0], address);
  const Now now(step);
  const auto space = static_cast<Space>(step.instruction.at[0]);
  each_region(step, step.active, space, address, bytes, [&](const Region& region, Lanes lanes) {
    const bool is_global = region.space == Space::kGlobal;
    if (region.shadow == nullptr)
      fail(step, std::countr_zero(lanes), "is an atomic of local memory");
    note_atomics(step, region, now, lanes, address, bytes);
    for_lanes(lanes, [&](int lane) {
      char* const place = region.data + (address[lane] - region.begin);
      for (uint32_t i = 0; i < count; ++i) {
        T old, b, c{};
        std::memcpy(&old, place + i * sizeof(T), sizeof(T));
        std::memcpy(&b, step.warp.lanes<T>(source[i]) + lane, sizeof(T));
        if (compares) {
          std::memcpy(&c, step.warp.lanes<T>(operands[returns ? 3 : 2].values[0]) + lane,
                      sizeof(T));
        }
        const T next = changed(change, old, b, c, is_global);
        std::memcpy(place + i * sizeof(T), &next, sizeof(T));
        if (returns) {
          std::memcpy(step.warp.lanes<T>(operands[0].values[i]) + lane, &old, sizeof(T));
        }
      }
    });
    Counters& counters = *step.block.counters;
    const int64_t moved = int64_t{bytes} * std::popcount(lanes);
    (is_global ? counters.global_written : counters.shared_written) += moved;
    if (returns) (is_global ? counters.global_read : counters.shared_read) += moved;
  });
}

struct Type {
  const char* name;
  int bytes;
  Run run;
  bool is_number;  // of which there is a least and a greatest: u and s
  bool has_sum;
};

constexpr Type kTypes[] = {
    {"u32", 4, run<uint32_t>, true, true},        {"s32", 4, run<int32_t>, true, true},
    {"u64", 8, run<uint64_t>, true, true},        {"s64", 8, run<int64_t>, true, true},
    {"b16", 2, run<uint16_t>, false, false},      {"b32", 4, run<uint32_t>, false, false},
    {"b64", 8, run<uint64_t>, false, false},      {"f32", 4, run<float>, false, true},
    {"f64", 8, run<double>, false, true},         {"f16", 2, run<Half>, false, true},
    {"bf16", 2, run<Bfloat>, false, true},        {"f16x2", 4, run<Two<Half>>, false, true},
    {"bf16x2", 4, run<Two<Bfloat>>, false, true},
};

struct Named {
  const char* name;
  Change change;
};

constexpr Named kChanges[] = {
    {"add", Change::kAdd},       {"min", Change::kMin},
    {"max", Change::kMax},       {"and", Change::kAnd},
    {"or", Change::kOr},         {"xor", Change::kXor},
    {"inc", Change::kIncrement}, {"dec", Change::kDecrement},
    {"exch", Change::kExchange}, {"cas", Change::kCompareExchange},
};

bool fits(Change change, const Type& type, bool returns) {
  const bool is_bits = type.name[0] == 'b' && type.name[1] != 'f';
  switch (change) {
    case Change::kAdd:
      return type.has_sum;
    case Change::kMin:
    case Change::kMax:
      return type.is_number;
    case Change::kIncrement:
    case Change::kDecrement:
      return std::string(type.name) == "u32";
    case Change::kExchange:
    case Change::kCompareExchange:
      return returns && is_bits;
    default:
      return is_bits && type.bytes >= 4;
  }
}

}  // namespace

// "atom{.sem}{.scope}{.space}.op{.level}{.vec}.type d, [a], b{, c}"; the compilers' order differs.
bool decode_atomics(Instruction& instruction, Loader& loader) {
  const auto& name = instruction.name;
  const bool returns = name[0] == "atom";
  if (!returns && (name[0] != "red" || (name.size() > 1 && name[1] == "async"))) return false;
  Space space = Space::kGeneric;
  const Named* change = nullptr;
  const Type* type = nullptr;
  size_t count = 1;
  bool has_policy = false;
  for (size_t i = 1; i < name.size(); ++i) {
    const std::string& part = name[i];
    const auto is_it = [&](const auto& each) { return part == each.name; };
    const auto found_type = std::find_if(std::begin(kTypes), std::end(kTypes), is_it);
    const auto found_change = std::find_if(std::begin(kChanges), std::end(kChanges), is_it);
    if (found_type != std::end(kTypes)) {
      type = found_type;
    } else if (found_change != std::end(kChanges)) {
      change = found_change;
    } else if (part == "v2" || part == "v4" || part == "v8") {
      count = static_cast<size_t>(part[1] - '0');
    } else if (part == "L2::cache_hint") {
      has_policy = true;
    } else if (!read_space(part, space) && part != "relaxed" && part != "acquire" &&
               part != "release" && part != "acq_rel" && part != "cta" && part != "cluster" &&
               part != "gpu" && part != "sys" && part != "noftz") {
      fail(instruction, "has a modifier that is not known: ." + part);
    }
  }
  if (change == nullptr || type == nullptr || !fits(change->change, *type, returns)) {
    fail(instruction, "has an operation and a type that do not go together");
  }
  const bool compares = change->change == Change::kCompareExchange;
  auto& operands = instruction.operands;
  if (operands.size() != size_t{2} + returns + compares + has_policy) {
    fail(instruction, "has not the operands that it wants");
  }
  prepare_address(instruction, returns ? 1 : 0, loader);
  for (size_t i = 0; i < operands.size() - has_policy; ++i) {
    if (i == (returns ? 1u : 0u)) continue;
    if (operands[i].values.size() != count)
      fail(instruction, "has not as many registers as its type");
    for (Value& value : operands[i].values) {
      if (value.is_sink) continue;
      value = loader.constant(instruction, value, type->bytes);
    }
  }
  instruction.at[0] = static_cast<uint32_t>(space);
  instruction.at[1] = static_cast<uint32_t>(change->change);
  instruction.at[2] = returns;
  instruction.run = type->run;
  return true;
}

}  // namespace xlnet_fast::ptx
