#pragma once

#include <sys/uio.h>
#include <cstddef>
#include <cstdint>

/// The I/O table of lib/native/io-table.ts as native code sees it.
namespace vduse {

enum class IoKind : uint32_t { Read = 0, Write = 1, Sync = 2, Allocate = 3 };

/// IoFlag.Watch.
constexpr uint32_t kWatch = 2;

struct IoRow {
  uint32_t kind;
  int32_t fd;
  uint64_t offset;
  uint64_t length;
  uint32_t firstVector;
  uint32_t vectorCount;
  uint32_t rwFlags;
  int32_t result;
  uint32_t user;
  uint32_t flags;
  uint32_t owner;
  uint32_t token;
  union {
    /// Reads and writes: where the file's first byte is mapped; 0: nowhere.
    uint64_t map;
    /// fallocate's.
    uint32_t mode;
  };
};
static_assert(sizeof(IoRow) == 64 && sizeof(iovec) == 16);
static_assert(offsetof(IoRow, offset) == 8 && offsetof(IoRow, firstVector) == 24);
static_assert(offsetof(IoRow, rwFlags) == 32 && offsetof(IoRow, result) == 36);
static_assert(offsetof(IoRow, user) == 40 && offsetof(IoRow, flags) == 44);
static_assert(offsetof(IoRow, map) == 56 && offsetof(IoRow, mode) == 56);

/// IOV_MAX, the most vectors one call takes.
constexpr uint32_t kMaxVectors = 1024;

/// The rows and vectors of a call, checked against the buffers they lie in.
struct IoTableView {
  IoRow* rows;
  uint32_t count;
  const iovec* vectors;
  uint64_t vectorCapacity;

  /// A row whose vectors are not all in the table, or of an unknown kind, is refused as EINVAL.
  bool valid(const IoRow& row) const {
    return row.kind <= static_cast<uint32_t>(IoKind::Allocate) && row.vectorCount <= kMaxVectors &&
           uint64_t{row.firstVector} + row.vectorCount <= vectorCapacity;
  }
};

/// Runs one operation to its end: bytes moved, 0, or -errno. `vectors` is not changed.
int32_t runRow(const IoRow& row, const iovec* vectors);

}  // namespace vduse
