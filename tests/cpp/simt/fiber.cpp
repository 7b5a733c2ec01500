#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <new>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
// Functions that a fiber enters and never leaves: what they note on entry would add up.
#define LG_ONE_WAY __attribute__((no_sanitize("thread")))
#else
#define LG_ONE_WAY
#endif

#if defined(__x86_64__)
// The callee-saved registers stay on the stack that is left. (The mode of rounding is nobody's here.)
extern "C" void simt_switch_stack(void** left, void* entered);
asm(R"(
.text
.p2align 4
.type simt_switch_stack, @function
simt_switch_stack:
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
.size simt_switch_stack, .-simt_switch_stack
)");
#endif

namespace simt {

struct Fiber::State {
  void (*entry)() = nullptr;
  char* memory = nullptr;  ///< a guard page and the stack above it; none for the thread itself
#if defined(__x86_64__)
  void* stack_pointer = nullptr;
#else
  ucontext_t context;
#endif
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
  const void* bottom = nullptr;
  std::size_t size = 0;
#endif
#if defined(__SANITIZE_THREAD__)
  void* tsan = nullptr;
#endif
};

namespace {

constexpr std::size_t kStackBytes = 128 * 1024;
// Stacks a power of two apart would share the same few lines of every cache.
constexpr std::size_t kColorBytes = 256;
constexpr std::size_t kColors = 64;

struct Switch {
  Fiber::State* from = nullptr;
  Fiber::State* to = nullptr;
};
thread_local Switch last_switch;

// A stack is entered by returning into this function, or by coming back from switch_stack().
LG_ONE_WAY void enter() {
#if defined(__SANITIZE_ADDRESS__)
  Fiber::State& from = *last_switch.from;
  __sanitizer_finish_switch_fiber(nullptr, &from.bottom, &from.size);
#endif
  last_switch.to->entry();
  __builtin_trap();
}

LG_ONE_WAY void switch_stack(Fiber::State& from, Fiber::State& to, [[maybe_unused]] bool last) {
  last_switch = {&from, &to};
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(last ? nullptr : &from.fake_stack, to.bottom, to.size);
#endif
#if defined(__SANITIZE_THREAD__)
  from.tsan = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(to.tsan, __tsan_switch_to_fiber_no_sync);
#endif
#if defined(__x86_64__)
  simt_switch_stack(&from.stack_pointer, to.stack_pointer);
#else
  swapcontext(&from.context, &to.context);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

}  // namespace

Fiber::Fiber() : state_(new State) {}

Fiber::~Fiber() {
  if (state_->memory != nullptr) {
#if defined(__SANITIZE_THREAD__)
    __tsan_destroy_fiber(state_->tsan);
#endif
    munmap(state_->memory, kStackBytes);
  }
  delete state_;
}

void Fiber::start(void (*entry)(), std::size_t number) {
  State& s = *state_;
  if (s.memory == nullptr) {
    void* memory =
        mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    s.memory = static_cast<char*>(memory);
    mprotect(s.memory, static_cast<std::size_t>(sysconf(_SC_PAGESIZE)), PROT_NONE);
#if defined(__SANITIZE_THREAD__)
    s.tsan = __tsan_create_fiber(0);
#endif
  }
  s.entry = entry;
  const std::size_t size = kStackBytes - number % kColors * kColorBytes;
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(s.memory, kStackBytes);
  s.fake_stack = nullptr;
  s.bottom = s.memory;
  s.size = size;
#endif
#if defined(__x86_64__)
  // What simt_switch_stack() leaves: six registers and where to go on. A function expects the address that it returns
  // to 8 bytes below a multiple of 16.
  auto* words = reinterpret_cast<std::uintptr_t*>(s.memory + size);
  for (int i = 1; i <= 8; ++i) words[-i] = 0;
  words[-2] = reinterpret_cast<std::uintptr_t>(&enter);
  s.stack_pointer = words - 8;
#else
  getcontext(&s.context);
  s.context.uc_stack.ss_sp = s.memory;
  s.context.uc_stack.ss_size = size;
  s.context.uc_link = nullptr;
  makecontext(&s.context, enter, 0);
#endif
}

LG_ONE_WAY void Fiber::resume_from(Fiber& from, bool last) {
  switch_stack(*from.state_, *state_, last);
}

}  // namespace simt
