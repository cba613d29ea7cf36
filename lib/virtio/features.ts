/** Feature bits of the ring and the transport (virtio 1.3 §6), as masks. */
export const Feature = {
  IndirectDesc: 1n << 28n,
  EventIndex: 1n << 29n,
  Version1: 1n << 32n,
  AccessPlatform: 1n << 33n,
  RingPacked: 1n << 34n,
  InOrder: 1n << 35n,
  OrderPlatform: 1n << 36n,
  SrIov: 1n << 37n,
  NotificationData: 1n << 38n,
  NotificationConfigData: 1n << 39n,
  RingReset: 1n << 40n,
} as const;

/** Device status bits (virtio 1.3 §2.1). */
export const Status = {
  Acknowledge: 1,
  Driver: 2,
  DriverOk: 4,
  FeaturesOk: 8,
  NeedsReset: 64,
  Failed: 128,
} as const;
