#include <sys/syscall.h>
#include <unistd.h>
#include <memory>
#include <thread>
#include <variant>

#include "args.h"
#include "environment.h"
#include "errors.h"
#include "exports.h"
#include "netlink.h"

namespace vduse {

namespace {

// linux/vdpa.h
constexpr const char* kFamily = "vdpa";
constexpr uint8_t kVersion = 1;
enum Command : uint8_t { kManagementGet = 2, kDeviceNew = 3, kDeviceDelete = 4, kDeviceGet = 5 };
enum Attribute : uint16_t {
  kManagementBus = 1,
  kManagementName = 2,
  kManagementClasses = 3,
  kDeviceName = 4,
  kDeviceId = 5,
  kDeviceVendorId = 6,
  kDeviceMaxVqs = 7,
  kDeviceMaxVqSize = 8,
};

constexpr unsigned kCloseRangeUnshare = 2;

/// How often a list that changed while it was read is read again.
constexpr int kDumpTries = 5;

struct Device {
  std::string name, mgmtdev;
  uint32_t deviceId, vendorId, maxVqs, maxVqSize;
};

struct Management {
  std::string name;
  uint64_t classes;
};

using Outcome = std::variant<std::monostate, std::vector<Device>, std::vector<Management>>;

/// What iproute2 calls the handle of a management device: its name, after its bus if it has one.
std::string managementName(const Attributes& attributes) {
  const std::string bus = attributes.text(kManagementBus);
  const std::string name = attributes.text(kManagementName);
  return bus.empty() ? name : bus + "/" + name;
}

void setManagement(GenericRequest& request, const std::string& handle) {
  const size_t slash = handle.find('/');
  if (slash != std::string::npos) request.text(kManagementBus, handle.substr(0, slash));
  request.text(kManagementName, slash == std::string::npos ? handle : handle.substr(slash + 1));
}

template <class Item, class Parse>
std::vector<Item> dump(Command command, const char* what, Parse parse) {
  GenericNetlink netlink;
  const uint16_t family = netlink.family(kFamily);
  for (int attempt = 1;; attempt++) {
    std::vector<Item> items;
    try {
      netlink.exchange(GenericRequest(family, command, kVersion, NLM_F_DUMP), what,
                       [&](const Attributes& answer) { items.push_back(parse(answer)); });
      return items;
    } catch (const SystemFailure& failure) {
      if (failure.error != EINTR || attempt == kDumpTries) throw;
    }
  }
}

Napi::Value toJavaScript(Napi::Env env, const Device& device) {
  auto object = Napi::Object::New(env);
  object.Set("name", device.name);
  object.Set("mgmtdev", device.mgmtdev);
  object.Set("deviceId", Napi::Number::New(env, device.deviceId));
  object.Set("vendorId", Napi::Number::New(env, device.vendorId));
  object.Set("maxVqs", Napi::Number::New(env, device.maxVqs));
  object.Set("maxVqSize", Napi::Number::New(env, device.maxVqSize));
  return object;
}

Napi::Value toJavaScript(Napi::Env env, const Management& management) {
  auto object = Napi::Object::New(env);
  object.Set("name", management.name);
  object.Set("supportedClasses", Napi::BigInt::New(env, management.classes));
  return object;
}

Napi::Value toJavaScript(Napi::Env env, std::monostate) {
  return env.Undefined();
}

template <class Item>
Napi::Value toJavaScript(Napi::Env env, const std::vector<Item>& items) {
  auto array = Napi::Array::New(env, items.size());
  for (uint32_t i = 0; i < items.size(); i++) array.Set(i, toJavaScript(env, items[i]));
  return array;
}

struct Call {
  std::function<Outcome()> body;
  napi_deferred deferred;
  Outcome outcome;
  std::optional<SystemFailure> failure;
};

void settle(napi_env env, Call& call) {
  guarded(env, [&]() -> napi_value {
    if (call.failure) {
      check(env, napi_reject_deferred(env, call.deferred, toError(env, *call.failure)));
    } else {
      const napi_value value =
          std::visit([env](const auto& result) { return toJavaScript(env, result); }, call.outcome);
      check(env, napi_resolve_deferred(env, call.deferred, value));
    }
    return nullptr;
  });
}

/// Runs the call with a file table of its own that holds nothing of ours. The kernel waits for the
/// daemon while it adds or deletes a device; if the daemon dies meanwhile this thread may stay
/// asleep in the kernel, and must not keep the VDUSE device open (the next daemon would find it
/// busy for ever).
void runCall(Call& call) {
  ::syscall(__NR_close_range, 0u, ~0u, kCloseRangeUnshare);
  try {
    call.outcome = call.body();
  } catch (const SystemFailure& failure) {
    call.failure = failure;
  } catch (const std::bad_alloc&) {
    call.failure = SystemFailure{ENOMEM, "netlink", {}, {}};
  }
}

/// A promise of what `body` returns, on threads that nothing waits for: a call that hangs in the
/// kernel hangs neither the event loop nor the end of the process.
Napi::Value start(Napi::Env env, std::function<Outcome()> body) {
  auto mailbox = Mailbox::of(env);
  auto call = std::make_shared<Call>();
  call->body = std::move(body);
  napi_value promise;
  check(env, napi_create_promise(env, &call->deferred, &promise));
  // Two threads: the one that delivers needs the process's file table to wake the event loop.
  auto deliver = [mailbox, call] {
    try {
      startThread("vduse-netlink", [call] { runCall(*call); }).join();
    } catch (const SystemFailure& failure) {
      call->failure = failure;
    }
    mailbox->post([mailbox, call](napi_env env) {
      mailbox->release();
      settle(env, *call);
    });
  };
  startThread("vduse-netlink", deliver).detach();
  mailbox->hold();
  return {env, promise};
}

std::string readDeviceName(Napi::Value value) {
  return readText(value, "name", 1, 255);
}

}  // namespace

Napi::Value vdpaDeviceAdd(const Napi::CallbackInfo& info) {
  const std::string name = readDeviceName(info[0]);
  const std::string mgmtdev = readText(info[1], "mgmtdev", 1, 255);
  return start(info.Env(), [name, mgmtdev]() -> Outcome {
    GenericNetlink netlink;
    GenericRequest request(netlink.family(kFamily), kDeviceNew, kVersion, NLM_F_ACK);
    request.text(kDeviceName, name);
    setManagement(request, mgmtdev);
    netlink.exchange(std::move(request), "netlink VDPA_CMD_DEV_NEW");
    return {};
  });
}

Napi::Value vdpaDeviceDelete(const Napi::CallbackInfo& info) {
  const std::string name = readDeviceName(info[0]);
  return start(info.Env(), [name]() -> Outcome {
    GenericNetlink netlink;
    GenericRequest request(netlink.family(kFamily), kDeviceDelete, kVersion, NLM_F_ACK);
    request.text(kDeviceName, name);
    netlink.exchange(std::move(request), "netlink VDPA_CMD_DEV_DEL");
    return {};
  });
}

Napi::Value vdpaDeviceList(const Napi::CallbackInfo& info) {
  return start(info.Env(), []() -> Outcome {
    return dump<Device>(kDeviceGet, "netlink VDPA_CMD_DEV_GET", [](const Attributes& device) {
      const auto u32 = [&](Attribute type) { return static_cast<uint32_t>(device.number(type)); };
      return Device{device.text(kDeviceName), managementName(device), u32(kDeviceId),
                    u32(kDeviceVendorId),     u32(kDeviceMaxVqs),     u32(kDeviceMaxVqSize)};
    });
  });
}

Napi::Value vdpaManagementDevices(const Napi::CallbackInfo& info) {
  return start(info.Env(), []() -> Outcome {
    return dump<Management>(
        kManagementGet, "netlink VDPA_CMD_MGMTDEV_GET", [](const Attributes& management) {
          return Management{managementName(management), management.number(kManagementClasses)};
        });
  });
}

}  // namespace vduse
