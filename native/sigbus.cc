#include "sigbus.h"

#include <sys/mman.h>
#include <cerrno>
#include <csignal>
#include <mutex>

namespace vduse::sigbus {

std::atomic<uint32_t> absorbed{0};

namespace {

constexpr size_t kSlotsPerBlock = 256;

struct Block {
  Slot slots[kSlotsPerBlock];
  std::atomic<Block*> next{nullptr};
};

Block firstBlock;
std::mutex writers;
struct sigaction previous;
/// Where this thread's attempt is to end, if it is making one.
thread_local sigjmp_buf* attempted = nullptr;

/// Async-signal-safe: loads, one mmap, stores.
bool absorb(uintptr_t address) {
  for (Block* block = &firstBlock; block; block = block->next.load(std::memory_order_acquire)) {
    for (Slot& slot : block->slots) {
      const uintptr_t start = slot.start.load(std::memory_order_acquire);
      const uintptr_t end = slot.end.load(std::memory_order_acquire);
      if (start == 0 || address < start || address >= end) continue;
      // The slot may have been given to another mapping between the two loads.
      if (slot.start.load(std::memory_order_relaxed) != start) continue;
      if (slot.poisoned.load(std::memory_order_acquire)) return true;
      void* pages = mmap(reinterpret_cast<void*>(start), end - start,
                         slot.protection.load(std::memory_order_relaxed),
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
      if (pages == MAP_FAILED) return false;
      slot.poisoned.store(true, std::memory_order_release);
      absorbed.fetch_add(1, std::memory_order_release);
      return true;
    }
  }
  return false;
}

void handle(int signal, siginfo_t* info, void* context) {
  // A positive code is a fault of this very thread, so nothing but the attempt is interrupted.
  if (attempted != nullptr && info->si_code > 0) {
    sigjmp_buf* stopped = attempted;
    attempted = nullptr;
    siglongjmp(*stopped, 1);
  }
  const int saved = errno;
  const bool ours =
      info->si_code == BUS_ADRERR && absorb(reinterpret_cast<uintptr_t>(info->si_addr));
  errno = saved;
  if (ours) return;
  if (previous.sa_flags & SA_SIGINFO) {
    previous.sa_sigaction(signal, info, context);
  } else if (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) {
    previous.sa_handler(signal);
  } else if (previous.sa_handler == SIG_DFL || info->si_code > 0) {
    // Delivered on return, with the default action; a fault can't be ignored.
    struct sigaction standard = {};
    standard.sa_handler = SIG_DFL;
    sigaction(signal, &standard, nullptr);
    raise(signal);
  }
}

}  // namespace

void install() {
  static const bool once = [] {
    struct sigaction action = {};
    action.sa_sigaction = handle;
    // Not blocked while it is handled: an attempt is left without returning.
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART | SA_NODEFER;
    sigemptyset(&action.sa_mask);
    sigaction(SIGBUS, &action, &previous);
    return true;
  }();
  (void)once;
}

void beginAttempt(sigjmp_buf* stopped) {
  attempted = stopped;
}

void endAttempt() {
  attempted = nullptr;
}

Slot* guard(void* address, size_t length, int protection) {
  std::lock_guard lock(writers);
  install();
  Block* block = &firstBlock;
  for (;;) {
    for (Slot& slot : block->slots) {
      if (slot.start.load(std::memory_order_relaxed) != 0) continue;
      const auto start = reinterpret_cast<uintptr_t>(address);
      slot.end.store(start + length, std::memory_order_release);
      slot.protection.store(protection, std::memory_order_relaxed);
      slot.poisoned.store(false, std::memory_order_relaxed);
      slot.start.store(start, std::memory_order_release);
      return &slot;
    }
    Block* next = block->next.load(std::memory_order_relaxed);
    if (next == nullptr) block->next.store(next = new Block, std::memory_order_release);
    block = next;
  }
}

void unguard(Slot* slot) {
  std::lock_guard lock(writers);
  slot->start.store(0, std::memory_order_release);
}

}  // namespace vduse::sigbus
