#include "errors.h"

#include <cctype>
#include <cstring>
#include <new>

namespace vduse {

namespace {

void setText(napi_env env, napi_value object, const char* key, const std::string& text) {
  napi_value value;
  if (napi_create_string_utf8(env, text.data(), text.size(), &value) != napi_ok) return;
  napi_set_named_property(env, object, key, value);
}

std::string describe(int error) {
  const char* known = strerrordesc_np(error);
  std::string text = known ? known : "unknown error";
  text[0] = static_cast<char>(std::tolower(static_cast<unsigned char>(text[0])));
  return text;
}

std::string codeOf(int error) {
  const char* name = strerrorname_np(error);
  return name ? name : "E" + std::to_string(error);
}

}  // namespace

napi_value toError(napi_env env, const SystemFailure& failure) {
  const std::string code = codeOf(failure.error);
  std::string message = code + ": " + describe(failure.error) + ", " + failure.syscall;
  if (!failure.path.empty()) message += " '" + failure.path + "'";
  if (!failure.extack.empty()) message += " (" + failure.extack + ")";
  napi_value text, codeValue, error, number;
  check(env, napi_create_string_utf8(env, message.data(), message.size(), &text));
  check(env, napi_create_string_utf8(env, code.data(), code.size(), &codeValue));
  check(env, napi_create_error(env, codeValue, text, &error));
  check(env, napi_create_int32(env, -failure.error, &number));
  napi_set_named_property(env, error, "errno", number);
  setText(env, error, "syscall", failure.syscall);
  if (!failure.path.empty()) setText(env, error, "path", failure.path);
  if (!failure.extack.empty()) setText(env, error, "extack", failure.extack);
  return error;
}

void rethrowToJavaScript(napi_env env) {
  // Every status here may say that a worker is being terminated: then nobody is left to tell, and
  // Napi::Error's own way of throwing would end the process.
  try {
    throw;
  } catch (const SystemFailure& failure) {
    try {
      napi_throw(env, toError(env, failure));
    } catch (const Napi::Error& error) {
      napi_throw(env, error.Value());
    }
  } catch (const Napi::Error& error) {
    napi_throw(env, error.Value());
  } catch (const std::bad_alloc&) {
    napi_throw_range_error(env, "ERR_MEMORY_ALLOCATION_FAILED", "out of memory");
  } catch (const std::exception& error) {
    napi_throw_error(env, nullptr, error.what());
  }
}

}  // namespace vduse
