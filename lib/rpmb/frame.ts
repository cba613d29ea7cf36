/**
 * RPMB frames (virtio 1.3 §5.12.6.1): 512 bytes, numbers big-endian, read and built in place in a
 * run of frames. `at` is the offset of a frame's first byte.
 */
export const FRAME_BYTES = 512;
export const BLOCK_BYTES = 256;
export const KEY_BYTES = 32;
export const MAC_BYTES = 32;
export const NONCE_BYTES = 16;

/** Offsets in a frame. */
export const FrameField = {
  Stuff: 0,
  /** The key in PROGRAM_KEY, else the MAC. */
  KeyMac: 196,
  Data: 228,
  Nonce: 484,
  WriteCounter: 500,
  Address: 504,
  BlockCount: 506,
  Result: 508,
  Type: 510,
} as const;

/** The MAC covers everything behind itself: 284 bytes of each frame. */
export const MAC_FROM = FrameField.Data;

export const RequestType = {
  ProgramKey: 1,
  GetWriteCounter: 2,
  DataWrite: 3,
  DataRead: 4,
  ResultRead: 5,
} as const;

/** A response has its request's number in the upper byte; a result answers the request before it. */
export const ResponseType = {
  /** Of what has no response type: a request that does not exist, a result of nothing. */
  None: 0,
  ProgramKey: 0x0100,
  GetCounter: 0x0200,
  DataWrite: 0x0300,
  DataRead: 0x0400,
} as const;

export const Result = {
  Ok: 0,
  GeneralFailure: 1,
  AuthFailure: 2,
  CountFailure: 3,
  AddrFailure: 4,
  WriteFailure: 5,
  ReadFailure: 6,
  NoAuthKey: 7,
  /** A value of its own (virtio); ORed into the others by JEDEC parts. */
  WriteCounterExpired: 0x80,
} as const;

/** After this value no write is taken any more. */
export const MAX_COUNTER = 0xffffffff;

export function getU16(bytes: Uint8Array, at: number): number {
  return (bytes[at]! << 8) | bytes[at + 1]!;
}

export function putU16(bytes: Uint8Array, at: number, value: number): void {
  bytes[at] = value >>> 8;
  bytes[at + 1] = value;
}

export function getU32(bytes: Uint8Array, at: number): number {
  return getU16(bytes, at) * 0x10000 + getU16(bytes, at + 2);
}

export function putU32(bytes: Uint8Array, at: number, value: number): void {
  putU16(bytes, at, value >>> 16);
  putU16(bytes, at + 2, value);
}

/** A view of one field of a frame. */
export function fieldOf(frames: Uint8Array, at: number, field: number, length: number): Uint8Array {
  return frames.subarray(at + field, at + field + length);
}

export function typeOf(frames: Uint8Array, at: number): number {
  return getU16(frames, at + FrameField.Type);
}

export function blockCountOf(frames: Uint8Array, at: number): number {
  return getU16(frames, at + FrameField.BlockCount);
}

export function addressOf(frames: Uint8Array, at: number): number {
  return getU16(frames, at + FrameField.Address);
}

export function counterOf(frames: Uint8Array, at: number): number {
  return getU32(frames, at + FrameField.WriteCounter);
}

export function resultOf(frames: Uint8Array, at: number): number {
  return getU16(frames, at + FrameField.Result);
}

/** The fields a frame is made of; what is left out is zero. */
export interface FrameParts {
  readonly type: number;
  readonly result?: number;
  readonly blockCount?: number;
  readonly address?: number;
  readonly writeCounter?: number;
  readonly nonce?: Uint8Array;
  readonly data?: Uint8Array;
  readonly keyMac?: Uint8Array;
}

/** Write a whole frame at `at`. */
export function putFrame(frames: Uint8Array, at: number, parts: FrameParts): void {
  frames.fill(0, at, at + FRAME_BYTES);
  putU16(frames, at + FrameField.Type, parts.type);
  putU16(frames, at + FrameField.Result, parts.result ?? 0);
  putU16(frames, at + FrameField.BlockCount, parts.blockCount ?? 0);
  putU16(frames, at + FrameField.Address, parts.address ?? 0);
  putU32(frames, at + FrameField.WriteCounter, parts.writeCounter ?? 0);
  if (parts.nonce !== undefined) frames.set(parts.nonce, at + FrameField.Nonce);
  if (parts.data !== undefined) frames.set(parts.data, at + FrameField.Data);
  if (parts.keyMac !== undefined) frames.set(parts.keyMac, at + FrameField.KeyMac);
}

const RESULT_NAMES: Readonly<Record<number, string>> = {
  [Result.Ok]: 'OK',
  [Result.GeneralFailure]: 'GENERAL_FAILURE',
  [Result.AuthFailure]: 'AUTH_FAILURE',
  [Result.CountFailure]: 'COUNT_FAILURE',
  [Result.AddrFailure]: 'ADDR_FAILURE',
  [Result.WriteFailure]: 'WRITE_FAILURE',
  [Result.ReadFailure]: 'READ_FAILURE',
  [Result.NoAuthKey]: 'NO_AUTH_KEY',
};

/** A result in words, for messages. */
export function resultName(result: number): string {
  const number = `0x${result.toString(16).padStart(4, '0')}`;
  if (result === Result.WriteCounterExpired) return `WRITE_COUNTER_EXPIRED (${number})`;
  const name = RESULT_NAMES[result & ~Result.WriteCounterExpired] ?? 'unknown result';
  const expired = (result & Result.WriteCounterExpired) !== 0 ? ', counter expired' : '';
  return `${name}${expired} (${number})`;
}
