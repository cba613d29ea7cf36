import { MAX_COUNTER, RequestType, ResponseType, Result } from './frame.ts';

/** Where interfaces to an RPMB differ. */
export interface Profile {
  readonly name: string;
  /** PROGRAM_KEY, GET_WRITE_COUNTER and RESULT_READ may have a block count of 0. */
  readonly zeroBlockCount: boolean;
  /** A DATA_READ of 0 blocks reads as many as there is room for. */
  readonly readsRoom: boolean;
  /** An expired counter is a bit in every result, and a write then fails; else a result of its own. */
  readonly expiryBit: boolean;
  /** The reply to PROGRAM_KEY has a MAC. */
  readonly keyReplyMac: boolean;
}

/** virtio 1.3 §5.12. */
export const VIRTIO_PROFILE: Profile = {
  name: 'virtio',
  zeroBlockCount: false,
  readsRoom: false,
  expiryBit: false,
  keyReplyMac: true,
};

/** eMMC 5.1 §6.6.22 as its tools use it: the number of blocks is in CMD23, not in the frame. */
export const JEDEC_PROFILE: Profile = {
  name: 'jedec',
  zeroBlockCount: true,
  readsRoom: true,
  expiryBit: true,
  keyReplyMac: false,
};

/** What a request says, and what came with it. */
export interface Request {
  readonly type: number;
  readonly blockCount: number;
  readonly address: number;
  readonly counter: number;
  /** Frames without the RESULT_READ behind them. */
  readonly frames: number;
  /** All those frames are of the request's own type. */
  readonly uniform: boolean;
  /** Response frames there is room for. */
  readonly room: number;
}

/** What a request is checked against. */
export interface Conditions {
  readonly profile: Profile;
  readonly programmed: boolean;
  readonly counter: number;
  readonly capacityBlocks: number;
  readonly maxWriteBlocks: number;
  readonly maxReadBlocks: number;
  /** Whether the request's MAC is right; costs a hash over all its frames. */
  macRight(): boolean;
}

/** `Result.Ok`, or why the request is refused. */
export type Check = (request: Request, conditions: Conditions) => number;

export type Action = 'program-key' | 'tell' | 'write' | 'read' | 'tell-result';
export type ReplyField = 'counter' | 'nonce' | 'address' | 'block-count';

export interface Rule {
  readonly response: number;
  /** A reply is sent always, or only where a RESULT_READ asks for it, in this chain or a later one. */
  readonly reply: 'always' | 'asked';
  /** In the specification's order: the first that fails gives the result. */
  readonly checks: readonly Check[];
  readonly action: Action;
  /** What the reply has besides type, result and MAC. */
  readonly fields: readonly ReplyField[];
}

const keyProgrammed: Check = (_request, { programmed }) =>
  programmed ? Result.Ok : Result.NoAuthKey;

/** The key is programmed once: it cannot be overwritten (virtio 1.3 §5.12.6.3). */
const keyUnprogrammed: Check = (_request, { programmed }) =>
  programmed ? Result.WriteFailure : Result.Ok;

export function isOneBlock(blockCount: number, profile: Profile): boolean {
  return blockCount === 1 || (blockCount === 0 && profile.zeroBlockCount);
}

const oneBlock: Check = ({ blockCount }, { profile }) =>
  isOneBlock(blockCount, profile) ? Result.Ok : Result.GeneralFailure;

/** Anything behind the one frame is a request that nobody asked this way. */
const oneFrame: Check = ({ frames }) => (frames === 1 ? Result.Ok : Result.GeneralFailure);

const writeCount: Check = ({ blockCount, frames, uniform }, { maxWriteBlocks }) =>
  blockCount >= 1 && blockCount <= maxWriteBlocks && frames === blockCount && uniform
    ? Result.Ok
    : Result.GeneralFailure;

const readCount: Check = ({ blockCount, room }, { maxReadBlocks }) =>
  blockCount >= 1 && blockCount <= maxReadBlocks && blockCount <= room
    ? Result.Ok
    : Result.GeneralFailure;

const counterLeft: Check = (_request, { counter, profile }) => {
  if (counter < MAX_COUNTER) return Result.Ok;
  return profile.expiryBit ? Result.WriteFailure : Result.WriteCounterExpired;
};

const addressInside: Check = ({ address, blockCount }, { capacityBlocks }) =>
  address + blockCount <= capacityBlocks ? Result.Ok : Result.AddrFailure;

const macRight: Check = (_request, conditions) =>
  conditions.macRight() ? Result.Ok : Result.AuthFailure;

const counterEqual: Check = (request, { counter }) =>
  request.counter === counter ? Result.Ok : Result.CountFailure;

/** One rule per request (virtio 1.3 §5.12.6.1.1 … §5.12.6.1.5). */
export const RULES: Readonly<Record<number, Rule>> = {
  [RequestType.ProgramKey]: {
    response: ResponseType.ProgramKey,
    reply: 'asked',
    checks: [oneBlock, oneFrame, keyUnprogrammed],
    action: 'program-key',
    fields: [],
  },
  [RequestType.GetWriteCounter]: {
    response: ResponseType.GetCounter,
    reply: 'always',
    checks: [keyProgrammed, oneBlock, oneFrame],
    action: 'tell',
    fields: ['counter', 'nonce'],
  },
  [RequestType.DataWrite]: {
    response: ResponseType.DataWrite,
    reply: 'asked',
    checks: [keyProgrammed, writeCount, counterLeft, addressInside, macRight, counterEqual],
    action: 'write',
    fields: ['counter', 'address'],
  },
  [RequestType.DataRead]: {
    response: ResponseType.DataRead,
    reply: 'always',
    checks: [keyProgrammed, readCount, oneFrame, addressInside],
    action: 'read',
    fields: ['nonce', 'address', 'block-count'],
  },
  [RequestType.ResultRead]: {
    response: ResponseType.None,
    reply: 'always',
    checks: [oneBlock, oneFrame],
    action: 'tell-result',
    fields: [],
  },
};
