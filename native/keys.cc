#include <linux/keyctl.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "args.h"
#include "errors.h"
#include "exports.h"

namespace vduse {

namespace {

// include/linux/key.h of the kernel (the uAPI has the calls, not the bits): all rights to a
// possessor; view, read and search to the owner, who needs no possession that way.
constexpr unsigned kPermissions = 0x3f000000 | 0x00010000 | 0x00020000 | 0x00080000;

long readKeyInto(int32_t serial, uint8_t* data, size_t length) {
  const long size = ::syscall(__NR_keyctl, KEYCTL_READ, serial, data, length);
  if (size < 0) failed("keyctl KEYCTL_READ");
  return size;
}

}  // namespace

Napi::Value getRandom(const Napi::CallbackInfo& info) {
  const Bytes into = readBytes(info[0], "into");
  size_t filled = 0;
  while (filled < into.length) {
    const ssize_t got = ::getrandom(into.data + filled, into.length - filled, 0);
    if (got >= 0) {
      filled += static_cast<size_t>(got);
    } else if (errno != EINTR) {
      failed("getrandom");
    }
  }
  return info.Env().Undefined();
}

Napi::Value addUserKey(const Napi::CallbackInfo& info) {
  const std::string description = readText(info[0], "description", 1, 4095);
  const Bytes payload = readBytes(info[1], "payload");
  const long serial = ::syscall(__NR_add_key, "user", description.c_str(), payload.data,
                                payload.length, KEY_SPEC_USER_KEYRING);
  if (serial < 0) failed("add_key");
  if (::syscall(__NR_keyctl, KEYCTL_SETPERM, serial, kPermissions) < 0) {
    const int error = errno;
    ::syscall(__NR_keyctl, KEYCTL_UNLINK, serial, KEY_SPEC_USER_KEYRING);
    failed("keyctl KEYCTL_SETPERM", error);
  }
  return Napi::Number::New(info.Env(), static_cast<double>(serial));
}

Napi::Value readKey(const Napi::CallbackInfo& info) {
  const auto serial = static_cast<int32_t>(readInteger(info[0], "serial", 1, kMaxI32));
  for (;;) {
    const auto room = static_cast<size_t>(readKeyInto(serial, nullptr, 0));
    auto buffer = Napi::ArrayBuffer::New(info.Env(), room);
    const auto size =
        static_cast<size_t>(readKeyInto(serial, static_cast<uint8_t*>(buffer.Data()), room));
    // It may have been updated to a longer one meanwhile.
    if (size <= room) return Napi::Uint8Array::New(info.Env(), size, buffer, 0);
  }
}

}  // namespace vduse
