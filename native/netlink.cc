#include "netlink.h"

#include <sys/socket.h>

#include "errors.h"

namespace vduse {

namespace {

/// Larger than any message the vdpa family sends; a longer one is an error, never cut silently.
constexpr size_t kBufferBytes = 65536;

/// The text of an extended acknowledgement, whose attributes lie `skip` bytes into the payload.
std::string explanation(const nlmsghdr& message, size_t skip) {
  const size_t payload = message.nlmsg_len - NLMSG_HDRLEN;
  if (!(message.nlmsg_flags & NLM_F_ACK_TLVS) || payload < skip) return {};
  const char* data = reinterpret_cast<const char*>(&message) + NLMSG_HDRLEN;
  return Attributes(data + skip, payload - skip).text(NLMSGERR_ATTR_MSG);
}

}  // namespace

Attributes::Attributes(const void* data, size_t length) {
  const char* at = static_cast<const char*>(data);
  while (length >= sizeof(nlattr)) {
    nlattr header;
    std::memcpy(&header, at, sizeof header);
    if (header.nla_len < sizeof header || header.nla_len > length) return;
    const size_t type = header.nla_type & NLA_TYPE_MASK;
    if (type >= byType_.size()) byType_.resize(type + 1);
    byType_[type] = Span{at + NLA_HDRLEN, header.nla_len - size_t{NLA_HDRLEN}};
    const size_t step = std::min<size_t>(NLA_ALIGN(header.nla_len), length);
    at += step;
    length -= step;
  }
}

std::optional<Attributes::Span> Attributes::find(uint16_t type) const {
  return type < byType_.size() ? byType_[type] : std::nullopt;
}

std::string Attributes::text(uint16_t type) const {
  const auto span = find(type);
  return span ? std::string(span->data, ::strnlen(span->data, span->length)) : std::string();
}

uint64_t Attributes::number(uint16_t type) const {
  const auto span = find(type);
  uint64_t value = 0;
  // Attributes are in the order of the machine, which is little-endian wherever this is built for.
  if (span) std::memcpy(&value, span->data, std::min(span->length, sizeof value));
  return value;
}

GenericRequest::GenericRequest(uint16_t family, uint8_t command, uint8_t version, uint16_t flags)
    : bytes_(NLMSG_HDRLEN + GENL_HDRLEN) {
  nlmsghdr header = {};
  header.nlmsg_type = family;
  header.nlmsg_flags = NLM_F_REQUEST | flags;
  genlmsghdr generic = {};
  generic.cmd = command;
  generic.version = version;
  std::memcpy(bytes_.data(), &header, sizeof header);
  std::memcpy(bytes_.data() + NLMSG_HDRLEN, &generic, sizeof generic);
}

void GenericRequest::text(uint16_t type, const std::string& value) {
  nlattr header = {};
  header.nla_type = type;
  header.nla_len = static_cast<uint16_t>(NLA_HDRLEN + value.size() + 1);
  const size_t start = bytes_.size();
  bytes_.resize(start + NLA_ALIGN(header.nla_len));
  std::memcpy(bytes_.data() + start, &header, sizeof header);
  std::memcpy(bytes_.data() + start + NLA_HDRLEN, value.data(), value.size());
}

GenericNetlink::GenericNetlink()
    : socket_(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_GENERIC)),
      buffer_(kBufferBytes) {
  if (!socket_) failed("socket AF_NETLINK");
  sockaddr_nl local = {};
  local.nl_family = AF_NETLINK;
  if (::bind(socket_.get(), reinterpret_cast<sockaddr*>(&local), sizeof local) != 0) {
    failed("bind AF_NETLINK");
  }
  // Without them errors only lack the explanation.
  const int on = 1;
  ::setsockopt(socket_.get(), SOL_NETLINK, NETLINK_EXT_ACK, &on, sizeof on);
  ::setsockopt(socket_.get(), SOL_NETLINK, NETLINK_CAP_ACK, &on, sizeof on);
}

uint16_t GenericNetlink::family(const char* name) {
  GenericRequest request(GENL_ID_CTRL, CTRL_CMD_GETFAMILY, 1, NLM_F_ACK);
  request.text(CTRL_ATTR_FAMILY_NAME, name);
  const std::string what = std::string("netlink family ") + name;
  uint64_t id = 0;
  exchange(std::move(request), what,
           [&](const Attributes& answer) { id = answer.number(CTRL_ATTR_FAMILY_ID); });
  if (id == 0) failed(what, ENOENT);
  return static_cast<uint16_t>(id);
}

void GenericNetlink::exchange(GenericRequest request, const std::string& what,
                              const std::function<void(const Attributes&)>& onAnswer) {
  std::vector<char>& bytes = request.bytes();
  auto* header = reinterpret_cast<nlmsghdr*>(bytes.data());
  header->nlmsg_len = static_cast<uint32_t>(bytes.size());
  header->nlmsg_seq = ++sequence_;
  sockaddr_nl kernel = {};
  kernel.nl_family = AF_NETLINK;
  // The kernel carries the command out within this call, however long it takes.
  while (::sendto(socket_.get(), bytes.data(), bytes.size(), 0,
                  reinterpret_cast<sockaddr*>(&kernel), sizeof kernel) < 0) {
    if (errno != EINTR) failed(what);
  }
  bool interrupted = false;
  while (!receive(what, onAnswer, &interrupted)) {
  }
  // What was listed changed meanwhile (NLM_F_DUMP_INTR).
  if (interrupted) failed(what, EINTR);
}

bool GenericNetlink::receive(const std::string& what,
                             const std::function<void(const Attributes&)>& onAnswer,
                             bool* interrupted) {
  sockaddr_nl from = {};
  socklen_t fromLength = sizeof from;
  const ssize_t got = ::recvfrom(socket_.get(), buffer_.data(), buffer_.size(), MSG_TRUNC,
                                 reinterpret_cast<sockaddr*>(&from), &fromLength);
  if (got < 0) {
    if (errno == EINTR) return false;
    failed(what);
  }
  if (static_cast<size_t>(got) > buffer_.size()) failed(what, EMSGSIZE);
  // Anybody may send to a netlink socket; the kernel is port 0.
  if (from.nl_pid != 0) return false;
  size_t left = static_cast<size_t>(got);
  const char* at = buffer_.data();
  while (left >= sizeof(nlmsghdr)) {
    const auto* message = reinterpret_cast<const nlmsghdr*>(at);
    if (message->nlmsg_len < sizeof *message || message->nlmsg_len > left) failed(what, EBADMSG);
    if (message->nlmsg_seq == sequence_) {
      if (message->nlmsg_flags & NLM_F_DUMP_INTR) *interrupted = true;
      if (take(*message, what, onAnswer)) return true;
    }
    const size_t step = std::min<size_t>(NLMSG_ALIGN(message->nlmsg_len), left);
    at += step;
    left -= step;
  }
  return false;
}

/// True with the message that ends the exchange.
bool GenericNetlink::take(const nlmsghdr& message, const std::string& what,
                          const std::function<void(const Attributes&)>& onAnswer) {
  const char* payload = reinterpret_cast<const char*>(&message) + NLMSG_HDRLEN;
  const size_t length = message.nlmsg_len - NLMSG_HDRLEN;
  if (message.nlmsg_type == NLMSG_ERROR || message.nlmsg_type == NLMSG_DONE) {
    int error = 0;
    if (length >= sizeof error) std::memcpy(&error, payload, sizeof error);
    if (error == 0) return true;
    // struct nlmsgerr repeats the request's header; NETLINK_CAP_ACK leaves its payload out.
    const size_t skip = message.nlmsg_type == NLMSG_DONE ? NLMSG_ALIGN(sizeof error)
                                                         : NLMSG_ALIGN(sizeof(nlmsgerr));
    throw SystemFailure{-error, what, {}, explanation(message, skip)};
  }
  if (onAnswer && length >= GENL_HDRLEN) {
    onAnswer(Attributes(payload + GENL_HDRLEN, length - GENL_HDRLEN));
  }
  return false;
}

}  // namespace vduse
