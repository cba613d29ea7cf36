#include "fd.h"

#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include "args.h"
#include "exports.h"
#include "handle.h"
#include "interrupt.h"

namespace vduse {

namespace {

class OwnedFd {
 public:
  static constexpr const char* kName = "OwnedFd";
  static constexpr int kIndex = 0;
  static constexpr napi_type_tag kTag = {0x6f1c2f0b7d8e4a15, 0x9b3a5d2c41e7f860};

  explicit OwnedFd(UniqueFd fd) : fd_(std::move(fd)) {}

  Napi::Value close(const Napi::CallbackInfo& info) {
    const int fd = forget(info);
    // Linux has closed the descriptor even when it reports EINTR.
    if (fd >= 0 && ::close(fd) != 0 && errno != EINTR) failed("close");
    return info.Env().Undefined();
  }

  Napi::Value release(const Napi::CallbackInfo& info) {
    return Napi::Number::New(info.Env(), forget(info));
  }

 private:
  int forget(const Napi::CallbackInfo& info) {
    if (fd_) setProperty(info.Env(), info.This(), "fd", Napi::Number::New(info.Env(), -1), true);
    return fd_.release();
  }

  UniqueFd fd_;
};

/// Never waits, whatever a peer that shares the eventfd has done to its O_NONBLOCK.
ssize_t readEventFd(int fd, uint64_t* count) {
  iovec vector = {count, sizeof *count};
  const ssize_t got = ::preadv2(fd, &vector, 1, -1, RWF_NOWAIT);
  return got < 0 && errno == EOPNOTSUPP ? ::read(fd, count, sizeof *count) : got;
}

}  // namespace

void defineOwnedFd(napi_env env) {
  defineHandleClass<OwnedFd>(env, {methodOf<OwnedFd, &OwnedFd::close>("close"),
                                   methodOf<OwnedFd, &OwnedFd::release>("release")});
}

Napi::Value ownedFd(napi_env env, UniqueFd fd) {
  const int number = fd.get();
  const napi_value object = createHandle(env, std::make_unique<OwnedFd>(std::move(fd)));
  setProperty(env, object, "fd", Napi::Number::New(env, number), true);
  return {env, object};
}

Napi::Value createEventFd(const Napi::CallbackInfo& info) {
  UniqueFd fd(::eventfd(readU32(info[0], "initial"), EFD_CLOEXEC | EFD_NONBLOCK));
  if (!fd) failed("eventfd");
  return ownedFd(info.Env(), std::move(fd));
}

napi_value eventfdSignal(napi_env env, napi_callback_info raw) {
  size_t count = 1;
  napi_value args[1];
  napi_get_cb_info(env, raw, &count, args, nullptr, nullptr);
  int fd;
  if (!takeFd(env, args[0], "fd", &fd)) return nullptr;
  const uint64_t one = 1;
  // A peer can have made its eventfd blocking, and filled it.
  limitWait();
  if (::write(fd, &one, sizeof one) < 0 && errno != EAGAIN) {
    return guarded(env, []() -> napi_value { failed("write"); });
  }
  return nullptr;
}

napi_value eventfdRead(napi_env env, napi_callback_info raw) {
  size_t argc = 1;
  napi_value args[1];
  napi_get_cb_info(env, raw, &argc, args, nullptr, nullptr);
  int fd;
  if (!takeFd(env, args[0], "fd", &fd)) return nullptr;
  uint64_t count = 0;
  while (readEventFd(fd, &count) < 0) {
    if (errno == EAGAIN) break;
    if (errno == EINTR) continue;
    return guarded(env, []() -> napi_value { failed("read"); });
  }
  napi_value result = nullptr;
  napi_create_double(env, static_cast<double>(count), &result);
  return result;
}

Napi::Value memfd(const Napi::CallbackInfo& info) {
  // The kernel prefixes "memfd:" and stays within NAME_MAX.
  const std::string name = readText(info[0], "name", 0, 249);
  const int64_t length = readInteger(info[1], "length", 0, kMaxSafeInteger);
  UniqueFd fd(::memfd_create(name.c_str(), MFD_CLOEXEC));
  if (!fd) failed("memfd_create");
  if (::ftruncate(fd.get(), length) != 0) failed("ftruncate");
  return ownedFd(info.Env(), std::move(fd));
}

Napi::Value duplicate(const Napi::CallbackInfo& info) {
  UniqueFd fd(::fcntl(readFd(info[0]), F_DUPFD_CLOEXEC, 0));
  if (!fd) failed("fcntl F_DUPFD_CLOEXEC");
  return ownedFd(info.Env(), std::move(fd));
}

Napi::Value adopt(const Napi::CallbackInfo& info) {
  const int fd = readFd(info[0]);
  if (::fcntl(fd, F_GETFD) < 0) failed("fcntl F_GETFD");
  return ownedFd(info.Env(), UniqueFd(fd));
}

Napi::Value setNonblocking(const Napi::CallbackInfo& info) {
  const int fd = readFd(info[0]);
  const bool on = readFlag(info[1], "on");
  const int flags = ::fcntl(fd, F_GETFL);
  if (flags < 0) failed("fcntl F_GETFL");
  const int wanted = on ? flags | O_NONBLOCK : flags & ~O_NONBLOCK;
  if (wanted != flags && ::fcntl(fd, F_SETFL, wanted) != 0) failed("fcntl F_SETFL");
  return info.Env().Undefined();
}

}  // namespace vduse
