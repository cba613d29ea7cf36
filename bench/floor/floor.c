// The floor of `tools/bench vhost-user`: the engine's design in C. One queue of a vhost-user block
// device, split ring with EVENT_IDX and indirect tables, served by one thread: take all that is
// available, run it in one batch (cached.c: copies, reads with RWF_NOWAIT, buffered writes at once), publish
// once, signal once, spin adaptively, sleep. Everything the driver wrote is checked as the engine does.
// No more of the protocol than the benchmark's front end speaks. O_DIRECT is direct.c.
//
// usage: floor [--direct] IMAGE SOCKET
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "floor.h"

enum {
  GET_FEATURES = 1, SET_FEATURES, SET_OWNER, RESET_OWNER, SET_MEM_TABLE, SET_VRING_NUM = 8,
  SET_VRING_ADDR, SET_VRING_BASE, GET_VRING_BASE, SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR,
  GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES, GET_QUEUE_NUM, SET_VRING_ENABLE, GET_CONFIG = 24,
};
enum { F_FLUSH = 9, F_BLK_SIZE = 6, F_INDIRECT = 28, F_EVENT_IDX = 29, F_PROTOCOL = 30, F_VERSION_1 = 32 };
enum { P_REPLY_ACK = 3, P_CONFIG = 9 };
enum { MAX_REGIONS = 8, POLL_MAX_NS = 100000 };
enum { DESC_NEXT = 1, DESC_WRITE = 2, DESC_INDIRECT = 4 };

struct message {
  uint32_t request, flags, size;
  uint8_t payload[1024];
};
struct region {
  uint64_t guest, size, user;
  uint8_t *at;
};
struct desc {
  uint64_t address;
  uint32_t length;
  uint16_t flags, next;
};

int image, kick_fd = -1, stop_fd;
uint32_t size;
uint16_t next_avail;
static int call_fd = -1;
static uint64_t capacity;
static struct region regions[MAX_REGIONS];
static uint32_t region_count;
static uint64_t user_desc, user_used, user_avail;
static uint16_t next_used, shown_used;
static bool running;
static pthread_t thread;
static void *(*serve)(void *);

static struct desc *desc;
static volatile uint16_t *avail;
static volatile uint16_t *used;

void die(const char *what) {
  fprintf(stderr, "floor: %s: %s\n", what, strerror(errno));
  exit(1);
}

static uint64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static uint8_t *guest(uint64_t address, uint64_t length) {
  for (uint32_t i = 0; i < region_count; i++) {
    const struct region *r = &regions[i];
    if (address >= r->guest && address - r->guest < r->size && length <= r->size - (address - r->guest))
      return r->at + (address - r->guest);
  }
  return NULL;
}

static uint8_t *user(uint64_t address, uint64_t length) {
  for (uint32_t i = 0; i < region_count; i++) {
    const struct region *r = &regions[i];
    if (address >= r->user && address - r->user < r->size && length <= r->size - (address - r->user))
      return r->at + (address - r->user);
  }
  errno = EFAULT;
  die("ring address");
  return NULL;
}

void broken(const char *what) {
  fprintf(stderr, "floor: queue broken: %s\n", what);
  exit(1);
}

void parse(struct op *op, uint16_t head) {
  struct iovec all[MAX_SEGMENTS];
  int count = 0, readable = 0;
  struct desc *table = desc;
  uint32_t entries = size, index = head, left = size;
  for (;;) {
    if (left-- == 0) broken("loop");
    const struct desc d = table[index];
    if (d.flags & DESC_INDIRECT) {
      if (table != desc || d.length % 16 != 0 || d.length == 0 || (d.flags & DESC_NEXT)) broken("table");
      table = (struct desc *)guest(d.address, d.length);
      if (table == NULL) broken("table address");
      entries = left = d.length / 16;
      index = 0;
      continue;
    }
    if (count == MAX_SEGMENTS) broken("too many segments");
    uint8_t *at = guest(d.address, d.length);
    if (at == NULL) broken("buffer address");
    all[count].iov_base = at;
    all[count].iov_len = d.length;
    count++;
    if (!(d.flags & DESC_WRITE)) {
      if (readable != count - 1) broken("order");
      readable = count;
    }
    if (!(d.flags & DESC_NEXT)) break;
    index = d.next;
    if (index >= entries) broken("next");
  }
  if (readable == 0 || readable == count || all[0].iov_len != 16 || all[count - 1].iov_len != 1) broken("layout");
  const uint8_t *header = all[0].iov_base;
  uint64_t sector;
  memcpy(&op->type, header, 4);
  memcpy(&sector, header + 8, 8);
  op->head = head;
  op->status = all[count - 1].iov_base;
  op->vectors = 0;
  op->length = 0;
  const int from = op->type == TYPE_IN ? readable : 1;
  const int to = op->type == TYPE_IN ? count - 1 : readable;
  for (int i = from; i < to; i++) {
    op->vector[op->vectors++] = all[i];
    op->length += all[i].iov_len;
  }
  op->offset = sector * 512;
  if (op->length % 512 != 0 || op->offset > capacity || op->length > capacity - op->offset) op->length = UINT64_MAX;
}

uint32_t finish(const struct op *op, int64_t done) {
  const bool whole = done >= 0 && (uint64_t)done == (op->type == TYPE_FLUSH ? 0 : op->length);
  *op->status = whole ? STATUS_OK : STATUS_IOERR;
  return whole && op->type == TYPE_IN ? (uint32_t)done + 1 : 1;
}

static uint32_t execute(const struct op *op, const struct op *next) {
  int64_t done = -1;
  if (op->type == TYPE_FLUSH) {
    written_back();
    done = fdatasync(image);
  } else if (op->type > TYPE_OUT) {
    *op->status = STATUS_UNSUPP;
    return 1;
  } else if (op->length != UINT64_MAX) {
    done = move_cached(op, next);
  }
  return finish(op, done);
}

bool available(void) { return __atomic_load_n(&avail[1], __ATOMIC_ACQUIRE) != next_avail; }

uint16_t seen_available(void) {
  const uint16_t seen = __atomic_load_n(&avail[1], __ATOMIC_ACQUIRE);
  if ((uint16_t)(seen - next_avail) > size) broken("index");
  return seen;
}

uint16_t take_head(void) {
  const uint16_t head = avail[2 + (next_avail++ & (size - 1))];
  if (head >= size) broken("head");
  return head;
}

void answer(const struct op *op, uint32_t written) {
  volatile uint32_t *entries = (volatile uint32_t *)(used + 2);
  const uint32_t at = 2 * (next_used++ & (size - 1));
  entries[at] = op->head;
  entries[at + 1] = written;
}

bool publish(void) {
  const uint16_t old = shown_used;
  if (old == next_used) return false;
  shown_used = next_used;
  __atomic_store_n(&used[1], next_used, __ATOMIC_SEQ_CST);
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
  return (uint16_t)(next_used - avail[2 + size] - 1) < (uint16_t)(next_used - old);
}

void signal_driver(void) {
  const uint64_t one = 1;
  if (write(call_fd, &one, sizeof one) < 0 && errno != EAGAIN) die("call");
}

void disarm(void) { used[2 + 4 * size] = next_avail ^ 0x8000; }

bool arm(void) {
  __atomic_store_n(&used[2 + 4 * size], next_avail, __ATOMIC_SEQ_CST);
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
  return available();
}

struct spin spin_start(void) { return (struct spin){POLL_MAX_NS, 0, false}; }

bool spin_until(struct spin *spin, bool (*condition)(void)) {
  if (!spin->recent) return false;
  spin->recent = false;
  spin->since = now_ns();
  do {
    if (condition()) {
      spin->since = 0;
      return true;
    }
  } while (now_ns() - spin->since < spin->current);
  return false;
}

void spin_woke(struct spin *spin) {
  if (spin->since == 0) return;
  const uint64_t idle = now_ns() - spin->since, twice = spin->current * 2;
  spin->since = 0;
  if (idle > POLL_MAX_NS) spin->current /= 2;
  else if (idle > spin->current) spin->current = twice < 8000 ? 8000 : twice > POLL_MAX_NS ? POLL_MAX_NS : twice;
}

// One turn: true when anything was taken.
static bool turn(void) {
  static struct op ops[MAX_SIZE];
  const uint16_t seen = seen_available();
  if (seen == next_avail) return false;
  int count = 0;
  while (next_avail != seen) {
    parse(&ops[count], take_head());
    plan_cached(&ops[count++]);
  }
  for (int i = 0; i < count; i++) {
    answer(&ops[i], execute(&ops[i], i + 1 < count ? &ops[i + 1] : NULL));
  }
  if (publish()) signal_driver();
  return true;
}

static void *serve_cached(void *unused) {
  struct spin spin = spin_start();
  for (;;) {
    if (turn()) {
      spin.recent = true;
      continue;
    }
    if (spin_until(&spin, available) || arm()) continue;
    struct pollfd fds[] = {{kick_fd, POLLIN, 0}, {stop_fd, POLLIN, 0}};
    if (poll(fds, 2, -1) < 0 && errno != EINTR) die("poll");
    uint64_t value;
    if (fds[0].revents && read(kick_fd, &value, sizeof value) < 0 && errno != EAGAIN) die("kick");
    spin_woke(&spin);
    if (fds[1].revents) {
      if (read(stop_fd, &value, sizeof value) < 0) die("stop");
      return unused;
    }
  }
}

static void start(void) {
  if (running || kick_fd < 0 || call_fd < 0 || user_desc == 0) return;
  desc = (struct desc *)user(user_desc, 16 * size);
  avail = (volatile uint16_t *)user(user_avail, 6 + 2 * size);
  used = (volatile uint16_t *)user(user_used, 6 + 8 * size);
  next_used = shown_used = used[1];
  running = true;
  if (pthread_create(&thread, NULL, serve, NULL) != 0) die("thread");
}

static void stop(void) {
  if (!running) return;
  const uint64_t one = 1;
  if (write(stop_fd, &one, sizeof one) < 0) die("stop");
  pthread_join(thread, NULL);
  running = false;
}

static void forget(void) {
  stop();
  for (uint32_t i = 0; i < region_count; i++) munmap(regions[i].at, regions[i].size);
  region_count = 0;
  if (kick_fd >= 0) close(kick_fd);
  if (call_fd >= 0) close(call_fd);
  kick_fd = call_fd = -1;
  user_desc = 0;
}

static void send_reply(int to, struct message *m, uint32_t bytes) {
  m->flags = 5;
  m->size = bytes;
  if (send(to, m, 12 + bytes, MSG_NOSIGNAL) != 12 + (ssize_t)bytes) die("reply");
}

static bool read_all(int from, void *into, size_t bytes) {
  return bytes == 0 || recv(from, into, bytes, MSG_WAITALL) == (ssize_t)bytes;
}

static void session(int peer) {
  for (;;) {
    struct message m;
    int fds[8], fd_count = 0;
    char control[CMSG_SPACE(sizeof fds)];
    struct iovec v = {&m, 12};
    struct msghdr h = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    if (recvmsg(peer, &h, MSG_WAITALL | MSG_CMSG_CLOEXEC) != 12) return;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&h); c != NULL; c = CMSG_NXTHDR(&h, c)) {
      if (c->cmsg_type != SCM_RIGHTS) continue;
      fd_count = (int)((c->cmsg_len - CMSG_LEN(0)) / sizeof *fds);
      memcpy(fds, CMSG_DATA(c), (size_t)fd_count * sizeof *fds);
    }
    if (m.size > sizeof m.payload || !read_all(peer, m.payload, m.size)) return;
    const bool acknowledge = (m.flags & 8) != 0;
    uint64_t u64;
    uint32_t u32[2];
    memcpy(&u64, m.payload, sizeof u64);
    memcpy(u32, m.payload, sizeof u32);
    bool replied = true;
    switch (m.request) {
      case GET_FEATURES:
        u64 = 1ull << F_FLUSH | 1ull << F_BLK_SIZE | 1ull << F_INDIRECT | 1ull << F_EVENT_IDX | 1ull << F_PROTOCOL | 1ull << F_VERSION_1;
        break;
      case GET_PROTOCOL_FEATURES:
        u64 = 1ull << P_REPLY_ACK | 1ull << P_CONFIG;
        break;
      case GET_QUEUE_NUM:
        u64 = 1;
        break;
      case GET_CONFIG: {
        const uint64_t sectors = capacity / 512;
        const uint32_t block = 512;
        memset(m.payload + 12, 0, m.size - 12);
        memcpy(m.payload + 12, &sectors, sizeof sectors);
        memcpy(m.payload + 12 + 20, &block, sizeof block);
        send_reply(peer, &m, m.size);
        continue;
      }
      case GET_VRING_BASE:
        stop();
        u32[1] = next_avail;
        memcpy(m.payload, u32, sizeof u32);
        send_reply(peer, &m, sizeof u32);
        continue;
      case SET_MEM_TABLE:
        region_count = u32[0] <= MAX_REGIONS ? u32[0] : 0;
        for (uint32_t i = 0; i < region_count && i < (uint32_t)fd_count; i++) {
          uint64_t r[4];
          memcpy(r, m.payload + 8 + i * sizeof r, sizeof r);
          regions[i] = (struct region){r[0], r[1], r[2], mmap(NULL, r[1], PROT_READ | PROT_WRITE, MAP_SHARED, fds[i], (off_t)r[3])};
          if (regions[i].at == MAP_FAILED) die("mmap");
          close(fds[i]);
        }
        replied = false;
        break;
      case SET_VRING_NUM:
        size = u32[1];
        if (size == 0 || size > MAX_SIZE || (size & (size - 1)) != 0) return;
        replied = false;
        break;
      case SET_VRING_BASE:
        next_avail = (uint16_t)u32[1];
        replied = false;
        break;
      case SET_VRING_ADDR:
        memcpy(&user_desc, m.payload + 8, 8);
        memcpy(&user_used, m.payload + 16, 8);
        memcpy(&user_avail, m.payload + 24, 8);
        replied = false;
        break;
      case SET_VRING_CALL:
        if (fd_count == 1) call_fd = fds[0];
        replied = false;
        break;
      case SET_VRING_KICK:
        if (fd_count == 1) kick_fd = fds[0];
        replied = false;
        break;
      case SET_VRING_ENABLE:
        if (u32[1] != 0) start();
        replied = false;
        break;
      default:
        replied = false;
    }
    if (!replied) {
      if (!acknowledge) continue;
      u64 = 0;
    }
    memcpy(m.payload, &u64, sizeof u64);
    send_reply(peer, &m, sizeof u64);
  }
}

int main(int argc, char **argv) {
  const bool direct = argc > 1 && strcmp(argv[1], "--direct") == 0;
  argv += direct;
  if (argc - direct != 3) {
    fprintf(stderr, "usage: floor [--direct] IMAGE SOCKET\n");
    return 64;
  }
  serve = direct ? serve_direct : serve_cached;
  image = open(argv[1], O_RDWR | O_CLOEXEC | (direct ? O_DIRECT : 0));
  struct stat s;
  if (image < 0 || fstat(image, &s) < 0) die(argv[1]);
  capacity = (uint64_t)s.st_size / 512 * 512;
  if (!direct) open_cached(capacity);
  stop_fd = eventfd(0, EFD_CLOEXEC);
  const int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  struct sockaddr_un name = {.sun_family = AF_UNIX};
  if (strlen(argv[2]) >= sizeof name.sun_path) die("socket path");
  strcpy(name.sun_path, argv[2]);
  if (bind(listener, (struct sockaddr *)&name, sizeof name) < 0 || listen(listener, 1) < 0) die(argv[2]);
  for (;;) {
    const int peer = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (peer < 0) die("accept");
    session(peer);
    forget();
    close(peer);
  }
}
