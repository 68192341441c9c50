#include "fiber.h"

#include <cstdint>

#ifndef XLNET_FAST_UCONTEXT
// xlnet_fast_switch(save, load): the registers that a call must keep go to the old stack, its
// pointer to *save; those of the stack at `load` come back. A new stack begins in
// xlnet_fast_enter, with its function and argument in two of these registers.
extern "C" void xlnet_fast_switch(void** save, void* load);
extern "C" void xlnet_fast_enter();
asm(R"(
.text
.hidden xlnet_fast_switch
.globl xlnet_fast_switch
xlnet_fast_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.hidden xlnet_fast_enter
.globl xlnet_fast_enter
xlnet_fast_enter:
  movq %r13, %rdi
  call *%r12
  ud2
)");
#endif

namespace xlnet_fast::cuda::emulation {

#ifdef XLNET_FAST_UCONTEXT

namespace {
// makecontext passes ints only.
void enter(unsigned f_high, unsigned f_low, unsigned a_high, unsigned a_low) {
  const auto join = [](unsigned high, unsigned low) {
    return static_cast<uintptr_t>(uint64_t{high} << 32 | low);
  };
  reinterpret_cast<Fiber::Function>(join(f_high, f_low))(
      reinterpret_cast<void*>(join(a_high, a_low)));
}
}  // namespace

void Fiber::prepare(Function function, void* argument) {
  if (!stack_) stack_.reset(new char[kStackBytes]);
  getcontext(&context_);
  context_.uc_stack.ss_sp = stack_.get();
  context_.uc_stack.ss_size = kStackBytes;
  context_.uc_link = nullptr;
  const auto f = static_cast<uint64_t>(reinterpret_cast<uintptr_t>(function));
  const auto a = static_cast<uint64_t>(reinterpret_cast<uintptr_t>(argument));
  makecontext(&context_, reinterpret_cast<void (*)()>(enter), 4, static_cast<unsigned>(f >> 32),
              static_cast<unsigned>(f), static_cast<unsigned>(a >> 32), static_cast<unsigned>(a));
}

void Fiber::switch_to(Fiber& from, Fiber& to) { swapcontext(&from.context_, &to.context_); }

#else

void Fiber::prepare(Function function, void* argument) {
  if (!stack_) stack_.reset(new char[kStackBytes]);
  auto top = reinterpret_cast<uintptr_t>(stack_.get() + kStackBytes);
  top &= ~uintptr_t{15};
  // What xlnet_fast_switch takes from a stack: r15 r14 r13 r12 rbx rbp and where to return to. The
  // call in xlnet_fast_enter finds the stack as the ABI wants it, at a multiple of 16.
  auto* frame = reinterpret_cast<void**>(top) - 9;
  frame[0] = frame[1] = nullptr;
  frame[2] = argument;
  frame[3] = reinterpret_cast<void*>(function);
  frame[4] = frame[5] = nullptr;
  frame[6] = reinterpret_cast<void*>(xlnet_fast_enter);
  frame[7] = frame[8] = nullptr;
  stack_pointer_ = frame;
}

void Fiber::switch_to(Fiber& from, Fiber& to) {
  xlnet_fast_switch(&from.stack_pointer_, to.stack_pointer_);
}

#endif

}  // namespace xlnet_fast::cuda::emulation
