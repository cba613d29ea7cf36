#pragma once

#include <cstdint>
#include <ctime>

namespace vduse {

/// A time span of `us` microseconds, as system calls take it.
inline timespec spanOfUs(int64_t us) {
  timespec span = {};
  span.tv_sec = us / 1000000;
  span.tv_nsec = us % 1000000 * 1000;
  return span;
}

}  // namespace vduse
