// Arithmetic of floating-point numbers: add, sub, mul, fma, min, max, abs, neg, copysign.
#include "numbers.h"

namespace xlnet_fast::ptx {

namespace {

// What an instruction does to what goes in and comes out.
struct Ways {
  bool flush = false, saturate = false, relu = false, keep_nan = false;
  Rounding rounding = Rounding::kNearest;
};

// The one of canonical bits.
template <class T>
T nan_of() {
  if constexpr (sizeof(T) == 2)
    return std::bit_cast<T>(kNan16);
  else if constexpr (sizeof(T) == 4)
    return std::bit_cast<T>(kNan32);
  else
    return std::bit_cast<T>(uint64_t{0x7fffffffffffffff});
}

template <class T, bool kFlush>
auto taken(T x) {
  if constexpr (kFlush)
    return to_float(flushed(x));
  else
    return to_float(x);
}

// NaN is the one that hardware makes, or operands that change places would give two.
template <class T, bool kFlush, bool kSaturate, class F>
T given(F x) {
  if constexpr (kSaturate) x = saturated(x);
  T made = Narrow<T>::from(x);
  if constexpr (kFlush) made = flushed(made);
  if constexpr (sizeof(T) >= 4) made = x != x ? nan_of<T>() : made;
  return made;
}

constexpr auto add = [](auto a, auto b) { return a + b; };
constexpr auto subtract = [](auto a, auto b) { return a - b; };
constexpr auto multiply = [](auto a, auto b) { return a * b; };

template <auto f, bool kFlush, bool kSaturate>
constexpr auto rounding_pair = []<class T>(T a, T b) {
  return given<T, kFlush, kSaturate>(f(taken<T, kFlush>(a), taken<T, kFlush>(b)));
};
template <bool kFlush, bool kSaturate>
constexpr auto fused_triple = []<class T>(T a, T b, T c) {
  const auto x = taken<T, kFlush>(a), y = taken<T, kFlush>(b), z = taken<T, kFlush>(c);
  if constexpr (sizeof(T) == 2)
    return given<T, kFlush, kSaturate>(fused_narrow(x, y, z));
  else
    return given<T, kFlush, kSaturate>(fused(x, y, z));
};
// fma.rn.relu of halves.
constexpr auto fused_relu = []<class T>(T a, T b, T c) {
  const float x = fused_narrow(to_float(a), to_float(b), to_float(c));
  return Narrow<T>::from(x < 0 ? 0.0f : x == 0 ? 0.0f : x);
};

// .rz, .rm, .rp of f32.
enum class Exactly { kSum, kDifference, kProduct };
template <Exactly kWhat, Rounding kRounding, bool kFlush>
constexpr auto directed_pair = [](float a, float b) {
  const double x = taken<float, kFlush>(a), y = taken<float, kFlush>(b);
  double exact = x * y;
  if (kWhat == Exactly::kSum) exact = exact_sum(x, y);
  if (kWhat == Exactly::kDifference) exact = exact_sum(x, -y);
  // Of opposite numbers the sum is -0 where it is rounded down.
  const bool sums = kWhat != Exactly::kProduct;
  if (sums && kRounding == Rounding::kDown && exact == 0 &&
      (x != 0 || std::signbit(x) != std::signbit(kWhat == Exactly::kSum ? y : -y))) {
    exact = -0.0;
  }
  const float found = rounded(exact, kRounding);
  return kFlush ? flushed(found) : found;
};
template <Rounding kRounding, bool kFlush>
constexpr auto directed_triple = [](float a, float b, float c) {
  const double x = taken<float, kFlush>(a), y = taken<float, kFlush>(b);
  const double z = taken<float, kFlush>(c), product = x * y;
  double exact = exact_sum(product, z);
  if (kRounding == Rounding::kDown && exact == 0 &&
      (product != 0 || std::signbit(product) != std::signbit(z))) {
    exact = -0.0;
  }
  const float found = rounded(exact, kRounding);
  return kFlush ? flushed(found) : found;
};

// -0 is less than +0. Of two numbers one of which is none the other, or none where kKeepNan.
template <bool kLarger, bool kFlush, bool kKeepNan>
constexpr auto chosen = []<class T>(T first, T second) {
  const T left = kFlush ? flushed(first) : first, right = kFlush ? flushed(second) : second;
  const auto a = to_float(left), b = to_float(right);
  const bool a_first = a < b || (a == b && std::signbit(a));
  T found = a_first == kLarger ? right : left;
  found = a != a ? right : found;
  found = b != b ? left : found;
  const bool nan = kKeepNan ? a != a || b != b : a != a && b != b;
  return nan ? nan_of<T>() : found;
};

template <class T>
using Bits = std::conditional_t<sizeof(T) == 2, uint16_t,
                                std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>>;
template <class T>
constexpr Bits<T> kSign = static_cast<Bits<T>>(Bits<T>{1} << (8 * sizeof(T) - 1));

template <bool kFlush>
constexpr auto absolute = []<class T>(T a) {
  if constexpr (kFlush) a = flushed(a);
  return std::bit_cast<T>(static_cast<Bits<T>>(std::bit_cast<Bits<T>>(a) & ~kSign<T>));
};
template <bool kFlush>
constexpr auto negative = []<class T>(T a) {
  if constexpr (kFlush) a = flushed(a);
  return std::bit_cast<T>(static_cast<Bits<T>>(std::bit_cast<Bits<T>>(a) ^ kSign<T>));
};
constexpr auto with_sign = []<class T>(T sign, T of) {
  const auto bits =
      (std::bit_cast<Bits<T>>(of) & ~kSign<T>) | (std::bit_cast<Bits<T>>(sign) & kSign<T>);
  return std::bit_cast<T>(static_cast<Bits<T>>(bits));
};

// Calls f with a value of the type and the count of them in a register, as a template argument.
template <class F>
bool with_float(const std::string& type, F&& f) {
  if (type == "f32") return f.template operator()<float, 1>(), true;
  if (type == "f64") return f.template operator()<double, 1>(), true;
  if (type == "f16") return f.template operator()<Half, 1>(), true;
  if (type == "f16x2") return f.template operator()<Half, 2>(), true;
  if (type == "bf16") return f.template operator()<Bfloat, 1>(), true;
  if (type == "bf16x2") return f.template operator()<Bfloat, 2>(), true;
  return false;
}

template <auto f, class T, int kPer>
Run pair_run(const Ways& ways) {
  if (ways.flush) {
    if (ways.saturate) return run_binary<rounding_pair<f, true, true>, T, T, T, kPer>;
    return run_binary<rounding_pair<f, true, false>, T, T, T, kPer>;
  }
  if (ways.saturate) return run_binary<rounding_pair<f, false, true>, T, T, T, kPer>;
  return run_binary<rounding_pair<f, false, false>, T, T, T, kPer>;
}

template <Exactly kWhat, bool kFlush>
Run directed_run(Rounding rounding) {
  using F = float;
  if (rounding == Rounding::kZero)
    return run_binary<directed_pair<kWhat, Rounding::kZero, kFlush>, F, F, F>;
  if (rounding == Rounding::kDown)
    return run_binary<directed_pair<kWhat, Rounding::kDown, kFlush>, F, F, F>;
  return run_binary<directed_pair<kWhat, Rounding::kUp, kFlush>, F, F, F>;
}

template <auto f, Exactly kWhat>
void decode_pair(Instruction& instruction, Loader& loader, const Ways& ways) {
  const bool known = with_float(instruction.name.back(), [&]<class T, int kPer>() {
    constexpr int kBytes = sizeof(T) * kPer;
    bind(instruction, loader, {kBytes, kBytes, kBytes});
    if (ways.rounding == Rounding::kNearest) {
      instruction.run = pair_run<f, T, kPer>(ways);
    } else if (std::is_same_v<T, float> && !ways.saturate) {
      instruction.run = ways.flush ? directed_run<kWhat, true>(ways.rounding)
                                   : directed_run<kWhat, false>(ways.rounding);
    }
  });
  if (!known || instruction.run == nullptr) fail_type(instruction);
}

template <bool kFlush>
Run directed_triple_run(Rounding rounding) {
  using F = float;
  if (rounding == Rounding::kZero)
    return run_ternary<directed_triple<Rounding::kZero, kFlush>, F, F, F, F>;
  if (rounding == Rounding::kDown)
    return run_ternary<directed_triple<Rounding::kDown, kFlush>, F, F, F, F>;
  return run_ternary<directed_triple<Rounding::kUp, kFlush>, F, F, F, F>;
}

template <class T, int kPer>
Run triple_run(const Ways& ways) {
  if (ways.relu) {
    if constexpr (sizeof(T) == 2) {
      if (!ways.flush && !ways.saturate) return run_ternary<fused_relu, T, T, T, T, kPer>;
    }
    return nullptr;
  }
  if (ways.rounding != Rounding::kNearest) {
    if (!std::is_same_v<T, float> || ways.saturate) return nullptr;
    return ways.flush ? directed_triple_run<true>(ways.rounding)
                      : directed_triple_run<false>(ways.rounding);
  }
  if (ways.flush) {
    if (ways.saturate) return run_ternary<fused_triple<true, true>, T, T, T, T, kPer>;
    return run_ternary<fused_triple<true, false>, T, T, T, T, kPer>;
  }
  if (ways.saturate) return run_ternary<fused_triple<false, true>, T, T, T, T, kPer>;
  return run_ternary<fused_triple<false, false>, T, T, T, T, kPer>;
}

void decode_fused(Instruction& instruction, Loader& loader, const Ways& ways) {
  const bool known = with_float(instruction.name.back(), [&]<class T, int kPer>() {
    constexpr int kBytes = sizeof(T) * kPer;
    bind(instruction, loader, {kBytes, kBytes, kBytes, kBytes});
    instruction.run = triple_run<T, kPer>(ways);
  });
  if (!known || instruction.run == nullptr) fail_type(instruction);
}

template <bool kLarger>
void decode_chosen(Instruction& instruction, Loader& loader, const Ways& ways) {
  const bool known = with_float(instruction.name.back(), [&]<class T, int kPer>() {
    constexpr int kBytes = sizeof(T) * kPer;
    bind(instruction, loader, {kBytes, kBytes, kBytes});
    instruction.run =
        ways.flush ? (ways.keep_nan ? run_binary<chosen<kLarger, true, true>, T, T, T, kPer>
                                    : run_binary<chosen<kLarger, true, false>, T, T, T, kPer>)
                   : (ways.keep_nan ? run_binary<chosen<kLarger, false, true>, T, T, T, kPer>
                                    : run_binary<chosen<kLarger, false, false>, T, T, T, kPer>);
  });
  if (!known) fail_type(instruction);
}

template <auto f, auto flushing>
void decode_sign(Instruction& instruction, Loader& loader, const Ways& ways) {
  const bool known = with_float(instruction.name.back(), [&]<class T, int kPer>() {
    constexpr int kBytes = sizeof(T) * kPer;
    bind(instruction, loader, {kBytes, kBytes});
    instruction.run = ways.flush ? run_unary<flushing, T, T, kPer> : run_unary<f, T, T, kPer>;
  });
  if (!known) fail_type(instruction);
}

void decode_copysign(Instruction& instruction, Loader& loader) {
  const bool known = with_float(instruction.name.back(), [&]<class T, int kPer>() {
    if constexpr (sizeof(T) >= 4) {
      bind(instruction, loader, {sizeof(T), sizeof(T), sizeof(T)});
      instruction.run = run_binary<with_sign, T, T, T>;
    }
  });
  if (!known || instruction.run == nullptr) fail_type(instruction);
}

bool is_float(const std::string& type) {
  return with_float(type, []<class T, int kPer>() {});
}

}  // namespace

bool decode_floats(Instruction& instruction, Loader& loader) {
  const std::string& family = instruction.name[0];
  static const char* const known[] = {"add", "sub", "mul", "fma", "mad",
                                      "min", "max", "abs", "neg", "copysign"};
  if (!is_float(instruction.name.back()) ||
      std::find(std::begin(known), std::end(known), family) == std::end(known)) {
    return false;
  }
  const std::string& type = instruction.name.back();
  Modifiers modifiers(instruction, 1);
  Ways ways;
  const bool rounds =
      family == "add" || family == "sub" || family == "mul" || family == "fma" || family == "mad";
  if (rounds) {
    const int rounding = modifiers.take_one({"rn", "rz", "rm", "rp"});
    if (rounding > 0) ways.rounding = static_cast<Rounding>(rounding);
    if (rounding < 0 && (family == "fma" || family == "mad")) {
      fail(instruction, "says not how it rounds");
    }
    if (type != "f64" && !type.starts_with("bf")) ways.saturate = modifiers.take("sat");
    if (family == "fma") ways.relu = modifiers.take("relu");
  }
  if (type != "f64" && !type.starts_with("bf") && family != "copysign") {
    ways.flush = modifiers.take("ftz");
  }
  if (family == "min" || family == "max") ways.keep_nan = modifiers.take("NaN");
  modifiers.done();
  if (family == "add") {
    decode_pair<add, Exactly::kSum>(instruction, loader, ways);
  } else if (family == "sub") {
    decode_pair<subtract, Exactly::kDifference>(instruction, loader, ways);
  } else if (family == "mul") {
    decode_pair<multiply, Exactly::kProduct>(instruction, loader, ways);
  } else if (family == "fma" || family == "mad") {
    decode_fused(instruction, loader, ways);
  } else if (family == "min") {
    decode_chosen<false>(instruction, loader, ways);
  } else if (family == "max") {
    decode_chosen<true>(instruction, loader, ways);
  } else if (family == "abs") {
    decode_sign<absolute<false>, absolute<true>>(instruction, loader, ways);
  } else if (family == "neg") {
    decode_sign<negative<false>, negative<true>>(instruction, loader, ways);
  } else {
    decode_copysign(instruction, loader);
  }
  return true;
}

}  // namespace xlnet_fast::ptx
