#pragma once

#include <napi.h>
#include <cerrno>
#include <exception>
#include <string>
#include <utility>

namespace vduse {

/// A system call that failed. It holds no JavaScript value, so any thread may make one.
struct SystemFailure {
  int error;
  std::string syscall;
  /// The path it was about, if any.
  std::string path;
  /// The kernel's own explanation (netlink extended acknowledgement), if any.
  std::string extack;
};

[[noreturn]] inline void failed(std::string syscall, int error = errno, std::string path = {}) {
  throw SystemFailure{error, std::move(syscall), std::move(path), {}};
}

/// The Error JavaScript sees: `code`, `errno` (negative), `syscall`, `path`, `extack`.
napi_value toError(napi_env env, const SystemFailure& failure);

/// Leaves the exception that is being handled as the pending JavaScript exception.
void rethrowToJavaScript(napi_env env);

/// Runs `body` for JavaScript: whatever C++ exception it ends with becomes a JavaScript one.
template <class Body>
napi_value guarded(napi_env env, Body&& body) {
  try {
    return body();
  } catch (...) {
    rethrowToJavaScript(env);
    return nullptr;
  }
}

/// Turns a failed Node-API call into a C++ exception.
inline void check(napi_env env, napi_status status) {
  if (status != napi_ok) throw Napi::Error::New(env);
}

/// A function of the addon as Node-API wants it.
template <Napi::Value (*Function)(const Napi::CallbackInfo&)>
napi_value wrapped(napi_env env, napi_callback_info raw) {
  return guarded(env, [&]() -> napi_value {
    Napi::CallbackInfo info(env, raw);
    return Function(info);
  });
}

}  // namespace vduse
