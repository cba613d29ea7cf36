#pragma once

#include <sys/ioctl.h>
#include <cstddef>
#include <cstdint>

/// linux/vduse.h, API version 0: carried here because the headers of a build machine may be older
/// than the kernel the addon runs on. Names and layouts are the kernel's.
namespace vduse::uapi {

constexpr size_t VDUSE_NAME_MAX = 256;

struct vduse_dev_config {
  char name[VDUSE_NAME_MAX];
  uint32_t vendor_id;
  uint32_t device_id;
  uint64_t features;
  uint32_t vq_num;
  uint32_t vq_align;
  uint32_t reserved[13];
  uint32_t config_size;
};

struct vduse_iotlb_entry {
  uint64_t offset;
  uint64_t start;
  uint64_t last;
  uint8_t perm;
};

struct vduse_config_data {
  uint32_t offset;
  uint32_t length;
};

struct vduse_vq_config {
  uint32_t index;
  uint16_t max_size;
  uint16_t reserved[13];
};

struct vduse_vq_info {
  uint32_t index;
  uint32_t num;
  uint64_t desc_addr;
  uint64_t driver_addr;
  uint64_t device_addr;
  /// The union of struct vduse_vq_state_split and vduse_vq_state_packed.
  uint16_t state[4];
  uint8_t ready;
};

struct vduse_vq_eventfd {
  uint32_t index;
  int32_t fd;
};

constexpr unsigned long VDUSE_GET_API_VERSION = _IOR(0x81, 0x00, uint64_t);
constexpr unsigned long VDUSE_SET_API_VERSION = _IOW(0x81, 0x01, uint64_t);
constexpr unsigned long VDUSE_CREATE_DEV = _IOW(0x81, 0x02, vduse_dev_config);
constexpr unsigned long VDUSE_DESTROY_DEV = _IOW(0x81, 0x03, char[VDUSE_NAME_MAX]);
constexpr unsigned long VDUSE_IOTLB_GET_FD = _IOWR(0x81, 0x10, vduse_iotlb_entry);
constexpr unsigned long VDUSE_DEV_GET_FEATURES = _IOR(0x81, 0x11, uint64_t);
constexpr unsigned long VDUSE_DEV_SET_CONFIG = _IOW(0x81, 0x12, vduse_config_data);
constexpr unsigned long VDUSE_DEV_INJECT_CONFIG_IRQ = _IO(0x81, 0x13);
constexpr unsigned long VDUSE_VQ_SETUP = _IOW(0x81, 0x14, vduse_vq_config);
constexpr unsigned long VDUSE_VQ_GET_INFO = _IOWR(0x81, 0x15, vduse_vq_info);
constexpr unsigned long VDUSE_VQ_SETUP_KICKFD = _IOW(0x81, 0x16, vduse_vq_eventfd);
constexpr unsigned long VDUSE_VQ_INJECT_IRQ = _IOW(0x81, 0x17, uint32_t);

// The numbers encode the sizes: a layout that went wrong shows here.
#if defined(__x86_64__) || defined(__aarch64__)
static_assert(VDUSE_GET_API_VERSION == 0x80088100 && VDUSE_SET_API_VERSION == 0x40088101);
static_assert(VDUSE_CREATE_DEV == 0x41508102 && VDUSE_DESTROY_DEV == 0x41008103);
static_assert(VDUSE_IOTLB_GET_FD == 0xC0208110 && VDUSE_DEV_GET_FEATURES == 0x80088111);
static_assert(VDUSE_DEV_SET_CONFIG == 0x40088112 && VDUSE_DEV_INJECT_CONFIG_IRQ == 0x8113);
static_assert(VDUSE_VQ_SETUP == 0x40208114 && VDUSE_VQ_GET_INFO == 0xC0308115);
static_assert(VDUSE_VQ_SETUP_KICKFD == 0x40088116 && VDUSE_VQ_INJECT_IRQ == 0x40048117);
#endif
static_assert(offsetof(vduse_dev_config, config_size) == 332 && sizeof(vduse_dev_config) == 336);
static_assert(offsetof(vduse_vq_info, state) == 32 && offsetof(vduse_vq_info, ready) == 40);

}  // namespace vduse::uapi
