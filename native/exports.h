#pragma once

#include <napi.h>

/// Everything lib/native/addon.ts names, by file. Functions with Node-API's own signature are on
/// the hot path.
namespace vduse {

// fd.cc
void defineOwnedFd(napi_env env);
Napi::Value createEventFd(const Napi::CallbackInfo& info);
napi_value eventfdSignal(napi_env env, napi_callback_info raw);
napi_value eventfdRead(napi_env env, napi_callback_info raw);
Napi::Value memfd(const Napi::CallbackInfo& info);
Napi::Value duplicate(const Napi::CallbackInfo& info);
Napi::Value adopt(const Napi::CallbackInfo& info);
Napi::Value setNonblocking(const Napi::CallbackInfo& info);

// mapping.cc
void defineMapping(napi_env env);
Napi::Value mapFile(const Napi::CallbackInfo& info);
Napi::Value allocate(const Napi::CallbackInfo& info);
Napi::Value sigbusCounter(const Napi::CallbackInfo& info);
Napi::Value pageSize(const Napi::CallbackInfo& info);
Napi::Value protectSecret(const Napi::CallbackInfo& info);

// watch.cc
void defineFdWatcher(napi_env env);
Napi::Value watch(const Napi::CallbackInfo& info);

// vduse.cc
Napi::Value vduseGetApiVersion(const Napi::CallbackInfo& info);
Napi::Value vduseSetApiVersion(const Napi::CallbackInfo& info);
Napi::Value vduseCreateDevice(const Napi::CallbackInfo& info);
Napi::Value vduseDestroyDevice(const Napi::CallbackInfo& info);
Napi::Value vduseIotlbGetFd(const Napi::CallbackInfo& info);
Napi::Value vduseGetFeatures(const Napi::CallbackInfo& info);
Napi::Value vduseSetConfig(const Napi::CallbackInfo& info);
Napi::Value vduseInjectConfigIrq(const Napi::CallbackInfo& info);
Napi::Value vduseVqSetup(const Napi::CallbackInfo& info);
Napi::Value vduseVqGetInfo(const Napi::CallbackInfo& info);
Napi::Value vduseVqSetKickFd(const Napi::CallbackInfo& info);
Napi::Value vduseVqInjectIrq(const Napi::CallbackInfo& info);

// vdpa.cc
Napi::Value vdpaDeviceAdd(const Napi::CallbackInfo& info);
Napi::Value vdpaDeviceDelete(const Napi::CallbackInfo& info);
Napi::Value vdpaDeviceList(const Napi::CallbackInfo& info);
Napi::Value vdpaManagementDevices(const Napi::CallbackInfo& info);

// file-map.cc
void defineFileMap(napi_env env);
Napi::Value mapWholeFile(const Napi::CallbackInfo& info);

// file.cc
Napi::Value allocateFile(const Napi::CallbackInfo& info);
Napi::Value lockFile(const Napi::CallbackInfo& info);
Napi::Value blockDeviceInfo(const Napi::CallbackInfo& info);
Napi::Value directIoAlignment(const Napi::CallbackInfo& info);

// io.cc, io-pool.cc
napi_value slowCopies(napi_env env, napi_callback_info raw);
napi_value ioRun(napi_env env, napi_callback_info raw);
napi_value clockUs(napi_env env, napi_callback_info raw);
napi_value sendSignalsNow(napi_env env, napi_callback_info raw);
napi_value signalAndPoll(napi_env env, napi_callback_info raw);
void defineIoPool(napi_env env);
Napi::Value ioPool(const Napi::CallbackInfo& info);

// uring.cc
Napi::Value ioUringSetup(const Napi::CallbackInfo& info);
Napi::Value ioUringProbe(const Napi::CallbackInfo& info);
napi_value ioUringEnter(napi_env env, napi_callback_info raw);

// socket.cc
Napi::Value unixListen(const Napi::CallbackInfo& info);
Napi::Value unixConnect(const Napi::CallbackInfo& info);
Napi::Value unixAccept(const Napi::CallbackInfo& info);
Napi::Value unixPair(const Napi::CallbackInfo& info);
Napi::Value receiveMessage(const Napi::CallbackInfo& info);
Napi::Value sendMessage(const Napi::CallbackInfo& info);

// keys.cc
Napi::Value getRandom(const Napi::CallbackInfo& info);
Napi::Value addUserKey(const Napi::CallbackInfo& info);
Napi::Value readKey(const Napi::CallbackInfo& info);

}  // namespace vduse
