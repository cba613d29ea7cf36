#include "environment.h"

#include <pthread.h>
#include <csignal>
#include <system_error>

#include "errors.h"

namespace vduse {

void Environment::create(napi_env env) {
  auto self = std::make_unique<Environment>();
  auto destroy = [](napi_env, void* data, void*) { delete static_cast<Environment*>(data); };
  check(env, napi_set_instance_data(env, self.get(), destroy, nullptr));
  self.release();
}

Environment& Environment::of(napi_env env) {
  void* data = nullptr;
  napi_get_instance_data(env, &data);
  return *static_cast<Environment*>(data);
}

std::shared_ptr<Mailbox> Mailbox::of(napi_env env) {
  Environment& environment = Environment::of(env);
  if (environment.mailbox) return environment.mailbox;
  auto mailbox = std::make_shared<Mailbox>();
  napi_value name;
  check(env, napi_create_string_utf8(env, "vduse", NAPI_AUTO_LENGTH, &name));
  check(env, napi_create_threadsafe_function(env, nullptr, nullptr, name, 0, 1, nullptr, nullptr,
                                             nullptr, deliver, &mailbox->function_));
  check(env, napi_unref_threadsafe_function(env, mailbox->function_));
  mailbox->env_ = env;
  // Hooks run last in, first out: this one shuts the mailbox before Node-API frees the function.
  check(env, napi_add_env_cleanup_hook(env, shut, new std::shared_ptr<Mailbox>(mailbox)));
  environment.mailbox = mailbox;
  return mailbox;
}

void Mailbox::post(Delivery delivery) {
  auto copy = std::make_unique<Delivery>(std::move(delivery));
  std::lock_guard lock(mutex_);
  if (!open_) return;
  if (napi_call_threadsafe_function(function_, copy.get(), napi_tsfn_nonblocking) == napi_ok) {
    copy.release();
  }
}

void Mailbox::hold() {
  if (holds_++ == 0) napi_ref_threadsafe_function(env_, function_);
}

void Mailbox::release() {
  if (--holds_ == 0 && open_) napi_unref_threadsafe_function(env_, function_);
}

void Mailbox::deliver(napi_env env, napi_value, void*, void* data) {
  std::unique_ptr<Delivery> delivery(static_cast<Delivery*>(data));
  // Without an environment the function is being torn down.
  if (env != nullptr) (*delivery)(env);
}

void Mailbox::shut(void* self) {
  std::unique_ptr<std::shared_ptr<Mailbox>> mailbox(static_cast<std::shared_ptr<Mailbox>*>(self));
  std::lock_guard lock((*mailbox)->mutex_);
  (*mailbox)->open_ = false;
}

std::thread startThread(const char* name, std::function<void()> body) {
  sigset_t blocked, before;
  sigfillset(&blocked);
  // A fault must reach its handler: a blocked one kills.
  for (int fault : {SIGBUS, SIGSEGV, SIGILL, SIGFPE, SIGTRAP, SIGSYS}) sigdelset(&blocked, fault);
  pthread_sigmask(SIG_SETMASK, &blocked, &before);
  try {
    std::thread thread([name, body = std::move(body)] {
      pthread_setname_np(pthread_self(), name);
      body();
    });
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    return thread;
  } catch (const std::system_error& error) {
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    failed("pthread_create", error.code().value());
  }
}

}  // namespace vduse
