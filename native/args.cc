#include "args.h"

#include <cmath>
#include <cstdio>

namespace vduse {

namespace {

std::string numeral(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.17g", value);
  return text;
}

bool refuseType(napi_env env, const char* name, const char* wanted) {
  const std::string message = std::string(name) + " must be " + wanted;
  napi_throw_type_error(env, "ERR_INVALID_ARG_TYPE", message.c_str());
  return false;
}

bool refuseRange(napi_env env, const std::string& message) {
  napi_throw_range_error(env, "ERR_OUT_OF_RANGE", message.c_str());
  return false;
}

/// Turns the pending JavaScript exception into a C++ one.
[[noreturn]] void raise(napi_env env) {
  throw Napi::Error::New(env);
}

}  // namespace

bool takeInteger(napi_env env, napi_value value, const char* name, double low, double high,
                 int64_t* out) {
  double number;
  if (napi_get_value_double(env, value, &number) != napi_ok) {
    return refuseType(env, name, "a number");
  }
  // NaN fails the comparison too. No std::trunc, which is a call into a library.
  const bool inRange = number >= low && number <= high;
  const auto integer = inRange ? static_cast<int64_t>(number) : 0;
  if (!inRange || static_cast<double>(integer) != number) {
    return refuseRange(env, std::string(name) + " must be an integer from " + numeral(low) +
                                " to " + numeral(high) + ", not " + numeral(number));
  }
  *out = integer;
  return true;
}

bool takeFd(napi_env env, napi_value value, const char* name, int* out) {
  int64_t number;
  if (!takeInteger(env, value, name, 0, kMaxI32, &number)) return false;
  *out = static_cast<int>(number);
  return true;
}

bool takeArrayBuffer(napi_env env, napi_value value, const char* name, Bytes* out) {
  void* data;
  size_t length;
  if (napi_get_arraybuffer_info(env, value, &data, &length) != napi_ok) {
    return refuseType(env, name, "an ArrayBuffer");
  }
  *out = {static_cast<uint8_t*>(data), length};
  return true;
}

bool takeInt32Array(napi_env env, napi_value value, const char* name, size_t words, int32_t** out,
                    size_t* length) {
  napi_typedarray_type type;
  size_t count;
  void* data;
  if (napi_get_typedarray_info(env, value, &type, &count, &data, nullptr, nullptr) != napi_ok ||
      type != napi_int32_array) {
    return refuseType(env, name, "an Int32Array");
  }
  if (count < words) {
    return refuseRange(env, std::string(name) + " must have at least " + std::to_string(words) +
                                " elements, not " + std::to_string(count));
  }
  *out = static_cast<int32_t*>(data);
  if (length != nullptr) *length = count;
  return true;
}

int64_t readInteger(Napi::Value value, const char* name, double low, double high) {
  int64_t number;
  if (!takeInteger(value.Env(), value, name, low, high, &number)) raise(value.Env());
  return number;
}

uint64_t readBigInt(Napi::Value value, const char* name) {
  uint64_t number;
  bool lossless;
  if (napi_get_value_bigint_uint64(value.Env(), value, &number, &lossless) != napi_ok) {
    refuseType(value.Env(), name, "a bigint");
    raise(value.Env());
  }
  if (!lossless) {
    refuseRange(value.Env(), std::string(name) + " must be from 0n to 18446744073709551615n");
    raise(value.Env());
  }
  return number;
}

std::string readText(Napi::Value value, const char* name, size_t low, size_t high) {
  if (!value.IsString()) {
    refuseType(value.Env(), name, "a string");
    raise(value.Env());
  }
  std::string text = value.As<Napi::String>();
  if (text.find('\0') != std::string::npos) {
    refuseRange(value.Env(), std::string(name) + " must not hold a null character");
    raise(value.Env());
  }
  if (text.size() < low || text.size() > high) {
    std::string shown = text.size() > 256 ? text.substr(0, 256) + "..." : text;
    refuseRange(value.Env(), std::string(name) + " must be " + std::to_string(low) + " to " +
                                 std::to_string(high) + " bytes long, not " +
                                 std::to_string(text.size()) + ": '" + shown + "'");
    raise(value.Env());
  }
  return text;
}

Bytes readBytes(Napi::Value value, const char* name) {
  napi_env env = value.Env();
  napi_typedarray_type type;
  size_t length;
  void* data;
  napi_value buffer;
  if (napi_get_typedarray_info(env, value, &type, &length, &data, &buffer, nullptr) != napi_ok ||
      type != napi_uint8_array) {
    refuseType(env, name, "a Uint8Array");
    raise(env);
  }
  bool detached;
  if (napi_is_detached_arraybuffer(env, buffer, &detached) == napi_ok && detached) {
    refuseType(env, name, "a Uint8Array that is not detached");
    raise(env);
  }
  return {static_cast<uint8_t*>(data), length};
}

bool readFlag(Napi::Value value, const char* name) {
  if (!value.IsBoolean()) {
    refuseType(value.Env(), name, "a boolean");
    raise(value.Env());
  }
  return value.As<Napi::Boolean>();
}

}  // namespace vduse
