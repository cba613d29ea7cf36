#pragma once

#include <cstddef>
#include <cstdint>

namespace vduse {

/// Sends `count` signals. Each is three words: a descriptor, a queue index (VDUSE_VQ_INJECT_IRQ) or
/// -1 (add 1 to an eventfd), and, written here, the errno: 0 when it was sent.
void sendSignals(int32_t* triples, size_t count);

}  // namespace vduse
