// Logic, shifts and the fields of words.
#include <bit>

#include "lanes.h"

namespace xlnet_fast::ptx {

namespace {

template <class T>
constexpr uint32_t kBits = 8 * sizeof(T);

constexpr auto both = []<class T>(T a, T b) { return static_cast<T>(a & b); };
constexpr auto either = []<class T>(T a, T b) { return static_cast<T>(a | b); };
constexpr auto differs = []<class T>(T a, T b) { return static_cast<T>(a ^ b); };
constexpr auto inverted = []<class T>(T a) { return static_cast<T>(~a); };
constexpr auto is_zero = []<class T>(T a) { return static_cast<T>(a == 0); };

// A shift by the width or more leaves nothing, or signs.
constexpr auto shift_left = []<class T>(T a, uint32_t by) {
  return static_cast<T>(by < kBits<T> ? a << (by & (kBits<T> - 1)) : 0);
};
constexpr auto shift_right = []<class T>(T a, uint32_t by) {
  const uint32_t at_most = by < kBits<T> ? by : kBits<T> - 1;
  const T shifted = static_cast<T>(a >> at_most);
  return std::is_signed_v<T> || by < kBits<T> ? shifted : T{0};
};
template <bool kWrap>
constexpr auto funnel_left = [](uint32_t low, uint32_t high, uint32_t by) {
  const uint32_t bits = kWrap ? by & 31 : (by < 32 ? by : 32);
  const uint64_t pair = uint64_t{high} << 32 | low;
  return static_cast<uint32_t>(pair << bits >> 32);
};
template <bool kWrap>
constexpr auto funnel_right = [](uint32_t low, uint32_t high, uint32_t by) {
  const uint32_t bits = kWrap ? by & 31 : (by < 32 ? by : 32);
  const uint64_t pair = uint64_t{high} << 32 | low;
  return static_cast<uint32_t>(pair >> bits);
};

template <class T>
T low_bits(uint32_t count) {
  return count >= kBits<T> ? static_cast<T>(~T{0}) : static_cast<T>((T{1} << count) - 1);
}
constexpr auto extract = []<class T>(T a, uint32_t position, uint32_t length) {
  using U = std::make_unsigned_t<T>;
  const uint32_t from = position & 0xff, count = length & 0xff;
  const U field = from < kBits<T> ? static_cast<U>(a) >> from & low_bits<U>(count) : 0;
  if (std::is_unsigned_v<T> || count == 0) return static_cast<T>(field);
  // The sign is the field's last bit, or the word's where the field goes beyond it.
  const uint32_t last = from + count - 1 < kBits<T> ? from + count - 1 : kBits<T> - 1;
  const bool negative = (static_cast<U>(a) >> last & 1) != 0;
  const uint32_t width = from < kBits<T> ? last - from + 1 : 0;
  return static_cast<T>(negative ? field | static_cast<U>(~low_bits<U>(width)) : field);
};
template <class T>
T insert(T field, T into, uint32_t position, uint32_t length) {
  const uint32_t from = position & 0xff, count = length & 0xff;
  if (from >= kBits<T>) return into;
  const T mask = static_cast<T>(low_bits<T>(count) << from);
  return static_cast<T>((into & ~mask) | (field << from & mask));
}

template <class T>
void run_insert(const Step& step) {
  const auto& at = step.instruction.at;
  const T* const a = step.warp.lanes<T>(at[1]);
  const T* const b = step.warp.lanes<T>(at[2]);
  const uint32_t* const c = step.warp.lanes<uint32_t>(at[3]);
  const uint32_t* const d = step.warp.lanes<uint32_t>(at[4]);
  store_lanes(step.active, step.warp.lanes<T>(at[0]),
              [=](int i) { return insert<T>(a[i], b[i], c[i], d[i]); });
}

constexpr auto ones = []<class T>(T a) {
  return static_cast<uint32_t>(std::popcount(static_cast<std::make_unsigned_t<T>>(a)));
};
constexpr auto leading_zeros = []<class T>(T a) {
  return static_cast<uint32_t>(std::countl_zero(static_cast<std::make_unsigned_t<T>>(a)));
};
// The place of the first bit that is not the sign, or how far it is from the top.
template <bool kDistance>
constexpr auto find_bit = []<class T>(T a) {
  using U = std::make_unsigned_t<T>;
  const U word = std::is_signed_v<T> && a < 0 ? static_cast<U>(~a) : static_cast<U>(a);
  const uint32_t zeros = static_cast<uint32_t>(std::countl_zero(word));
  if (word == 0) return ~0u;
  return kDistance ? zeros : kBits<T> - 1 - zeros;
};
constexpr auto reversed = []<class T>(T a) {
  T found = 0;
  for (uint32_t bit = 0; bit < kBits<T>; ++bit) found |= (a >> bit & 1) << (kBits<T> - 1 - bit);
  return found;
};

// lop3: a bit of the table for each combination of bits.
void run_table(const Step& step) {
  const auto& at = step.instruction.at;
  const uint32_t table = step.instruction.constants[0];
  std::array<uint32_t, 8> mask;
  for (uint32_t i = 0; i < 8; ++i) mask[i] = (table >> i & 1) != 0 ? ~0u : 0;
  const uint32_t* const a = step.warp.lanes<uint32_t>(at[1]);
  const uint32_t* const b = step.warp.lanes<uint32_t>(at[2]);
  const uint32_t* const c = step.warp.lanes<uint32_t>(at[3]);
  store_lanes(step.active, step.warp.lanes<uint32_t>(at[0]), [=](int i) {
    const uint32_t x = a[i], y = b[i], z = c[i];
    return (mask[7] & x & y & z) | (mask[6] & x & y & ~z) | (mask[5] & x & ~y & z) |
           (mask[4] & x & ~y & ~z) | (mask[3] & ~x & y & z) | (mask[2] & ~x & y & ~z) |
           (mask[1] & ~x & ~y & z) | (mask[0] & ~x & ~y & ~z);
  });
}

uint32_t byte_of(uint64_t pair, uint32_t selector) {
  const uint32_t byte = pair >> (8 * (selector & 7)) & 0xff;
  if ((selector & 8) == 0) return byte;
  return (byte & 0x80) != 0 ? 0xffu : 0u;
}

constexpr auto permute = [](uint32_t a, uint32_t b, uint32_t selectors) {
  const uint64_t pair = uint64_t{b} << 32 | a;
  uint32_t found = 0;
  for (uint32_t i = 0; i < 4; ++i) found |= byte_of(pair, selectors >> (4 * i) & 15) << (8 * i);
  return found;
};
enum class Order { kForward, kBackward, kReplicate, kClampLeft, kClampRight, kHalves };
template <Order kOrder>
constexpr auto permute_in_order = [](uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t pair = uint64_t{b} << 32 | a;
  const uint32_t from = selector & 3;
  uint32_t found = 0;
  for (uint32_t i = 0; i < 4; ++i) {
    uint32_t byte = 0;
    if (kOrder == Order::kForward) byte = from + i;
    if (kOrder == Order::kBackward) byte = (from - i) & 7;
    if (kOrder == Order::kReplicate) byte = from;
    if (kOrder == Order::kClampLeft) byte = i > from ? i : from;
    if (kOrder == Order::kClampRight) byte = i < from ? i : from;
    if (kOrder == Order::kHalves) byte = (from & 1) * 2 + (i & 1);
    found |= byte_of(pair, byte) << (8 * i);
  }
  return found;
};

template <auto f>
void decode_two(Instruction& instruction, Loader& loader) {
  const bool known = with_bits(instruction.name.back(), [&]<class T>(T) {
    bind(instruction, loader, {sizeof(T), sizeof(T), sizeof(T)});
    instruction.run = run_binary<f, T, T, T>;
  });
  if (!known) fail_type(instruction);
}

template <auto f>
void decode_one(Instruction& instruction, Loader& loader) {
  const bool known = with_bits(instruction.name.back(), [&]<class T>(T) {
    bind(instruction, loader, {sizeof(T), sizeof(T)});
    instruction.run = run_unary<f, T, T>;
  });
  if (!known) fail_type(instruction);
}

template <auto f>
void decode_shift(Instruction& instruction, Loader& loader) {
  const bool known = with_integer(instruction.name.back(), [&]<class T>(T) {
    bind(instruction, loader, {sizeof(T), sizeof(T), 4});
    instruction.run = run_binary<f, T, T, uint32_t>;
  });
  if (!known) fail_type(instruction);
}

// A count of 32 bits, of a word of 32 or 64.
template <auto f>
void decode_count(Instruction& instruction, Loader& loader) {
  bool known = false;
  with_integer(instruction.name.back(), [&]<class T>(T) {
    if constexpr (sizeof(T) >= 4) {
      bind(instruction, loader, {4, sizeof(T)});
      instruction.run = run_unary<f, uint32_t, T>;
      known = true;
    }
  });
  if (!known) fail_type(instruction);
}

void decode_funnel(Instruction& instruction, Loader& loader) {
  Modifiers modifiers(instruction, 1);
  const int side = modifiers.take_one({"l", "r"});
  const int mode = modifiers.take_one({"wrap", "clamp"});
  modifiers.done();
  if (side < 0 || mode < 0 || instruction.name.back() != "b32") fail_type(instruction);
  bind(instruction, loader, {4, 4, 4, 4});
  using U = uint32_t;
  static constexpr Run runs[2][2] = {
      {run_ternary<funnel_left<true>, U, U, U, U>, run_ternary<funnel_left<false>, U, U, U, U>},
      {run_ternary<funnel_right<true>, U, U, U, U>, run_ternary<funnel_right<false>, U, U, U, U>}};
  instruction.run = runs[side][mode];
}

void decode_permute(Instruction& instruction, Loader& loader) {
  auto& name = instruction.name;
  if (name.size() < 2 || name[1] != "b32" || name.size() > 3) fail_type(instruction);
  bind(instruction, loader, {4, 4, 4, 4});
  using U = uint32_t;
  static const std::pair<const char*, Run> modes[] = {
      {"f4e", run_ternary<permute_in_order<Order::kForward>, U, U, U, U>},
      {"b4e", run_ternary<permute_in_order<Order::kBackward>, U, U, U, U>},
      {"rc8", run_ternary<permute_in_order<Order::kReplicate>, U, U, U, U>},
      {"ecl", run_ternary<permute_in_order<Order::kClampLeft>, U, U, U, U>},
      {"ecr", run_ternary<permute_in_order<Order::kClampRight>, U, U, U, U>},
      {"rc16", run_ternary<permute_in_order<Order::kHalves>, U, U, U, U>}};
  if (name.size() == 2) instruction.run = run_ternary<permute, U, U, U, U>;
  for (const auto& [mode, run] : modes) {
    if (name.size() == 3 && name[2] == mode) instruction.run = run;
  }
  if (instruction.run == nullptr) fail(instruction, "has a mode that is not known");
}

void decode_table(Instruction& instruction, Loader& loader) {
  if (instruction.name != std::vector<std::string>{"lop3", "b32"}) fail_type(instruction);
  if (instruction.operands.size() != 5 || instruction.operands[4].values.size() != 1 ||
      !instruction.operands[4].values[0].is_immediate) {
    fail(instruction, "has not the operands that it wants");
  }
  instruction.constants = {static_cast<uint32_t>(instruction.operands[4].values[0].bits)};
  instruction.operands.pop_back();
  bind(instruction, loader, {4, 4, 4, 4});
  instruction.run = run_table;
}

void decode_field(Instruction& instruction, Loader& loader, bool inserts) {
  bool known = false;
  with_integer(instruction.name.back(), [&]<class T>(T) {
    if constexpr (sizeof(T) >= 4) {
      known = true;
      if (!inserts) {
        bind(instruction, loader, {sizeof(T), sizeof(T), 4, 4});
        instruction.run = run_ternary<extract, T, T, uint32_t, uint32_t>;
      } else {
        bind(instruction, loader, {sizeof(T), sizeof(T), sizeof(T), 4, 4});
        instruction.run = run_insert<std::make_unsigned_t<T>>;
      }
    }
  });
  if (!known) fail_type(instruction);
}

}  // namespace

bool decode_bits(Instruction& instruction, Loader& loader) {
  const std::string& family = instruction.name[0];
  if (instruction.name.back() == "pred") return false;
  const auto plain = [&] { Modifiers(instruction, 1).done(); };
  if (family == "and") {
    plain(), decode_two<both>(instruction, loader);
  } else if (family == "or") {
    plain(), decode_two<either>(instruction, loader);
  } else if (family == "xor") {
    plain(), decode_two<differs>(instruction, loader);
  } else if (family == "not") {
    plain(), decode_one<inverted>(instruction, loader);
  } else if (family == "cnot") {
    plain(), decode_one<is_zero>(instruction, loader);
  } else if (family == "shl") {
    plain(), decode_shift<shift_left>(instruction, loader);
  } else if (family == "shr") {
    plain(), decode_shift<shift_right>(instruction, loader);
  } else if (family == "shf") {
    decode_funnel(instruction, loader);
  } else if (family == "prmt") {
    decode_permute(instruction, loader);
  } else if (family == "lop3") {
    decode_table(instruction, loader);
  } else if (family == "bfe" || family == "bfi") {
    plain(), decode_field(instruction, loader, family == "bfi");
  } else if (family == "popc") {
    plain(), decode_count<ones>(instruction, loader);
  } else if (family == "clz") {
    plain(), decode_count<leading_zeros>(instruction, loader);
  } else if (family == "bfind") {
    Modifiers modifiers(instruction, 1);
    const bool distance = modifiers.take("shiftamt");
    modifiers.done();
    distance ? decode_count<find_bit<true>>(instruction, loader)
             : decode_count<find_bit<false>>(instruction, loader);
  } else if (family == "brev") {
    plain();
    if (instruction.name.back() == "b16") fail_type(instruction);
    decode_one<reversed>(instruction, loader);
  } else {
    return false;
  }
  return true;
}

}  // namespace xlnet_fast::ptx
