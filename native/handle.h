#pragma once

#include <napi.h>
#include <memory>

#include "environment.h"
#include "errors.h"

/// JavaScript objects that own a C++ one. A handle class T has `kName`, `kIndex` (its place in
/// Environment::constructors) and `kTag`; its destructor releases everything it holds.
namespace vduse {

template <class T>
void defineHandleClass(napi_env env, std::initializer_list<napi_property_descriptor> properties) {
  napi_value constructor;
  auto construct = [](napi_env env, napi_callback_info info) -> napi_value {
    if (!Environment::of(env).constructing) {
      napi_throw_type_error(env, "ERR_ILLEGAL_CONSTRUCTOR", "Illegal constructor");
      return nullptr;
    }
    napi_value self = nullptr;
    napi_get_cb_info(env, info, nullptr, nullptr, &self, nullptr);
    return self;
  };
  check(env, napi_define_class(env, T::kName, NAPI_AUTO_LENGTH, construct, nullptr,
                               properties.size(), properties.begin(), &constructor));
  check(env,
        napi_create_reference(env, constructor, 1, &Environment::of(env).constructors[T::kIndex]));
}

template <class T>
napi_value createHandle(napi_env env, std::unique_ptr<T> native) {
  Environment& environment = Environment::of(env);
  napi_value constructor, object;
  check(env, napi_get_reference_value(env, environment.constructors[T::kIndex], &constructor));
  environment.constructing = true;
  napi_status status = napi_new_instance(env, constructor, 0, nullptr, &object);
  environment.constructing = false;
  check(env, status);
  check(env, napi_type_tag_object(env, object, &T::kTag));
  auto finalize = [](napi_env, void* data, void*) { delete static_cast<T*>(data); };
  check(env, napi_wrap(env, object, native.get(), finalize, nullptr, nullptr));
  native.release();
  return object;
}

/// The C++ object of a handle; a TypeError for anything else.
template <class T>
T& unwrapHandle(napi_env env, napi_value object) {
  bool ours = false;
  void* data = nullptr;
  if (napi_check_object_type_tag(env, object, &T::kTag, &ours) != napi_ok || !ours ||
      napi_unwrap(env, object, &data) != napi_ok) {
    // What failed above may have left an exception of its own.
    bool pending = false;
    napi_is_exception_pending(env, &pending);
    if (pending) throw Napi::Error::New(env);
    throw Napi::TypeError::New(env, std::string("not a ") + T::kName);
  }
  return *static_cast<T*>(data);
}

/// A property JavaScript reads without a call into native code (a getter costs it 100 ns). It can't
/// be assigned; `changes` lets this function give it another value later.
inline void setProperty(napi_env env, napi_value object, const char* name, napi_value value,
                        bool changes) {
  const auto attributes = static_cast<napi_property_attributes>(
      napi_enumerable | (changes ? napi_configurable : napi_default));
  const napi_property_descriptor property = {name,    nullptr, nullptr,    nullptr,
                                             nullptr, value,   attributes, nullptr};
  check(env, napi_define_properties(env, object, 1, &property));
}

/// A method or getter of a handle class.
template <class T, Napi::Value (T::*Method)(const Napi::CallbackInfo&)>
napi_value method(napi_env env, napi_callback_info raw) {
  return guarded(env, [&]() -> napi_value {
    Napi::CallbackInfo info(env, raw);
    return (unwrapHandle<T>(env, info.This()).*Method)(info);
  });
}

template <class T, Napi::Value (T::*Method)(const Napi::CallbackInfo&)>
napi_property_descriptor methodOf(const char* name) {
  return {name,    nullptr, method<T, Method>,   nullptr,
          nullptr, nullptr, napi_default_method, nullptr};
}

template <class T, Napi::Value (T::*Getter)(const Napi::CallbackInfo&)>
napi_property_descriptor getterOf(const char* name) {
  return {name, nullptr, nullptr, method<T, Getter>, nullptr, nullptr, napi_enumerable, nullptr};
}

}  // namespace vduse
