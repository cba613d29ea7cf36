#pragma once

#include <atomic>
#include <csetjmp>
#include <cstddef>
#include <cstdint>

/// A file that is cut short takes the pages of its mappings away, and touching them raises SIGBUS.
/// The handler here puts zeroed anonymous pages over the whole mapping instead, so that the access
/// goes on, and marks the mapping as poisoned.
namespace vduse::sigbus {

/// Installs the handler; `guard` does so too.
void install();

/// From here to `endAttempt` a SIGBUS of this thread, whatever was touched, jumps to `stopped` (with 1) and
/// ends the attempt: for accesses that can be made in another way. sigsetjmp needs to save no mask.
void beginAttempt(sigjmp_buf* stopped);
void endAttempt();

/// One guarded mapping. Slots are reused and never freed, since the handler walks them without a
/// lock.
struct Slot {
  std::atomic<uintptr_t> start{0};
  std::atomic<uintptr_t> end{0};
  std::atomic<int> protection{0};
  std::atomic<bool> poisoned{false};
};

Slot* guard(void* address, size_t length, int protection);

/// Must come before munmap: the handler maps over whatever lies in a guarded range.
void unguard(Slot* slot);

/// How many SIGBUS were absorbed in this process.
extern std::atomic<uint32_t> absorbed;

}  // namespace vduse::sigbus
