#pragma once

#include <napi.h>

#include "io-row.h"

namespace vduse {

/// (rows, vectors, first, count), as several functions of the engine take them. False with a JavaScript
/// exception pending.
bool takeIoTable(napi_env env, const napi_value* args, IoTableView* view);

}  // namespace vduse
