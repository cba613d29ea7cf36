import { createHmac } from 'node:crypto';

/**
 * A second RPMB, plain and in memory, written from the specification alone: the oracle of the
 * differential test, and with faults switched on, the devices the conformance tester must see through.
 */
export interface ModelOptions {
  readonly blocks?: number;
  /** As in the configuration space; the model has no other limit. */
  readonly maxWrite?: number;
  readonly maxRead?: number;
  readonly counter?: number;
  readonly key?: Uint8Array;
  readonly faults?: readonly Fault[];
}

/** What peers get wrong, and what else a device could. */
export type Fault =
  | 'forgets the key'
  | 'forgets the counter'
  | 'forgets the data'
  | 'answers OK for a lost write'
  | 'address check off by one'
  | 'no address check'
  | 'address check of the first block only'
  | 'counter stepped per block'
  | 'counter never compared'
  | 'counter may be ahead'
  | 'counter wraps'
  | 'counter stepped by a refused write'
  | 'no expiry'
  | 'expiry as a bit'
  | 'MAC never checked'
  | 'MAC over the data only'
  | 'MAC compared up to its middle'
  | 'MAC of the last frame only'
  | 'MAC checked before the address'
  | 'key can be overwritten'
  | 'key told'
  | 'key programmed whatever the block count'
  | 'no MAC on the key reply'
  | 'nonce not copied'
  | 'reads without a MAC'
  | 'reads one block only'
  | 'read address not copied'
  | 'read block count not copied'
  | 'writes one block only'
  | 'writes whatever the block count'
  | 'counter told without a key'
  | 'counter read whatever the block count'
  | 'reads whatever the block count'
  | 'reads without a key'
  | 'writes without a key'
  | 'old counter in the write reply'
  | 'write reply without the address'
  | 'result only in the same chain'
  | 'result read whatever the block count'
  | 'replies unasked'
  | 'wrong response type'
  | 'dies of a part of a frame'
  | 'dies of an unknown request'
  | 'dies of a huge block count'
  | 'never completes without room'
  | 'writes only with a result read'
  | 'overruns the room';

const FRAME = 512;

interface Kept {
  key: Uint8Array | undefined;
  counter: number;
  data: Uint8Array;
}

export class Model {
  readonly blocks: number;
  readonly maxWrite: number;
  readonly maxRead: number;
  readonly #faults: ReadonlySet<Fault>;
  readonly #first: Kept;
  #kept: Kept;
  #last: { type: number; result: number; address: number; counter: number } | undefined;
  #dead = false;

  constructor(options: ModelOptions = {}) {
    this.blocks = options.blocks ?? 512;
    this.maxWrite = options.maxWrite ?? 32;
    this.maxRead = options.maxRead ?? 32;
    this.#faults = new Set(options.faults);
    this.#first = {
      key: options.key,
      counter: options.counter ?? 0,
      data: new Uint8Array(this.blocks * 256),
    };
    this.#kept = { ...this.#first, data: this.#first.data.slice() };
  }

  get config(): Uint8Array {
    return Uint8Array.of(this.blocks / 512, this.maxWrite, this.maxRead);
  }

  get state(): Readonly<Kept> {
    return this.#kept;
  }

  restart(): void {
    this.#last = undefined;
    this.#dead = false;
    const kept = this.#kept;
    if (this.#has('forgets the key')) kept.key = this.#first.key;
    if (this.#has('forgets the counter')) kept.counter = this.#first.counter;
    if (this.#has('forgets the data')) kept.data = this.#first.data.slice();
  }

  /** As a chain would: the answer, or no end at all. */
  readonly exchange = (request: Uint8Array, room: number): Promise<Uint8Array> => {
    if (this.#dead) return Promise.reject(new Error('the device is gone'));
    const answer = this.answer(request, room);
    if (answer === 'dies') {
      this.#dead = true;
      return Promise.reject(new Error('the device is gone'));
    }
    if (answer === 'hangs') {
      this.#dead = true;
      return new Promise(() => {});
    }
    return Promise.resolve(answer);
  };

  answer(request: Uint8Array, room: number): Uint8Array | 'dies' | 'hangs' {
    if (request.length === 0 || request.length % FRAME !== 0) {
      return this.#has('dies of a part of a frame') ? 'dies' : new Uint8Array(0);
    }
    const frames: Buffer[] = [];
    for (let at = 0; at < request.length; at += FRAME) {
      frames.push(Buffer.from(request.subarray(at, at + FRAME)));
    }
    const type = frames[0]!.readUInt16BE(510);
    const blockCount = frames[0]!.readUInt16BE(506);
    if (this.#has('dies of an unknown request') && (type === 0 || type > 5)) return 'dies';
    if (this.#has('dies of a huge block count') && blockCount > 1000) return 'dies';
    const asked =
      (type === 1 || type === 3) && frames.length > 1 && frames.at(-1)!.readUInt16BE(510) === 5;
    const needsRoom = asked || (type !== 1 && type !== 3);
    if (needsRoom && room === 0) {
      if (this.#has('never completes without room')) return 'hangs';
      if (type === 1 || type === 3) this.#tell(type, 1, frames[0]!);
      return new Uint8Array(0);
    }
    if (asked && !this.#one(frames.at(-1)!)) {
      this.#tell(type, 1, frames[0]!);
      return this.#result();
    }
    switch (type) {
      case 1:
        this.#tell(1, this.#programKey(asked ? frames.slice(0, -1) : frames), frames[0]!);
        break;
      case 2:
        return this.#counter(frames);
      case 3:
        if (this.#has('writes only with a result read') && !asked) break;
        this.#tell(3, this.#write(asked ? frames.slice(0, -1) : frames), frames[0]!);
        break;
      case 4:
        return this.#read(frames, room);
      case 5: {
        const one = this.#one(frames[0]!) || this.#has('result read whatever the block count');
        const fine = one && frames.length === 1 && this.#last !== undefined;
        return fine ? this.#result() : this.#failure((this.#last?.type ?? 0) << 8);
      }
      default:
        return this.#failure(0);
    }
    const unasked = this.#has('replies unasked') && room > 0;
    const result = asked || unasked ? this.#result() : new Uint8Array(0);
    if (this.#has('result only in the same chain')) this.#last = undefined;
    return result;
  }

  #has(fault: Fault): boolean {
    return this.#faults.has(fault);
  }

  #one(frame: Buffer): boolean {
    return frame.readUInt16BE(506) === 1;
  }

  #tell(type: number, result: number, frame: Buffer): void {
    const address = type === 3 ? frame.readUInt16BE(504) : 0;
    const counter = type === 3 ? this.#kept.counter : 0;
    this.#last = { type, result, address, counter };
  }

  #mac(frames: readonly Buffer[], key: Uint8Array): Buffer {
    const only = this.#has('MAC of the last frame only') ? frames.slice(-1) : frames;
    const end = this.#has('MAC over the data only') ? 484 : FRAME;
    return createHmac('sha256', key)
      .update(Buffer.concat(only.map((frame) => frame.subarray(228, end))))
      .digest();
  }

  #sign(frames: Buffer[]): Uint8Array {
    if (this.#kept.key !== undefined) {
      this.#mac(frames, this.#kept.key).copy(frames.at(-1)!, 196);
    }
    return Buffer.concat(frames);
  }

  #frame(type: number, result: number): Buffer {
    const frame = Buffer.alloc(FRAME);
    const expired = this.#has('expiry as a bit') && this.#kept.counter === 0xffffffff;
    frame.writeUInt16BE(this.#has('wrong response type') ? type >> 8 : type, 510);
    frame.writeUInt16BE(result | (expired ? 0x80 : 0), 508);
    return frame;
  }

  #failure(type: number): Uint8Array {
    return this.#sign([this.#frame(type, 1)]);
  }

  #result(): Uint8Array {
    const { type, result, address, counter } = this.#last!;
    const frame = this.#frame(type << 8, result);
    if (!this.#has('write reply without the address')) frame.writeUInt16BE(address, 504);
    const before = this.#has('old counter in the write reply') && result === 0 && type === 3;
    frame.writeUInt32BE(before ? counter - 1 : counter, 500);
    if (this.#has('key told')) frame.set(this.#kept.key ?? [], 228);
    if (type === 1 && this.#has('no MAC on the key reply')) return frame;
    return this.#sign([frame]);
  }

  #programKey(frames: Buffer[]): number {
    const counted = this.#one(frames[0]!) && frames.length === 1;
    if (!counted && !this.#has('key programmed whatever the block count')) return 1;
    if (this.#kept.key !== undefined && !this.#has('key can be overwritten')) return 5;
    this.#kept.key = Uint8Array.from(frames[0]!.subarray(196, 228));
    return 0;
  }

  #counter(frames: Buffer[]): Uint8Array {
    let result = 0;
    if (this.#kept.key === undefined && !this.#has('counter told without a key')) result = 7;
    else if (!this.#one(frames[0]!) && !this.#has('counter read whatever the block count')) {
      result = 1;
    } else if (frames.length > 1) result = 1;
    const frame = this.#frame(0x200, result);
    frame.writeUInt32BE(this.#kept.counter, 500);
    if (!this.#has('nonce not copied')) frames[0]!.copy(frame, 484, 484, 500);
    return this.#sign([frame]);
  }

  #outside(address: number, count: number): boolean {
    if (this.#has('no address check')) return false;
    if (this.#has('address check off by one')) return address + count > this.blocks + 1;
    if (this.#has('address check of the first block only')) return address >= this.blocks;
    return address + count > this.blocks;
  }

  #write(frames: Buffer[]): number {
    const head = frames[0]!;
    const kept = this.#kept;
    const count = head.readUInt16BE(506);
    const address = head.readUInt16BE(504);
    const counter = head.readUInt32BE(500);
    if (kept.key === undefined && !this.#has('writes without a key')) return 7;
    const limit = this.maxWrite || 512;
    const uniform = frames.every((frame) => frame.readUInt16BE(510) === 3);
    const counted = count >= 1 && count <= limit && frames.length === count && uniform;
    if (!counted && !this.#has('writes whatever the block count')) return 1;
    const over = kept.counter === 0xffffffff;
    if (over && this.#has('expiry as a bit')) return 5;
    if (over && !this.#has('no expiry') && !this.#has('counter wraps')) return 0x80;
    const authentic = this.#authentic(frames);
    if (!authentic && this.#has('MAC checked before the address')) return 2;
    if (this.#outside(address, count)) return 4;
    if (!authentic) {
      if (this.#has('counter stepped by a refused write')) kept.counter++;
      return 2;
    }
    const ahead = this.#has('counter may be ahead') && counter > kept.counter;
    if (counter !== kept.counter && !ahead && !this.#has('counter never compared')) return 3;
    if (!this.#has('answers OK for a lost write')) this.#store(frames, address);
    kept.counter += this.#has('counter stepped per block') ? count : 1;
    if (kept.counter > 0xffffffff) kept.counter = this.#has('counter wraps') ? 0 : 0xffffffff;
    return 0;
  }

  #authentic(frames: Buffer[]): boolean {
    if (this.#has('MAC never checked') || this.#kept.key === undefined) return true;
    const mac = this.#mac(frames, this.#kept.key);
    const bytes = this.#has('MAC compared up to its middle') ? 16 : 32;
    return mac.compare(frames.at(-1)!, 196, 196 + bytes, 0, bytes) === 0;
  }

  #store(frames: Buffer[], address: number): void {
    const only = this.#has('writes one block only') ? frames.slice(0, 1) : frames;
    only.forEach((frame, i) => {
      const at = ((address + i) % this.blocks) * 256;
      this.#kept.data.set(frame.subarray(228, 484), at);
    });
  }

  #read(frames: Buffer[], room: number): Uint8Array {
    const head = frames[0]!;
    const asked = head.readUInt16BE(506);
    const address = head.readUInt16BE(504);
    const lax = this.#has('reads whatever the block count');
    const fits = asked <= room || this.#has('overruns the room');
    const counted = asked >= 1 && asked <= (this.maxRead || 512) && fits;
    let result = 0;
    if (this.#kept.key === undefined && !this.#has('reads without a key')) result = 7;
    else if ((!counted && !lax) || frames.length > 1) result = 1;
    else if (this.#outside(address, asked)) result = 4;
    const count = counted ? asked : 1;
    const reply = Array.from({ length: count }, (_, i) => {
      const frame = this.#frame(0x400, result);
      if (!this.#has('nonce not copied')) head.copy(frame, 484, 484, 500);
      if (!this.#has('read address not copied')) frame.writeUInt16BE(address, 504);
      if (!this.#has('read block count not copied')) frame.writeUInt16BE(asked, 506);
      const block = this.#has('reads one block only') ? address : address + i;
      const at = (block % this.blocks) * 256;
      if (result === 0) frame.set(this.#kept.data.subarray(at, at + 256), 228);
      return frame;
    });
    if (this.#has('reads without a MAC')) return Buffer.concat(reply);
    return this.#sign(reply);
  }
}
