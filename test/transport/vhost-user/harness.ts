import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { type FdWatcher, native, type OwnedFd } from '../../../lib/native/index.ts';
import {
  type MemoryPiece,
  type VhostBackend,
  type VhostQueue,
  VhostUserMemory,
  VhostUserServer,
  type VhostUserServerOptions,
} from '../../../lib/transport/vhost-user/index.ts';
import {
  Chain,
  createQueue,
  Feature,
  Popped,
  type QueuePosition,
  type Virtqueue,
} from '../../../lib/virtio/index.ts';
import { type Message, MessageAssembler } from '../../../lib/virtio/vhost-user-assembler.ts';
import {
  buildMemTable,
  buildMessage,
  buildU64,
  buildVringAddresses,
  buildVringFd,
  buildVringState,
  FLAG_NEED_REPLY,
  NO_PAYLOAD,
  PROTOCOL_FEATURES,
  parseU64,
  parseVringState,
  type RegionDescription,
  Request,
} from '../../../lib/virtio/vhost-user-messages.ts';

export const FEATURES =
  Feature.Version1 | Feature.IndirectDesc | Feature.EventIndex | Feature.RingPacked;

/** The configuration space of the toy device. */
export const CONFIG = Uint8Array.from({ length: 16 }, (_, i) => i + 1);

interface Running {
  readonly start: VhostQueue;
  queue: Virtqueue;
  callFd: number;
  watcher: FdWatcher | undefined;
  timer: NodeJS.Timeout | undefined;
}

/**
 * A device on the main thread: copies what a request has to read into what it has to write. It keeps
 * a log of what the session did with it.
 */
export class ToyBackend implements VhostBackend {
  readonly log: string[] = [];
  readonly queueCount: number;
  readonly running = new Map<number, Running>();
  readonly source = new VhostUserMemory(native);
  pieces: readonly MemoryPiece[] = [];
  config: Uint8Array = CONFIG.slice();
  onQueueBroken: ((index: number) => void) | undefined;
  /** Awaited before a stop is carried out: I/O in flight. */
  drained: Promise<void> = Promise.resolve();
  /** Answer nothing: requests stay in flight. */
  mute = false;
  /** Fail the next call of that name. */
  failing: string | undefined;

  constructor(queueCount = 2) {
    this.queueCount = queueCount;
  }

  offeredFeatures(): bigint {
    return FEATURES;
  }

  readConfig(offset: number, length: number): Uint8Array {
    const bytes = new Uint8Array(length);
    bytes.set(this.config.subarray(offset, offset + length));
    return bytes;
  }

  writeConfig(offset: number, bytes: Uint8Array): void {
    if (offset + bytes.length > this.config.length) throw new Error('read-only');
    this.config.set(bytes, offset);
  }

  async setMemory(pieces: readonly MemoryPiece[]): Promise<void> {
    this.log.push(`memory ${pieces.length}`);
    this.#mayFail('setMemory');
    this.source.replace(pieces);
    this.pieces = pieces;
    for (const running of this.running.values()) {
      const position = running.queue.position;
      running.queue = createQueue(this.source.memory, { ...running.start.layout, position });
    }
  }

  async startQueue(start: VhostQueue): Promise<void> {
    const { index, layout } = start;
    this.log.push(`start ${index} at ${layout.position.avail}`);
    this.#mayFail('startQueue');
    const running: Running = {
      start,
      queue: createQueue(this.source.memory, layout),
      callFd: start.callFd,
      watcher: undefined,
      timer: undefined,
    };
    this.running.set(index, running);
    if (start.kickFd < 0) running.timer = setInterval(() => this.serve(running), 1);
    else {
      const watcher = native.watch(start.kickFd, () => {
        native.eventfdRead(start.kickFd);
        this.serve(running);
        watcher.rearm();
      });
      watcher.rearm();
      running.watcher = watcher;
    }
    this.serve(running);
  }

  async stopQueue(index: number): Promise<QueuePosition> {
    const running = this.running.get(index);
    if (running === undefined) throw new Error(`queue ${index} does not run`);
    await this.drained;
    running.watcher?.close();
    clearInterval(running.timer);
    this.running.delete(index);
    this.log.push(`stop ${index} at ${running.queue.position.avail}`);
    this.#mayFail('stopQueue');
    return running.queue.position;
  }

  async setCall(index: number, callFd: number): Promise<void> {
    this.log.push(`call ${index} ${callFd < 0 ? 'none' : 'fd'}`);
    this.running.get(index)!.callFd = callFd;
  }

  reset(): void {
    this.log.push('reset');
    this.config = CONFIG.slice();
  }

  /** Take and answer what is available. */
  serve(running: Running): void {
    if (this.mute) return;
    const chain = new Chain();
    const { queue } = running;
    do {
      while (queue.pop(chain) === Popped.One) {
        const bytes = new Uint8Array(Math.min(chain.readableBytes, chain.writableBytes));
        chain.copyOut(0, bytes, 0, bytes.length);
        chain.copyIn(0, bytes, 0, bytes.length);
        queue.complete(chain.head, bytes.length);
      }
      if (queue.publish() && running.callFd >= 0) native.eventfdSignal(running.callFd);
      if (queue.fault !== undefined) this.onQueueBroken?.(running.start.index);
    } while (queue.enableKicks());
  }

  #mayFail(name: string): void {
    if (this.failing !== name) return;
    this.failing = undefined;
    throw new Error(`${name} cannot be done`);
  }
}

/** A server and what it told. */
export class Served {
  readonly backend: ToyBackend;
  readonly server: VhostUserServer;
  /** Why each connection ended; undefined: the front end left. */
  readonly ends: (Error | undefined)[] = [];
  readonly notes: string[] = [];

  constructor(options: VhostUserServerOptions, backend = new ToyBackend()) {
    this.backend = backend;
    this.server = VhostUserServer.start(native, backend, options, {
      disconnected: (error) => this.ends.push(error),
      log: (text) => this.notes.push(text),
    });
  }

  /** Wait until so many connections have ended; returns the last one's error. */
  async ended(count: number): Promise<Error | undefined> {
    await until(() => this.ends.length >= count);
    return this.ends[count - 1];
  }
}

export async function until(condition: () => boolean): Promise<void> {
  const deadline = performance.now() + 10_000;
  while (!condition()) {
    if (performance.now() > deadline) throw new Error('waited 10 s in vain');
    await sleep(2);
  }
}

/** The front end's end of a socket, for well-formed and other messages. */
export class Peer {
  readonly socket: OwnedFd;
  readonly #assembler = new MessageAssembler<OwnedFd>(0);

  constructor(socket: OwnedFd) {
    this.socket = socket;
  }

  static to(path: string): Peer {
    return new Peer(native.unixConnect(path));
  }

  raw(bytes: Uint8Array, fds: readonly number[] = []): void {
    native.sendMessage(this.socket.fd, bytes, fds, 1000);
  }

  send(request: number, payload: Uint8Array = NO_PAYLOAD, fds: readonly number[] = [], flags = 0) {
    this.raw(buildMessage(request, flags, payload), fds);
  }

  /** The next reply; throws at the end of the connection. */
  async reply(): Promise<Message<OwnedFd>> {
    const deadline = performance.now() + 10_000;
    for (;;) {
      const received = native.receiveMessage(this.socket.fd, this.#assembler.target, 1);
      if (received?.bytes === 0) throw new Error('the connection has ended');
      const message = received && this.#assembler.accept(received.bytes, received.fds);
      if (message !== undefined) return message;
      if (performance.now() > deadline) throw new Error('no reply in 10 s');
      await sleep(1);
    }
  }

  async ask(request: number, payload: Uint8Array = NO_PAYLOAD): Promise<Uint8Array> {
    this.send(request, payload);
    return (await this.reply()).payload;
  }

  async askU64(request: number): Promise<bigint> {
    return parseU64(request, await this.ask(request));
  }

  /** Send, want an acknowledgement (REPLY_ACK was agreed upon), return its value. */
  async tell(request: number, payload?: Uint8Array, fds?: readonly number[]): Promise<bigint> {
    this.send(request, payload, fds, FLAG_NEED_REPLY);
    const { header, payload: ack } = await this.reply();
    if (header.request !== request) throw new Error(`reply to ${header.request}`);
    return parseU64(request, ack);
  }

  /** Where the ring stopped. */
  async base(index: number): Promise<number> {
    const payload = await this.ask(Request.GetVringBase, buildVringState({ index, num: 0 }));
    return parseVringState(Request.GetVringBase, payload).num;
  }

  /** Returns when every message sent before was carried out. */
  async sync(): Promise<void> {
    await this.ask(Request.GetFeatures);
  }

  close(): void {
    this.socket.close();
  }
}

/** Where the tests' guest memory lies for the front end. */
export const USER_BASE = 0x7f12_3450_0000n;
export const GUEST_BASE = 0x10_0000n;
export const MEMORY_BYTES = 0x4_0000;

export function region(change: Partial<RegionDescription> = {}): RegionDescription {
  return {
    guestAddress: GUEST_BASE,
    size: BigInt(MEMORY_BYTES),
    userAddress: USER_BASE,
    mmapOffset: 0n,
    ...change,
  };
}

/** The messages of a ring at `offset` of that memory, split, of 16 entries. */
export const ringMessages = {
  num: (index: number, num = 16) => buildVringState({ index, num }),
  base: (index: number, num = 0) => buildVringState({ index, num }),
  addr: (index: number, offset = index * 0x1000, flags = 0) =>
    buildVringAddresses({
      index,
      flags,
      descriptor: USER_BASE + BigInt(offset),
      available: USER_BASE + BigInt(offset + 0x400),
      used: USER_BASE + BigInt(offset + 0x800),
    }),
  fd: (index: number, hasFd = true) => buildVringFd({ index, hasFd }),
  enable: (index: number, num: number) => buildVringState({ index, num }),
};

/** A front end up to and with its memory; returns the memory's descriptor. */
export function handshake(peer: Peer, protocolFeatures = 0n): OwnedFd {
  const memory = native.memfd('guest', MEMORY_BYTES);
  peer.send(Request.SetOwner);
  if (protocolFeatures !== 0n) {
    peer.send(Request.SetProtocolFeatures, buildU64(protocolFeatures));
  }
  const bit = protocolFeatures === 0n ? 0n : PROTOCOL_FEATURES;
  peer.send(Request.SetFeatures, buildU64(Feature.Version1 | bit));
  peer.send(Request.SetMemTable, buildMemTable([region()]), [memory.fd]);
  return memory;
}

/** Start ring `index`; without protocol features it is enabled by that. */
export function startRing(peer: Peer, index: number, kick: OwnedFd, call: OwnedFd): void {
  peer.send(Request.SetVringNum, ringMessages.num(index));
  peer.send(Request.SetVringBase, ringMessages.base(index));
  peer.send(Request.SetVringAddr, ringMessages.addr(index));
  peer.send(Request.SetVringCall, ringMessages.fd(index), [call.fd]);
  peer.send(Request.SetVringKick, ringMessages.fd(index), [kick.fd]);
}

// The first watcher of a process opens descriptors that stay: not to be taken for a leak.
const first = native.eventfd(0);
native.watch(first.fd, () => {}).close();
first.close();

export function openFds(): number {
  return readdirSync('/proc/self/fd').length;
}

/** A folder with a short path, which a socket's path needs; removed by `remove`. */
export function socketFolder(): { path: string; remove: () => void } {
  const folder = mkdtempSync(join(tmpdir(), 'vu-'));
  return { path: join(folder, 's'), remove: () => rmSync(folder, { recursive: true }) };
}
