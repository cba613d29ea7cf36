#pragma once

#include <napi.h>
#include <unistd.h>
#include <utility>

namespace vduse {

/// A descriptor closed at the end of its scope.
class UniqueFd {
 public:
  UniqueFd() = default;
  explicit UniqueFd(int fd) : fd_(fd) {}
  UniqueFd(UniqueFd&& other) noexcept : fd_(other.release()) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~UniqueFd() {
    if (fd_ >= 0) ::close(fd_);
  }
  int get() const { return fd_; }
  int release() { return std::exchange(fd_, -1); }
  explicit operator bool() const { return fd_ >= 0; }

 private:
  int fd_ = -1;
};

/// The JavaScript OwnedFd around `fd`, which is closed if that object can't be made.
Napi::Value ownedFd(napi_env env, UniqueFd fd);

}  // namespace vduse
