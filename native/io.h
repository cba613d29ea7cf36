#pragma once

#include <napi.h>
#include <ctime>

#include "io-row.h"

/// Arguments that several functions of the engine share. Each returns false with a JavaScript
/// exception pending.
namespace vduse {

/// (rows, vectors, first, count)
bool takeIoTable(napi_env env, const napi_value* args, IoTableView* view);
bool takeSignals(napi_env env, napi_value array, napi_value count, int32_t** triples,
                 size_t* howMany);
/// -1 is no limit.
bool takeTimeout(napi_env env, napi_value value, timespec* time, bool* bounded);

}  // namespace vduse
