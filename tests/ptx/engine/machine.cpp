// The scheduler: which warp goes on, which of its lanes, and who waits for whom.
#include <algorithm>
#include <climits>

#include "program.h"
#include "warpgroup.h"

namespace xlnet_fast::ptx {

namespace {

// Steps of warps after which a block counts as one that does not end.
constexpr int64_t kMostSteps = int64_t{1} << 29;
// Turns of warps between two looks at what else is to be done.
constexpr int kTurnsBetweenLooks = 4096;

std::string hexadecimal(Lanes lanes) {
  char text[16];
  std::snprintf(text, sizeof text, "0x%08x", lanes);
  return text;
}

class Machine {
 public:
  Machine(const Program& program, const Extent& grid, const Extent& threads, uint32_t seed,
          void (*look)())
      : program_(program), grid_(grid), threads_(threads), random_(seed), look_(look) {
    block_.threads = static_cast<int>(threads[0] * threads[1] * threads[2]);
    block_.random = &random_;
    block_.counters = &counters_;
    block_.kernel = &program.name;
    block_.local_bytes = program.local_bytes;
    block_.has_products = program.has_products;
  }

  Counters run(const std::string& parameters, size_t shared_bytes) {
    block_.parameters = parameters.data();
    block_.parameter_bytes = parameters.size();
    block_.shared_bytes = program_.static_shared_bytes + shared_bytes;
    make_warps(shared_bytes);
    const int64_t count = int64_t{1} * grid_[0] * grid_[1] * grid_[2];
    std::vector<int64_t> order(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; ++i) order[static_cast<size_t>(i)] = i;
    std::shuffle(order.begin(), order.end(), random_);
    for (const int64_t number : order) run_block(number);
    return counters_;
  }

 private:
  void make_warps(size_t dynamic_bytes) {
    const int count = (block_.threads + kLanes - 1) / kLanes;
    block_.warps.resize(static_cast<size_t>(count));
    for (int number = 0; number < count; ++number) {
      Warp& warp = block_.warps[static_cast<size_t>(number)];
      warp.number = number;
      warp.memory.resize(program_.register_bytes / 8 + 8);
      const auto start = reinterpret_cast<uintptr_t>(warp.memory.data());
      warp.registers = reinterpret_cast<char*>((start + 63) / 64 * 64);
      std::memcpy(warp.registers + program_.first_constant, program_.constants.data(),
                  program_.constants.size());
    }
    dynamic_bytes_ = dynamic_bytes;
  }

  void set_specials(Warp& warp) {
    const Specials& specials = program_.specials;
    const auto set = [&warp](const Value& value, auto&& of) {
      for (int lane = 0; lane < kLanes; ++lane) {
        warp.lanes<uint32_t>(value)[lane] = static_cast<uint32_t>(of(static_cast<uint32_t>(lane)));
      }
    };
    const auto thread = [&warp](uint32_t lane) {
      return static_cast<uint32_t>(warp.number) * kLanes + lane;
    };
    set(specials.tid[0], [&](uint32_t lane) { return thread(lane) % threads_[0]; });
    set(specials.tid[1], [&](uint32_t lane) { return thread(lane) / threads_[0] % threads_[1]; });
    set(specials.tid[2], [&](uint32_t lane) { return thread(lane) / threads_[0] / threads_[1]; });
    for (size_t axis = 0; axis < 3; ++axis) {
      set(specials.ntid[axis], [&](uint32_t) { return threads_[axis]; });
      set(specials.nctaid[axis], [&](uint32_t) { return grid_[axis]; });
      set(specials.ctaid[axis], [&](uint32_t) { return block_.index[axis]; });
    }
    set(specials.laneid, [](uint32_t lane) { return lane; });
    set(specials.warpid, [&](uint32_t) { return warp.number; });
    set(specials.nwarpid, [&](uint32_t) { return block_.warps.size(); });
    set(specials.lanemask[0], [](uint32_t lane) { return 1u << lane; });
    set(specials.lanemask[1], [](uint32_t lane) { return (1u << lane) - 1; });
    set(specials.lanemask[2], [](uint32_t lane) { return (2u << lane) - 1; });
    set(specials.lanemask[3], [](uint32_t lane) { return ~((2u << lane) - 1); });
    set(specials.lanemask[4], [](uint32_t lane) { return ~((1u << lane) - 1); });
    set(specials.dynamic_bytes, [&](uint32_t) { return dynamic_bytes_; });
    set(specials.total_bytes, [&](uint32_t) { return block_.shared_bytes; });
  }

  void run_block(int64_t number) {
    block_.number = number;
    block_.index = {static_cast<uint32_t>(number % grid_[0]),
                    static_cast<uint32_t>(number / grid_[0] % grid_[1]),
                    static_cast<uint32_t>(number / grid_[0] / grid_[1])};
    for (Warp& warp : block_.warps) {
      const int count = std::min(kLanes, block_.threads - warp.number * kLanes);
      warp.exited = count == kLanes ? 0 : ~((1u << count) - 1);
      warp.at_barrier = warp.waiting = 0;
      warp.at.fill(0);
      warp.block_epoch.fill(0);
      warp.warp_epoch.fill(0);
      warp.has_parted = false;
      warp.at_warpgroup = -1;
      if (program_.has_products) {
        warp.products = std::make_shared<ProductRegisters>(program_.register_bytes);
      }
      // What no instruction wrote is NaN.
      std::memset(warp.registers, 0xff, program_.first_constant);
      set_specials(warp);
    }
    begin_block(block_);
    steps_ = 0;
    std::vector<Warp*> able;
    while (true) {
      able.clear();
      bool running = false;
      for (Warp& warp : block_.warps) {
        if (~warp.exited != 0) running = true;
        const bool is_stopped =
            warp.at_warpgroup >= 0 || (warp.exited | warp.at_barrier) == kAllLanes;
        if (!is_stopped) able.push_back(&warp);
      }
      if (!running) break;
      if (able.empty()) {
        for (Warp& warp : block_.warps) {
          if (warp.at_warpgroup < 0) continue;
          const Instruction& instruction = program_.code[static_cast<size_t>(warp.at_warpgroup)];
          fail_meeting({block_, warp, instruction, kAllLanes});
        }
        pass_barrier();
        continue;
      }
      const int budget = 1 << (random_() % 12);
      run_warp(*able[random_() % able.size()], budget);
      if (++turns_ % kTurnsBetweenLooks == 0 && look_ != nullptr) look_();
      if (steps_ > kMostSteps) throw Fault("kernel " + program_.name + " does not end");
    }
    end_block(block_);
  }

  // Runs lanes of a warp for some steps, the lowest first.
  void run_warp(Warp& warp, int budget) {
    const Instruction* const code = program_.code.data();
    const int before = budget;
    while (budget > 0 && warp.at_warpgroup < 0) {
      const Lanes live = ~(warp.exited | warp.at_barrier);
      if (live == 0) break;
      const Lanes candidates = live & ~warp.waiting;
      if (candidates == 0) fail_waiting(warp, live);
      int pc = INT_MAX, next = INT_MAX;
      for (Lanes rest = candidates; rest != 0; rest &= rest - 1) {
        pc = std::min(pc, warp.at[std::countr_zero(rest)]);
      }
      Lanes here = 0;
      for (Lanes rest = live; rest != 0; rest &= rest - 1) {
        const int lane = std::countr_zero(rest);
        if (warp.at[lane] == pc) {
          here |= 1u << lane;
        } else if (warp.at[lane] > pc) {
          next = std::min(next, warp.at[lane]);
        }
      }
      warp.waiting &= ~here;
      const auto run =
          program_.has_products ? &Machine::run_lanes<true> : &Machine::run_lanes<false>;
      budget = (this->*run)(warp, code, pc, next, here, here == live, budget);
    }
    steps_ += before - budget;
  }

  // Runs the lanes `here` from `pc` on until they part, meet others (at `next`) or have to stop.
  // Leaves where they are in `warp.at`; returns what is left of the budget.
  // `kWatched`: whether products of warpgroups may be under way.
  template <bool kWatched>
  int run_lanes(Warp& warp, const Instruction* code, int pc, int next, Lanes here, bool alone,
                int budget) {
    while (true) {
      const Instruction& instruction = code[pc];
      Lanes active = here;
      if (instruction.guarded) {
        const Lanes guard = *warp.lanes<Lanes>(instruction.guard.at);
        active &= instruction.guard_negated ? ~guard : guard;
      }
      ++instruction.runs;
      --budget;
      if (kWatched && active != 0) {
        const Step step{block_, warp, instruction, active};
        watch_registers(step);
        if (instruction.kind == Kind::kExit) watch_exit(step);
      }
      switch (instruction.kind) {
        case Kind::kPlain:
          if (active != 0) instruction.run({block_, warp, instruction, active});
          break;
        case Kind::kTogether:
          if (active == 0) break;
          if (active != ~warp.exited) return park(warp, pc, here, active, budget);
          instruction.run({block_, warp, instruction, active});
          break;
        case Kind::kMembers:
          if (active == 0) break;
          if (!run_members(warp, instruction, active)) return park(warp, pc, here, active, budget);
          break;
        case Kind::kWarpgroup:
          if (active == 0) break;
          if (active != ~warp.exited) return park(warp, pc, here, active, budget);
          if (!run_warpgroup({block_, warp, instruction, active}, pc)) {
            return leave(warp, pc, here, budget);
          }
          break;
        case Kind::kBranch:
          if (active == here) {
            pc = instruction.target - 1;  // of all that are here
            if (!alone) return leave(warp, pc + 1, here, budget);
          } else if (active != 0) {
            leave(warp, instruction.target, active, budget);
            return leave(warp, pc + 1, here & ~active, budget);
          }
          break;
        case Kind::kTable:
          leave(warp, pc + 1, here, budget);
          branch_by_table(warp, instruction, active);
          return budget;
        case Kind::kBarrier:
          leave(warp, pc + 1, here, budget);
          leave(warp, pc, active, budget);
          warp.at_barrier |= active;
          return budget;
        case Kind::kExit:
          warp.exited |= active;
          return leave(warp, pc + 1, here, budget);
      }
      ++pc;
      if (pc == next || budget <= 0) return leave(warp, pc, here, budget);
    }
  }

  static int leave(Warp& warp, int pc, Lanes lanes, int budget) {
    for_lanes(lanes, [&](int lane) { warp.at[lane] = pc; });
    return budget;
  }

  // Those that are active wait until all are there that they need.
  static int park(Warp& warp, int pc, Lanes here, Lanes active, int budget) {
    leave(warp, pc + 1, here, budget);
    leave(warp, pc, active, budget);
    warp.waiting |= active;
    return budget;
  }

  // Runs it for each set of lanes that name each other; false where one of them is not here yet.
  bool run_members(Warp& warp, const Instruction& instruction, Lanes active) {
    const uint32_t* const members = warp.lanes<uint32_t>(instruction.members);
    const auto group_of = [&](Lanes rest) {
      const Lanes mask = members[std::countr_zero(rest)];
      Lanes group = 0;
      for_lanes(rest, [&](int lane) { group |= members[lane] == mask ? 1u << lane : 0; });
      return group;
    };
    for (Lanes rest = active; rest != 0;) {
      const Lanes group = group_of(rest);
      const Lanes mask = members[std::countr_zero(rest)];
      if ((group & ~mask) != 0) {
        fail({block_, warp, instruction, active}, std::countr_zero(group & ~mask),
             "is not among the members it names: " + hexadecimal(mask));
      }
      if ((mask & ~warp.exited & ~group) != 0) return false;
      rest &= ~group;
    }
    for (Lanes rest = active; rest != 0;) {
      const Lanes group = group_of(rest);
      instruction.run({block_, warp, instruction, group});
      rest &= ~group;
    }
    return true;
  }

  [[noreturn]] void fail_waiting(Warp& warp, Lanes waiting) {
    const int lane = std::countr_zero(waiting);
    const Instruction& instruction = program_.code[static_cast<size_t>(warp.at[lane])];
    Lanes here = 0;
    for_lanes(waiting, [&](int each) {
      if (warp.at[each] == warp.at[lane]) here |= 1u << each;
    });
    Lanes needed = ~warp.exited;
    if (instruction.kind == Kind::kMembers) {
      needed &= warp.lanes<uint32_t>(instruction.members)[lane];
    }
    fail({block_, warp, instruction, here}, lane,
         "waits for lanes " + hexadecimal(needed & ~here) + " of its warp, which never come here");
  }

  void branch_by_table(Warp& warp, const Instruction& instruction, Lanes active) {
    const auto& targets = program_.tables[static_cast<size_t>(instruction.target)];
    const uint32_t* const index = warp.lanes<uint32_t>(instruction.at[0]);
    for_lanes(active, [&](int lane) {
      if (index[lane] >= targets.size()) {
        fail({block_, warp, instruction, active}, lane, "goes past the end of its table");
      }
      warp.at[lane] = targets[index[lane]];
    });
  }

  // All that have not exited wait at a barrier: lets them go on, or says why they cannot.
  void pass_barrier() {
    const Instruction* first = nullptr;
    int64_t votes = 0, threads = 0;
    for (Warp& warp : block_.warps) {
      const Lanes waiting = ~warp.exited;
      if (waiting == 0) continue;
      const int own = warp.at[std::countr_zero(waiting)];
      for_lanes(waiting, [&](int lane) {
        const Instruction& instruction = program_.code[static_cast<size_t>(warp.at[lane])];
        const Step step{block_, warp, instruction, waiting};
        if (first == nullptr) first = &instruction;
        if (instruction.constants[0] != first->constants[0] ||
            instruction.constants[1] != first->constants[1]) {
          fail(step, lane,
               "waits for all threads of the block, while others wait at line " +
                   std::to_string(first->line) + ": " + first->text);
        }
        if (instruction.constants[2] != 0 && warp.at[lane] != own) {
          fail(step, lane,
               "is a barrier for whole warps, and another lane of this one waits at line " +
                   std::to_string(program_.code[static_cast<size_t>(own)].line));
        }
        ++threads;
        if (static_cast<Gathers>(instruction.constants[0]) != Gathers::kNothing) {
          const Lanes vote = *warp.lanes<Lanes>(instruction.at[1]) ^ instruction.at[2];
          votes += vote >> lane & 1;
        }
      });
    }
    for (Warp& warp : block_.warps) release(warp, votes, threads);
    ++counters_.barriers;
    passed_barrier(block_);
  }

  void release(Warp& warp, int64_t votes, int64_t threads) {
    const Lanes lanes = ~warp.exited;
    for_lanes(lanes, [&](int lane) {
      const Instruction& instruction = program_.code[static_cast<size_t>(warp.at[lane])];
      const auto set = [&](bool is_true) {
        Lanes& predicate = *warp.lanes<Lanes>(instruction.at[0]);
        predicate = (predicate & ~(1u << lane)) | (is_true ? 1u << lane : 0);
      };
      switch (static_cast<Gathers>(instruction.constants[0])) {
        case Gathers::kNothing:
          break;
        case Gathers::kAny:
          set(votes > 0);
          break;
        case Gathers::kAll:
          set(votes == threads);
          break;
        case Gathers::kCount:
          warp.lanes<uint32_t>(instruction.at[0])[lane] = static_cast<uint32_t>(votes);
          break;
      }
      ++warp.at[lane];
      ++warp.block_epoch[lane];
    });
    warp.at_barrier = 0;
  }

  const Program& program_;
  const Extent grid_, threads_;
  std::mt19937 random_;
  void (*look_)();
  Block block_;
  Counters counters_;
  size_t dynamic_bytes_ = 0;
  int64_t steps_ = 0, turns_ = 0;
};

}  // namespace

void fail(const Step& step, int lane, const std::string& what) {
  const Block& block = step.block;
  const Instruction& instruction = step.instruction;
  throw Fault("kernel " + *block.kernel + ", line " + std::to_string(instruction.line) + ": " +
              instruction.text + " in block (" + std::to_string(block.index[0]) + ", " +
              std::to_string(block.index[1]) + ", " + std::to_string(block.index[2]) +
              "), thread " + std::to_string(step.warp.thread(lane)) + " (warp " +
              std::to_string(step.warp.number) + ", lane " + std::to_string(lane) + ") " + what);
}

Counters run(const Program& program, const Extent& grid, const Extent& threads,
             const std::string& parameters, size_t shared_bytes, uint32_t seed, void (*look)()) {
  for (const Instruction& each : program.code) each.runs = 0;
  begin_launch(program.name);
  try {
    Machine machine(program, grid, threads, seed, look);
    const Counters counters = machine.run(parameters, shared_bytes);
    end_launch();
    return counters;
  } catch (...) {
    end_launch();
    throw;
  }
}

}  // namespace xlnet_fast::ptx
