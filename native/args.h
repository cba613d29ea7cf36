#pragma once

#include <napi.h>
#include <cstddef>
#include <cstdint>
#include <string>

/// Reading arguments. Each reader throws a TypeError or RangeError that names the argument; none
/// truncates.
namespace vduse {

constexpr double kMaxSafeInteger = 9007199254740991.0;
constexpr double kMaxU32 = 4294967295.0;
constexpr double kMaxI32 = 2147483647.0;

/// Bytes that JavaScript owns; good until JavaScript runs again.
struct Bytes {
  uint8_t* data;
  size_t length;
};

int64_t readInteger(Napi::Value value, const char* name, double low, double high);
uint64_t readBigInt(Napi::Value value, const char* name);
std::string readText(Napi::Value value, const char* name, size_t low, size_t high);
Bytes readBytes(Napi::Value value, const char* name);
bool readFlag(Napi::Value value, const char* name);

inline int readFd(Napi::Value value, const char* name = "fd") {
  return static_cast<int>(readInteger(value, name, 0, kMaxI32));
}

inline uint32_t readU32(Napi::Value value, const char* name) {
  return static_cast<uint32_t>(readInteger(value, name, 0, kMaxU32));
}

/// The same for the functions on the hot path, which do without C++ exceptions: false means that a
/// JavaScript exception is pending.
bool takeInteger(napi_env env, napi_value value, const char* name, double low, double high,
                 int64_t* out);
bool takeFd(napi_env env, napi_value value, const char* name, int* out);
bool takeArrayBuffer(napi_env env, napi_value value, const char* name, Bytes* out);
/// An Int32Array of at least `words` elements.
bool takeInt32Array(napi_env env, napi_value value, const char* name, size_t words, int32_t** out,
                    size_t* length = nullptr);

}  // namespace vduse
