#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <unistd.h>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <ctime>

#include "args.h"
#include "copy.h"
#include "duration.h"
#include "exports.h"
#include "interrupt.h"
#include "io-row.h"
#include "io.h"
#include "signals.h"
#include "vduse-uapi.h"

namespace vduse {

namespace {

ssize_t transfer(const IoRow& row, const iovec* vectors, uint32_t count, uint64_t done) {
  const auto offset = static_cast<off_t>(row.offset + done);
  const int flags = static_cast<int>(row.rwFlags);
  if (count == 1 && flags == 0) {
    return row.kind == static_cast<uint32_t>(IoKind::Read)
               ? ::pread(row.fd, vectors->iov_base, vectors->iov_len, offset)
               : ::pwrite(row.fd, vectors->iov_base, vectors->iov_len, offset);
  }
  const int vectorCount = static_cast<int>(count);
  return row.kind == static_cast<uint32_t>(IoKind::Read)
             ? ::preadv2(row.fd, vectors, vectorCount, offset, flags)
             : ::pwritev2(row.fd, vectors, vectorCount, offset, flags);
}

/// Drops the first `bytes` of the vectors.
void advance(iovec*& vectors, uint32_t& count, size_t bytes) {
  while (count > 0 && bytes >= vectors->iov_len) {
    bytes -= vectors->iov_len;
    ++vectors;
    --count;
  }
  if (count == 0) return;
  vectors->iov_base = static_cast<char*>(vectors->iov_base) + bytes;
  vectors->iov_len -= bytes;
}

/// Goes on after a short transfer, which a signal or the end of a device may have caused.
int32_t transferRest(const IoRow& row, const iovec* vectors, uint64_t done, uint64_t total) {
  iovec copy[kMaxVectors];
  std::memcpy(copy, vectors, row.vectorCount * sizeof *copy);
  iovec* rest = copy;
  uint32_t count = row.vectorCount;
  advance(rest, count, done);
  while (done < total) {
    const ssize_t moved = transfer(row, rest, count, done);
    if (moved == 0) break;
    if (moved < 0) {
      if (errno == EINTR) continue;
      return -errno;
    }
    done += static_cast<uint64_t>(moved);
    advance(rest, count, static_cast<size_t>(moved));
  }
  return static_cast<int32_t>(done);
}

/// What the vectors hold in all; -EINVAL for more than the 31 bits of a result can say.
int32_t totalOf(const IoRow& row, const iovec* vectors) {
  uint64_t total = 0;
  for (uint32_t i = 0; i < row.vectorCount; i++) {
    if (vectors[i].iov_len > INT32_MAX) return -EINVAL;
    total += vectors[i].iov_len;
  }
  return total > INT32_MAX ? -EINVAL : static_cast<int32_t>(total);
}

int32_t readOrWrite(const IoRow& row, const iovec* vectors) {
  const int32_t sum = totalOf(row, vectors);
  if (sum < 0) return sum;
  const auto total = static_cast<uint64_t>(sum);
  ssize_t moved;
  do {
    moved = transfer(row, vectors, row.vectorCount, 0);
  } while (moved < 0 && errno == EINTR);
  if (moved < 0) return -errno;
  if (static_cast<uint64_t>(moved) == total || moved == 0 || row.rwFlags != 0) {
    return static_cast<int32_t>(moved);
  }
  return transferRest(row, vectors, static_cast<uint64_t>(moved), total);
}

template <class Call>
int32_t untilDone(Call call) {
  while (call() != 0) {
    if (errno != EINTR) return -errno;
  }
  return 0;
}

}  // namespace

int32_t runRow(const IoRow& row, const iovec* vectors) {
  switch (static_cast<IoKind>(row.kind)) {
    case IoKind::Read:
    case IoKind::Write:
      return readOrWrite(row, vectors);
    case IoKind::Sync:
      return untilDone([&] { return ::fdatasync(row.fd); });
    case IoKind::Allocate:
      return untilDone([&] {
        return ::fallocate(row.fd, static_cast<int>(row.mode), static_cast<off_t>(row.offset),
                           static_cast<off_t>(row.length));
      });
  }
  return -EINVAL;
}

namespace {

/// Watched copies of this thread that waited.
thread_local int32_t slow = 0;

long majorFaults() {
  rusage usage = {};
  ::getrusage(RUSAGE_THREAD, &usage);
  return usage.ru_majflt;
}

/// By a copy where the row has the file's mapping; what fails there is done, or refused, by the kernel.
int32_t runHere(const IoRow& row, const iovec* vectors) {
  const bool transfers = row.kind <= static_cast<uint32_t>(IoKind::Write);
  if (transfers && row.map != 0) {
    const int32_t total = totalOf(row, vectors);
    const bool watched = (row.flags & kWatch) != 0;
    const long before = watched ? majorFaults() : 0;
    const bool copied = total >= 0 && copyRow(row, vectors);
    if (watched && majorFaults() != before) ++slow;
    if (copied) return total;
  }
  return runRow(row, vectors);
}

}  // namespace

bool takeIoTable(napi_env env, const napi_value* args, IoTableView* view) {
  Bytes rows, vectors;
  int64_t first, count;
  if (!takeArrayBuffer(env, args[0], "rows", &rows) ||
      !takeArrayBuffer(env, args[1], "vectors", &vectors)) {
    return false;
  }
  const double capacity = static_cast<double>(rows.length / sizeof(IoRow));
  if (!takeInteger(env, args[2], "first", 0, capacity, &first) ||
      !takeInteger(env, args[3], "count", 0, capacity - static_cast<double>(first), &count)) {
    return false;
  }
  view->rows = reinterpret_cast<IoRow*>(rows.data) + first;
  view->count = static_cast<uint32_t>(count);
  view->vectors = reinterpret_cast<const iovec*>(vectors.data);
  view->vectorCapacity = vectors.length / sizeof(iovec);
  return true;
}

napi_value slowCopies(napi_env env, napi_callback_info) {
  napi_value value = nullptr;
  napi_create_int32(env, slow, &value);
  return value;
}

napi_value ioRun(napi_env env, napi_callback_info raw) {
  size_t argc = 4;
  napi_value args[4];
  napi_get_cb_info(env, raw, &argc, args, nullptr, nullptr);
  IoTableView view;
  if (!takeIoTable(env, args, &view)) return nullptr;
  for (uint32_t i = 0; i < view.count; i++) {
    IoRow& row = view.rows[i];
    if (i + 1 < view.count) prepareCopy(view.rows[i + 1]);
    row.result = view.valid(row) ? runHere(row, view.vectors + row.firstVector) : -EINVAL;
  }
  return nullptr;
}

void sendSignals(int32_t* triples, size_t count) {
  const uint64_t one = 1;
  // A peer can have made its eventfd blocking, and filled it.
  if (count > 0) limitWait();
  for (size_t i = 0; i < count; i++) {
    int32_t* triple = triples + i * 3;
    const auto index = static_cast<uint32_t>(triple[1]);
    const bool sent = triple[1] == -1
                          ? ::write(triple[0], &one, sizeof one) == sizeof one
                          : ::ioctl(triple[0], uapi::VDUSE_VQ_INJECT_IRQ, &index) == 0;
    const int error = sent ? 0 : errno;
    // A full eventfd is readable already, which is all a signal is for.
    triple[2] = triple[1] == -1 && error == EAGAIN ? 0 : error;
  }
}

namespace {

bool takeSignals(napi_env env, napi_value array, napi_value count, int32_t** triples,
                 size_t* howMany) {
  int64_t signals;
  if (!takeInteger(env, count, "signalCount", 0, kMaxI32, &signals)) return false;
  *howMany = static_cast<size_t>(signals);
  // Most entries carry none: don't even look at the array.
  return signals == 0 || takeInt32Array(env, array, "signals", *howMany * 3, triples);
}

}  // namespace

napi_value sendSignalsNow(napi_env env, napi_callback_info raw) {
  size_t argc = 2;
  napi_value args[2];
  napi_get_cb_info(env, raw, &argc, args, nullptr, nullptr);
  int32_t* signals = nullptr;
  size_t signalCount;
  if (!takeSignals(env, args[0], args[1], &signals, &signalCount)) return nullptr;
  sendSignals(signals, signalCount);
  return nullptr;
}

napi_value clockUs(napi_env env, napi_callback_info) {
  timespec now;
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  const uint64_t microseconds =
      static_cast<uint64_t>(now.tv_sec) * 1000000 + static_cast<uint64_t>(now.tv_nsec) / 1000;
  napi_value value = nullptr;
  napi_create_int32(env, static_cast<int32_t>(static_cast<uint32_t>(microseconds)), &value);
  return value;
}

namespace {

/// -1 is no limit.
bool takeTimeout(napi_env env, napi_value value, timespec* time, bool* bounded) {
  int64_t microseconds;
  if (!takeInteger(env, value, "timeoutUs", -1, kMaxSafeInteger, &microseconds)) return false;
  *bounded = microseconds >= 0;
  *time = spanOfUs(microseconds);
  return true;
}

}  // namespace

napi_value signalAndPoll(napi_env env, napi_callback_info raw) {
  size_t argc = 5;
  napi_value args[5];
  napi_get_cb_info(env, raw, &argc, args, nullptr, nullptr);
  int64_t fdCount;
  int32_t *pairs, *signals = nullptr;
  size_t signalCount;
  timespec time;
  bool bounded;
  if (!takeInteger(env, args[1], "fdCount", 0, kMaxI32, &fdCount) ||
      !takeInt32Array(env, args[0], "fds", static_cast<size_t>(fdCount) * 2, &pairs) ||
      !takeTimeout(env, args[2], &time, &bounded) ||
      !takeSignals(env, args[3], args[4], &signals, &signalCount)) {
    return nullptr;
  }
  sendSignals(signals, signalCount);
  // A pair is as large as struct pollfd, so the kernel works on the array itself.
  static_assert(sizeof(pollfd) == 2 * sizeof(int32_t));
  auto* polls = reinterpret_cast<pollfd*>(pairs);
  for (int64_t i = 0; i < fdCount; i++) {
    polls[i].events = POLLIN;
    polls[i].revents = 0;
  }
  const int ready =
      ::ppoll(polls, static_cast<nfds_t>(fdCount), bounded ? &time : nullptr, nullptr);
  const int result = ready < 0 ? -errno : ready;
  for (int64_t i = 0; i < fdCount; i++) pairs[i * 2 + 1] = polls[i].revents;
  napi_value value = nullptr;
  napi_create_int32(env, result, &value);
  return value;
}

}  // namespace vduse
