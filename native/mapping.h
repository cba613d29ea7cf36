#pragma once

#include <napi.h>
#include <cstddef>

#include "sigbus.h"

namespace vduse {

/// Pages that a Mapping and its ArrayBuffer share: unmapped when both are gone, or at once by
/// `unmap`.
class Region {
 public:
  /// Takes over mapped memory; `length` is that of whole pages.
  Region(void* address, size_t length, sigbus::Slot* slot)
      : address_(address), length_(length), slot_(slot) {}
  ~Region() { unmap(); }
  Region(const Region&) = delete;
  Region& operator=(const Region&) = delete;

  void unmap();
  void* address() const { return address_; }
  size_t length() const { return length_; }
  bool poisoned() const { return poisoned_ || (slot_ != nullptr && slot_->poisoned); }

 private:
  void* address_;
  size_t length_;
  sigbus::Slot* slot_;
  bool poisoned_ = false;
};

}  // namespace vduse
