import type { Memory } from '../native/io-table.ts';
import type { StoreFactory } from '../store/store.ts';
import { capacityBlocks, effectiveLimit, type RpmbLimits } from './config.ts';
import {
  addressOf,
  BLOCK_BYTES,
  blockCountOf,
  counterOf,
  FRAME_BYTES,
  FrameField,
  fieldOf,
  KEY_BYTES,
  MAX_COUNTER,
  NONCE_BYTES,
  putU16,
  putU32,
  RequestType,
  ResponseType,
  Result,
  typeOf,
} from './frame.ts';
import { signFrames, verifyFrames } from './mac.ts';
import {
  type Conditions,
  isOneBlock,
  type Profile,
  type Request,
  RULES,
  type Rule,
  VIRTIO_PROFILE,
} from './rules.ts';
import { RpmbState, STATE_MEMORY_BYTES, type StateModel } from './state/commit.ts';
import type { GetRandom } from './state/wrap.ts';

export interface DeviceSetup {
  readonly model: StateModel;
  readonly store: StoreFactory;
  /** `deviceMemoryBytes` that are ours alone. */
  readonly memory: Memory;
  readonly getRandom: GetRandom;
  readonly profile?: Profile;
}

/** Private memory a device works in: keys, slot header, request and response frames. */
export function deviceMemoryBytes(limits: RpmbLimits): number {
  return STATE_MEMORY_BYTES + (requestFrames(limits) + responseFrames(limits)) * FRAME_BYTES;
}

/** The longest request: a write, and the RESULT_READ behind it. */
function requestFrames(limits: RpmbLimits): number {
  return effectiveLimit(limits.maxWriteBlocks, limits) + 1;
}

function responseFrames(limits: RpmbLimits): number {
  return effectiveLimit(limits.maxReadBlocks, limits);
}

/** What the last PROGRAM_KEY or DATA_WRITE came to, for RESULT_READ. */
interface LastResult {
  readonly rule: Rule;
  readonly result: number;
  readonly address: number;
  readonly counter: number;
}

const NOTHING_ASKED: Rule = {
  response: ResponseType.None,
  reply: 'always',
  checks: [],
  action: 'tell',
  fields: [],
};

/**
 * The RPMB itself, whoever brings its frames: takes one request at a time in `request`, leaves the
 * answer in `response`. Both are private memory: a driver that changes its frames while they are
 * looked at changes nothing, and never gets a MAC under what it wrote itself.
 */
export class RpmbDevice implements Conditions {
  readonly profile: Profile;
  readonly limits: RpmbLimits;
  readonly capacityBlocks: number;
  readonly maxWriteBlocks: number;
  readonly maxReadBlocks: number;
  /** Where the frames of a request are put. */
  readonly request: Uint8Array;
  /** The frames `execute` answered with. */
  readonly response: Uint8Array;
  readonly #state: RpmbState;
  readonly #memory: Memory;
  readonly #requestAt: number;
  readonly #responseAt: number;
  #last: LastResult | undefined;

  // The request under way.
  #busy = false;
  #rule: Rule = NOTHING_ASKED;
  #asked: Request | undefined;
  #replies = false;
  #done: (frames: number, result: number) => void = () => {};

  constructor(setup: DeviceSetup) {
    const { layout } = setup.model;
    this.profile = setup.profile ?? VIRTIO_PROFILE;
    this.limits = layout;
    this.capacityBlocks = capacityBlocks(layout);
    this.maxWriteBlocks = effectiveLimit(layout.maxWriteBlocks, layout);
    this.maxReadBlocks = effectiveLimit(layout.maxReadBlocks, layout);
    this.#memory = setup.memory;
    this.#requestAt = STATE_MEMORY_BYTES;
    this.#responseAt = this.#requestAt + requestFrames(layout) * FRAME_BYTES;
    const end = this.#responseAt + responseFrames(layout) * FRAME_BYTES;
    this.request = setup.memory.u8.subarray(this.#requestAt, this.#responseAt);
    this.response = setup.memory.u8.subarray(this.#responseAt, end);
    this.#state = new RpmbState(setup);
  }

  get busy(): boolean {
    return this.#busy;
  }

  get programmed(): boolean {
    return this.#state.programmed;
  }

  get counter(): number {
    return this.#state.counter;
  }

  /**
   * Execute the request whose `frames` frames are in `request`. Of more frames than fit there, the
   * last is in the last place, and no request is that long. `room` is how many response frames can
   * be taken. `done` gets the number of frames in `response`, and the result.
   */
  execute(frames: number, room: number, done: (frames: number, result: number) => void): void {
    if (this.#busy) throw new Error('rpmb: a device executes one request at a time');
    this.#busy = true;
    this.#done = done;
    const type = typeOf(this.request, 0);
    const lastAt = Math.min(frames * FRAME_BYTES, this.request.length) - FRAME_BYTES;
    this.#rule = RULES[type] ?? NOTHING_ASKED;
    const resultAsked =
      this.#rule.reply === 'asked' &&
      frames > 1 &&
      typeOf(this.request, lastAt) === RequestType.ResultRead;
    this.#replies = resultAsked || this.#rule.reply === 'always';
    const request = this.#parse(type, resultAsked ? frames - 1 : frames, room);
    this.#asked = request;
    const result = this.#check(request, resultAsked ? lastAt : undefined);
    if (result === Result.Ok) this.#act(request);
    else this.#finish(result);
  }

  /** Nothing may be under way. The memory is wiped. */
  close(): void {
    this.#state.close();
    this.#memory.u8.fill(0);
  }

  macRight(): boolean {
    return verifyFrames(this.#state.key, this.request, 0, this.#asked!.frames);
  }

  #parse(type: number, frames: number, room: number): Request {
    const { request } = this;
    const given = blockCountOf(request, 0);
    const readsRoom = this.profile.readsRoom && type === RequestType.DataRead && given === 0;
    let uniform = frames * FRAME_BYTES <= request.length;
    for (let i = 1; uniform && i < frames; i++) uniform = typeOf(request, i * FRAME_BYTES) === type;
    return {
      type,
      blockCount: readsRoom ? room : given,
      address: addressOf(request, 0),
      counter: counterOf(request, 0),
      frames,
      uniform,
      room,
    };
  }

  #check(request: Request, resultReadAt: number | undefined): number {
    if (this.#rule === NOTHING_ASKED) return Result.GeneralFailure;
    // Where the answer doesn't fit, nothing is done that it would have told of.
    if (this.#replies && request.room === 0) return Result.GeneralFailure;
    // virtio 1.3 §5.12.6.1.5, and the same: it would be told of a change that it failed.
    if (resultReadAt !== undefined) {
      const blockCount = blockCountOf(this.request, resultReadAt);
      if (!isOneBlock(blockCount, this.profile)) return Result.GeneralFailure;
    }
    for (const check of this.#rule.checks) {
      const result = check(request, this);
      if (result !== Result.Ok) return result;
    }
    return Result.Ok;
  }

  #act({ address, blockCount }: Request): void {
    switch (this.#rule.action) {
      case 'program-key':
        this.#state.programKey(
          fieldOf(this.request, 0, FrameField.KeyMac, KEY_BYTES),
          this.#changed,
        );
        break;
      case 'write':
        this.#state.write(address, blockCount, this.#memory, this.#requestAt, this.#changed);
        break;
      case 'read':
        this.#state.read(address, blockCount, this.#memory, this.#responseAt, this.#read);
        break;
      case 'tell':
      case 'tell-result':
        this.#finish(Result.Ok);
        break;
    }
  }

  readonly #changed = (ok: boolean): void => {
    this.#finish(ok ? Result.Ok : Result.WriteFailure);
  };

  readonly #read = (ok: boolean): void => {
    this.#finish(ok ? Result.Ok : Result.ReadFailure);
  };

  #finish(result: number): void {
    const rule = this.#rule;
    const request = this.#asked!;
    const { address } = request;
    if (rule.reply === 'asked') this.#last = { rule, result, address, counter: this.counter };
    const frames = this.#replies && request.room > 0 ? this.#reply(request, result) : 0;
    // It may have been a key.
    if (rule.action === 'program-key') this.request.fill(0);
    this.#busy = false;
    this.#done(frames, result);
  }

  /** Build the answer; returns its frames. */
  #reply(request: Request, result: number): number {
    const { action } = this.#rule;
    if (action === 'tell-result') {
      const last = this.#last;
      // virtio 1.3 §5.12.6.1.5; a result of nothing is none.
      const told = result === Result.Ok && last !== undefined ? last : undefined;
      const rule = last?.rule ?? NOTHING_ASKED;
      if (told !== undefined) this.#putReply(rule, told.result, 0, told.address, told.counter);
      else this.#putReply({ ...rule, fields: [] }, Result.GeneralFailure, 0, 0, 0);
      this.#sign(rule, 1);
      return 1;
    }
    const frames = action === 'read' ? this.#readFrames(request) : 1;
    for (let i = 0; i < frames; i++) {
      const at = i * FRAME_BYTES;
      // Of a read that worked the data is in place.
      if (action !== 'read' || result !== Result.Ok) {
        this.response.fill(0, at + FrameField.Data, at + FrameField.Data + BLOCK_BYTES);
      }
      this.#putFields(this.#rule, result, at, request.address, this.counter);
    }
    this.#sign(this.#rule, frames);
    return frames;
  }

  /** As many frames as blocks were asked for, also of a failure; one where that number is absurd. */
  #readFrames({ blockCount, room }: Request): number {
    return blockCount >= 1 && blockCount <= this.maxReadBlocks && blockCount <= room
      ? blockCount
      : 1;
  }

  #putReply(rule: Rule, result: number, at: number, address: number, counter: number): void {
    this.response.fill(0, at + FrameField.Data, at + FrameField.Data + BLOCK_BYTES);
    this.#putFields(rule, result, at, address, counter);
  }

  /** All of a reply's frame but its data and MAC. */
  #putFields(rule: Rule, result: number, at: number, address: number, counter: number): void {
    const { response } = this;
    response.fill(0, at, at + FrameField.Data);
    response.fill(0, at + FrameField.Nonce, at + FRAME_BYTES);
    for (const field of rule.fields) {
      switch (field) {
        case 'counter':
          putU32(response, at + FrameField.WriteCounter, counter);
          break;
        case 'nonce':
          response.set(
            fieldOf(this.request, 0, FrameField.Nonce, NONCE_BYTES),
            at + FrameField.Nonce,
          );
          break;
        case 'address':
          putU16(response, at + FrameField.Address, address);
          break;
        case 'block-count':
          putU16(response, at + FrameField.BlockCount, this.#asked!.blockCount);
          break;
      }
    }
    const expired = this.profile.expiryBit && this.counter === MAX_COUNTER;
    const bits = expired ? Result.WriteCounterExpired : 0;
    putU16(response, at + FrameField.Result, result | bits);
    putU16(response, at + FrameField.Type, rule.response);
  }

  #sign(rule: Rule, frames: number): void {
    if (!this.#state.programmed) return;
    if (rule.response === ResponseType.ProgramKey && !this.profile.keyReplyMac) return;
    signFrames(this.#state.key, this.response, 0, frames);
  }
}
