#include <sys/mman.h>
#include <memory>

#include "args.h"
#include "exports.h"
#include "handle.h"
#include "sigbus.h"

namespace vduse {

namespace {

/// A whole file in memory, for the copies of copy.cc: no ArrayBuffer stands on it, so it may be of any
/// length, and what its pages can't give is told by the system call that is made instead.
class FileMap {
 public:
  static constexpr const char* kName = "FileMap";
  static constexpr int kIndex = 4;
  static constexpr napi_type_tag kTag = {0x91c3b8e64fa24d07, 0x8d15e2706bf83ac9};

  FileMap(void* address, size_t length) : address_(address), length_(length) {}
  ~FileMap() { unmap(); }
  FileMap(const FileMap&) = delete;
  FileMap& operator=(const FileMap&) = delete;

  Napi::Value unmap(const Napi::CallbackInfo& info) {
    unmap();
    setProperty(info.Env(), info.This(), "address", Napi::Number::New(info.Env(), 0), true);
    return info.Env().Undefined();
  }

 private:
  void* address_;
  size_t length_;

  void unmap() {
    if (address_ != nullptr) ::munmap(address_, length_);
    address_ = nullptr;
  }
};

}  // namespace

void defineFileMap(napi_env env) {
  defineHandleClass<FileMap>(env, {methodOf<FileMap, &FileMap::unmap>("unmap")});
}

Napi::Value mapWholeFile(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const int fd = readFd(info[0]);
  const auto length = static_cast<size_t>(readInteger(info[1], "length", 1, kMaxSafeInteger));
  const int protection = PROT_READ | (readFlag(info[2], "writable") ? PROT_WRITE : 0);
  sigbus::install();
  void* address = ::mmap(nullptr, length, protection, MAP_SHARED, fd, 0);
  if (address == MAP_FAILED) failed("mmap");
  auto map = std::make_unique<FileMap>(address, length);
  // A core is for our memory, not for somebody's disk; a kernel without the advice writes a larger one.
  (void)::madvise(address, length, MADV_DONTDUMP);
  const napi_value object = createHandle(env, std::move(map));
  const auto number = static_cast<double>(reinterpret_cast<uintptr_t>(address));
  setProperty(env, object, "address", Napi::Number::New(env, number), true);
  return {env, object};
}

}  // namespace vduse
