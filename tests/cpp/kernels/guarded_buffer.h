#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>

namespace lambda_gelu::kernels::testing {

/// Pages around a buffer that may not be touched; the buffer ends, or starts, at one.
class GuardedBuffer {
 public:
  explicit GuardedBuffer(std::size_t bytes) : page_(static_cast<std::size_t>(sysconf(_SC_PAGESIZE))) {
    inner_ = (bytes + page_ - 1) / page_ * page_;
    base_ = static_cast<char*>(
        mmap(nullptr, inner_ + 2 * page_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    mprotect(base_, page_, PROT_NONE);
    mprotect(base_ + page_ + inner_, page_, PROT_NONE);
  }
  ~GuardedBuffer() { munmap(base_, inner_ + 2 * page_); }
  GuardedBuffer(const GuardedBuffer&) = delete;
  GuardedBuffer& operator=(const GuardedBuffer&) = delete;
  char* ending(std::size_t bytes) { return base_ + page_ + inner_ - bytes; }
  char* starting() { return base_ + page_; }

 private:
  std::size_t page_, inner_;
  char* base_;
};

}  // namespace lambda_gelu::kernels::testing
