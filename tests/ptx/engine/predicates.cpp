// Comparisons: setp, set and testp.
#include "numbers.h"

namespace xlnet_fast::ptx {

namespace {

// Of numbers that are ordered; what unordered floats give comes on top.
constexpr auto equal = [](auto a, auto b) { return a == b; };
constexpr auto unequal = [](auto a, auto b) { return a < b || a > b; };  // false of NaN
constexpr auto less = [](auto a, auto b) { return a < b; };
constexpr auto at_most = [](auto a, auto b) { return a <= b; };
constexpr auto greater = [](auto a, auto b) { return a > b; };
constexpr auto at_least = [](auto a, auto b) { return a >= b; };
constexpr auto equal_or_nan = [](auto a, auto b) { return !(a < b || a > b); };
constexpr auto unequal_or_nan = [](auto a, auto b) { return a != b; };
constexpr auto less_or_nan = [](auto a, auto b) { return !(a >= b); };
constexpr auto at_most_or_nan = [](auto a, auto b) { return !(a > b); };
constexpr auto greater_or_nan = [](auto a, auto b) { return !(a <= b); };
constexpr auto at_least_or_nan = [](auto a, auto b) { return !(a < b); };
constexpr auto numbers = [](auto a, auto b) { return a == a && b == b; };
constexpr auto not_numbers = [](auto a, auto b) { return a != a || b != b; };

// What is done with the comparison: at[3] is the other predicate, at[4] inverts it, at[5] is where
// the opposite goes, or what the upper halves give.
enum class Joins : uint32_t { kNothing, kAnd, kOr, kXor };

Lanes joined(const Step& step, Lanes found, Joins joins) {
  const auto& at = step.instruction.at;
  if (joins == Joins::kNothing) return found;
  const Lanes other = *step.warp.lanes<Lanes>(at[3]) ^ at[4];
  if (joins == Joins::kAnd) return found & other;
  return joins == Joins::kOr ? found | other : found ^ other;
}

// Of element `which` of the `kPer` that a lane has. Not inlined: it is in several forms below.
template <auto f, class T, bool kFlush, int kPer = 1>
[[gnu::noinline]] Lanes compare(const Step& step, int which = 0) {
  const auto& at = step.instruction.at;
  const T* const a = step.warp.lanes<T>(at[1]) + which;
  const T* const b = step.warp.lanes<T>(at[2]) + which;
  return lanes_where([=](int lane) {
    const T x = a[kPer * lane], y = b[kPer * lane];
    if constexpr (std::is_integral_v<T>) {
      return f(x, y);
    } else if constexpr (kFlush) {
      return f(to_float(flushed(x)), to_float(flushed(y)));
    } else {
      return f(to_float(x), to_float(y));
    }
  });
}

template <auto f, class T, bool kFlush>
void run_compare(const Step& step) {
  set_predicate(step, step.instruction.at[0], compare<f, T, kFlush>(step));
}

// The ends of both forms below, which need not be made for each comparison.
[[gnu::noinline]] void store_joined(const Step& step, Lanes found) {
  const auto& constants = step.instruction.constants;
  const auto joins = static_cast<Joins>(constants[0]);
  const Lanes result = joined(step, found, joins), opposite = joined(step, ~found, joins);
  set_predicate(step, step.instruction.at[0], result);
  if (constants[1] != 0) set_predicate(step, step.instruction.at[5], opposite);
}

// Of two halves in a register, a predicate each.
template <auto f, class T, bool kFlush>
void run_pairs(const Step& step) {
  const auto joins = static_cast<Joins>(step.instruction.constants[0]);
  const Lanes low = joined(step, compare<f, T, kFlush, 2>(step, 0), joins);
  const Lanes high = joined(step, compare<f, T, kFlush, 2>(step, 1), joins);
  set_predicate(step, step.instruction.at[0], low);
  set_predicate(step, step.instruction.at[5], high);
}

// set: all bits or 1.0f.
[[gnu::noinline]] void store_set(const Step& step, Lanes found) {
  const Lanes result = joined(step, found, static_cast<Joins>(step.instruction.constants[0]));
  const uint32_t truth = step.instruction.constants[1];
  store_lanes(step.active, step.warp.lanes<uint32_t>(step.instruction.at[0]),
              [=](int lane) { return (result >> lane & 1) != 0 ? truth : 0u; });
}

template <auto f, class T, bool kFlush>
void run_join(const Step& step) {
  store_joined(step, compare<f, T, kFlush>(step));
}

template <auto f, class T, bool kFlush>
void run_set(const Step& step) {
  store_set(step, compare<f, T, kFlush>(step));
}

enum class Form { kPlain, kJoin, kSet, kPairs };

template <auto f, class T, bool kFlush>
Run of_form(Form form) {
  if constexpr (sizeof(T) == 2 && !std::is_integral_v<T>) {
    if (form == Form::kPairs) return run_pairs<f, T, kFlush>;
  }
  if (form == Form::kPlain) return run_compare<f, T, kFlush>;
  return form == Form::kJoin ? run_join<f, T, kFlush> : run_set<f, T, kFlush>;
}

template <class T, bool kFlush>
Run of_comparison(const std::string& comparison, Form form) {
  if (comparison == "eq") return of_form<equal, T, kFlush>(form);
  if (comparison == "ne") return of_form<unequal, T, kFlush>(form);
  if (comparison == "lt") return of_form<less, T, kFlush>(form);
  if (comparison == "le") return of_form<at_most, T, kFlush>(form);
  if (comparison == "gt") return of_form<greater, T, kFlush>(form);
  if (comparison == "ge") return of_form<at_least, T, kFlush>(form);
  if constexpr (!std::is_integral_v<T>) {
    if (comparison == "equ") return of_form<equal_or_nan, T, kFlush>(form);
    if (comparison == "neu") return of_form<unequal_or_nan, T, kFlush>(form);
    if (comparison == "ltu") return of_form<less_or_nan, T, kFlush>(form);
    if (comparison == "leu") return of_form<at_most_or_nan, T, kFlush>(form);
    if (comparison == "gtu") return of_form<greater_or_nan, T, kFlush>(form);
    if (comparison == "geu") return of_form<at_least_or_nan, T, kFlush>(form);
    if (comparison == "num") return of_form<numbers, T, kFlush>(form);
    if (comparison == "nan") return of_form<not_numbers, T, kFlush>(form);
  } else if constexpr (std::is_unsigned_v<T>) {
    if (comparison == "lo") return of_form<less, T, kFlush>(form);
    if (comparison == "ls") return of_form<at_most, T, kFlush>(form);
    if (comparison == "hi") return of_form<greater, T, kFlush>(form);
    if (comparison == "hs") return of_form<at_least, T, kFlush>(form);
  }
  return nullptr;
}

// Sets `run`, and returns the bytes of what is compared; 0 where the type is not known.
int decode_compared(Instruction& instruction, const std::string& comparison, Form form,
                    bool flush) {
  const std::string& type = instruction.name.back();
  int bytes = 0;
  const auto set = [&]<class T>(T) {
    bytes = sizeof(T);
    if constexpr (std::is_same_v<T, float> || std::is_same_v<T, Half>) {
      if (flush) {
        instruction.run = of_comparison<T, true>(comparison, form);
        return;
      }
    }
    if (!flush) instruction.run = of_comparison<T, false>(comparison, form);
  };
  if (type[0] == 'b' && comparison != "eq" && comparison != "ne" && !type.starts_with("bf16")) {
    return 0;
  }
  if (type == "f16" || type == "f16x2") {
    set(Half{});
  } else if (type == "bf16" || type == "bf16x2") {
    set(Bfloat{});
  } else if (type == "f32") {
    set(float{});
  } else if (type == "f64") {
    set(double{});
  } else {
    with_integer(type, set);
  }
  return bytes;
}

void decode_comparison(Instruction& instruction, Loader& loader) {
  const bool sets = instruction.name[0] == "set";
  Modifiers modifiers(instruction, sets ? 2 : 1);
  const bool flush = modifiers.take("ftz");
  const int join = modifiers.take_one({"and", "or", "xor"});
  std::string comparison;
  for (const char* each : {"eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu", "leu", "gtu",
                           "geu", "num", "nan", "lo", "ls", "hi", "hs"}) {
    if (modifiers.take(each)) comparison = each;
  }
  modifiers.done();
  auto& operands = instruction.operands;
  if (operands.empty() || operands.size() != (join < 0 ? 3u : 4u)) {
    fail(instruction, "has not the operands that it wants");
  }
  const bool opposite = !sets && operands[0].values.size() == 2;
  const bool pairs = instruction.name.back() == "f16x2" || instruction.name.back() == "bf16x2";
  if (pairs && !opposite) fail(instruction, "has not two predicates");
  const Form form = pairs                   ? Form::kPairs
                    : sets                  ? Form::kSet
                    : join >= 0 || opposite ? Form::kJoin
                                            : Form::kPlain;
  const int bytes = decode_compared(instruction, comparison, form, flush) * (pairs ? 2 : 1);
  if (bytes == 0 || instruction.run == nullptr) fail_type(instruction);
  instruction.constants = {static_cast<uint32_t>(join + 1), opposite ? 1u : 0u};
  int written = 0;
  if (sets) {
    const std::string& type = instruction.name[instruction.name.size() - 2];
    if (type != "u32" && type != "s32" && type != "f32") fail_type(instruction);
    instruction.constants[1] = type == "f32" ? 0x3f800000u : ~0u;
    written = 4;
  }
  if (opposite) {
    const Value& value = operands[0].values[1];
    if (value.is_immediate || value.negated) fail(instruction, "has an operand that is not known");
    instruction.at[5] = loader.constant(instruction, value, 0).at;
    operands[0].values.pop_back();
  }
  if (join >= 0) {
    if (operands[3].values.size() != 1) fail(instruction, "has an operand that is not known");
    instruction.at[4] = operands[3].values[0].negated ? kAllLanes : 0;
    operands[3].values[0].negated = false;
    bind(instruction, loader, {written, bytes, bytes, 0});
  } else {
    bind(instruction, loader, {written, bytes, bytes});
  }
}

template <class T, auto f>
void run_test(const Step& step) {
  const T* const a = step.warp.lanes<T>(step.instruction.at[1]);
  set_predicate(step, step.instruction.at[0],
                lanes_where([=](int lane) { return f(std::fpclassify(a[lane])); }));
}

template <class T>
Run test_run(int which) {
  switch (which) {
    case 0:
      return run_test<T, [](int kind) { return kind != FP_NAN && kind != FP_INFINITE; }>;
    case 1:
      return run_test<T, [](int kind) { return kind == FP_INFINITE; }>;
    case 2:
      return run_test<T, [](int kind) { return kind != FP_NAN; }>;
    case 3:
      return run_test<T, [](int kind) { return kind == FP_NAN; }>;
    case 4:
      return run_test<T, [](int kind) { return kind == FP_NORMAL; }>;
    case 5:
      return run_test<T, [](int kind) { return kind == FP_SUBNORMAL; }>;
    default:
      return nullptr;
  }
}

void decode_test(Instruction& instruction, Loader& loader) {
  const bool wide = instruction.name.back() == "f64";
  if (!wide && instruction.name.back() != "f32") fail_type(instruction);
  Modifiers modifiers(instruction, 1);
  const int which =
      modifiers.take_one({"finite", "infinite", "number", "notanumber", "normal", "subnormal"});
  modifiers.done();
  instruction.run = wide ? test_run<double>(which) : test_run<float>(which);
  if (instruction.run == nullptr) fail(instruction, "tests what is not known");
  bind(instruction, loader, {0, wide ? 8 : 4});
}

}  // namespace

bool decode_predicates(Instruction& instruction, Loader& loader) {
  const std::string& family = instruction.name[0];
  if (family == "setp" || family == "set") {
    decode_comparison(instruction, loader);
  } else if (family == "testp") {
    decode_test(instruction, loader);
  } else {
    return false;
  }
  return true;
}

}  // namespace xlnet_fast::ptx
