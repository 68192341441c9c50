// Loops over the lanes of a warp, and what the decoders of arithmetic share.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <string>
#include <type_traits>
#include <vector>

#include "machine.h"

namespace xlnet_fast::ptx {

// A half or a bfloat16 as its bits; numbers.h makes floats of it.
struct Half {
  uint16_t bits;
};
struct Bfloat {
  uint16_t bits;
};

// Stores f(i) to d[i] for the elements of the active lanes, `kPer` of them side by side in a lane.
// f must do no harm for lanes that are not active, and may read nothing but element i of anything.
template <int kPer = 1, class D, class F>
inline void store_lanes(Lanes active, D* d, F&& f) {
  constexpr int kCount = kLanes * kPer;
  if (active == kAllLanes) {
#pragma GCC ivdep
    for (int i = 0; i < kCount; ++i) d[i] = f(i);
    return;
  }
  alignas(64) D made[kCount];
  for (int i = 0; i < kCount; ++i) made[i] = f(i);
  for (int i = 0; i < kCount; ++i) {
    if (active >> (i / kPer) & 1) d[i] = made[i];
  }
}

// d = f(a), f(a, b) and f(a, b, c), of types that need not be the same.
template <auto f, class D, class A, int kPer = 1>
void run_unary(const Step& step) {
  const auto& at = step.instruction.at;
  const A* const a = step.warp.lanes<A>(at[1]);
  store_lanes<kPer>(step.active, step.warp.lanes<D>(at[0]),
                    [=](int i) { return static_cast<D>(f(a[i])); });
}

template <auto f, class D, class A, class B, int kPer = 1>
void run_binary(const Step& step) {
  const auto& at = step.instruction.at;
  const A* const a = step.warp.lanes<A>(at[1]);
  const B* const b = step.warp.lanes<B>(at[2]);
  store_lanes<kPer>(step.active, step.warp.lanes<D>(at[0]),
                    [=](int i) { return static_cast<D>(f(a[i], b[i])); });
}

template <auto f, class D, class A, class B, class C, int kPer = 1>
void run_ternary(const Step& step) {
  const auto& at = step.instruction.at;
  const A* const a = step.warp.lanes<A>(at[1]);
  const B* const b = step.warp.lanes<B>(at[2]);
  const C* const c = step.warp.lanes<C>(at[3]);
  store_lanes<kPer>(step.active, step.warp.lanes<D>(at[0]),
                    [=](int i) { return static_cast<D>(f(a[i], b[i], c[i])); });
}

// The lanes for which f holds, as a predicate.
template <class F>
inline Lanes lanes_where(F&& f) {
  Lanes found = 0;
  for (int lane = 0; lane < kLanes; ++lane) found |= static_cast<Lanes>(f(lane)) << lane;
  return found;
}

inline void set_predicate(const Step& step, uint32_t at, Lanes value) {
  Lanes& predicate = *step.warp.lanes<Lanes>(at);
  predicate = (predicate & ~step.active) | (value & step.active);
}

// The parts of an instruction's name between its first and its last `types`, to be taken one by
// one; what is left is not known.
class Modifiers {
 public:
  Modifiers(const Instruction& instruction, size_t types) : instruction_(instruction) {
    const auto& name = instruction.name;
    if (name.size() < types + 1) fail(instruction, "lacks a type");
    parts_.assign(name.begin() + 1, name.end() - static_cast<std::ptrdiff_t>(types));
  }
  bool take(const char* part) {
    const auto found = std::find(parts_.begin(), parts_.end(), part);
    if (found == parts_.end()) return false;
    parts_.erase(found);
    return true;
  }
  // Which of these it has: its place among them, or -1.
  int take_one(std::initializer_list<const char*> of) {
    int place = 0;
    for (const char* part : of) {
      if (take(part)) return place;
      ++place;
    }
    return -1;
  }
  void done() const {
    if (!parts_.empty()) fail(instruction_, "has a modifier that is not known: ." + parts_[0]);
  }

 private:
  const Instruction& instruction_;
  std::vector<std::string> parts_;
};

[[noreturn]] inline void fail_type(const Instruction& instruction) {
  fail(instruction, "is not known for its type");
}

// Puts the places of operands into `instruction.at`; each is one value of so many bytes, the first
// is written. 0 bytes are a predicate.
inline void bind(Instruction& instruction, Loader& loader, std::initializer_list<int> bytes) {
  const auto& operands = instruction.operands;
  if (operands.size() != bytes.size()) fail(instruction, "has not the operands that it wants");
  size_t i = 0;
  for (const int each : bytes) {
    const Operand& operand = operands[i];
    if (operand.values.size() != 1 || operand.is_address || operand.values[0].negated ||
        (i == 0 && operand.values[0].is_immediate)) {
      fail(instruction, "has an operand that is not known");
    }
    instruction.at[i++] = loader.constant(instruction, operand.values[0], each).at;
  }
}

// Calls f with a value of the C++ type of an integer type: "s32", "u16"; signed only where it says
// so. False at others.
template <class F>
bool with_integer(const std::string& type, F&& f) {
  if (type == "s16") return f(int16_t{}), true;
  if (type == "u16" || type == "b16") return f(uint16_t{}), true;
  if (type == "s32") return f(int32_t{}), true;
  if (type == "u32" || type == "b32") return f(uint32_t{}), true;
  if (type == "s64") return f(int64_t{}), true;
  if (type == "u64" || type == "b64") return f(uint64_t{}), true;
  return false;
}

// The same of bits, for which the sign is nothing.
template <class F>
bool with_bits(const std::string& type, F&& f) {
  if (type.size() != 3 || std::string("busf").find(type[0]) == std::string::npos) return false;
  if (type.ends_with("16")) return f(uint16_t{}), true;
  if (type.ends_with("32")) return f(uint32_t{}), true;
  if (type.ends_with("64")) return f(uint64_t{}), true;
  return false;
}

// Of decode_arithmetic, each for some families of names.
bool decode_integers(Instruction&, Loader&);
bool decode_bits(Instruction&, Loader&);
bool decode_floats(Instruction&, Loader&);
bool decode_functions(Instruction&, Loader&);
bool decode_conversions(Instruction&, Loader&);
bool decode_predicates(Instruction&, Loader&);
bool decode_moves(Instruction&, Loader&);

}  // namespace xlnet_fast::ptx
