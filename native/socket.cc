#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include <cstring>
#include <ctime>
#include <vector>

#include "args.h"
#include "errors.h"
#include "exports.h"
#include "fd.h"

namespace vduse {

namespace {

/// SCM_MAX_FD of the kernel.
constexpr size_t kMaxFds = 253;

struct Address {
  sockaddr_un name = {};

  explicit Address(const std::string& path) {
    name.sun_family = AF_UNIX;
    std::memcpy(name.sun_path, path.data(), path.size());
  }
  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&name); }
};

std::string readPath(Napi::Value value) {
  return readText(value, "path", 1, sizeof(sockaddr_un::sun_path) - 1);
}

UniqueFd streamSocket() {
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) failed("socket AF_UNIX");
  return fd;
}

int64_t nowMs() {
  timespec now;
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * int64_t{1000} + now.tv_nsec / 1000000;
}

/// Waits until `fd` takes more; ETIMEDOUT at `deadline`.
void waitWritable(int fd, int64_t deadline) {
  for (;;) {
    const int64_t left = deadline - nowMs();
    if (left <= 0) failed("sendmsg", ETIMEDOUT);
    pollfd poll = {fd, POLLOUT, 0};
    const int ready = ::poll(&poll, 1, static_cast<int>(left));
    if (ready > 0) return;
    if (ready < 0 && errno != EINTR) failed("poll");
  }
}

std::vector<int> readFds(Napi::Value value) {
  if (!value.IsArray()) throw Napi::TypeError::New(value.Env(), "fds must be an array");
  const auto array = value.As<Napi::Array>();
  if (array.Length() > kMaxFds) {
    throw Napi::RangeError::New(value.Env(), "fds must be at most 253, the kernel's limit");
  }
  std::vector<int> fds;
  for (uint32_t i = 0; i < array.Length(); i++) fds.push_back(readFd(array.Get(i), "fds[]"));
  return fds;
}

/// Takes every descriptor out of the control data, so that none leaks whatever comes next.
std::vector<UniqueFd> takeFds(msghdr& message) {
  std::vector<UniqueFd> fds;
  fds.reserve(kMaxFds);
  for (cmsghdr* part = CMSG_FIRSTHDR(&message); part; part = CMSG_NXTHDR(&message, part)) {
    if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; i++) {
      int fd;
      std::memcpy(&fd, CMSG_DATA(part) + i * sizeof fd, sizeof fd);
      fds.emplace_back(fd);
    }
  }
  return fds;
}

}  // namespace

Napi::Value unixListen(const Napi::CallbackInfo& info) {
  const std::string path = readPath(info[0]);
  const int backlog = static_cast<int>(readInteger(info[1], "backlog", 0, kMaxI32));
  const Address address(path);
  UniqueFd fd = streamSocket();
  if (::bind(fd.get(), address.get(), sizeof address.name) != 0) failed("bind", errno, path);
  if (::listen(fd.get(), backlog) != 0) {
    const int error = errno;
    ::unlink(path.c_str());
    failed("listen", error, path);
  }
  return ownedFd(info.Env(), std::move(fd));
}

Napi::Value unixConnect(const Napi::CallbackInfo& info) {
  const std::string path = readPath(info[0]);
  const Address address(path);
  UniqueFd fd = streamSocket();
  while (::connect(fd.get(), address.get(), sizeof address.name) != 0) {
    if (errno != EINTR) failed("connect", errno, path);
  }
  return ownedFd(info.Env(), std::move(fd));
}

Napi::Value unixAccept(const Napi::CallbackInfo& info) {
  const int listening = readFd(info[0]);
  for (;;) {
    UniqueFd fd(::accept4(listening, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (fd) return ownedFd(info.Env(), std::move(fd));
    if (errno == EAGAIN) return info.Env().Undefined();
    // The peer has given up between its connect and our accept: look for the next one.
    if (errno != EINTR && errno != ECONNABORTED) failed("accept4");
  }
}

Napi::Value unixPair(const Napi::CallbackInfo& info) {
  int fds[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds) != 0) {
    failed("socketpair");
  }
  UniqueFd first(fds[0]), second(fds[1]);
  auto pair = Napi::Array::New(info.Env(), 2);
  pair.Set(0u, ownedFd(info.Env(), std::move(first)));
  pair.Set(1u, ownedFd(info.Env(), std::move(second)));
  return pair;
}

Napi::Value receiveMessage(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const int fd = readFd(info[0]);
  const Bytes into = readBytes(info[1], "into");
  const auto maxFds = static_cast<size_t>(readInteger(info[2], "maxFds", 0, kMaxFds));
  if (into.length == 0) throw Napi::RangeError::New(env, "into must not be empty");
  alignas(cmsghdr) char control[CMSG_SPACE(kMaxFds * sizeof(int))];
  iovec vector = {into.data, into.length};
  msghdr message = {};
  message.msg_iov = &vector;
  message.msg_iovlen = 1;
  message.msg_control = control;
  // CMSG_SPACE would have room for one more where their number is odd.
  message.msg_controllen = maxFds > 0 ? CMSG_LEN(maxFds * sizeof(int)) : 0;
  ssize_t bytes;
  do {
    bytes = ::recvmsg(fd, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
  } while (bytes < 0 && errno == EINTR);
  if (bytes < 0) {
    if (errno == EAGAIN) return env.Undefined();
    failed("recvmsg");
  }
  std::vector<UniqueFd> received = takeFds(message);
  auto fds = Napi::Array::New(env, received.size());
  for (uint32_t i = 0; i < received.size(); i++) fds.Set(i, ownedFd(env, std::move(received[i])));
  auto result = Napi::Object::New(env);
  result.Set("bytes", Napi::Number::New(env, static_cast<double>(bytes)));
  result.Set("fds", fds);
  result.Set("truncated", Napi::Boolean::New(env, (message.msg_flags & MSG_CTRUNC) != 0));
  return result;
}

Napi::Value sendMessage(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const int fd = readFd(info[0]);
  const std::vector<int> fds = readFds(info[2]);
  const int64_t deadline = readInteger(info[3], "timeoutMs", 0, kMaxI32) + nowMs();
  // Read last: a getter of `fds` may have run JavaScript.
  const Bytes bytes = readBytes(info[1], "bytes");
  if (bytes.length == 0) throw Napi::RangeError::New(env, "bytes must not be empty");
  alignas(cmsghdr) char control[CMSG_SPACE(kMaxFds * sizeof(int))] = {};
  msghdr message = {};
  if (!fds.empty()) {
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(fds.size() * sizeof(int));
    cmsghdr* part = CMSG_FIRSTHDR(&message);
    part->cmsg_level = SOL_SOCKET;
    part->cmsg_type = SCM_RIGHTS;
    part->cmsg_len = CMSG_LEN(fds.size() * sizeof(int));
    std::memcpy(CMSG_DATA(part), fds.data(), fds.size() * sizeof(int));
  }
  size_t sent = 0;
  while (sent < bytes.length) {
    iovec vector = {bytes.data + sent, bytes.length - sent};
    message.msg_iov = &vector;
    message.msg_iovlen = 1;
    const ssize_t moved = ::sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (moved >= 0) {
      sent += static_cast<size_t>(moved);
      // The descriptors went with the first byte.
      message.msg_control = nullptr;
      message.msg_controllen = 0;
    } else if (errno == EAGAIN) {
      waitWritable(fd, deadline);
    } else if (errno != EINTR) {
      failed("sendmsg");
    }
  }
  return env.Undefined();
}

}  // namespace vduse
