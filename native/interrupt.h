#pragma once

namespace vduse {

/// Call before a system call that must not wait and yet might: what was made of a descriptor is in
/// the hands of the peer that shares it. It ends with EINTR after one to two seconds, on whatever
/// thread. Costs a look at the clock, and a system call once a second.
void limitWait();

}  // namespace vduse
