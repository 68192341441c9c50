// Quotients, roots and transcendental functions. What PTX calls approximate is given to within a
// rounding or two of the type: closer than hardware, and never further than PTX allows.
#include "numbers.h"

namespace xlnet_fast::ptx {

namespace {

// 2^x in double, to 2^-40 of it. Without a branch or a call, so that loops over it become vectors.
double power_of_two(double x) {
  // Beyond this everything is 0 or infinite as a float; NaN stays.
  const double in_reach = x > 1000.0 ? 1000.0 : x < -1000.0 ? -1000.0 : x;
  constexpr double kShift = 0x1.8p52;  // adding it leaves a whole number in the low bits
  const double shifted = in_reach + kShift;
  const double whole = shifted - kShift;
  const double y = (in_reach - whole) * 0.693147180559945309417;
  double sum = 1.0 / 39916800;
  for (const double inverse : {1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040, 1.0 / 720,
                               1.0 / 120, 1.0 / 24, 1.0 / 6, 1.0 / 2, 1.0, 1.0}) {
    sum = sum * y + inverse;
  }
  const uint64_t exponent = (std::bit_cast<uint64_t>(shifted) + 1023) << 52;
  return sum * std::bit_cast<double>(exponent);
}

constexpr auto power = [](float x) { return static_cast<float>(power_of_two(x)); };
constexpr auto logarithm = [](float x) {
  return static_cast<float>(std::log2(static_cast<double>(x)));
};
constexpr auto sine = [](float x) { return static_cast<float>(std::sin(static_cast<double>(x))); };
constexpr auto cosine = [](float x) {
  return static_cast<float>(std::cos(static_cast<double>(x)));
};
constexpr auto hyperbolic = [](float x) {
  return static_cast<float>(std::tanh(static_cast<double>(x)));
};
constexpr auto reciprocal = [](auto x) { return 1 / x; };
constexpr auto root = [](auto x) { return std::sqrt(x); };
constexpr auto reciprocal_root = [](auto x) {
  return static_cast<decltype(x)>(1 / std::sqrt(static_cast<double>(x)));
};
constexpr auto divide = [](auto a, auto b) { return a / b; };
// div.approx of a divisor so large that its reciprocal would be a denormal.
constexpr auto divide_roughly = [](float a, float b) {
  const bool large = std::fabs(b) > 0x1p126f && std::fabs(b) <= std::numeric_limits<float>::max();
  return large ? a * 0.0f : a / b;
};

template <auto f, bool kFlush>
constexpr auto of_number = []<class T>(T x) {
  const auto taken = to_float(kFlush ? flushed(x) : x);
  const T made = Narrow<T>::from(f(taken));
  return kFlush ? flushed(made) : made;
};
template <auto f, bool kFlush>
constexpr auto of_two = [](auto a, auto b) {
  const auto made = f(kFlush ? flushed(a) : a, kFlush ? flushed(b) : b);
  return kFlush ? flushed(made) : made;
};

template <auto f, class T, int kPer = 1>
Run run_of(bool flush) {
  return flush ? run_unary<of_number<f, true>, T, T, kPer>
               : run_unary<of_number<f, false>, T, T, kPer>;
}

// Of ex2 and tanh, which halves have too.
template <auto f>
void decode_narrow(Instruction& instruction, Loader& loader, bool flush) {
  const std::string& type = instruction.name.back();
  int bytes = 4;
  if (type == "f32") {
    instruction.run = run_of<f, float>(flush);
  } else if (type == "f16") {
    bytes = 2;
    instruction.run = run_of<f, Half>(flush);
  } else if (type == "f16x2") {
    instruction.run = run_of<f, Half, 2>(flush);
  } else if (type == "bf16") {
    bytes = 2;
    instruction.run = run_of<f, Bfloat>(flush);
  } else if (type == "bf16x2") {
    instruction.run = run_of<f, Bfloat, 2>(flush);
  } else {
    fail_type(instruction);
  }
  bind(instruction, loader, {bytes, bytes});
}

template <auto f>
void decode_single(Instruction& instruction, Loader& loader, bool flush) {
  if (instruction.name.back() != "f32") fail_type(instruction);
  bind(instruction, loader, {4, 4});
  instruction.run = run_of<f, float>(flush);
}

template <auto f>
void decode_either(Instruction& instruction, Loader& loader, bool flush) {
  if (instruction.name.back() == "f64") {
    bind(instruction, loader, {8, 8});
    instruction.run = run_of<f, double>(flush);
  } else {
    decode_single<f>(instruction, loader, flush);
  }
}

void decode_quotient(Instruction& instruction, Loader& loader, int way, bool flush) {
  const std::string& type = instruction.name.back();
  if (type == "f64" && way == 2 && !flush) {
    bind(instruction, loader, {8, 8, 8});
    instruction.run = run_binary<of_two<divide, false>, double, double, double>;
    return;
  }
  if (type != "f32") fail_type(instruction);
  bind(instruction, loader, {4, 4, 4});
  using F = float;
  if (way == 0) {
    instruction.run = flush ? run_binary<of_two<divide_roughly, true>, F, F, F>
                            : run_binary<of_two<divide_roughly, false>, F, F, F>;
  } else {
    instruction.run = flush ? run_binary<of_two<divide, true>, F, F, F>
                            : run_binary<of_two<divide, false>, F, F, F>;
  }
}

}  // namespace

bool decode_functions(Instruction& instruction, Loader& loader) {
  const std::string& family = instruction.name[0];
  static const char* const known[] = {"div", "rcp", "sqrt", "rsqrt", "sin",
                                      "cos", "lg2", "ex2",  "tanh"};
  if (std::find(std::begin(known), std::end(known), family) == std::end(known)) return false;
  Modifiers modifiers(instruction, 1);
  const int way = modifiers.take_one({"approx", "full", "rn"});
  const bool flush = modifiers.take("ftz");
  modifiers.done();
  const bool quotient = family == "div";
  const bool exact = family == "rcp" || family == "sqrt";
  if (way < 0 || (way == 1 && !quotient) || (way == 2 && !quotient && !exact)) {
    fail(instruction, "rounds in a way that is not known");
  }
  if (quotient) {
    decode_quotient(instruction, loader, way, flush);
  } else if (family == "rcp") {
    decode_either<reciprocal>(instruction, loader, flush);
  } else if (family == "sqrt") {
    decode_either<root>(instruction, loader, flush);
  } else if (family == "rsqrt") {
    decode_either<reciprocal_root>(instruction, loader, flush);
  } else if (family == "sin") {
    decode_single<sine>(instruction, loader, flush);
  } else if (family == "cos") {
    decode_single<cosine>(instruction, loader, flush);
  } else if (family == "lg2") {
    decode_single<logarithm>(instruction, loader, flush);
  } else if (family == "ex2") {
    decode_narrow<power>(instruction, loader, flush);
  } else {
    decode_narrow<hyperbolic>(instruction, loader, flush);
  }
  return true;
}

}  // namespace xlnet_fast::ptx
