// Instructions by which the lanes of a warp tell each other: those of a member mask run once all
// its lanes are here, which the scheduler sees to.
#include "lanes.h"

namespace xlnet_fast::ptx {

namespace {

// --- shfl.sync ---

enum class Way { kUp, kDown, kButterfly, kIndex };

template <Way kWay>
void run_shuffle(const Step& step) {
  const auto& at = step.instruction.at;
  const uint32_t* const a = step.warp.lanes<uint32_t>(at[1]);
  const uint32_t* const b = step.warp.lanes<uint32_t>(at[2]);
  const uint32_t* const c = step.warp.lanes<uint32_t>(at[3]);
  uint32_t source[kLanes];
  Lanes in_range = 0;
  for (int each = 0; each < kLanes; ++each) {
    const auto lane = static_cast<uint32_t>(each);
    const uint32_t by = b[each] & 31, clamp = c[each] & 31, segment = c[each] >> 8 & 31;
    const uint32_t last = (lane & segment) | (clamp & ~segment);
    uint32_t from = lane - by;  // up
    if (kWay == Way::kDown) from = lane + by;
    if (kWay == Way::kButterfly) from = lane ^ by;
    if (kWay == Way::kIndex) from = (lane & segment) | (by & ~segment);
    const bool inside =
        kWay == Way::kUp ? static_cast<int32_t>(from) >= static_cast<int32_t>(last) : from <= last;
    source[each] = inside ? from : lane;
    in_range |= static_cast<Lanes>(inside) << lane;
  }
  if (step.active != kAllLanes) {
    for_lanes(step.active, [&](int lane) {
      if ((step.active >> source[lane] & 1) == 0) {
        fail(step, lane,
             "reads from lane " + std::to_string(source[lane]) + ", which takes no part in it");
      }
    });
  }
  uint32_t made[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) made[lane] = a[source[lane]];
  store_lanes(step.active, step.warp.lanes<uint32_t>(at[0]), [&](int lane) { return made[lane]; });
  if (!step.instruction.constants.empty()) set_predicate(step, at[4], in_range);
}

// --- vote.sync ---

enum class Vote { kAll, kAny, kUniform, kBallot };

template <Vote kVote>
void run_vote(const Step& step) {
  const auto& at = step.instruction.at;
  const Lanes found = (*step.warp.lanes<Lanes>(at[1]) ^ at[2]) & step.active;
  if (kVote == Vote::kBallot) {
    store_lanes(step.active, step.warp.lanes<uint32_t>(at[0]), [=](int) { return found; });
    return;
  }
  bool is_true = found == step.active;
  if (kVote == Vote::kAny) is_true = found != 0;
  if (kVote == Vote::kUniform) is_true = is_true || found == 0;
  set_predicate(step, at[0], is_true ? kAllLanes : 0);
}

// --- match.sync ---

template <class T>
void run_match_any(const Step& step) {
  const auto& at = step.instruction.at;
  const T* const a = step.warp.lanes<T>(at[1]);
  uint32_t made[kLanes] = {};
  for_lanes(step.active, [&](int lane) {
    made[lane] = lanes_where([&](int other) { return a[other] == a[lane]; }) & step.active;
  });
  store_lanes(step.active, step.warp.lanes<uint32_t>(at[0]), [&](int lane) { return made[lane]; });
}

template <class T>
void run_match_all(const Step& step) {
  const auto& at = step.instruction.at;
  const T* const a = step.warp.lanes<T>(at[1]);
  const T first = a[std::countr_zero(step.active)];
  const Lanes same = lanes_where([=](int lane) { return a[lane] == first; }) & step.active;
  const Lanes found = same == step.active ? step.active : 0;
  store_lanes(step.active, step.warp.lanes<uint32_t>(at[0]), [=](int) { return found; });
  if (!step.instruction.constants.empty()) set_predicate(step, at[4], found != 0 ? kAllLanes : 0);
}

// --- redux.sync ---

template <class T, auto f>
void run_reduce(const Step& step) {
  const auto& at = step.instruction.at;
  const T* const a = step.warp.lanes<T>(at[1]);
  const int first = std::countr_zero(step.active);
  T total = a[first];
  for (Lanes rest = step.active & (step.active - 1); rest != 0; rest &= rest - 1) {
    total = f(total, a[std::countr_zero(rest)]);
  }
  store_lanes(step.active, step.warp.lanes<T>(at[0]), [=](int) { return total; });
}

constexpr auto sum = [](uint32_t a, uint32_t b) { return a + b; };
constexpr auto smaller = [](auto a, auto b) { return std::min(a, b); };
constexpr auto larger = [](auto a, auto b) { return std::max(a, b); };
constexpr auto both = [](uint32_t a, uint32_t b) { return a & b; };
constexpr auto either = [](uint32_t a, uint32_t b) { return a | b; };
constexpr auto differs = [](uint32_t a, uint32_t b) { return a ^ b; };

// --- decoding ---

// The last operand is the member mask; what is left has its places as `bind` gives them.
void bind_members(Instruction& instruction, Loader& loader, std::initializer_list<int> bytes) {
  auto& operands = instruction.operands;
  if (operands.size() != bytes.size() + 1 || operands.back().values.size() != 1 ||
      operands.back().is_address) {
    fail(instruction, "has not the operands that it wants");
  }
  instruction.members = loader.constant(instruction, operands.back().values[0], 4).at;
  instruction.kind = Kind::kMembers;
  operands.pop_back();
  bind(instruction, loader, bytes);
}

// "%r1|%p2": the predicate goes to at[4].
void take_predicate(Instruction& instruction, Loader& loader) {
  auto& operands = instruction.operands;
  if (operands.empty() || operands[0].values.size() != 2) return;
  const Value& value = operands[0].values[1];
  if (value.is_immediate || value.negated) fail(instruction, "has an operand that is not known");
  instruction.at[4] = loader.constant(instruction, value, 0).at;
  instruction.constants = {1};
  operands[0].values.pop_back();
}

void decode_shuffle(Instruction& instruction, Loader& loader) {
  Modifiers modifiers(instruction, 1);
  const bool together = modifiers.take("sync");
  const int way = modifiers.take_one({"up", "down", "bfly", "idx"});
  modifiers.done();
  if (!together || way < 0 || instruction.name.back() != "b32") fail_type(instruction);
  static constexpr Run runs[] = {run_shuffle<Way::kUp>, run_shuffle<Way::kDown>,
                                 run_shuffle<Way::kButterfly>, run_shuffle<Way::kIndex>};
  instruction.run = runs[way];
  take_predicate(instruction, loader);
  bind_members(instruction, loader, {4, 4, 4, 4});
}

void decode_vote(Instruction& instruction, Loader& loader) {
  Modifiers modifiers(instruction, 1);
  const bool together = modifiers.take("sync");
  const int vote = modifiers.take_one({"all", "any", "uni", "ballot"});
  modifiers.done();
  const bool ballot = vote == 3;
  if (!together || vote < 0 || instruction.name.back() != (ballot ? "b32" : "pred")) {
    fail_type(instruction);
  }
  static constexpr Run runs[] = {run_vote<Vote::kAll>, run_vote<Vote::kAny>,
                                 run_vote<Vote::kUniform>, run_vote<Vote::kBallot>};
  instruction.run = runs[vote];
  auto& operands = instruction.operands;
  if (operands.size() == 3 && operands[1].values.size() == 1) {
    instruction.at[2] = operands[1].values[0].negated ? kAllLanes : 0;
    operands[1].values[0].negated = false;
  }
  bind_members(instruction, loader, {ballot ? 4 : 0, 0});
}

void decode_match(Instruction& instruction, Loader& loader) {
  Modifiers modifiers(instruction, 1);
  const bool together = modifiers.take("sync");
  const int which = modifiers.take_one({"any", "all"});
  modifiers.done();
  const bool wide = instruction.name.back() == "b64";
  if (!together || which < 0 || (!wide && instruction.name.back() != "b32")) fail_type(instruction);
  if (which == 0) {
    instruction.run = wide ? run_match_any<uint64_t> : run_match_any<uint32_t>;
  } else {
    instruction.run = wide ? run_match_all<uint64_t> : run_match_all<uint32_t>;
    take_predicate(instruction, loader);
  }
  bind_members(instruction, loader, {4, wide ? 8 : 4});
}

void decode_reduce(Instruction& instruction, Loader& loader) {
  Modifiers modifiers(instruction, 1);
  const bool together = modifiers.take("sync");
  const int which = modifiers.take_one({"add", "min", "max", "and", "or", "xor"});
  modifiers.done();
  const std::string& type = instruction.name.back();
  using U = uint32_t;
  using S = int32_t;
  if (which < 3 && type == "u32") {
    static constexpr Run runs[] = {run_reduce<U, sum>, run_reduce<U, smaller>,
                                   run_reduce<U, larger>};
    if (which >= 0) instruction.run = runs[which];
  } else if (which < 3 && type == "s32") {
    static constexpr Run runs[] = {run_reduce<U, sum>, run_reduce<S, smaller>,
                                   run_reduce<S, larger>};
    if (which >= 0) instruction.run = runs[which];
  } else if (type == "b32") {
    static constexpr Run runs[] = {run_reduce<U, both>, run_reduce<U, either>,
                                   run_reduce<U, differs>};
    if (which >= 3) instruction.run = runs[which - 3];
  }
  if (!together || instruction.run == nullptr) fail_type(instruction);
  bind_members(instruction, loader, {4, 4});
}

void run_barrier(const Step& step) {
  Warp& warp = step.warp;
  if (!warp.has_parted && step.active != ~warp.exited) {
    warp.has_parted = true;
    for (auto& row : warp.met) row = warp.warp_epoch;
  }
  for_lanes(step.active, [&](int lane) { ++warp.warp_epoch[lane]; });
  if (!warp.has_parted) return;
  std::array<int32_t, kLanes> all{};
  for_lanes(step.active, [&](int lane) {
    for (int other = 0; other < kLanes; ++other) {
      all[other] = std::max(all[other], warp.met[lane][other]);
    }
    all[lane] = warp.warp_epoch[lane];
  });
  for_lanes(step.active, [&](int lane) { warp.met[lane] = all; });
}

void run_active(const Step& step) {
  store_lanes(step.active, step.warp.lanes<uint32_t>(step.instruction.at[0]),
              [&](int) { return step.active; });
}

}  // namespace

bool decode_exchange(Instruction& instruction, Loader& loader) {
  const std::string& family = instruction.name[0];
  if (family == "shfl") {
    decode_shuffle(instruction, loader);
  } else if (family == "vote") {
    decode_vote(instruction, loader);
  } else if (family == "match") {
    decode_match(instruction, loader);
  } else if (family == "redux") {
    decode_reduce(instruction, loader);
  } else if (instruction.name == std::vector<std::string>{"bar", "warp", "sync"}) {
    instruction.run = run_barrier;
    bind_members(instruction, loader, {});
  } else if (instruction.name == std::vector<std::string>{"activemask", "b32"}) {
    instruction.run = run_active;
    bind(instruction, loader, {4});
  } else {
    return false;
  }
  return true;
}

}  // namespace xlnet_fast::ptx
