#pragma once

#include <napi.h>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

namespace vduse {

class WatchLoop;

/// The way from any thread to the JavaScript thread of one environment.
class Mailbox {
 public:
  using Delivery = std::function<void(napi_env)>;

  static std::shared_ptr<Mailbox> of(napi_env env);

  /// Runs `delivery` on the JavaScript thread; drops it when the environment is gone.
  void post(Delivery delivery);

  /// JavaScript thread only: as long as one hold is out, the event loop stays alive.
  void hold();
  void release();

 private:
  std::mutex mutex_;
  bool open_ = true;
  napi_env env_ = nullptr;
  napi_threadsafe_function function_ = nullptr;
  int holds_ = 0;

  static void deliver(napi_env env, napi_value callback, void* context, void* data);
  static void shut(void* self);
};

constexpr int kHandleClasses = 5;

/// What the addon keeps per environment (main thread or worker).
struct Environment {
  napi_ref constructors[kHandleClasses] = {};
  /// Set while the addon itself makes an instance: the constructors refuse everybody else.
  bool constructing = false;
  napi_ref sigbusCounter = nullptr;
  std::shared_ptr<Mailbox> mailbox;
  std::shared_ptr<WatchLoop> watchLoop;

  static Environment& of(napi_env env);
  static void create(napi_env env);
};

/// Starts a thread that leaves the process's signals to the others, under `name` (15 characters).
std::thread startThread(const char* name, std::function<void()> body);

}  // namespace vduse
