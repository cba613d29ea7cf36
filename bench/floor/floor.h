// What the two ways of serving the floor's queue have in common; see floor.c.
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

enum { MAX_SIZE = 1024, MAX_SEGMENTS = 128 };
enum { TYPE_IN = 0, TYPE_OUT = 1, TYPE_FLUSH = 4 };
enum { STATUS_OK = 0, STATUS_IOERR = 1, STATUS_UNSUPP = 2 };

enum { COPY_NO, COPY_LATER, COPY_YES, COPY_WATCHED };

struct op {
  uint16_t head;
  uint8_t copies;
  uint32_t type;
  int vectors;
  // `length` is UINT64_MAX where the disk has no such place.
  uint64_t offset, length;
  uint8_t *status;
  struct iovec vector[MAX_SEGMENTS];
};

struct spin {
  uint64_t current, since;
  bool recent;
};

extern int image, kick_fd, stop_fd;
extern uint32_t size;
extern uint16_t next_avail;

void die(const char *what);
void broken(const char *what);

// The driver has made chains available that were not taken.
bool available(void);
// Its index; the queue is broken if that is impossible.
uint16_t seen_available(void);
// The head at `next_avail`, which is counted on.
uint16_t take_head(void);
// Reads a chain: header, data, status.
void parse(struct op *op, uint16_t head);
// Sets the status for what was transferred (below 0: an error) and returns the used length.
uint32_t finish(const struct op *op, int64_t done);
// Stages a used entry.
void answer(const struct op *op, uint32_t written);
// Shows the driver the staged entries; true when it wants to be signalled.
bool publish(void);
void signal_driver(void);
// Asks for kicks; true when a chain came meanwhile.
bool arm(void);
void disarm(void);
// Spins until `condition` holds (true) or the time is up, as lib/reactor/spin.ts does.
bool spin_until(struct spin *spin, bool (*condition)(void));
// A sleep has ended.
void spin_woke(struct spin *spin);
struct spin spin_start(void);

// Through the page cache (cached.c): once; for each read or write as it is taken; to move its data, in the
// order they were taken (`next` may be NULL); at a sync.
void open_cached(uint64_t capacity);
void plan_cached(struct op *op);
int64_t move_cached(const struct op *op, const struct op *next);
void written_back(void);

// The queue's thread past the page cache (direct.c).
void *serve_direct(void *unused);
