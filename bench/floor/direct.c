// The floor past the page cache: the engine's loop on io_uring, by system calls. A multishot poll on the
// kick, one io_uring_enter that submits and waits, DEFER_TASKRUN, used entries published and the driver
// signalled once a batch.
#include <errno.h>
#include <linux/io_uring.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "floor.h"

// What is not the number of a head.
enum { KICKED = MAX_SIZE, STOPPED };
// Requests in flight, and the polls: no entry is ever waited for.
enum { ENTRIES = 2 * MAX_SIZE };

static int ring;
static unsigned *sq_tail, *cq_head, *cq_tail;
static unsigned sq_mask, cq_mask;
static struct io_uring_sqe *sqes;
static struct io_uring_cqe *cqes;
static unsigned unsubmitted, in_flight;
static bool taken[MAX_SIZE], stopped;
static struct op ops[MAX_SIZE];

static void open_ring(void) {
  struct io_uring_params p = {.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN};
  ring = (int)syscall(__NR_io_uring_setup, ENTRIES, &p);
  if (ring < 0) die("io_uring_setup");
  const size_t cq_end = p.cq_off.cqes + p.cq_entries * sizeof *cqes;
  const size_t sq_end = p.sq_off.array + p.sq_entries * sizeof(unsigned);
  const size_t bytes = cq_end > sq_end ? cq_end : sq_end;
  const int prot = PROT_READ | PROT_WRITE, flags = MAP_SHARED | MAP_POPULATE;
  uint8_t *at = mmap(NULL, bytes, prot, flags, ring, IORING_OFF_SQ_RING);
  sqes = mmap(NULL, p.sq_entries * sizeof *sqes, prot, flags, ring, IORING_OFF_SQES);
  if (at == MAP_FAILED || sqes == MAP_FAILED) die("mmap of the ring");
  sq_tail = (unsigned *)(at + p.sq_off.tail);
  sq_mask = p.sq_entries - 1;
  cq_head = (unsigned *)(at + p.cq_off.head);
  cq_tail = (unsigned *)(at + p.cq_off.tail);
  cq_mask = p.cq_entries - 1;
  cqes = (struct io_uring_cqe *)(at + p.cq_off.cqes);
  unsigned *array = (unsigned *)(at + p.sq_off.array);
  for (unsigned i = 0; i < p.sq_entries; i++) array[i] = i;
}

static struct io_uring_sqe *entry(uint8_t opcode, int fd, uint64_t user) {
  struct io_uring_sqe *sqe = &sqes[(*sq_tail + unsubmitted++) & sq_mask];
  memset(sqe, 0, sizeof *sqe);
  sqe->opcode = opcode;
  sqe->fd = fd;
  sqe->user_data = user;
  return sqe;
}

static void watch(int fd, uint64_t user) {
  struct io_uring_sqe *sqe = entry(IORING_OP_POLL_ADD, fd, user);
  sqe->len = IORING_POLL_ADD_MULTI;
  sqe->poll32_events = POLLIN;
}

static void begin(struct op *op) {
  struct io_uring_sqe *sqe;
  if (op->type == TYPE_FLUSH) {
    sqe = entry(IORING_OP_FSYNC, image, op->head);
    sqe->fsync_flags = IORING_FSYNC_DATASYNC;
  } else if (op->type > TYPE_OUT) {
    *op->status = STATUS_UNSUPP;
    answer(op, 1);
    return;
  } else if (op->length == UINT64_MAX) {
    answer(op, finish(op, -1));
    return;
  } else {
    const bool one = op->vectors == 1, in = op->type == TYPE_IN;
    sqe = entry(one ? (in ? IORING_OP_READ : IORING_OP_WRITE) : (in ? IORING_OP_READV : IORING_OP_WRITEV), image,
                op->head);
    sqe->addr = (uintptr_t)(one ? op->vector[0].iov_base : op->vector);
    sqe->len = one ? (unsigned)op->vector[0].iov_len : (unsigned)op->vectors;
    sqe->off = op->offset;
  }
  taken[op->head] = true;
  in_flight++;
}

static void complete(const struct io_uring_cqe *cqe) {
  const uint64_t user = cqe->user_data;
  if (user >= MAX_SIZE) {
    if (user == STOPPED) stopped = true;
    else if (!(cqe->flags & IORING_CQE_F_MORE)) watch(kick_fd, KICKED);
    return;
  }
  taken[user] = false;
  in_flight--;
  answer(&ops[user], finish(&ops[user], cqe->res));
}

static void enter(unsigned wait) {
  // Nobody else submits: what the kernel does not take at once stays.
  __atomic_store_n(sq_tail, *sq_tail + unsubmitted, __ATOMIC_RELEASE);
  while (syscall(__NR_io_uring_enter, ring, unsubmitted, wait, IORING_ENTER_GETEVENTS, NULL, 0) < 0) {
    if (errno != EINTR) die("io_uring_enter");
    unsubmitted = 0;
  }
  unsubmitted = 0;
  unsigned head = *cq_head;
  const unsigned tail = __atomic_load_n(cq_tail, __ATOMIC_ACQUIRE);
  while (head != tail) complete(&cqes[head++ & cq_mask]);
  __atomic_store_n(cq_head, head, __ATOMIC_RELEASE);
}

static bool take(void) {
  const uint16_t seen = seen_available();
  if (seen == next_avail) return false;
  while (next_avail != seen) {
    const uint16_t head = take_head();
    if (taken[head]) broken("head in flight");
    parse(&ops[head], head);
    begin(&ops[head]);
  }
  return true;
}

static bool something_to_do(void) {
  return *(volatile unsigned *)cq_tail != *cq_head || available();
}

void *serve_direct(void *unused) {
  struct spin spin = spin_start();
  open_ring();
  watch(kick_fd, KICKED);
  watch(stop_fd, STOPPED);
  bool owed = false;
  stopped = false;
  while (!stopped || in_flight > 0) {
    while (take()) spin.recent = true;
    if (publish()) owed = true;
    // While the disk works it sets the pace.
    if (in_flight == 0) {
      if (owed) signal_driver();
      owed = false;
      if (unsubmitted > 0) enter(0);
      if (spin_until(&spin, something_to_do)) continue;
    }
    if (arm()) continue;
    if (owed) signal_driver();
    owed = false;
    enter(1);
    disarm();
    spin_woke(&spin);
  }
  uint64_t value;
  if (read(stop_fd, &value, sizeof value) < 0) die("stop");
  close(ring);
  return unused;
}
