// Reads and writes of the floor through the page cache, as lib/store/cached-pages.ts, page-knowledge.ts,
// write-heat.ts and native/copy.cc decide and make them: what a call read or wrote lately is copied
// from and to a mapping of the image.
#define _GNU_SOURCE
#include <emmintrin.h>
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "floor.h"

enum { PAGE = 4096, MOST_PAGES = 32, CHUNK_PAGES = 512, CHUNK_WORDS = CHUNK_PAGES / 32, HOT = 512, WARM = 256 };
enum { TIME_SHIFT = 23, TIMES = 255, WRITE_BACK_SHIFT = 2, LOOK_EVERY = 32, PAUSE_US = 500000 };

static uint8_t *map;
static uint32_t *bits, *counts, *heat;
static uint8_t *times;
static uint8_t now = 1, before = 1;
static uint32_t left = 1, clock_time, page_era, write_era, since, pause_us;
static bool watch, paused, slow;
static sigjmp_buf stopped;

static void on_sigbus(int signal) {
  (void)signal;
  siglongjmp(stopped, 1);
}

void open_cached(uint64_t capacity) {
  const uint64_t chunks = (capacity / PAGE + CHUNK_PAGES) / CHUNK_PAGES;
  bits = calloc(chunks * CHUNK_WORDS, 4);
  counts = calloc(chunks, 4);
  heat = calloc(chunks, 4);
  times = calloc(chunks, 1);
  map = mmap(NULL, capacity, PROT_READ | PROT_WRITE, MAP_SHARED, image, 0);
  struct sigaction action = {.sa_handler = on_sigbus, .sa_flags = SA_NODEFER};
  if (map == MAP_FAILED || !bits || !counts || !heat || !times || sigaction(SIGBUS, &action, NULL) != 0) die("mmap");
}

static void look(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  const uint32_t us = (uint32_t)((uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000);
  left = LOOK_EVERY;
  watch = true;
  if (slow) {
    slow = false;
    page_era += 2;
    pause_us = us - since < 4 * pause_us ? 2 * pause_us : PAUSE_US;
    paused = true;
    since = us;
  } else if (paused && us - since > pause_us) {
    paused = false;
  }
  const uint32_t time = (us >> TIME_SHIFT) + page_era;
  if (time >> WRITE_BACK_SHIFT != clock_time >> WRITE_BACK_SHIFT) write_era++;
  clock_time = time;
  now = time % TIMES + 1;
  before = (time + TIMES - 1) % TIMES + 1;
}

// Writes of a chunk since the last write-back, as far as they matter.
static uint32_t count_write(uint64_t chunk) {
  const uint32_t word = heat[chunk];
  if (word >> 12 != (write_era & 0xfffff)) return (heat[chunk] = write_era << 12 | 1) & 4095;
  if ((word & 4095) < HOT) heat[chunk] = word + 1;
  return word & 4095;
}

static bool known(uint64_t first, uint64_t end) {
  for (uint64_t page = first; page < end; page++) {
    const uint64_t chunk = page / CHUNK_PAGES;
    if (times[chunk] != now) {
      if (times[chunk] != before) return false;
      times[chunk] = now;
    }
    if (counts[chunk] != CHUNK_PAGES && (bits[page / 32] & 1u << page % 32) == 0) return false;
  }
  return true;
}

static void learn(uint64_t first, uint64_t end) {
  for (uint64_t page = first; page < end; page++) {
    const uint64_t chunk = page / CHUNK_PAGES;
    if (times[chunk] != now && times[chunk] != before) {
      memset(bits + chunk * CHUNK_WORDS, 0, CHUNK_WORDS * 4);
      counts[chunk] = 0;
    }
    times[chunk] = now;
    const uint32_t bit = 1u << page % 32;
    if (bits[page / 32] & bit) continue;
    bits[page / 32] |= bit;
    counts[chunk]++;
  }
}

static void store(uint8_t *to, const uint8_t *from, size_t length) {
  if ((uintptr_t)to % 16 != 0 || length % 64 != 0) {
    memcpy(to, from, length);
    return;
  }
  for (const uint8_t *end = from + length; from < end; from += 64, to += 64) {
    const __m128i *source = (const __m128i *)from;
    __m128i *target = (__m128i *)to;
    const __m128i a = _mm_loadu_si128(source), b = _mm_loadu_si128(source + 1);
    const __m128i c = _mm_loadu_si128(source + 2), d = _mm_loadu_si128(source + 3);
    _mm_stream_si128(target, a);
    _mm_stream_si128(target + 1, b);
    _mm_stream_si128(target + 2, c);
    _mm_stream_si128(target + 3, d);
  }
  _mm_sfence();
}

static long major_faults(void) {
  struct rusage usage;
  getrusage(RUSAGE_THREAD, &usage);
  return usage.ru_majflt;
}

static bool copy(const struct op *op) {
  if (sigsetjmp(stopped, 0) != 0) return false;
  uint8_t *at = map + op->offset;
  for (int i = 0; i < op->vectors; i++) {
    const struct iovec *v = &op->vector[i];
    if (op->type == TYPE_IN) memcpy(v->iov_base, at, v->iov_len);
    else store(at, v->iov_base, v->iov_len);
    at += v->iov_len;
  }
  return true;
}

static bool watched_copy(const struct op *op) {
  const long faults = major_faults();
  const bool copied = copy(op);
  if (major_faults() != faults) slow = true;
  return copied;
}

void plan_cached(struct op *op) {
  op->copies = COPY_NO;
  if (op->length == UINT64_MAX || op->type > TYPE_OUT) return;
  if (--left == 0) look();
  const uint32_t writes = op->type == TYPE_OUT ? count_write(op->offset / ((uint64_t)PAGE * CHUNK_PAGES)) : HOT;
  if (paused || writes < WARM) return;
  op->copies = COPY_LATER;
  if (writes < HOT || op->length > MOST_PAGES * PAGE) return;
  if (!known(op->offset / PAGE, (op->offset + op->length + PAGE - 1) / PAGE)) return;
  op->copies = watch ? COPY_WATCHED : COPY_YES;
  watch = false;
}

int64_t move_cached(const struct op *op, const struct op *next) {
  if (next != NULL && next->copies >= COPY_YES) __builtin_prefetch(map + next->offset);
  if (op->copies == COPY_YES && copy(op)) return (int64_t)op->length;
  if (op->copies == COPY_WATCHED && watched_copy(op)) return (int64_t)op->length;
  const off_t offset = (off_t)op->offset;
  ssize_t done;
  if (op->type == TYPE_IN) {
    done = preadv2(image, op->vector, op->vectors, offset, RWF_NOWAIT);
    // What is not in the page cache would go to io_uring in the engine.
    if (done != (ssize_t)op->length) done = preadv2(image, op->vector, op->vectors, offset, 0);
  } else if (op->vectors == 1) {
    done = pwrite(image, op->vector[0].iov_base, op->vector[0].iov_len, offset);
  } else {
    done = pwritev2(image, op->vector, op->vectors, offset, 0);
  }
  if (done > 0 && op->copies == COPY_LATER) learn((op->offset + PAGE - 1) / PAGE, (op->offset + (uint64_t)done) / PAGE);
  return done;
}

void written_back(void) { write_era++; }
