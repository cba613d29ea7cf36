#include "copy.h"

#include <csetjmp>
#include <cstring>

#include "sigbus.h"

#ifdef __SSE2__
#include <emmintrin.h>
#endif

namespace vduse {

namespace {

/// To a page of the file. Whoever wants it next is the disk, so it need not displace what is in the
/// processor's caches, nor be loaded there before: a third less time for 4 KiB at random.
void store(char* to, const char* from, size_t length) {
#ifdef __SSE2__
  constexpr size_t kLine = 64;
  if (reinterpret_cast<uintptr_t>(to) % sizeof(__m128i) == 0 && length % kLine == 0) {
    for (const char* end = from + length; from < end; from += kLine, to += kLine) {
      const auto* source = reinterpret_cast<const __m128i*>(from);
      auto* target = reinterpret_cast<__m128i*>(to);
      const __m128i a = _mm_loadu_si128(source), b = _mm_loadu_si128(source + 1),
                    c = _mm_loadu_si128(source + 2), d = _mm_loadu_si128(source + 3);
      _mm_stream_si128(target, a);
      _mm_stream_si128(target + 1, b);
      _mm_stream_si128(target + 2, c);
      _mm_stream_si128(target + 3, d);
    }
    // Such stores are seen in any order until now.
    _mm_sfence();
    return;
  }
#endif
  std::memcpy(to, from, length);
}

}  // namespace

bool copyRow(const IoRow& row, const iovec* vectors) {
  sigjmp_buf stopped;
  if (sigsetjmp(stopped, 0) != 0) return false;
  sigbus::beginAttempt(&stopped);
  auto* at = reinterpret_cast<char*>(row.map + row.offset);
  const bool reads = row.kind == static_cast<uint32_t>(IoKind::Read);
  for (uint32_t i = 0; i < row.vectorCount; i++) {
    const iovec& vector = vectors[i];
    auto* memory = static_cast<char*>(vector.iov_base);
    if (reads) {
      std::memcpy(memory, at, vector.iov_len);
    } else {
      store(at, memory, vector.iov_len);
    }
    at += vector.iov_len;
  }
  sigbus::endAttempt();
  return true;
}

}  // namespace vduse
