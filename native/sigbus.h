#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

/// A file that is cut short takes the pages of its mappings away, and touching them raises SIGBUS.
/// The handler here puts zeroed anonymous pages over the whole mapping instead, so that the access
/// goes on, and marks the mapping as poisoned.
namespace vduse::sigbus {

/// One guarded mapping. Slots are reused and never freed, since the handler walks them without a
/// lock.
struct Slot {
  std::atomic<uintptr_t> start{0};
  std::atomic<uintptr_t> end{0};
  std::atomic<int> protection{0};
  std::atomic<bool> poisoned{false};
};

/// Installs the handler with the first call of the process.
Slot* guard(void* address, size_t length, int protection);

/// Must come before munmap: the handler maps over whatever lies in a guarded range.
void unguard(Slot* slot);

/// How many SIGBUS were absorbed in this process.
extern std::atomic<uint32_t> absorbed;

}  // namespace vduse::sigbus
