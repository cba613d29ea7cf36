// The floor of `tools/bench vhost-user`: the engine's design in C. One queue of a vhost-user block
// device, split ring with EVENT_IDX and indirect tables, served by one thread: take all that is
// available, run it in one batch (reads with RWF_NOWAIT, buffered writes at once), publish once,
// signal once, spin adaptively, sleep. Everything the driver wrote is checked as the engine does.
// No more of the protocol than the benchmark's front end speaks; no O_DIRECT (that needs io_uring).
//
// usage: floor IMAGE SOCKET [POLL_US]
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

enum {
  GET_FEATURES = 1, SET_FEATURES, SET_OWNER, RESET_OWNER, SET_MEM_TABLE, SET_VRING_NUM = 8,
  SET_VRING_ADDR, SET_VRING_BASE, GET_VRING_BASE, SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR,
  GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES, GET_QUEUE_NUM, SET_VRING_ENABLE, GET_CONFIG = 24,
};
enum { F_FLUSH = 9, F_BLK_SIZE = 6, F_INDIRECT = 28, F_EVENT_IDX = 29, F_PROTOCOL = 30, F_VERSION_1 = 32 };
enum { P_REPLY_ACK = 3, P_CONFIG = 9 };
enum { MAX_REGIONS = 8, MAX_SIZE = 1024, MAX_SEGMENTS = 128 };
enum { DESC_NEXT = 1, DESC_WRITE = 2, DESC_INDIRECT = 4 };
enum { TYPE_IN = 0, TYPE_OUT = 1, TYPE_FLUSH = 4 };
enum { STATUS_OK = 0, STATUS_IOERR = 1, STATUS_UNSUPP = 2 };

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
struct op {
  uint16_t head;
  uint32_t type;
  int vectors;
  uint64_t offset, length;
  uint8_t *status;
  struct iovec vector[MAX_SEGMENTS];
};

static int image, kick_fd = -1, call_fd = -1, stop_fd;
static uint64_t capacity, poll_max_ns = 100000;
static struct region regions[MAX_REGIONS];
static uint32_t region_count;
static uint32_t size;
static uint64_t user_desc, user_used, user_avail;
static uint16_t next_avail, next_used, shown_used;
static bool running;
static pthread_t thread;
static struct op ops[MAX_SIZE];

static struct desc *desc;
static volatile uint16_t *avail;
static volatile uint16_t *used;

static void die(const char *what) {
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

static void broken(const char *what) {
  fprintf(stderr, "floor: queue broken: %s\n", what);
  exit(1);
}

// Reads a chain into `op`: header, data, status.
static void parse(struct op *op, uint16_t head) {
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

static uint32_t execute(struct op *op) {
  ssize_t done = -1;
  if (op->type == TYPE_FLUSH) {
    done = fdatasync(image) == 0 ? 0 : -1;
  } else if (op->type > TYPE_OUT) {
    *op->status = STATUS_UNSUPP;
    return 1;
  } else if (op->length != UINT64_MAX) {
    const off_t offset = (off_t)op->offset;
    if (op->type == TYPE_IN) {
      done = preadv2(image, op->vector, op->vectors, offset, RWF_NOWAIT);
      // What is not in the page cache would go to io_uring in the engine.
      if (done != (ssize_t)op->length) done = preadv2(image, op->vector, op->vectors, offset, 0);
    } else if (op->vectors == 1) {
      done = pwrite(image, op->vector[0].iov_base, op->vector[0].iov_len, offset);
    } else {
      done = pwritev2(image, op->vector, op->vectors, offset, 0);
    }
    if (done != (ssize_t)op->length) done = -1;
  }
  *op->status = done < 0 ? STATUS_IOERR : STATUS_OK;
  return op->type == TYPE_IN && done > 0 ? (uint32_t)done + 1 : 1;
}

static bool available(void) { return __atomic_load_n(&avail[1], __ATOMIC_ACQUIRE) != next_avail; }

// One turn: true when anything was taken.
static bool turn(void) {
  const uint16_t seen = __atomic_load_n(&avail[1], __ATOMIC_ACQUIRE);
  if (seen == next_avail) return false;
  if ((uint16_t)(seen - next_avail) > size) broken("index");
  int count = 0;
  while (next_avail != seen) {
    const uint16_t head = avail[2 + (next_avail & (size - 1))];
    if (head >= size) broken("head");
    parse(&ops[count++], head);
    next_avail++;
  }
  volatile uint32_t *entries = (volatile uint32_t *)(used + 2);
  for (int i = 0; i < count; i++) {
    const uint32_t written = execute(&ops[i]);
    const uint32_t at = 2 * (next_used & (size - 1));
    entries[at] = ops[i].head;
    entries[at + 1] = written;
    next_used++;
  }
  __atomic_store_n(&used[1], next_used, __ATOMIC_SEQ_CST);
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
  const uint16_t event = avail[2 + size];
  if ((uint16_t)(next_used - event - 1) < (uint16_t)(next_used - shown_used)) {
    const uint64_t one = 1;
    if (write(call_fd, &one, sizeof one) < 0 && errno != EAGAIN) die("call");
  }
  shown_used = next_used;
  return true;
}

static void *serve(void *unused) {
  uint64_t current = poll_max_ns;
  bool recent = false;
  for (;;) {
    if (turn()) {
      recent = true;
      continue;
    }
    uint64_t since = 0;
    if (recent && poll_max_ns > 0) {
      recent = false;
      since = now_ns();
      bool found = false;
      do {
        found = available();
      } while (!found && now_ns() - since < current);
      if (found) continue;
    }
    __atomic_store_n(&used[2 + 4 * size], next_avail, __ATOMIC_SEQ_CST);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (available()) continue;
    struct pollfd fds[] = {{kick_fd, POLLIN, 0}, {stop_fd, POLLIN, 0}};
    if (poll(fds, 2, -1) < 0 && errno != EINTR) die("poll");
    uint64_t value;
    if (fds[0].revents && read(kick_fd, &value, sizeof value) < 0 && errno != EAGAIN) die("kick");
    if (since != 0) {
      const uint64_t idle = now_ns() - since;
      if (idle > poll_max_ns) current /= 2;
      else if (idle > current) current = current * 2 < 8000 ? 8000 : current * 2 > poll_max_ns ? poll_max_ns : current * 2;
    }
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
  if (argc < 3 || argc > 4) {
    fprintf(stderr, "usage: floor IMAGE SOCKET [POLL_US]\n");
    return 64;
  }
  if (argc == 4) poll_max_ns = strtoull(argv[3], NULL, 10) * 1000;
  image = open(argv[1], O_RDWR | O_CLOEXEC);
  struct stat s;
  if (image < 0 || fstat(image, &s) < 0) die(argv[1]);
  capacity = (uint64_t)s.st_size / 512 * 512;
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
