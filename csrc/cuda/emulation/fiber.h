// Fibers: functions that stop in their middle and go on later, each on a stack of its own.
#pragma once

#include <cstddef>
#include <memory>

#if !defined(__x86_64__) || defined(XLNET_FAST_PORTABLE_FIBERS)
#define XLNET_FAST_UCONTEXT 1
#include <ucontext.h>
#endif

namespace xlnet_fast::cuda::emulation {

class Fiber {
 public:
  using Function = void (*)(void* argument);

  // A fiber that begins with function(argument); the function must not return but end with a last
  // switch_to.
  void prepare(Function function, void* argument);

  // Saves where `from` is and goes on with `to`; returns when something switches back.
  static void switch_to(Fiber& from, Fiber& to);

 private:
  static constexpr size_t kStackBytes = 128 * 1024;
  std::unique_ptr<char[]> stack_;
#ifdef XLNET_FAST_UCONTEXT
  ucontext_t context_;
#else
  void* stack_pointer_ = nullptr;
#endif
};

}  // namespace xlnet_fast::cuda::emulation
