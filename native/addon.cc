#include <napi.h>

#include "environment.h"
#include "errors.h"
#include "exports.h"

namespace vduse {

namespace {

struct Export {
  const char* name;
  napi_callback function;
};

/// The contract is `interface Addon` of lib/native/addon.ts.
constexpr Export kExports[] = {
    {"eventfd", wrapped<createEventFd>},
    {"eventfdSignal", eventfdSignal},
    {"eventfdRead", eventfdRead},
    {"memfd", wrapped<memfd>},
    {"duplicate", wrapped<duplicate>},
    {"adopt", wrapped<adopt>},
    {"setNonblocking", wrapped<setNonblocking>},
    {"mmap", wrapped<mapFile>},
    {"allocate", wrapped<allocate>},
    {"sigbusCounter", wrapped<sigbusCounter>},
    {"pageSize", wrapped<pageSize>},
    {"protectSecret", wrapped<protectSecret>},
    {"watch", wrapped<watch>},
    {"vduseGetApiVersion", wrapped<vduseGetApiVersion>},
    {"vduseSetApiVersion", wrapped<vduseSetApiVersion>},
    {"vduseCreateDevice", wrapped<vduseCreateDevice>},
    {"vduseDestroyDevice", wrapped<vduseDestroyDevice>},
    {"vduseIotlbGetFd", wrapped<vduseIotlbGetFd>},
    {"vduseGetFeatures", wrapped<vduseGetFeatures>},
    {"vduseSetConfig", wrapped<vduseSetConfig>},
    {"vduseInjectConfigIrq", wrapped<vduseInjectConfigIrq>},
    {"vduseVqSetup", wrapped<vduseVqSetup>},
    {"vduseVqGetInfo", wrapped<vduseVqGetInfo>},
    {"vduseVqSetKickFd", wrapped<vduseVqSetKickFd>},
    {"vduseVqInjectIrq", wrapped<vduseVqInjectIrq>},
    {"vdpaDeviceAdd", wrapped<vdpaDeviceAdd>},
    {"vdpaDeviceDelete", wrapped<vdpaDeviceDelete>},
    {"vdpaDeviceList", wrapped<vdpaDeviceList>},
    {"vdpaManagementDevices", wrapped<vdpaManagementDevices>},
    {"fallocate", wrapped<allocateFile>},
    {"lockFile", wrapped<lockFile>},
    {"blockDeviceInfo", wrapped<blockDeviceInfo>},
    {"directIoAlignment", wrapped<directIoAlignment>},
    {"mapFile", wrapped<mapWholeFile>},
    {"slowCopies", slowCopies},
    {"ioRun", ioRun},
    {"ioPool", wrapped<ioPool>},
    {"ioUringSetup", wrapped<ioUringSetup>},
    {"ioUringProbe", wrapped<ioUringProbe>},
    {"ioUringEnter", ioUringEnter},
    {"clockUs", clockUs},
    {"sendSignals", sendSignalsNow},
    {"signalAndPoll", signalAndPoll},
    {"unixListen", wrapped<unixListen>},
    {"unixConnect", wrapped<unixConnect>},
    {"unixAccept", wrapped<unixAccept>},
    {"unixPair", wrapped<unixPair>},
    {"receiveMessage", wrapped<receiveMessage>},
    {"sendMessage", wrapped<sendMessage>},
    {"getRandom", wrapped<getRandom>},
    {"addUserKey", wrapped<addUserKey>},
    {"readKey", wrapped<readKey>},
};

napi_value load(napi_env env, napi_value exports) {
  return guarded(env, [&] {
    Environment::create(env);
    defineOwnedFd(env);
    defineMapping(env);
    defineFdWatcher(env);
    defineFileMap(env);
    defineIoPool(env);
    for (const Export& entry : kExports) {
      napi_value function;
      check(env, napi_create_function(env, entry.name, NAPI_AUTO_LENGTH, entry.function, nullptr,
                                      &function));
      check(env, napi_set_named_property(env, exports, entry.name, function));
    }
    return exports;
  });
}

}  // namespace

}  // namespace vduse

NAPI_MODULE_INIT() {
  return vduse::load(env, exports);
}
