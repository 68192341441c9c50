// cvt: between integers, floats and halves.
#include <utility>

#include "numbers.h"

namespace xlnet_fast::ptx {

namespace {

struct Way {
  int rounding = -1;  // to a number of fewer bits: rn, rz, rm, rp, rna
  int whole = -1;     // to a whole number: rni, rzi, rmi, rpi
  bool flush = false, saturate = false, relu = false;
};

enum class Whole { kNo, kNearest, kZero, kDown, kUp };

template <class F>
F to_whole(F x, Whole whole) {
  switch (whole) {
    case Whole::kNearest:
      return std::nearbyint(x);  // the mode is to even
    case Whole::kZero:
      return std::trunc(x);
    case Whole::kDown:
      return std::floor(x);
    case Whole::kUp:
      return std::ceil(x);
    default:
      return x;
  }
}

// What does not fit is the nearest that does; NaN is 0, or the topmost bit where either has 64.
template <class To, bool kFromDouble, class F>
To to_integer(F x) {
  using Limits = std::numeric_limits<To>;
  constexpr F kLow = static_cast<F>(Limits::min());
  // The first power of two that is too much, exact in every type.
  constexpr F kBeyond = static_cast<F>(uint64_t{1} << (Limits::digits - 1)) * 2;
  constexpr bool kWide = kFromDouble || sizeof(To) == 8;
  if (x != x) return kWide ? static_cast<To>(uint64_t{1} << (8 * sizeof(To) - 1)) : To{0};
  if (x <= kLow) return Limits::min();
  if (x >= kBeyond) return Limits::max();
  return static_cast<To>(x);
}

template <class To, class From>
constexpr auto clamped = [](From x) {
  if (std::cmp_less(x, std::numeric_limits<To>::min())) return std::numeric_limits<To>::min();
  if (std::cmp_greater(x, std::numeric_limits<To>::max())) return std::numeric_limits<To>::max();
  return static_cast<To>(x);
};
template <class To, class From>
constexpr auto cut = [](From x) { return static_cast<To>(x); };

template <class To, class From, Rounding kRounding>
constexpr auto integer_to_float = [](From x) {
  if constexpr (std::is_same_v<To, double>) {
    return static_cast<double>(x);
  } else if constexpr (kRounding == Rounding::kNearest && std::is_same_v<To, float>) {
    return static_cast<float>(x);
  } else {
    // Exact in a double, or odd where it is not.
    double wide = static_cast<double>(x);
    if constexpr (sizeof(From) == 8) {
      const __int128 rest = static_cast<__int128>(x) - static_cast<__int128>(wide);
      wide = to_odd(wide, static_cast<double>(rest));
    }
    const float narrow = rounded(wide, kRounding);
    if constexpr (std::is_same_v<To, float>) return narrow;
    // A half of an integer below 2^24 is rounded once; above it is infinite or the bfloat's bits
    // are too few to notice but at ties, where the odd double decides.
    const float odd =
        narrow != wide && sizeof(To) == 2
            ? std::bit_cast<float>((std::bit_cast<uint32_t>(rounded(wide, Rounding::kZero)) | 1))
            : narrow;
    return Narrow<To>::from(odd);
  }
};

template <class To, class From, Whole kWhole, bool kFlush, bool kSaturate, bool kRelu>
constexpr auto float_to_float = [](From x) {
  auto taken = to_float(kFlush ? flushed(x) : x);
  if constexpr (kWhole != Whole::kNo) taken = to_whole(taken, kWhole);
  if constexpr (kSaturate) taken = saturated(taken);
  if constexpr (kRelu) taken = taken > 0 ? taken : taken != taken ? taken : 0;
  if constexpr (std::is_same_v<To, double>) {
    return static_cast<double>(taken);
  } else {
    float narrow = static_cast<float>(taken);
    if constexpr (std::is_same_v<From, double> && sizeof(To) == 2) {
      if (narrow != taken && taken == taken && std::fabs(narrow) <= 3.4e38f) {
        narrow = std::bit_cast<float>(std::bit_cast<uint32_t>(rounded(taken, Rounding::kZero)) | 1);
      }
    }
    To made = Narrow<To>::from(narrow);
    if constexpr (kFlush) made = flushed(made);
    return made;
  }
};

// f32 to a half by another rounding than to the nearest: the mantissa is cut, or one is added.
template <class To, Rounding kRounding, bool kFlush, bool kRelu>
constexpr auto directed = [](float x) {
  float taken = kFlush ? flushed(x) : x;
  if constexpr (kRelu) taken = taken > 0 ? taken : taken != taken ? taken : 0;
  const To nearest = Narrow<To>::from(taken);
  const float back = to_float(nearest);
  if (taken != taken || back == taken) return nearest;
  const bool down = kRounding == Rounding::kDown || (kRounding == Rounding::kZero && taken > 0);
  if (down == (back < taken)) return nearest;  // it lies on the right side
  // One step towards it: away from zero adds to the bits.
  const bool outwards = down == (back < 0);
  const int bits = nearest.bits + (outwards ? 1 : -1);
  return To{static_cast<uint16_t>((nearest.bits & 0x7fff) == 0 ? (down ? 0x8001 : 0x0001) : bits)};
};

// f64 to f32.
template <Rounding kRounding, bool kFlush, bool kSaturate>
constexpr auto to_single = [](double x) {
  float made = rounded(x, kRounding);
  if constexpr (kSaturate) made = saturated(made);
  return kFlush ? flushed(made) : made;
};

// tf32: 10 bits of mantissa, ties away from zero or to even; the rest of the word is 0.
template <bool kAway, bool kRelu>
constexpr auto to_tensor_float = [](float x) {
  if constexpr (kRelu) x = x > 0 ? x : x != x ? x : 0.0f;
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint32_t even = kAway ? 0x1000u : 0xfffu + (bits >> 13 & 1);
  const bool finite = (bits & 0x7f800000u) != 0x7f800000u;
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  return nan ? kNan32 : (finite ? bits + even : bits) & ~0x1fffu;
};

// The low parts of a register's lanes: where they lie, or in `room` side by side. Not inlined, so
// that there is one for each type and not for each conversion.
template <class From>
[[gnu::noinline]] const From* low_parts(const Step& step, From* room) {
  const uint32_t stride = step.instruction.at[2];  // elements of a register
  const From* const a = step.warp.lanes<From>(step.instruction.at[1]);
  if (stride == 1) return a;
  for (uint32_t lane = 0; lane < kLanes; ++lane) room[lane] = a[lane * stride];
  return room;
}

// To a register that may be wider: extended by the sign of a signed integer, by zeros else.
template <class To>
[[gnu::noinline]] void store_extended(const Step& step, const To* made) {
  const uint32_t room = step.instruction.at[3];  // elements of a register
  if (room == 1) {
    store_lanes(step.active, step.warp.lanes<To>(step.instruction.at[0]),
                [=](int lane) { return made[lane]; });
    return;
  }
  const uint32_t bytes = room * sizeof(To);
  uint64_t wide[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) {
    if constexpr (std::is_integral_v<To>) {
      wide[lane] = static_cast<uint64_t>(static_cast<int64_t>(made[lane]));
      if constexpr (std::is_unsigned_v<To>) wide[lane] = made[lane];
    } else {
      wide[lane] = 0;
      std::memcpy(&wide[lane], &made[lane], sizeof(To));
    }
  }
  char* const to = step.warp.lanes<char>(step.instruction.at[0]);
  for_lanes(step.active, [&](int lane) {
    std::memcpy(to + static_cast<uint32_t>(lane) * bytes, &wide[lane], bytes);
  });
}

template <class To, class From, class F>
void convert_lanes(const Step& step, F&& f) {
  alignas(64) From room[kLanes];
  alignas(64) To made[kLanes];
  const From* const a = low_parts<From>(step, room);
  for (int lane = 0; lane < kLanes; ++lane) made[lane] = f(a[lane]);
  store_extended<To>(step, made);
}

template <auto f, class To, class From>
void run_convert(const Step& step) {
  convert_lanes<To, From>(step, f);
}

// `constants` has how it becomes whole, and whether denormals are flushed.
template <class To, class From>
void run_to_integer(const Step& step) {
  const auto whole = static_cast<Whole>(step.instruction.constants[0]);
  const bool flush = step.instruction.constants[1] != 0;
  convert_lanes<To, From>(step, [=](From x) {
    const auto taken = to_float(flush ? flushed(x) : x);
    return to_integer<To, std::is_same_v<From, double>>(to_whole(taken, whole));
  });
}

template <class To, class From>
Run convert_run(const Way& way) {
  constexpr bool kFromInteger = std::is_integral_v<From>, kToInteger = std::is_integral_v<To>;
  const auto whole = static_cast<Whole>(way.whole + 1);
  if constexpr (kFromInteger && kToInteger) {
    if (way.rounding >= 0 || way.whole >= 0 || way.flush || way.relu) return nullptr;
    return way.saturate ? run_convert<clamped<To, From>, To, From>
                        : run_convert<cut<To, From>, To, From>;
  } else if constexpr (kToInteger) {
    if (way.rounding >= 0 || way.relu) return nullptr;
    return way.whole < 0 ? nullptr : run_to_integer<To, From>;
  } else if constexpr (kFromInteger) {
    if (way.whole >= 0 || way.flush || way.saturate || way.relu) return nullptr;
    const auto of = [&]<Rounding kRounding>() -> Run {
      if constexpr (kRounding != Rounding::kNearest && !std::is_same_v<To, float>)
        return nullptr;
      else
        return run_convert<integer_to_float<To, From, kRounding>, To, From>;
    };
    if (way.rounding == 0) return of.template operator()<Rounding::kNearest>();
    if (way.rounding == 1) return of.template operator()<Rounding::kZero>();
    if (way.rounding == 2) return of.template operator()<Rounding::kDown>();
    if (way.rounding == 3) return of.template operator()<Rounding::kUp>();
    return nullptr;
  } else {
    // Between floats.
    constexpr bool kNarrows = sizeof(To) < sizeof(From);
    if constexpr (sizeof(To) == sizeof(From) && !std::is_same_v<To, From>) return nullptr;
    if (kNarrows != (way.rounding >= 0) || (way.whole >= 0 && sizeof(To) != sizeof(From)) ||
        way.rounding > 3)
      return nullptr;
    if constexpr (kNarrows && std::is_same_v<To, float>) {
      if (way.relu) return nullptr;
      const auto of = [&]<Rounding kRounding>() -> Run {
        if (way.flush)
          return way.saturate ? run_convert<to_single<kRounding, true, true>, float, double>
                              : run_convert<to_single<kRounding, true, false>, float, double>;
        return way.saturate ? run_convert<to_single<kRounding, false, true>, float, double>
                            : run_convert<to_single<kRounding, false, false>, float, double>;
      };
      if (way.rounding == 0) return of.template operator()<Rounding::kNearest>();
      if (way.rounding == 1) return of.template operator()<Rounding::kZero>();
      if (way.rounding == 2) return of.template operator()<Rounding::kDown>();
      return of.template operator()<Rounding::kUp>();
    } else {
      if constexpr (std::is_same_v<From, float> && kNarrows) {
        if (way.rounding > 0) {
          if (way.saturate || way.flush || way.rounding != 1) return nullptr;
          return way.relu ? run_convert<directed<To, Rounding::kZero, false, true>, To, From>
                          : run_convert<directed<To, Rounding::kZero, false, false>, To, From>;
        }
      } else if (way.rounding > 0) {
        return nullptr;
      }
      const auto of = [&]<Whole kWhole>() -> Run {
        if constexpr (kNarrows) {
          if (way.relu) {
            if (way.flush || way.saturate) return nullptr;
            return run_convert<float_to_float<To, From, kWhole, false, false, true>, To, From>;
          }
        } else if (way.relu) {
          return nullptr;
        }
        if (way.flush) {
          return way.saturate
                     ? run_convert<float_to_float<To, From, kWhole, true, true, false>, To, From>
                     : run_convert<float_to_float<To, From, kWhole, true, false, false>, To, From>;
        }
        return way.saturate
                   ? run_convert<float_to_float<To, From, kWhole, false, true, false>, To, From>
                   : run_convert<float_to_float<To, From, kWhole, false, false, false>, To, From>;
      };
      if constexpr (sizeof(To) == sizeof(From)) {
        if (whole == Whole::kNearest) return of.template operator()<Whole::kNearest>();
        if (whole == Whole::kZero) return of.template operator()<Whole::kZero>();
        if (whole == Whole::kDown) return of.template operator()<Whole::kDown>();
        if (whole == Whole::kUp) return of.template operator()<Whole::kUp>();
      }
      return of.template operator()<Whole::kNo>();
    }
  }
}

template <class F>
bool with_number(const std::string& type, F&& f) {
  if (type == "s8") return f(int8_t{}), true;
  if (type == "u8") return f(uint8_t{}), true;
  if (type == "f16") return f(Half{}), true;
  if (type == "bf16") return f(Bfloat{}), true;
  if (type == "f32") return f(float{}), true;
  if (type == "f64") return f(double{}), true;
  return type[0] != 'b' && with_integer(type, f);
}

// The bytes of an operand's register, which may be wider than the type.
int room_of(const Instruction& instruction, size_t operand, int bytes) {
  if (operand >= instruction.operands.size() || instruction.operands[operand].values.empty()) {
    fail(instruction, "has not the operands that it wants");
  }
  const Value& value = instruction.operands[operand].values[0];
  if (value.is_immediate || value.is_sink) return std::max(bytes, 2);
  if (value.bytes < bytes) fail(instruction, "has a register that is too small for its type");
  return value.bytes;
}

// Two floats become halves of a word, the first one the upper.
template <class T, auto f>
void run_pair(const Step& step) {
  const auto& at = step.instruction.at;
  const float* const high = step.warp.lanes<float>(at[1]);
  const float* const low = step.warp.lanes<float>(at[2]);
  store_lanes(step.active, step.warp.lanes<uint32_t>(at[0]),
              [=](int lane) { return uint32_t{f(high[lane]).bits} << 16 | f(low[lane]).bits; });
}

template <class T>
Run pair_run(const Way& way) {
  if (way.whole >= 0 || way.flush || way.saturate) return nullptr;
  if (way.rounding == 0) {
    return way.relu ? run_pair<T, float_to_float<T, float, Whole::kNo, false, false, true>>
                    : run_pair<T, float_to_float<T, float, Whole::kNo, false, false, false>>;
  }
  if (way.rounding == 1) {
    return way.relu ? run_pair<T, directed<T, Rounding::kZero, false, true>>
                    : run_pair<T, directed<T, Rounding::kZero, false, false>>;
  }
  return nullptr;
}

}  // namespace

bool decode_conversions(Instruction& instruction, Loader& loader) {
  if (instruction.name[0] != "cvt") return false;
  Modifiers modifiers(instruction, 2);
  Way way;
  way.rounding = modifiers.take_one({"rn", "rz", "rm", "rp", "rna"});
  way.whole = modifiers.take_one({"rni", "rzi", "rmi", "rpi"});
  way.flush = modifiers.take("ftz");
  way.saturate = modifiers.take("sat");
  way.relu = modifiers.take("relu");
  modifiers.done();
  const std::string& to = instruction.name[instruction.name.size() - 2];
  const std::string& from = instruction.name.back();
  if (from == "f32" && (to == "f16x2" || to == "bf16x2")) {
    instruction.run = to == "f16x2" ? pair_run<Half>(way) : pair_run<Bfloat>(way);
    if (instruction.run == nullptr) fail_type(instruction);
    bind(instruction, loader, {4, 4, 4});
    return true;
  }
  if (from == "f32" && to == "tf32") {
    const bool away = way.rounding == 4;
    if ((!away && way.rounding != 0) || way.whole >= 0 || way.flush || way.saturate) {
      fail_type(instruction);
    }
    using U = uint32_t;
    instruction.run = way.relu ? (away ? run_unary<to_tensor_float<true, true>, U, float>
                                       : run_unary<to_tensor_float<false, true>, U, float>)
                               : (away ? run_unary<to_tensor_float<true, false>, U, float>
                                       : run_unary<to_tensor_float<false, false>, U, float>);
    bind(instruction, loader, {4, 4});
    return true;
  }
  with_number(to, [&]<class To>(To) {
    with_number(from, [&]<class From>(From) {
      instruction.run = convert_run<To, From>(way);
      const int room = room_of(instruction, 0, sizeof(To));
      const int width = room_of(instruction, 1, sizeof(From));
      bind(instruction, loader, {room, width});
      instruction.at[2] = static_cast<uint32_t>(width) / sizeof(From);
      instruction.at[3] = static_cast<uint32_t>(room) / sizeof(To);
      instruction.constants = {static_cast<uint32_t>(way.whole + 1), way.flush ? 1u : 0u};
    });
  });
  if (instruction.run == nullptr) fail_type(instruction);
  return true;
}

}  // namespace xlnet_fast::ptx
