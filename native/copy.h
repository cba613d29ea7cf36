#pragma once

#include <sys/uio.h>

#include "io-row.h"

namespace vduse {

/// Copies between the file's pages at `row.map` and the vectors of a read or write. False: a page of
/// either side could not be had (the file was cut short, its disk failed or is full, guest memory
/// went away), and any part may have been copied.
bool copyRow(const IoRow& row, const iovec* vectors);

/// Has the processor fetch what `copyRow` will need first, while another row is copied: of pages at random,
/// the walk through the page tables takes as long as a good part of the copy.
inline void prepareCopy(const IoRow& row) {
  if (row.map != 0) __builtin_prefetch(reinterpret_cast<const char*>(row.map + row.offset));
}

}  // namespace vduse
