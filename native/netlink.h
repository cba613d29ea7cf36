#pragma once

#include <linux/genetlink.h>
#include <linux/netlink.h>
#include <cstdint>
#include <cstring>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "fd.h"

namespace vduse {

/// The attributes of a message; it points into the message.
class Attributes {
 public:
  Attributes(const void* data, size_t length);

  std::string text(uint16_t type) const;
  uint64_t number(uint16_t type) const;

 private:
  struct Span {
    const char* data;
    size_t length;
  };
  std::vector<std::optional<Span>> byType_;

  std::optional<Span> find(uint16_t type) const;
};

/// A request of a generic netlink family.
class GenericRequest {
 public:
  GenericRequest(uint16_t family, uint8_t command, uint8_t version, uint16_t flags);

  void text(uint16_t type, const std::string& value);
  std::vector<char>& bytes() { return bytes_; }

 private:
  std::vector<char> bytes_;
};

/// A generic netlink socket. It throws SystemFailure with the kernel's extended acknowledgement.
class GenericNetlink {
 public:
  GenericNetlink();

  /// The number of a family; ENOENT (which names it) when the kernel has none of that name.
  uint16_t family(const char* name);

  /// Sends, and hands each answer to `onAnswer` until the kernel says done. `what` is the system
  /// call an error names.
  void exchange(GenericRequest request, const std::string& what,
                const std::function<void(const Attributes&)>& onAnswer = {});

 private:
  bool receive(const std::string& what, const std::function<void(const Attributes&)>& onAnswer,
               bool* interrupted);
  bool take(const nlmsghdr& message, const std::string& what,
            const std::function<void(const Attributes&)>& onAnswer);

  UniqueFd socket_;
  uint32_t sequence_ = 0;
  std::vector<char> buffer_;
};

}  // namespace vduse
