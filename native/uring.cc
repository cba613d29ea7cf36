#include <linux/io_uring.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <cerrno>
#include <cstring>

#include "args.h"
#include "duration.h"
#include "errors.h"
#include "exports.h"
#include "fd.h"
#include "signals.h"

namespace vduse {

namespace {

constexpr unsigned kMaxOpcodes = 256;

/// The block of lib/native/ring-call.ts.
struct RingCall {
  int32_t ring;
  uint32_t toSubmit;
  uint32_t minComplete;
  uint32_t flags;
  int32_t timeoutUs;
  uint32_t signalCount;
  int32_t result;
  int32_t pad;
  int32_t signals[];
};
static_assert(sizeof(RingCall) == 32);

Napi::Value numbers(Napi::Env env, std::initializer_list<uint32_t> values) {
  auto array = Napi::Array::New(env, values.size());
  uint32_t index = 0;
  for (uint32_t value : values) array.Set(index++, Napi::Number::New(env, value));
  return array;
}

}  // namespace

Napi::Value ioUringSetup(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  io_uring_params params = {};
  const uint32_t entries = readU32(info[0], "entries");
  params.flags = readU32(info[1], "flags");
  UniqueFd fd(static_cast<int>(::syscall(__NR_io_uring_setup, entries, &params)));
  if (!fd) failed("io_uring_setup");
  const io_sqring_offsets& sq = params.sq_off;
  const io_cqring_offsets& cq = params.cq_off;
  auto result = Napi::Object::New(env);
  result.Set("ring", ownedFd(env, std::move(fd)));
  result.Set("sqEntries", Napi::Number::New(env, params.sq_entries));
  result.Set("cqEntries", Napi::Number::New(env, params.cq_entries));
  result.Set("features", Napi::Number::New(env, params.features));
  result.Set("sqOff", numbers(env, {sq.head, sq.tail, sq.ring_mask, sq.ring_entries, sq.flags,
                                    sq.dropped, sq.array}));
  result.Set("cqOff", numbers(env, {cq.head, cq.tail, cq.ring_mask, cq.ring_entries, cq.overflow,
                                    cq.cqes, cq.flags}));
  return result;
}

Napi::Value ioUringProbe(const Napi::CallbackInfo& info) {
  // struct io_uring_probe ends in a flexible array.
  alignas(io_uring_probe) char
      memory[sizeof(io_uring_probe) + kMaxOpcodes * sizeof(io_uring_probe_op)] = {};
  auto* probe = reinterpret_cast<io_uring_probe*>(memory);
  if (::syscall(__NR_io_uring_register, readFd(info[0], "ring"), IORING_REGISTER_PROBE, probe,
                kMaxOpcodes) < 0) {
    failed("io_uring_register IORING_REGISTER_PROBE");
  }
  auto supported = Napi::Array::New(info.Env());
  uint32_t count = 0;
  for (unsigned i = 0; i < probe->ops_len; i++) {
    if (probe->ops[i].flags & IO_URING_OP_SUPPORTED) {
      supported.Set(count++, Napi::Number::New(info.Env(), probe->ops[i].op));
    }
  }
  return supported;
}

napi_value ioUringEnter(napi_env env, napi_callback_info raw) {
  size_t argc = 1;
  napi_value args[1];
  napi_get_cb_info(env, raw, &argc, args, nullptr, nullptr);
  Bytes bytes;
  if (!takeArrayBuffer(env, args[0], "call", &bytes)) return nullptr;
  auto* call = reinterpret_cast<RingCall*>(bytes.data);
  if (bytes.length < sizeof *call ||
      call->signalCount > (bytes.length - sizeof *call) / (3 * sizeof(int32_t))) {
    napi_throw_range_error(env, "ERR_OUT_OF_RANGE", "call must have room for its words and signals");
    return nullptr;
  }
  sendSignals(call->signals, call->signalCount);
  // struct __kernel_timespec is struct timespec where both words have 64 bits.
  const timespec time = spanOfUs(call->timeoutUs);
  static_assert(sizeof time == 16);
  io_uring_getevents_arg extra = {};
  extra.ts = reinterpret_cast<uintptr_t>(&time);
  const bool limited = call->timeoutUs >= 0 && call->minComplete > 0;
  const long done = ::syscall(__NR_io_uring_enter, call->ring, call->toSubmit, call->minComplete,
                              call->flags | (limited ? IORING_ENTER_EXT_ARG : 0),
                              limited ? &extra : nullptr, limited ? sizeof extra : 0);
  call->result = static_cast<int32_t>(done < 0 ? -errno : done);
  return nullptr;
}

}  // namespace vduse
