// Arithmetic of integers.
#include <limits>

#include "lanes.h"

namespace xlnet_fast::ptx {

namespace {

template <class T>
using Unsigned = std::make_unsigned_t<T>;

template <class T>
constexpr int kBits = 8 * sizeof(T);

// The next wider type.
template <class T>
using Wide = std::conditional_t<
    sizeof(T) == 2, std::conditional_t<std::is_signed_v<T>, int32_t, uint32_t>,
    std::conditional_t<sizeof(T) == 4, std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>,
                       std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>>>;

constexpr auto add = []<class T>(T a, T b) {
  return static_cast<T>(static_cast<Unsigned<T>>(a) + static_cast<Unsigned<T>>(b));
};
constexpr auto subtract = []<class T>(T a, T b) {
  return static_cast<T>(static_cast<Unsigned<T>>(a) - static_cast<Unsigned<T>>(b));
};
constexpr auto multiply = []<class T>(T a, T b) {
  using U = std::conditional_t<sizeof(T) == 2, uint32_t, Unsigned<T>>;  // no overflow of int
  return static_cast<T>(static_cast<U>(a) * static_cast<U>(b));
};
constexpr auto multiply_high = []<class T>(T a, T b) {
  return static_cast<T>(static_cast<Wide<T>>(a) * static_cast<Wide<T>>(b) >> kBits<T>);
};
constexpr auto multiply_wide = []<class T>(T a, T b) {
  return static_cast<Wide<T>>(a) * static_cast<Wide<T>>(b);
};
constexpr auto add_saturated = [](int32_t a, int32_t b) {
  const int64_t sum = int64_t{a} + b;
  return static_cast<int32_t>(std::clamp<int64_t>(sum, INT32_MIN, INT32_MAX));
};
constexpr auto subtract_saturated = [](int32_t a, int32_t b) {
  const int64_t sum = int64_t{a} - b;
  return static_cast<int32_t>(std::clamp<int64_t>(sum, INT32_MIN, INT32_MAX));
};
constexpr auto smaller = []<class T>(T a, T b) { return a < b ? a : b; };
constexpr auto larger = []<class T>(T a, T b) { return a > b ? a : b; };
// .relu: and no less than 0.
constexpr auto smaller_or_zero = [](int32_t a, int32_t b) { return std::max(std::min(a, b), 0); };
constexpr auto larger_or_zero = [](int32_t a, int32_t b) { return std::max(std::max(a, b), 0); };
// What PTX leaves open, division by zero, is what the hardware gives.
constexpr auto divide = []<class T>(T a, T b) {
  if (b == 0) return static_cast<T>(-1);
  if constexpr (std::is_signed_v<T>) {
    if (b == -1) return static_cast<T>(0 - static_cast<Unsigned<T>>(a));
  }
  return static_cast<T>(a / b);
};
constexpr auto remainder_of = []<class T>(T a, T b) {
  if (b == 0) return a;
  if constexpr (std::is_signed_v<T>) {
    if (b == -1) return T{0};
  }
  return static_cast<T>(a % b);
};
constexpr auto absolute = []<class T>(T a) {
  return static_cast<T>(a < 0 ? 0 - static_cast<Unsigned<T>>(a) : static_cast<Unsigned<T>>(a));
};
constexpr auto negative = []<class T>(T a) {
  return static_cast<T>(0 - static_cast<Unsigned<T>>(a));
};

template <auto f>
void decode_two(Instruction& instruction, Loader& loader) {
  const bool known = with_integer(instruction.name.back(), [&]<class T>(T) {
    bind(instruction, loader, {sizeof(T), sizeof(T), sizeof(T)});
    instruction.run = run_binary<f, T, T, T>;
  });
  if (!known) fail_type(instruction);
}

template <auto f>
void decode_one(Instruction& instruction, Loader& loader) {
  bool known = false;
  with_integer(instruction.name.back(), [&]<class T>(T) {
    if constexpr (std::is_signed_v<T>) {
      bind(instruction, loader, {sizeof(T), sizeof(T)});
      instruction.run = run_unary<f, T, T>;
      known = true;
    }
  });
  if (!known) fail_type(instruction);
}

template <auto f>
void decode_signed(Instruction& instruction, Loader& loader) {
  if (instruction.name.back() != "s32") fail_type(instruction);
  bind(instruction, loader, {4, 4, 4});
  instruction.run = run_binary<f, int32_t, int32_t, int32_t>;
}

constexpr auto mad_low = []<class T>(T a, T b, T c) { return add(multiply(a, b), c); };
constexpr auto mad_high = []<class T>(T a, T b, T c) { return add(multiply_high(a, b), c); };
constexpr auto mad_wide = []<class T>(T a, T b, Wide<T> c) { return add(multiply_wide(a, b), c); };

// mul and mad, which have .lo, .hi and .wide.
void decode_product(Instruction& instruction, Loader& loader, int part, bool adds) {
  const bool known = with_integer(instruction.name.back(), [&]<class T>(T) {
    constexpr int kBytes = sizeof(T);
    if (part == 2) {
      if constexpr (kBytes < 8) {
        if (adds) {
          bind(instruction, loader, {2 * kBytes, kBytes, kBytes, 2 * kBytes});
          instruction.run = run_ternary<mad_wide, Wide<T>, T, T, Wide<T>>;
        } else {
          bind(instruction, loader, {2 * kBytes, kBytes, kBytes});
          instruction.run = run_binary<multiply_wide, Wide<T>, T, T>;
        }
      } else {
        fail_type(instruction);
      }
    } else if (adds) {
      bind(instruction, loader, {kBytes, kBytes, kBytes, kBytes});
      instruction.run =
          part == 0 ? run_ternary<mad_low, T, T, T, T> : run_ternary<mad_high, T, T, T, T>;
    } else {
      bind(instruction, loader, {kBytes, kBytes, kBytes});
      instruction.run =
          part == 0 ? run_binary<multiply, T, T, T> : run_binary<multiply_high, T, T, T>;
    }
  });
  if (!known) fail_type(instruction);
}

bool is_integer(const Instruction& instruction) {
  const std::string& type = instruction.name.back();
  return type.size() == 3 && (type[0] == 's' || type[0] == 'u');
}

}  // namespace

bool decode_integers(Instruction& instruction, Loader& loader) {
  const std::string& family = instruction.name[0];
  static const char* const known[] = {"add", "sub", "mul", "mad", "div",
                                      "rem", "min", "max", "abs", "neg"};
  if (!is_integer(instruction) ||
      std::find(std::begin(known), std::end(known), family) == std::end(known)) {
    return false;
  }
  Modifiers modifiers(instruction, 1);
  if (family == "mul" || family == "mad") {
    const int part = modifiers.take_one({"lo", "hi", "wide"});
    modifiers.done();
    if (part < 0) fail(instruction, "says not which part of the product it wants");
    decode_product(instruction, loader, part, family == "mad");
    return true;
  }
  const bool saturates = (family == "add" || family == "sub") && modifiers.take("sat");
  const bool relu = (family == "min" || family == "max") && modifiers.take("relu");
  modifiers.done();
  if (family == "add") {
    saturates ? decode_signed<add_saturated>(instruction, loader)
              : decode_two<add>(instruction, loader);
  } else if (family == "sub") {
    saturates ? decode_signed<subtract_saturated>(instruction, loader)
              : decode_two<subtract>(instruction, loader);
  } else if (family == "div") {
    decode_two<divide>(instruction, loader);
  } else if (family == "rem") {
    decode_two<remainder_of>(instruction, loader);
  } else if (family == "min") {
    relu ? decode_signed<smaller_or_zero>(instruction, loader)
         : decode_two<smaller>(instruction, loader);
  } else if (family == "max") {
    relu ? decode_signed<larger_or_zero>(instruction, loader)
         : decode_two<larger>(instruction, loader);
  } else if (family == "abs") {
    decode_one<absolute>(instruction, loader);
  } else {
    decode_one<negative>(instruction, loader);
  }
  return true;
}

}  // namespace xlnet_fast::ptx
