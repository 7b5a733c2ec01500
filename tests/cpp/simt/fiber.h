// Stacks to switch between. A fiber that is never resumed again is dropped as it is: nothing on its stack is destroyed.
#pragma once

#include <cstddef>

namespace simt {

/// A place of execution: the thread that runs, or, after start(), a function on a stack of its own.
class Fiber {
 public:
  Fiber();
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  /// The next switch to this fiber calls `entry`, which must not return. Fibers of different `number` have their stacks
  /// in different lines of the caches.
  void start(void (*entry)(), std::size_t number);
  /// Leaves `from`, which is running, and goes on with this one. `last`: `from` will not be resumed.
  void resume_from(Fiber& from, bool last = false);

  struct State;

 private:
  State* const state_;
};

}  // namespace simt
