#include <linux/io_uring.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <cerrno>
#include <cstring>

#include "args.h"
#include "errors.h"
#include "exports.h"
#include "fd.h"
#include "io.h"
#include "signals.h"

namespace vduse {

namespace {

constexpr unsigned kMaxOpcodes = 256;

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
  size_t argc = 7;
  napi_value args[7];
  napi_get_cb_info(env, raw, &argc, args, nullptr, nullptr);
  int ring;
  int64_t toSubmit, minComplete, flags;
  timespec time;
  bool bounded;
  int32_t* signals = nullptr;
  size_t signalCount;
  if (!takeFd(env, args[0], "ring", &ring) ||
      !takeInteger(env, args[1], "toSubmit", 0, kMaxU32, &toSubmit) ||
      !takeInteger(env, args[2], "minComplete", 0, kMaxU32, &minComplete) ||
      !takeInteger(env, args[3], "flags", 0, kMaxU32, &flags) ||
      !takeTimeout(env, args[4], &time, &bounded) ||
      !takeSignals(env, args[5], args[6], &signals, &signalCount)) {
    return nullptr;
  }
  sendSignals(signals, signalCount);
  // struct __kernel_timespec is struct timespec where both words have 64 bits.
  static_assert(sizeof time == 16);
  io_uring_getevents_arg extra = {};
  extra.ts = reinterpret_cast<uintptr_t>(&time);
  const bool limited = bounded && minComplete > 0;
  const long done = ::syscall(__NR_io_uring_enter, ring, static_cast<uint32_t>(toSubmit),
                              static_cast<uint32_t>(minComplete),
                              static_cast<uint32_t>(flags) | (limited ? IORING_ENTER_EXT_ARG : 0),
                              limited ? &extra : nullptr, limited ? sizeof extra : 0);
  napi_value result = nullptr;
  napi_create_int32(env, static_cast<int32_t>(done < 0 ? -errno : done), &result);
  return result;
}

}  // namespace vduse
