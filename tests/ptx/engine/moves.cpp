// mov, selp and slct, and the logic of predicates.
#include "lanes.h"

namespace xlnet_fast::ptx {

namespace {

constexpr auto same = [](auto a) { return a; };

template <class T>
void run_select(const Step& step) {
  const auto& at = step.instruction.at;
  const T* const a = step.warp.lanes<T>(at[1]);
  const T* const b = step.warp.lanes<T>(at[2]);
  const Lanes chosen = *step.warp.lanes<Lanes>(at[3]) ^ at[4];
  store_lanes(step.active, step.warp.lanes<T>(at[0]),
              [=](int i) { return (chosen >> i & 1) != 0 ? a[i] : b[i]; });
}

// `count` narrow values side by side in a wide one, the first lowest.
template <class Wide, class Part, int kCount>
void run_pack(const Step& step) {
  const auto& at = step.instruction.at;
  std::array<const Part*, kCount> parts;
  for (int i = 0; i < kCount; ++i) parts[i] = step.warp.lanes<Part>(at[1 + i]);
  store_lanes(step.active, step.warp.lanes<Wide>(at[0]), [=](int lane) {
    Wide word = 0;
    for (int i = 0; i < kCount; ++i) word |= Wide{parts[i][lane]} << (8 * sizeof(Part) * i);
    return word;
  });
}

template <class Wide, class Part, int kCount>
void run_unpack(const Step& step) {
  const auto& at = step.instruction.at;
  const Wide* const word = step.warp.lanes<Wide>(at[kCount]);
  for (int i = 0; i < kCount; ++i) {
    store_lanes(step.active, step.warp.lanes<Part>(at[i]),
                [=](int lane) { return static_cast<Part>(word[lane] >> (8 * sizeof(Part) * i)); });
  }
}

Run pack_run(int wide, int part, bool unpacks) {
  if (wide == 4 && part == 2) {
    return unpacks ? run_unpack<uint32_t, uint16_t, 2> : run_pack<uint32_t, uint16_t, 2>;
  }
  if (wide == 8 && part == 4) {
    return unpacks ? run_unpack<uint64_t, uint32_t, 2> : run_pack<uint64_t, uint32_t, 2>;
  }
  if (wide == 8 && part == 2) {
    return unpacks ? run_unpack<uint64_t, uint16_t, 4> : run_pack<uint64_t, uint16_t, 4>;
  }
  return nullptr;
}

void decode_pack(Instruction& instruction, Loader& loader, int wide) {
  const bool unpacks = instruction.operands[0].values.size() > 1;
  const auto& parts = instruction.operands[unpacks ? 0 : 1].values;
  const auto& whole = instruction.operands[unpacks ? 1 : 0].values;
  const auto count = static_cast<int>(parts.size());
  const int part = count == 2 || count == 4 ? wide / count : 0;
  instruction.run = pack_run(wide, part, unpacks);
  if (instruction.run == nullptr || whole.size() != 1) {
    fail(instruction, "packs in a way that is not known");
  }
  const auto place = [&](const Value& value, int bytes, bool written) {
    if (value.negated || (written && value.is_immediate)) fail(instruction, "has a wrong operand");
    return loader.constant(instruction, value, bytes).at;
  };
  instruction.at[unpacks ? static_cast<size_t>(count) : 0] = place(whole[0], wide, !unpacks);
  for (int i = 0; i < count; ++i) {
    instruction.at[static_cast<size_t>(unpacks ? i : 1 + i)] =
        place(parts[static_cast<size_t>(i)], part, unpacks);
  }
}

void decode_move(Instruction& instruction, Loader& loader) {
  Modifiers(instruction, 1).done();
  const auto& operands = instruction.operands;
  if (operands.size() != 2 || operands[0].is_address || operands[1].is_address) {
    fail(instruction, "has not the operands that it wants");
  }
  const bool known = with_bits(instruction.name.back(), [&]<class T>(T) {
    if (operands[0].values.size() > 1 || operands[1].values.size() > 1) {
      decode_pack(instruction, loader, sizeof(T));
    } else {
      bind(instruction, loader, {sizeof(T), sizeof(T)});
      instruction.run = run_unary<same, T, T>;
    }
  });
  if (!known) fail_type(instruction);
}

void decode_select(Instruction& instruction, Loader& loader) {
  Modifiers(instruction, 1).done();
  const bool known = with_bits(instruction.name.back(), [&]<class T>(T) {
    if (instruction.operands.size() == 4 && instruction.operands[3].values.size() == 1) {
      Value& chosen = instruction.operands[3].values[0];
      instruction.at[4] = chosen.negated ? kAllLanes : 0;
      chosen.negated = false;
    }
    bind(instruction, loader, {sizeof(T), sizeof(T), sizeof(T), 0});
    instruction.run = run_select<T>;
  });
  if (!known) fail_type(instruction);
}

constexpr auto by_sign = [](auto a, auto b, int32_t c) { return c >= 0 ? a : b; };
constexpr auto by_float = [](auto a, auto b, float c) { return c >= 0 ? a : b; };
// A denormal counts as a zero.
constexpr auto by_flushed = [](auto a, auto b, float c) { return c > -0x1p-126f ? a : b; };

void decode_by_sign(Instruction& instruction, Loader& loader) {
  const std::string& by = instruction.name.back();
  Modifiers modifiers(instruction, 2);
  const bool flush = modifiers.take("ftz");
  modifiers.done();
  if ((by != "s32" && by != "f32") || (flush && by != "f32")) fail_type(instruction);
  const bool known = with_bits(instruction.name[instruction.name.size() - 2], [&]<class T>(T) {
    bind(instruction, loader, {sizeof(T), sizeof(T), sizeof(T), 4});
    instruction.run = by == "s32" ? run_ternary<by_sign, T, T, T, int32_t>
                      : flush     ? run_ternary<by_flushed, T, T, T, float>
                                  : run_ternary<by_float, T, T, T, float>;
  });
  if (!known) fail_type(instruction);
}

// What a predicate becomes, of one or two; `at` has the places and what inverts them.
template <auto f>
void run_logic(const Step& step) {
  const auto& at = step.instruction.at;
  const Lanes a = *step.warp.lanes<Lanes>(at[1]) ^ at[3];
  const Lanes b = *step.warp.lanes<Lanes>(at[2]) ^ at[4];
  set_predicate(step, at[0], f(a, b));
}

constexpr auto both = [](Lanes a, Lanes b) { return a & b; };
constexpr auto either = [](Lanes a, Lanes b) { return a | b; };
constexpr auto differs = [](Lanes a, Lanes b) { return a ^ b; };
constexpr auto first = [](Lanes a, Lanes) { return a; };
constexpr auto not_first = [](Lanes a, Lanes) { return ~a; };

bool decode_logic(Instruction& instruction, Loader& loader) {
  const std::string& family = instruction.name[0];
  static const std::pair<const char*, Run> known[] = {{"and", run_logic<both>},
                                                      {"or", run_logic<either>},
                                                      {"xor", run_logic<differs>},
                                                      {"mov", run_logic<first>},
                                                      {"not", run_logic<not_first>}};
  for (const auto& [name, run] : known) {
    if (family == name) instruction.run = run;
  }
  if (instruction.run == nullptr) return false;
  Modifiers(instruction, 1).done();
  auto& operands = instruction.operands;
  for (size_t i = 1; i < operands.size() && i < 3; ++i) {
    if (operands[i].values.empty()) continue;
    instruction.at[2 + i] = operands[i].values[0].negated ? kAllLanes : 0;
    operands[i].values[0].negated = false;
  }
  if (family == "mov" || family == "not") {
    bind(instruction, loader, {0, 0});
    instruction.at[2] = instruction.at[1];
  } else {
    bind(instruction, loader, {0, 0, 0});
  }
  return true;
}

}  // namespace

bool decode_moves(Instruction& instruction, Loader& loader) {
  if (instruction.name.back() == "pred") return decode_logic(instruction, loader);
  const std::string& family = instruction.name[0];
  if (family == "mov") {
    decode_move(instruction, loader);
  } else if (family == "selp") {
    decode_select(instruction, loader);
  } else if (family == "slct") {
    decode_by_sign(instruction, loader);
  } else {
    return false;
  }
  return true;
}

}  // namespace xlnet_fast::ptx
