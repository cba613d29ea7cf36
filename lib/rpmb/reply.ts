import { RpmbError } from './errors.ts';
import {
  addressOf,
  blockCountOf,
  counterOf,
  FRAME_BYTES,
  FrameField,
  fieldOf,
  NONCE_BYTES,
  Result,
  resultName,
  resultOf,
  typeOf,
} from './frame.ts';
import { verifyFrames } from './mac.ts';

/** What can be wrong with a reply. */
export type ReplyCheck =
  | 'length'
  | 'type'
  | 'result'
  | 'mac'
  | 'nonce'
  | 'address'
  | 'block count'
  | 'counter';

export interface ReplyFault {
  readonly check: ReplyCheck;
  readonly text: string;
}

/** What a reply must be; what is left out is not looked at. */
export interface ReplyExpectation {
  readonly type: number;
  readonly frames?: number;
  /** OK unless another is given. */
  readonly result?: number;
  /** Verify the MAC with it. */
  readonly key?: Uint8Array | undefined;
  readonly nonce?: Uint8Array;
  readonly address?: number;
  readonly blockCount?: number;
  readonly counter?: number;
}

function hex(value: number): string {
  return `0x${value.toString(16).padStart(4, '0')}`;
}

/** The first thing wrong with a reply, or undefined. Each frame of several is looked at. */
export function checkReply(reply: Uint8Array, expected: ReplyExpectation): ReplyFault | undefined {
  const { frames = 1, result = Result.Ok } = expected;
  // A refusal may be told in one frame whatever was asked for.
  const refused = reply.length >= FRAME_BYTES && resultOf(reply, 0) !== Result.Ok;
  const least = refused ? 1 : frames;
  if (reply.length !== frames * FRAME_BYTES && reply.length !== least * FRAME_BYTES) {
    const text = `${reply.length} bytes came, not ${frames * FRAME_BYTES}`;
    return { check: 'length', text };
  }
  for (let at = 0; at < reply.length; at += FRAME_BYTES) {
    const fault = checkHead(reply, at, expected.type, result);
    if (fault !== undefined) return fault;
  }
  if (expected.key !== undefined) {
    if (!verifyFrames(expected.key, reply, 0, reply.length / FRAME_BYTES)) {
      return { check: 'mac', text: 'its MAC is not that of this key over these bytes' };
    }
  }
  for (let at = 0; at < reply.length; at += FRAME_BYTES) {
    const fault = checkFields(reply, at, expected);
    if (fault !== undefined) return fault;
  }
  return undefined;
}

function checkHead(
  reply: Uint8Array,
  at: number,
  type: number,
  result: number,
): ReplyFault | undefined {
  if (typeOf(reply, at) !== type) {
    const text = `its type is ${hex(typeOf(reply, at))}, not ${hex(type)}`;
    return { check: 'type', text };
  }
  if (resultOf(reply, at) !== result) {
    const text = `its result is ${resultName(resultOf(reply, at))}, not ${resultName(result)}`;
    return { check: 'result', text };
  }
  return undefined;
}

function checkFields(
  reply: Uint8Array,
  at: number,
  expected: ReplyExpectation,
): ReplyFault | undefined {
  const { nonce, address, blockCount, counter } = expected;
  if (nonce !== undefined) {
    const got = fieldOf(reply, at, FrameField.Nonce, NONCE_BYTES);
    if (!nonce.every((byte, i) => byte === got[i])) {
      return { check: 'nonce', text: 'its nonce is not the one sent: it may be an old reply' };
    }
  }
  if (address !== undefined && addressOf(reply, at) !== address) {
    return { check: 'address', text: `its address is ${addressOf(reply, at)}, not ${address}` };
  }
  if (blockCount !== undefined && blockCountOf(reply, at) !== blockCount) {
    const text = `its block count is ${blockCountOf(reply, at)}, not ${blockCount}`;
    return { check: 'block count', text };
  }
  if (counter !== undefined && counterOf(reply, at) !== counter) {
    return { check: 'counter', text: `its counter is ${counterOf(reply, at)}, not ${counter}` };
  }
  return undefined;
}

/** A reply that cannot be believed, or that says no. */
export class ReplyError extends RpmbError {
  override readonly name = 'ReplyError';
  readonly check: ReplyCheck;
  /** The device's result, where it gave one other than OK. */
  readonly result: number | undefined;

  constructor(what: string, fault: ReplyFault, reply: Uint8Array) {
    const result = fault.check === 'result' ? resultOf(reply, 0) : Result.Ok;
    if (result === Result.Ok) {
      const remedy = 'something between here and the device is wrong, or worse';
      super('REPLY', what, `reply refused, ${fault.check} check: ${fault.text}`, remedy);
    } else {
      super('REFUSED', what, `the device answered ${resultName(result)}`, remedyFor(result));
    }
    this.check = fault.check;
    this.result = result === Result.Ok ? undefined : result;
  }
}

function remedyFor(result: number): string {
  switch (result & ~Result.WriteCounterExpired) {
    case Result.Ok:
      return 'its write counter has reached its end: it can only be read from now on';
    case Result.AuthFailure:
      return 'check that this is its key';
    case Result.CountFailure:
      return 'somebody else wrote meanwhile; try again';
    case Result.AddrFailure:
      return 'check the address against get-info';
    case Result.WriteFailure:
      return 'a programmed key stays as it is; a failed write: look at the log of who serves it';
    case Result.ReadFailure:
      return 'look at the log of who serves it';
    case Result.NoAuthKey:
      return 'program its key first: program-key';
    default:
      return 'check the request against the limits of get-info';
  }
}
