#include "mapping.h"

#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/vfs.h>
#include <unistd.h>
#include <memory>

#include "args.h"
#include "exports.h"
#include "handle.h"

namespace vduse {

namespace {

/// What Node-API takes as the length of an external ArrayBuffer.
constexpr double kMaxLength = 4294967296.0;

size_t pageBytes() {
  static const auto bytes = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  return bytes;
}

/// The size of the pages a file is mapped in: huge ones can't be unmapped, nor mapped over by the
/// SIGBUS handler, in parts.
size_t pageBytesOf(int fd) {
  struct statfs system;
  const bool huge = ::fstatfs(fd, &system) == 0 && system.f_type == HUGETLBFS_MAGIC;
  return huge ? static_cast<size_t>(system.f_bsize) : pageBytes();
}

size_t wholePages(size_t length, size_t page) {
  return (length + page - 1) / page * page;
}

class Mapping {
 public:
  static constexpr const char* kName = "Mapping";
  static constexpr int kIndex = 1;
  static constexpr napi_type_tag kTag = {0x3d0b9c61e2754f88, 0xa7c4160f93be5d21};

  explicit Mapping(std::shared_ptr<Region> region) : region_(std::move(region)) {}

  Napi::Value poisoned(const Napi::CallbackInfo& info) {
    return Napi::Boolean::New(info.Env(), region_->poisoned());
  }

  Napi::Value unmap(const Napi::CallbackInfo& info) {
    const Napi::Env env = info.Env();
    if (region_->address() == nullptr) return env.Undefined();
    const Napi::Value buffer = info.This().As<Napi::Object>().Get("buffer");
    bool detached = false;
    check(env, napi_is_detached_arraybuffer(env, buffer, &detached));
    if (!detached) {
      check(env, napi_detach_arraybuffer(env, buffer));
      region_->unmap();
    } else {
      // Somebody moved the memory to another ArrayBuffer (transfer()); it goes with that one.
      region_ = std::make_shared<Region>(nullptr, 0, nullptr);
    }
    setProperty(env, info.This(), "address", Napi::Number::New(env, 0), true);
    return env.Undefined();
  }

  Region& region() { return *region_; }

 private:
  std::shared_ptr<Region> region_;
};

/// The Mapping of the first `length` bytes of `region`, which is unmapped when it can't be made.
Napi::Value mappingOf(Napi::Env env, std::shared_ptr<Region> region, size_t length) {
  void* address = region->address();
  const napi_value object = createHandle(env, std::make_unique<Mapping>(region));
  auto hint = std::make_unique<std::shared_ptr<Region>>(region);
  auto finalize = [](napi_env, void*, void* data) {
    delete static_cast<std::shared_ptr<Region>*>(data);
  };
  napi_value buffer;
  check(env, napi_create_external_arraybuffer(env, address, length, finalize, hint.get(), &buffer));
  hint.release();
  const auto number = [env](auto value) {
    return Napi::Number::New(env, static_cast<double>(value));
  };
  setProperty(env, object, "buffer", buffer, false);
  setProperty(env, object, "length", number(length), false);
  setProperty(env, object, "address", number(reinterpret_cast<uintptr_t>(address)), true);
  return {env, object};
}

}  // namespace

void Region::unmap() {
  if (address_ == nullptr) return;
  poisoned_ = poisoned();
  if (slot_ != nullptr) sigbus::unguard(slot_);
  slot_ = nullptr;
  ::munmap(address_, length_);
  address_ = nullptr;
}

void defineMapping(napi_env env) {
  defineHandleClass<Mapping>(env, {getterOf<Mapping, &Mapping::poisoned>("poisoned"),
                                   methodOf<Mapping, &Mapping::unmap>("unmap")});
}

Napi::Value mapFile(const Napi::CallbackInfo& info) {
  const int fd = readFd(info[0]);
  const auto length = static_cast<size_t>(readInteger(info[1], "length", 1, kMaxLength));
  const int64_t offset = readInteger(info[2], "offset", 0, kMaxSafeInteger);
  const int protection = PROT_READ | (readFlag(info[3], "writable") ? PROT_WRITE : 0);
  if (offset % static_cast<int64_t>(pageBytes()) != 0) {
    throw Napi::RangeError::New(info.Env(), "offset must be a multiple of the page size");
  }
  void* address = ::mmap(nullptr, length, protection, MAP_SHARED, fd, offset);
  if (address == MAP_FAILED) failed("mmap");
  const size_t whole = wholePages(length, pageBytesOf(fd));
  return mappingOf(
      info.Env(),
      std::make_shared<Region>(address, whole, sigbus::guard(address, whole, protection)), length);
}

Napi::Value allocate(const Napi::CallbackInfo& info) {
  const auto length = static_cast<size_t>(readInteger(info[0], "length", 1, kMaxLength));
  void* address =
      ::mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (address == MAP_FAILED) failed("mmap");
  const size_t whole = wholePages(length, pageBytes());
  return mappingOf(info.Env(), std::make_shared<Region>(address, whole, nullptr), length);
}

Napi::Value sigbusCounter(const Napi::CallbackInfo& info) {
  static_assert(sizeof sigbus::absorbed == 4);
  napi_env env = info.Env();
  napi_ref& cached = Environment::of(env).sigbusCounter;
  napi_value buffer;
  if (cached != nullptr) {
    check(env, napi_get_reference_value(env, cached, &buffer));
  } else {
    check(env,
          napi_create_external_arraybuffer(env, &sigbus::absorbed, 4, nullptr, nullptr, &buffer));
    check(env, napi_create_reference(env, buffer, 1, &cached));
  }
  return {env, buffer};
}

Napi::Value pageSize(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), static_cast<double>(pageBytes()));
}

Napi::Value protectSecret(const Napi::CallbackInfo& info) {
  Region& region = unwrapHandle<Mapping>(info.Env(), info[0]).region();
  if (region.address() == nullptr) {
    throw Napi::TypeError::New(info.Env(), "mapping must not be unmapped");
  }
  if (::madvise(region.address(), region.length(), MADV_DONTDUMP) != 0) {
    failed("madvise MADV_DONTDUMP");
  }
  // RLIMIT_MEMLOCK may forbid it: the pages can then be swapped out, and nothing else changes.
  if (::mlock(region.address(), region.length()) != 0 && errno != ENOMEM && errno != EPERM &&
      errno != EAGAIN) {
    failed("mlock");
  }
  return info.Env().Undefined();
}

}  // namespace vduse
