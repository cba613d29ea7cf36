#include "vduse-uapi.h"

#include <cstring>
#include <vector>

#include "args.h"
#include "errors.h"
#include "exports.h"
#include "fd.h"

namespace vduse {

namespace {

template <class Argument>
int control(int fd, unsigned long request, const char* name, Argument argument) {
  const int result = ::ioctl(fd, request, argument);
  if (result < 0) failed(std::string("ioctl VDUSE_") + name);
  return result;
}

/// A structure with a flexible array behind it.
template <class Header>
std::vector<char> withTail(const Header& header, Bytes tail) {
  std::vector<char> whole(sizeof header + tail.length);
  std::memcpy(whole.data(), &header, sizeof header);
  if (tail.length > 0) std::memcpy(whole.data() + sizeof header, tail.data, tail.length);
  return whole;
}

std::string readName(Napi::Value value) {
  return readText(value, "name", 1, uapi::VDUSE_NAME_MAX - 1);
}

Bytes readConfig(Napi::Value value, const char* name) {
  const Bytes bytes = readBytes(value, name);
  // The kernel takes a page at most; this only keeps a slip from copying gigabytes.
  if (bytes.length > 65536) {
    throw Napi::RangeError::New(value.Env(), std::string(name) + " must be at most 65536 bytes");
  }
  return bytes;
}

}  // namespace

Napi::Value vduseGetApiVersion(const Napi::CallbackInfo& info) {
  uint64_t version = 0;
  control(readFd(info[0], "control"), uapi::VDUSE_GET_API_VERSION, "GET_API_VERSION", &version);
  return Napi::BigInt::New(info.Env(), version);
}

Napi::Value vduseSetApiVersion(const Napi::CallbackInfo& info) {
  const int fd = readFd(info[0], "control");
  const uint64_t version = readBigInt(info[1], "version");
  control(fd, uapi::VDUSE_SET_API_VERSION, "SET_API_VERSION", &version);
  return info.Env().Undefined();
}

Napi::Value vduseCreateDevice(const Napi::CallbackInfo& info) {
  const int fd = readFd(info[0], "control");
  if (!info[1].IsObject()) throw Napi::TypeError::New(info.Env(), "config must be an object");
  const auto given = info[1].As<Napi::Object>();
  uapi::vduse_dev_config config = {};
  const std::string name = readName(given.Get("name"));
  std::memcpy(config.name, name.data(), name.size());
  config.vendor_id = readU32(given.Get("vendorId"), "vendorId");
  config.device_id = readU32(given.Get("deviceId"), "deviceId");
  config.features = readBigInt(given.Get("features"), "features");
  config.vq_num = readU32(given.Get("vqNum"), "vqNum");
  config.vq_align = readU32(given.Get("vqAlign"), "vqAlign");
  const Bytes space = readConfig(given.Get("config"), "config");
  config.config_size = static_cast<uint32_t>(space.length);
  control(fd, uapi::VDUSE_CREATE_DEV, "CREATE_DEV", withTail(config, space).data());
  return info.Env().Undefined();
}

Napi::Value vduseDestroyDevice(const Napi::CallbackInfo& info) {
  const int fd = readFd(info[0], "control");
  char padded[uapi::VDUSE_NAME_MAX] = {};
  const std::string name = readName(info[1]);
  std::memcpy(padded, name.data(), name.size());
  control(fd, uapi::VDUSE_DESTROY_DEV, "DESTROY_DEV", padded);
  return info.Env().Undefined();
}

Napi::Value vduseIotlbGetFd(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  uapi::vduse_iotlb_entry entry = {};
  const int device = readFd(info[0], "device");
  entry.start = readBigInt(info[1], "start");
  entry.last = readBigInt(info[2], "last");
  UniqueFd fd(control(device, uapi::VDUSE_IOTLB_GET_FD, "IOTLB_GET_FD", &entry));
  auto result = Napi::Object::New(env);
  // Not "fd" first: objects that JavaScript makes begin with it, and to V8 they would be of one kind
  // with this one, whose "fd" is no number. What was compiled for numbers would be thrown away.
  result.Set("offset", Napi::BigInt::New(env, entry.offset));
  result.Set("start", Napi::BigInt::New(env, entry.start));
  result.Set("last", Napi::BigInt::New(env, entry.last));
  result.Set("perm", Napi::Number::New(env, entry.perm));
  result.Set("fd", ownedFd(env, std::move(fd)));
  return result;
}

Napi::Value vduseGetFeatures(const Napi::CallbackInfo& info) {
  uint64_t features = 0;
  control(readFd(info[0], "device"), uapi::VDUSE_DEV_GET_FEATURES, "DEV_GET_FEATURES", &features);
  return Napi::BigInt::New(info.Env(), features);
}

Napi::Value vduseSetConfig(const Napi::CallbackInfo& info) {
  const int fd = readFd(info[0], "device");
  uapi::vduse_config_data data = {};
  data.offset = readU32(info[1], "offset");
  const Bytes bytes = readConfig(info[2], "bytes");
  data.length = static_cast<uint32_t>(bytes.length);
  control(fd, uapi::VDUSE_DEV_SET_CONFIG, "DEV_SET_CONFIG", withTail(data, bytes).data());
  return info.Env().Undefined();
}

Napi::Value vduseInjectConfigIrq(const Napi::CallbackInfo& info) {
  control(readFd(info[0], "device"), uapi::VDUSE_DEV_INJECT_CONFIG_IRQ, "DEV_INJECT_CONFIG_IRQ", 0);
  return info.Env().Undefined();
}

Napi::Value vduseVqSetup(const Napi::CallbackInfo& info) {
  const int fd = readFd(info[0], "device");
  uapi::vduse_vq_config config = {};
  config.index = readU32(info[1], "index");
  config.max_size = static_cast<uint16_t>(readInteger(info[2], "maxSize", 0, 65535));
  control(fd, uapi::VDUSE_VQ_SETUP, "VQ_SETUP", &config);
  return info.Env().Undefined();
}

Napi::Value vduseVqGetInfo(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const int fd = readFd(info[0], "device");
  uapi::vduse_vq_info queue = {};
  queue.index = readU32(info[1], "index");
  control(fd, uapi::VDUSE_VQ_GET_INFO, "VQ_GET_INFO", &queue);
  auto state = Napi::Array::New(env, 4);
  for (uint32_t i = 0; i < 4; i++) state.Set(i, Napi::Number::New(env, queue.state[i]));
  auto result = Napi::Object::New(env);
  result.Set("num", Napi::Number::New(env, queue.num));
  result.Set("desc", Napi::BigInt::New(env, queue.desc_addr));
  result.Set("driver", Napi::BigInt::New(env, queue.driver_addr));
  result.Set("device", Napi::BigInt::New(env, queue.device_addr));
  result.Set("state", state);
  result.Set("ready", Napi::Boolean::New(env, queue.ready != 0));
  return result;
}

Napi::Value vduseVqSetKickFd(const Napi::CallbackInfo& info) {
  const int fd = readFd(info[0], "device");
  uapi::vduse_vq_eventfd kick = {};
  kick.index = readU32(info[1], "index");
  // -1 is VDUSE_EVENTFD_DEASSIGN.
  kick.fd = static_cast<int32_t>(readInteger(info[2], "eventFd", -1, kMaxI32));
  control(fd, uapi::VDUSE_VQ_SETUP_KICKFD, "VQ_SETUP_KICKFD", &kick);
  return info.Env().Undefined();
}

Napi::Value vduseVqInjectIrq(const Napi::CallbackInfo& info) {
  const int fd = readFd(info[0], "device");
  const uint32_t index = readU32(info[1], "index");
  control(fd, uapi::VDUSE_VQ_INJECT_IRQ, "VQ_INJECT_IRQ", &index);
  return info.Env().Undefined();
}

}  // namespace vduse
