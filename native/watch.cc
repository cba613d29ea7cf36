#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include <thread>
#include <unordered_map>

#include "args.h"
#include "exports.h"
#include "fd.h"
#include "handle.h"

namespace vduse {

class FdWatcher;

/// One thread in epoll_wait for all watchers of an environment. All else here belongs to the
/// JavaScript thread, so a closed watcher can't be called.
class WatchLoop {
 public:
  static WatchLoop& of(napi_env env);

  explicit WatchLoop(std::shared_ptr<Mailbox> mailbox);
  ~WatchLoop() { stop(); }

  /// Registers `fd`, silent until `arm`. Returns the watcher's number.
  uint32_t add(int fd, FdWatcher* watcher);
  /// The next event of `id` will carry `turn`: older ones are known by it.
  void arm(int fd, uint32_t id, uint32_t turn);
  void remove(int fd, uint32_t id);
  void stop();

  Mailbox& mailbox() { return *mailbox_; }

 private:
  void run();
  void deliver(napi_env env, uint64_t event);

  std::shared_ptr<Mailbox> mailbox_;
  UniqueFd epoll_;
  UniqueFd wake_;
  std::thread thread_;
  std::unordered_map<uint32_t, FdWatcher*> watchers_;
  /// Who registered a descriptor last: its number may have been closed and given to another file.
  std::unordered_map<int, uint32_t> owners_;
  uint32_t lastId_ = 0;
};

namespace {

/// The event that ends the thread.
constexpr uint64_t kStop = 0;

uint64_t eventOf(uint32_t id, uint32_t turn) {
  return uint64_t{id} << 32 | turn;
}

}  // namespace

class FdWatcher {
 public:
  static constexpr const char* kName = "FdWatcher";
  static constexpr int kIndex = 2;
  static constexpr napi_type_tag kTag = {0x51b0e7c9a46f2d38, 0xe60d94a3178bc25f};

  FdWatcher(napi_env env, std::shared_ptr<WatchLoop> loop, int fd)
      : env_(env), loop_(std::move(loop)), fd_(fd), id_(loop_->add(fd, this)) {
    hold();
  }

  ~FdWatcher() {
    stop();
    if (self_ != nullptr) napi_delete_reference(env_, self_);
  }

  /// `self` carries the callback as a property, so that the collector sees a cycle through it.
  void bind(napi_value self) { check(env_, napi_create_reference(env_, self, 0, &self_)); }

  Napi::Value rearm(const Napi::CallbackInfo& info) {
    if (loop_ == nullptr) throw Napi::Error::New(info.Env(), "the watcher is closed");
    loop_->arm(fd_, id_, ++turn_);
    // While an event is awaited the watcher lives, whoever has forgotten it.
    if (!armed_) napi_reference_ref(env_, self_, nullptr);
    armed_ = true;
    return info.Env().Undefined();
  }

  Napi::Value close(const Napi::CallbackInfo& info) {
    stop();
    return info.Env().Undefined();
  }

  Napi::Value unref(const Napi::CallbackInfo& info) {
    letGo();
    return info.Env().Undefined();
  }

  void ready(napi_env env, uint32_t turn) {
    napi_value self, callback, receiver;
    if (!armed_ || turn != turn_) return;
    if (napi_get_reference_value(env, self_, &self) != napi_ok || self == nullptr) return;
    disarm();
    if (napi_get_named_property(env, self, "onReady", &callback) != napi_ok ||
        napi_get_undefined(env, &receiver) != napi_ok) {
      return;
    }
    napi_call_function(env, receiver, callback, 0, nullptr, nullptr);
    // Node would swallow it with a deprecation warning (DEP0168).
    bool thrown = false;
    napi_value exception;
    if (napi_is_exception_pending(env, &thrown) == napi_ok && thrown &&
        napi_get_and_clear_last_exception(env, &exception) == napi_ok) {
      napi_fatal_exception(env, exception);
    }
  }

 private:
  void stop() {
    if (loop_ == nullptr) return;
    disarm();
    letGo();
    loop_->remove(fd_, id_);
    loop_ = nullptr;
  }

  void disarm() {
    if (armed_) napi_reference_unref(env_, self_, nullptr);
    armed_ = false;
  }

  void hold() {
    loop_->mailbox().hold();
    held_ = true;
  }

  void letGo() {
    if (held_) loop_->mailbox().release();
    held_ = false;
  }

  napi_env env_;
  std::shared_ptr<WatchLoop> loop_;
  int fd_;
  uint32_t id_;
  uint32_t turn_ = 0;
  napi_ref self_ = nullptr;
  bool armed_ = false;
  bool held_ = false;
};

WatchLoop& WatchLoop::of(napi_env env) {
  Environment& environment = Environment::of(env);
  if (environment.watchLoop) return *environment.watchLoop;
  auto loop = std::make_shared<WatchLoop>(Mailbox::of(env));
  auto hook = [](void* data) {
    std::unique_ptr<std::shared_ptr<WatchLoop>> self(
        static_cast<std::shared_ptr<WatchLoop>*>(data));
    (*self)->stop();
  };
  check(env, napi_add_env_cleanup_hook(env, hook, new std::shared_ptr<WatchLoop>(loop)));
  environment.watchLoop = std::move(loop);
  return *environment.watchLoop;
}

WatchLoop::WatchLoop(std::shared_ptr<Mailbox> mailbox)
    : mailbox_(std::move(mailbox)),
      epoll_(::epoll_create1(EPOLL_CLOEXEC)),
      wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  if (!epoll_) failed("epoll_create1");
  if (!wake_) failed("eventfd");
  epoll_event event = {};
  event.events = EPOLLIN;
  event.data.u64 = kStop;
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, wake_.get(), &event) != 0) failed("epoll_ctl");
  thread_ = startThread("vduse-watch", [this] { run(); });
}

uint32_t WatchLoop::add(int fd, FdWatcher* watcher) {
  epoll_event event = {};
  const uint32_t id = ++lastId_;
  // Hang-ups are reported unasked, but only once, and are ignored before the first `arm`.
  event.events = EPOLLONESHOT;
  event.data.u64 = eventOf(id, 0);
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0) failed("epoll_ctl EPOLL_CTL_ADD");
  watchers_[id] = watcher;
  owners_[fd] = id;
  return id;
}

void WatchLoop::arm(int fd, uint32_t id, uint32_t turn) {
  const auto owner = owners_.find(fd);
  if (owner == owners_.end() || owner->second != id) failed("epoll_ctl EPOLL_CTL_MOD", EBADF);
  epoll_event event = {};
  event.events = EPOLLIN | EPOLLONESHOT;
  event.data.u64 = eventOf(id, turn);
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, fd, &event) != 0) failed("epoll_ctl EPOLL_CTL_MOD");
}

void WatchLoop::remove(int fd, uint32_t id) {
  watchers_.erase(id);
  const auto owner = owners_.find(fd);
  if (owner == owners_.end() || owner->second != id) return;
  owners_.erase(owner);
  epoll_event event = {};
  if (epoll_) ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, &event);
}

void WatchLoop::stop() {
  if (!thread_.joinable()) return;
  const uint64_t one = 1;
  (void)!::write(wake_.get(), &one, sizeof one);
  thread_.join();
  epoll_ = UniqueFd();
  wake_ = UniqueFd();
}

void WatchLoop::run() {
  constexpr int kBatch = 32;
  epoll_event events[kBatch];
  for (;;) {
    const int count = ::epoll_wait(epoll_.get(), events, kBatch, -1);
    for (int i = 0; i < count; i++) {
      const uint64_t event = events[i].data.u64;
      if (event == kStop) return;
      mailbox_->post([this, event](napi_env env) { deliver(env, event); });
    }
  }
}

void WatchLoop::deliver(napi_env env, uint64_t event) {
  const auto found = watchers_.find(static_cast<uint32_t>(event >> 32));
  if (found != watchers_.end()) found->second->ready(env, static_cast<uint32_t>(event));
}

void defineFdWatcher(napi_env env) {
  defineHandleClass<FdWatcher>(env, {methodOf<FdWatcher, &FdWatcher::rearm>("rearm"),
                                     methodOf<FdWatcher, &FdWatcher::close>("close"),
                                     methodOf<FdWatcher, &FdWatcher::unref>("unref")});
}

Napi::Value watch(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const int fd = readFd(info[0]);
  if (!info[1].IsFunction()) throw Napi::TypeError::New(env, "onReady must be a function");
  WatchLoop::of(env);
  auto watcher = std::make_unique<FdWatcher>(env, Environment::of(env).watchLoop, fd);
  FdWatcher* native = watcher.get();
  const napi_value self = createHandle(env, std::move(watcher));
  native->bind(self);
  const napi_property_descriptor property = {"onReady", nullptr, nullptr,      nullptr,
                                             nullptr,   info[1], napi_default, nullptr};
  check(env, napi_define_properties(env, self, 1, &property));
  return {env, self};
}

}  // namespace vduse
