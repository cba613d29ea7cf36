#include <sys/eventfd.h>
#include <unistd.h>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#include "args.h"
#include "exports.h"
#include "fd.h"
#include "handle.h"
#include "io-row.h"
#include "io.h"

namespace vduse {

namespace {

/// One operation, with its vectors behind it.
struct Job {
  Job* next;
  uint32_t capacity;
  IoRow row;

  iovec* vectors() { return reinterpret_cast<iovec*>(this + 1); }
};
static_assert(sizeof(Job) % alignof(iovec) == 0);

/// Jobs of this capacity are reused; the rare larger ones are freed.
constexpr uint32_t kUsualVectors = 16;

/// First in, first out; owns nothing.
struct JobList {
  Job* first = nullptr;
  Job* last = nullptr;

  void push(Job* job) {
    job->next = nullptr;
    (last != nullptr ? last->next : first) = job;
    last = job;
  }
  Job* pop() {
    Job* job = first;
    first = job->next;
    if (first == nullptr) last = nullptr;
    return job;
  }
};

class IoPool {
 public:
  static constexpr const char* kName = "IoPool";
  static constexpr int kIndex = 3;
  static constexpr napi_type_tag kTag = {0xc85a1f3e7092d46b, 0x12e9b7f4d3a6508c};

  explicit IoPool(size_t threads) : event_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    if (!event_) failed("eventfd");
    try {
      for (size_t i = 0; i < threads; i++) {
        threads_.push_back(startThread("vduse-io", [this] { work(); }));
      }
    } catch (...) {
      stop();
      throw;
    }
  }

  ~IoPool() { stop(); }

  Napi::Value eventFd(const Napi::CallbackInfo& info) {
    return Napi::Number::New(info.Env(), event_.get());
  }

  Napi::Value submit(const Napi::CallbackInfo& info) {
    if (!event_) throw Napi::Error::New(info.Env(), "the pool is closed");
    const napi_value args[] = {info[0], info[1], info[2], info[3]};
    IoTableView view;
    if (!takeIoTable(info.Env(), args, &view)) throw Napi::Error::New(info.Env());
    JobList fresh;
    try {
      for (uint32_t i = 0; i < view.count; i++) fresh.push(copy(view, view.rows[i]));
    } catch (...) {
      while (fresh.first != nullptr) recycle(fresh.pop());
      throw;
    }
    std::lock_guard lock(mutex_);
    while (fresh.first != nullptr) {
      Job* job = fresh.pop();
      if (job->row.result == 0) {
        queued_.push(job);
        wake_.notify_one();
      } else {
        complete(job);
      }
    }
    return info.Env().Undefined();
  }

  Napi::Value reap(const Napi::CallbackInfo& info) {
    int32_t* pairs;
    size_t length = 0;
    if (!takeInt32Array(info.Env(), info[0], "pairs", 2, &pairs, &length)) {
      throw Napi::Error::New(info.Env());
    }
    JobList taken;
    size_t count = 0;
    if (event_) {
      std::lock_guard lock(mutex_);
      for (; count < length / 2 && done_.first != nullptr; count++) taken.push(done_.pop());
      // Under the lock, so that no completion can come between the two.
      uint64_t drained;
      if (done_.first == nullptr) (void)!::read(event_.get(), &drained, sizeof drained);
    }
    for (size_t i = 0; i < count; i++) {
      Job* job = taken.pop();
      pairs[i * 2] = static_cast<int32_t>(job->row.user);
      pairs[i * 2 + 1] = job->row.result;
      recycle(job);
    }
    return Napi::Number::New(info.Env(), static_cast<double>(count));
  }

  Napi::Value close(const Napi::CallbackInfo& info) {
    stop();
    return info.Env().Undefined();
  }

 private:
  /// JavaScript thread only, like `free_`.
  Job* copy(const IoTableView& view, const IoRow& row) {
    const bool valid = view.valid(row);
    const uint32_t count = valid ? row.vectorCount : 0;
    Job* job = free_;
    if (count > kUsualVectors || job == nullptr) {
      const uint32_t capacity = std::max(count, kUsualVectors);
      job = static_cast<Job*>(std::malloc(sizeof(Job) + capacity * sizeof(iovec)));
      if (job == nullptr) throw std::bad_alloc();
      job->capacity = capacity;
    } else {
      free_ = job->next;
    }
    job->row = row;
    job->row.result = valid ? 0 : -EINVAL;
    if (count > 0) {
      std::memcpy(job->vectors(), view.vectors + row.firstVector, count * sizeof(iovec));
    }
    return job;
  }

  void recycle(Job* job) {
    if (job->capacity > kUsualVectors) {
      std::free(job);
    } else {
      job->next = free_;
      free_ = job;
    }
  }

  /// With the lock held.
  void complete(Job* job) {
    const uint64_t one = 1;
    if (done_.first == nullptr) (void)!::write(event_.get(), &one, sizeof one);
    done_.push(job);
  }

  void work() {
    std::unique_lock lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return stopping_ || queued_.first != nullptr; });
      if (stopping_) return;
      Job* job = queued_.pop();
      lock.unlock();
      job->row.result = runRow(job->row, job->vectors());
      lock.lock();
      complete(job);
    }
  }

  /// What has not begun is dropped.
  void stop() {
    {
      std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
    for (JobList* list : {&queued_, &done_}) {
      while (list->first != nullptr) std::free(list->pop());
    }
    while (free_ != nullptr) std::free(std::exchange(free_, free_->next));
    event_ = UniqueFd();
  }

  UniqueFd event_;
  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool stopping_ = false;
  JobList queued_;
  JobList done_;
  Job* free_ = nullptr;
};

}  // namespace

void defineIoPool(napi_env env) {
  defineHandleClass<IoPool>(
      env,
      {getterOf<IoPool, &IoPool::eventFd>("eventFd"), methodOf<IoPool, &IoPool::submit>("submit"),
       methodOf<IoPool, &IoPool::reap>("reap"), methodOf<IoPool, &IoPool::close>("close")});
}

Napi::Value ioPool(const Napi::CallbackInfo& info) {
  const auto threads = static_cast<size_t>(readInteger(info[0], "threads", 1, 64));
  return {info.Env(), createHandle(info.Env(), std::make_unique<IoPool>(threads))};
}

}  // namespace vduse
