/**
 * The vhost-user protocol's messages, for both ends: numbers, headers, payloads. "vhost-user" in
 * comments is QEMU's document "Vhost-user Protocol".
 */

/** Request numbers (vhost-user, "Front-end message types"). */
export const Request = {
  GetFeatures: 1,
  SetFeatures: 2,
  SetOwner: 3,
  ResetOwner: 4,
  SetMemTable: 5,
  SetVringNum: 8,
  SetVringAddr: 9,
  SetVringBase: 10,
  GetVringBase: 11,
  SetVringKick: 12,
  SetVringCall: 13,
  SetVringErr: 14,
  GetProtocolFeatures: 15,
  SetProtocolFeatures: 16,
  GetQueueNum: 17,
  SetVringEnable: 18,
  GetConfig: 24,
  SetConfig: 25,
  ResetDevice: 34,
  GetMaxMemSlots: 36,
  AddMemReg: 37,
  RemMemReg: 38,
} as const;
export type Request = (typeof Request)[keyof typeof Request];

/** As the document spells them, without the prefix; also those that are known and not spoken here. */
const NAMES: Readonly<Record<number, string>> = {
  6: 'SET_LOG_BASE',
  7: 'SET_LOG_FD',
  19: 'SEND_RARP',
  20: 'NET_SET_MTU',
  21: 'SET_BACKEND_REQ_FD',
  22: 'IOTLB_MSG',
  23: 'SET_VRING_ENDIAN',
  26: 'CREATE_CRYPTO_SESSION',
  27: 'CLOSE_CRYPTO_SESSION',
  28: 'POSTCOPY_ADVISE',
  29: 'POSTCOPY_LISTEN',
  30: 'POSTCOPY_END',
  31: 'GET_INFLIGHT_FD',
  32: 'SET_INFLIGHT_FD',
  33: 'GPU_SET_SOCKET',
  35: 'VRING_KICK',
  39: 'SET_STATUS',
  40: 'GET_STATUS',
  41: 'GET_SHARED_OBJECT',
  42: 'SET_DEVICE_STATE_FD',
  43: 'CHECK_DEVICE_STATE',
  ...Object.fromEntries(
    Object.entries(Request).map(([name, number]) => [
      number,
      name.replace(/(?<=[a-z])(?=[A-Z])/g, '_').toUpperCase(),
    ]),
  ),
};

/** A request as messages to people name it. */
export function requestName(request: number): string {
  return NAMES[request] ?? `request ${request}`;
}

/** Feature bit 30 stands for the protocol feature messages (vhost-user, "Communication"). */
export const PROTOCOL_FEATURES = 1n << 30n;

/** Protocol feature bits, as masks (vhost-user, "Protocol features"). */
export const ProtocolFeature = {
  Mq: 1n << 0n,
  ReplyAck: 1n << 3n,
  Config: 1n << 9n,
  ResetDevice: 1n << 13n,
  ConfigureMemSlots: 1n << 15n,
} as const;

/** Header flags: the version in the lower two bits (vhost-user, "Header"). */
const VERSION_MASK = 3;
const VERSION = 1;
export const FLAG_REPLY = 4;
export const FLAG_NEED_REPLY = 8;

export const HEADER_BYTES = 12;

/**
 * The longest payload that is read: a whole page of configuration space. No request needs more; the
 * longest memory table has 264 bytes.
 */
export const MAX_PAYLOAD = 4096;

/** The most regions of a SET_MEM_TABLE, and so the most descriptors of any message. */
export const MAX_TABLE_REGIONS = 8;

/** SET_VRING_KICK, _CALL, _ERR: the queue's index, and "there is no descriptor". */
const VRING_INDEX_MASK = 0xffn;
const VRING_NO_FD = 0x100n;

/** Offset, size and flags before the bytes of a GET_CONFIG or SET_CONFIG. */
const CONFIG_HEADER_BYTES = 12;

export type VhostUserErrorCode =
  /** The other end broke the protocol. */
  | 'ERR_VDUSE_VHOST_USER_PROTOCOL'
  /** The other end went away. */
  | 'ERR_VDUSE_VHOST_USER_CLOSED'
  /** The other end did not answer in time. */
  | 'ERR_VDUSE_VHOST_USER_TIMEOUT'
  /** The other end refused a request, or lacks what is asked of it. */
  | 'ERR_VDUSE_VHOST_USER_REFUSED';

/** What goes wrong on a vhost-user connection; `request` is the message concerned. */
export class VhostUserError extends Error {
  readonly code: VhostUserErrorCode;
  readonly request: string | undefined;

  constructor(
    code: VhostUserErrorCode,
    request: number | undefined,
    why: string,
    options?: ErrorOptions,
  ) {
    const name = request === undefined ? undefined : requestName(request);
    super(name === undefined ? `vhost-user: ${why}` : `vhost-user: ${name}: ${why}`, options);
    this.name = 'VhostUserError';
    this.code = code;
    this.request = name;
  }
}

/** The other end broke the protocol with `request`. */
export function violation(request: number | undefined, why: string, cause?: unknown) {
  return new VhostUserError(
    'ERR_VDUSE_VHOST_USER_PROTOCOL',
    request,
    why,
    cause === undefined ? undefined : { cause },
  );
}

export interface Header {
  readonly request: number;
  readonly reply: boolean;
  readonly needReply: boolean;
  /** Bytes of payload that follow. */
  readonly size: number;
}

/** Read a header; refuses another version and a payload longer than `MAX_PAYLOAD`. */
export function parseHeader(bytes: Uint8Array): Header {
  const view = viewOf(bytes);
  const request = view.getUint32(0, true);
  const flags = view.getUint32(4, true);
  const size = view.getUint32(8, true);
  if ((flags & VERSION_MASK) !== VERSION) {
    throw violation(request, `protocol version ${flags & VERSION_MASK}, only ${VERSION} is known`);
  }
  if (size > MAX_PAYLOAD) {
    throw violation(request, `payload of ${size} bytes, more than ${MAX_PAYLOAD}`);
  }
  return {
    request,
    reply: (flags & FLAG_REPLY) !== 0,
    needReply: (flags & FLAG_NEED_REPLY) !== 0,
    size,
  };
}

/** Header and payload as they go over the socket. */
export function buildMessage(request: number, flags: number, payload: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(HEADER_BYTES + payload.length);
  const view = viewOf(bytes);
  view.setUint32(0, request, true);
  view.setUint32(4, flags | VERSION, true);
  view.setUint32(8, payload.length, true);
  bytes.set(payload, HEADER_BYTES);
  return bytes;
}

export const NO_PAYLOAD: Uint8Array = new Uint8Array(0);

/** Refuse a payload that is not exactly `size` bytes long. */
export function checkSize(request: number, payload: Uint8Array, size: number): void {
  if (payload.length !== size) {
    throw violation(request, `payload of ${payload.length} bytes, ${size} expected`);
  }
}

export function parseU64(request: number, payload: Uint8Array): bigint {
  checkSize(request, payload, 8);
  return viewOf(payload).getBigUint64(0, true);
}

export function buildU64(value: bigint): Uint8Array {
  const bytes = new Uint8Array(8);
  viewOf(bytes).setBigUint64(0, value, true);
  return bytes;
}

/** A vring state description. */
export interface VringState {
  readonly index: number;
  readonly num: number;
}

export function parseVringState(request: number, payload: Uint8Array): VringState {
  checkSize(request, payload, 8);
  const view = viewOf(payload);
  return { index: view.getUint32(0, true), num: view.getUint32(4, true) };
}

export function buildVringState(state: VringState): Uint8Array {
  const bytes = new Uint8Array(8);
  const view = viewOf(bytes);
  view.setUint32(0, state.index, true);
  view.setUint32(4, state.num, true);
  return bytes;
}

/** A vring address description: ring addresses are the front end's own ("user addresses"). */
export interface VringAddresses {
  readonly index: number;
  readonly flags: number;
  readonly descriptor: bigint;
  readonly used: bigint;
  readonly available: bigint;
}

export function parseVringAddresses(request: number, payload: Uint8Array): VringAddresses {
  checkSize(request, payload, 40);
  const view = viewOf(payload);
  return {
    index: view.getUint32(0, true),
    flags: view.getUint32(4, true),
    descriptor: view.getBigUint64(8, true),
    used: view.getBigUint64(16, true),
    available: view.getBigUint64(24, true),
  };
}

export function buildVringAddresses(addresses: VringAddresses): Uint8Array {
  const bytes = new Uint8Array(40);
  const view = viewOf(bytes);
  view.setUint32(0, addresses.index, true);
  view.setUint32(4, addresses.flags, true);
  view.setBigUint64(8, addresses.descriptor, true);
  view.setBigUint64(16, addresses.used, true);
  view.setBigUint64(24, addresses.available, true);
  return bytes;
}

/** The payload of SET_VRING_KICK, _CALL and _ERR. */
export interface VringFd {
  readonly index: number;
  /** False: no descriptor comes with the message, the ring is to be polled. */
  readonly hasFd: boolean;
}

export function parseVringFd(request: number, payload: Uint8Array): VringFd {
  const value = parseU64(request, payload);
  if (value > (VRING_INDEX_MASK | VRING_NO_FD)) {
    throw violation(request, `unknown bits in 0x${value.toString(16)}`);
  }
  return { index: Number(value & VRING_INDEX_MASK), hasFd: (value & VRING_NO_FD) === 0n };
}

export function buildVringFd({ index, hasFd }: VringFd): Uint8Array {
  return buildU64((BigInt(index) & VRING_INDEX_MASK) | (hasFd ? 0n : VRING_NO_FD));
}

/** A memory region as it is described on the wire. */
export interface RegionDescription {
  readonly guestAddress: bigint;
  readonly size: bigint;
  readonly userAddress: bigint;
  readonly mmapOffset: bigint;
}

const REGION_BYTES = 32;

/** SET_MEM_TABLE: a count, padding, and as many regions (vhost-user, "Memory regions description"). */
export function parseMemTable(request: number, payload: Uint8Array): RegionDescription[] {
  if (payload.length < 8) throw violation(request, `payload of ${payload.length} bytes, too short`);
  const count = viewOf(payload).getUint32(0, true);
  if (count > MAX_TABLE_REGIONS) {
    throw violation(request, `${count} regions, more than ${MAX_TABLE_REGIONS}`);
  }
  checkSize(request, payload, 8 + count * REGION_BYTES);
  return Array.from({ length: count }, (_, i) => readRegion(payload, 8 + i * REGION_BYTES));
}

export function buildMemTable(regions: readonly RegionDescription[]): Uint8Array {
  const bytes = new Uint8Array(8 + regions.length * REGION_BYTES);
  viewOf(bytes).setUint32(0, regions.length, true);
  regions.forEach((region, i) => {
    writeRegion(bytes, 8 + i * REGION_BYTES, region);
  });
  return bytes;
}

/** ADD_MEM_REG and REM_MEM_REG: padding and one region. */
export function parseMemRegion(request: number, payload: Uint8Array): RegionDescription {
  checkSize(request, payload, 8 + REGION_BYTES);
  return readRegion(payload, 8);
}

export function buildMemRegion(region: RegionDescription): Uint8Array {
  const bytes = new Uint8Array(8 + REGION_BYTES);
  writeRegion(bytes, 8, region);
  return bytes;
}

/** A piece of the device's configuration space. */
export interface ConfigAccess {
  readonly offset: number;
  /** Bytes asked for. */
  readonly size: number;
  /** 0: a field the driver may write; 1: live migration. */
  readonly flags: number;
  readonly bytes: Uint8Array;
}

/**
 * GET_CONFIG and SET_CONFIG. A front end that asks sends as many bytes as it wants to have; one that
 * sends the header alone is understood too.
 */
export function parseConfig(request: number, payload: Uint8Array): ConfigAccess {
  if (payload.length < CONFIG_HEADER_BYTES) {
    throw violation(request, `payload of ${payload.length} bytes, too short`);
  }
  const view = viewOf(payload);
  const size = view.getUint32(4, true);
  const short = request === Request.GetConfig && payload.length === CONFIG_HEADER_BYTES;
  if (short && size > MAX_PAYLOAD - CONFIG_HEADER_BYTES) {
    throw violation(request, `${size} bytes of configuration space asked for`);
  }
  if (!short) checkSize(request, payload, CONFIG_HEADER_BYTES + size);
  return {
    offset: view.getUint32(0, true),
    size,
    flags: view.getUint32(8, true),
    bytes: payload.subarray(CONFIG_HEADER_BYTES),
  };
}

export function buildConfig(offset: number, flags: number, bytes: Uint8Array): Uint8Array {
  const payload = new Uint8Array(CONFIG_HEADER_BYTES + bytes.length);
  const view = viewOf(payload);
  view.setUint32(0, offset, true);
  view.setUint32(4, bytes.length, true);
  view.setUint32(8, flags, true);
  payload.set(bytes, CONFIG_HEADER_BYTES);
  return payload;
}

function readRegion(payload: Uint8Array, at: number): RegionDescription {
  const view = viewOf(payload);
  return {
    guestAddress: view.getBigUint64(at, true),
    size: view.getBigUint64(at + 8, true),
    userAddress: view.getBigUint64(at + 16, true),
    mmapOffset: view.getBigUint64(at + 24, true),
  };
}

function writeRegion(bytes: Uint8Array, at: number, region: RegionDescription): void {
  const view = viewOf(bytes);
  view.setBigUint64(at, region.guestAddress, true);
  view.setBigUint64(at + 8, region.size, true);
  view.setBigUint64(at + 16, region.userAddress, true);
  view.setBigUint64(at + 24, region.mmapOffset, true);
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}
