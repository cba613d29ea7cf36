#include "interrupt.h"

#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <csignal>
#include <ctime>

namespace vduse {

namespace {

constexpr time_t kLimitSeconds = 2;

/// Nobody else's: C libraries take theirs from the lower end, programs hardly any.
int interruptSignal() {
  return SIGRTMAX;
}

/// A signal that does nothing but interrupt: its handler is installed without SA_RESTART.
void installHandler() {
  struct sigaction action = {};
  action.sa_handler = [](int) {};
  sigemptyset(&action.sa_mask);
  sigaction(interruptSignal(), &action, nullptr);
}

/// A timer that signals its thread. Where none is to be had (a limit of pending signals), waits are
/// not limited, as without it.
class InterruptTimer {
 public:
  InterruptTimer() {
    static const bool installed = (installHandler(), true);
    (void)installed;
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, interruptSignal());
    pthread_sigmask(SIG_UNBLOCK, &signals, nullptr);
    sigevent event = {};
    event.sigev_notify = SIGEV_THREAD_ID;
    event.sigev_signo = interruptSignal();
    event._sigev_un._tid = static_cast<pid_t>(::syscall(SYS_gettid));
    created_ = ::timer_create(CLOCK_MONOTONIC, &event, &timer_) == 0;
  }
  ~InterruptTimer() {
    if (created_) ::timer_delete(timer_);
  }
  InterruptTimer(const InterruptTimer&) = delete;
  InterruptTimer& operator=(const InterruptTimer&) = delete;

  /// To go off between one second and kLimitSeconds from now.
  void arm() {
    timespec now;
    ::clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    if (now.tv_sec == armedAt_ || !created_) return;
    armedAt_ = now.tv_sec;
    itimerspec when = {};
    when.it_value.tv_sec = kLimitSeconds;
    ::timer_settime(timer_, 0, &when, nullptr);
  }

 private:
  timer_t timer_;
  bool created_;
  time_t armedAt_ = -1;
};

}  // namespace

void limitWait() {
  thread_local InterruptTimer timer;
  timer.arm();
}

}  // namespace vduse
