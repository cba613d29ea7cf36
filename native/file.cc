#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <cstring>

#include "args.h"
#include "errors.h"
#include "exports.h"

namespace vduse {

namespace {

// linux/stat.h since 6.1: carried here for C libraries that don't have it.
constexpr unsigned kStatxDioAlign = 0x2000;

struct StatxBuffer {
  uint32_t mask;
  uint8_t before[148];
  uint32_t dioMemoryAlign;
  uint32_t dioOffsetAlign;
  uint8_t after[96];
};
static_assert(offsetof(StatxBuffer, dioMemoryAlign) == 0x98 && sizeof(StatxBuffer) == 256);

template <class Value>
Value blockIoctl(int fd, unsigned long request, const char* name) {
  Value value = {};
  if (::ioctl(fd, request, &value) != 0) failed(std::string("ioctl ") + name);
  return value;
}

}  // namespace

Napi::Value allocateFile(const Napi::CallbackInfo& info) {
  const int fd = readFd(info[0]);
  const int mode = static_cast<int>(readInteger(info[1], "mode", 0, kMaxI32));
  const off_t offset = readInteger(info[2], "offset", 0, kMaxSafeInteger);
  const off_t length = readInteger(info[3], "length", 0, kMaxSafeInteger);
  while (::fallocate(fd, mode, offset, length) != 0) {
    if (errno != EINTR) failed("fallocate");
  }
  return info.Env().Undefined();
}

Napi::Value lockFile(const Napi::CallbackInfo& info) {
  const int fd = readFd(info[0]);
  struct flock lock = {};
  lock.l_type = readFlag(info[1], "exclusive") ? F_WRLCK : F_RDLCK;
  lock.l_whence = SEEK_SET;
  if (::fcntl(fd, F_OFD_SETLK, &lock) == 0) return Napi::Boolean::New(info.Env(), true);
  if (errno != EAGAIN && errno != EACCES) failed("fcntl F_OFD_SETLK");
  return Napi::Boolean::New(info.Env(), false);
}

Napi::Value blockDeviceInfo(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const int fd = readFd(info[0]);
  const auto size = blockIoctl<uint64_t>(fd, BLKGETSIZE64, "BLKGETSIZE64");
  const auto logical = blockIoctl<int>(fd, BLKSSZGET, "BLKSSZGET");
  const auto physical = blockIoctl<unsigned>(fd, BLKPBSZGET, "BLKPBSZGET");
  const auto readOnly = blockIoctl<int>(fd, BLKROGET, "BLKROGET");
  auto result = Napi::Object::New(env);
  result.Set("size", Napi::Number::New(env, static_cast<double>(size)));
  result.Set("logicalBlockSize", Napi::Number::New(env, logical));
  result.Set("physicalBlockSize", Napi::Number::New(env, physical));
  result.Set("readOnly", Napi::Boolean::New(env, readOnly != 0));
  return result;
}

Napi::Value directIoAlignment(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  StatxBuffer found = {};
  if (::syscall(__NR_statx, readFd(info[0]), "", AT_EMPTY_PATH, kStatxDioAlign, &found) != 0) {
    failed("statx");
  }
  if (!(found.mask & kStatxDioAlign)) return env.Undefined();
  auto pair = Napi::Array::New(env, 2);
  pair.Set(0u, Napi::Number::New(env, found.dioMemoryAlign));
  pair.Set(1u, Napi::Number::New(env, found.dioOffsetAlign));
  return pair;
}

}  // namespace vduse
