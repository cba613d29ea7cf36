#include "copy.h"

#include <csetjmp>
#include <cstring>

#include "sigbus.h"

namespace vduse {

bool copyRow(const IoRow& row, const iovec* vectors) {
  sigjmp_buf stopped;
  if (sigsetjmp(stopped, 0) != 0) return false;
  sigbus::beginAttempt(&stopped);
  auto* at = reinterpret_cast<char*>(row.map + row.offset);
  const bool reads = row.kind == static_cast<uint32_t>(IoKind::Read);
  for (uint32_t i = 0; i < row.vectorCount; i++) {
    const iovec& vector = vectors[i];
    if (reads) {
      std::memcpy(vector.iov_base, at, vector.iov_len);
    } else {
      std::memcpy(at, vector.iov_base, vector.iov_len);
    }
    at += vector.iov_len;
  }
  sigbus::endAttempt();
  return true;
}

}  // namespace vduse
