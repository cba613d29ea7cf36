import { setTimeout as delay } from 'node:timers/promises';
import type { Addon, Mapping, OwnedFd } from '../native/index.ts';
import { native } from '../native/index.ts';
import type { DriverMemory } from '../virtio/index.ts';
import { Feature, PackedDriver, SplitDriver } from '../virtio/index.ts';
import {
  buildConfig,
  buildMemTable,
  buildU64,
  buildVringAddresses,
  buildVringFd,
  buildVringState,
  NO_PAYLOAD,
  PROTOCOL_FEATURES,
  ProtocolFeature,
  parseConfig,
  parseU64,
  parseVringState,
  Request,
  VhostUserError,
  violation,
} from '../virtio/vhost-user-messages.ts';
import { Channel } from './channel.ts';
import { FrontendQueue, INDIRECT_DESCRIPTORS } from './queue.ts';

/** Where the back end is: the path of its socket, or a connected descriptor (taken over). */
export type FrontendTarget = { readonly path: string } | { readonly fd: number };

export type FrontendOptions = FrontendTarget & {
  /** Time limit of connecting, of every answer and of every request, in ms (10000). */
  readonly timeoutMs?: number;
};

export interface StartOptions {
  /** How many queues to drive (1). */
  readonly queues?: number;
  /** Entries of each (128): split rings a power of two, at most 1024. */
  readonly queueSize?: number;
  /** Use packed rings (false). */
  readonly packed?: boolean;
  /** Bits of the device to accept where they are offered (none). */
  readonly features?: bigint;
  /** Bits of the ring and transport not to accept (none). */
  readonly without?: bigint;
  /** Memory for the buffers of one queue (4 MiB). */
  readonly bufferBytes?: number;
  /** No kick and call descriptors: both sides poll the rings (false). */
  readonly polled?: boolean;
}

/** What this end has a use for. */
const WANTED_PROTOCOL =
  ProtocolFeature.Mq |
  ProtocolFeature.ReplyAck |
  ProtocolFeature.Config |
  ProtocolFeature.ResetDevice;

const RING_FEATURES = Feature.Version1 | Feature.IndirectDesc | Feature.EventIndex;

/** Guest memory begins here, not at 0 and not at its address in this process: nobody shall mix them up. */
const GUEST_BASE = 2 ** 30;

const PAGE = 4096;

/** Node-API's limit on one buffer. */
const MAX_MEMORY = 2 ** 32;

const CONNECT_RETRY_MS = 20;

/**
 * The driver's end of a vhost-user connection: negotiates, shares memory, and drives queues. For
 * client tools, tests and benchmarks, where no virtual machine is wanted.
 *
 *     const device = await VhostUserFrontend.connect({ path: 'disk.sock' });
 *     const [queue] = await device.start({ queues: 1 });
 *     const { data } = await queue.submit([request], [512, 1]);
 *     await device.close();
 */
export class VhostUserFrontend {
  /** Feature bits of the device, without that of the protocol (30). */
  readonly offeredFeatures: bigint;
  readonly protocolFeatures: bigint;
  /** Queues the device has; 1 where it does not say. */
  readonly maxQueues: number;
  readonly #addon: Addon;
  readonly #channel: Channel;
  readonly #timeoutMs: number;
  readonly #protocol: boolean;
  #features = 0n;
  #queues: FrontendQueue[] = [];
  #memory: { fd: OwnedFd; mapping: Mapping } | undefined;

  /** Connect and negotiate. Rejects with a VhostUserError, or with the system's error of the socket. */
  static async connect(options: FrontendOptions): Promise<VhostUserFrontend> {
    const timeoutMs = options.timeoutMs ?? 10_000;
    const socket =
      'fd' in options ? native.adopt(options.fd) : await connectTo(options.path, timeoutMs);
    const channel = new Channel(native, socket, timeoutMs);
    const u64 = async (request: Request) =>
      parseU64(request, await channel.request(request, NO_PAYLOAD, [], 'reply'));
    try {
      await channel.request(Request.SetOwner, NO_PAYLOAD, [], 'nothing');
      const features = await u64(Request.GetFeatures);
      let protocolFeatures = 0n;
      if ((features & PROTOCOL_FEATURES) !== 0n) {
        protocolFeatures = (await u64(Request.GetProtocolFeatures)) & WANTED_PROTOCOL;
        const payload = buildU64(protocolFeatures);
        await channel.request(Request.SetProtocolFeatures, payload, [], 'nothing');
      }
      const multiple = (protocolFeatures & ProtocolFeature.Mq) !== 0n;
      const maxQueues = multiple ? Number(await u64(Request.GetQueueNum)) : 1;
      const negotiated = { features, protocolFeatures, maxQueues };
      return new VhostUserFrontend(native, channel, timeoutMs, negotiated);
    } catch (error) {
      channel.close(error as Error);
      throw error;
    }
  }

  private constructor(
    addon: Addon,
    channel: Channel,
    timeoutMs: number,
    negotiated: { features: bigint; protocolFeatures: bigint; maxQueues: number },
  ) {
    this.#addon = addon;
    this.#channel = channel;
    this.#timeoutMs = timeoutMs;
    this.#protocol = (negotiated.features & PROTOCOL_FEATURES) !== 0n;
    this.offeredFeatures = negotiated.features & ~PROTOCOL_FEATURES;
    this.protocolFeatures = negotiated.protocolFeatures;
    this.maxQueues = negotiated.maxQueues;
    channel.onClosed = (error) => {
      for (const queue of this.#queues) queue.fail(error);
    };
  }

  /** Feature bits accepted by the last `start`. */
  get features(): bigint {
    return this.#features;
  }

  get queues(): readonly FrontendQueue[] {
    return this.#queues;
  }

  /** Read `length` bytes of the device's configuration space. */
  async readConfig(offset: number, length: number): Promise<Uint8Array> {
    this.#needs(ProtocolFeature.Config, Request.GetConfig);
    const payload = buildConfig(offset, 0, new Uint8Array(length));
    const reply = await this.#channel.request(Request.GetConfig, payload, [], 'reply');
    const { bytes } = parseConfig(Request.GetConfig, reply);
    if (bytes.length !== length) {
      throw violation(Request.GetConfig, `${bytes.length} bytes instead of ${length}`);
    }
    return bytes;
  }

  /** Write a field of the configuration space. */
  async writeConfig(offset: number, bytes: Uint8Array): Promise<void> {
    this.#needs(ProtocolFeature.Config, Request.SetConfig);
    await this.#tell(Request.SetConfig, buildConfig(offset, 0, bytes));
  }

  /** Share memory and start queues. They run until `stop`. */
  async start(options: StartOptions = {}): Promise<FrontendQueue[]> {
    if (this.#memory !== undefined) throw new Error('vhost-user: the queues run already');
    const { queues = 1, queueSize = 128, packed = false, bufferBytes = 4 << 20 } = options;
    this.#checkStart(queues, queueSize, packed);
    const wanted = RING_FEATURES | (packed ? Feature.RingPacked : 0n) | (options.features ?? 0n);
    this.#features = this.offeredFeatures & wanted & ~(options.without ?? 0n);
    const rings = roundToPage(queueSize * (16 + 2 + 8 + INDIRECT_DESCRIPTORS * 16) + 512);
    const share = rings + roundToPage(bufferBytes);
    try {
      const { mapping } = await this.#share(queues * share);
      for (let index = 0; index < queues; index++) {
        const at = index * share;
        const queue = this.#createQueue(index, queueSize, packed, options.polled ?? false, {
          rings: part(mapping, at, rings),
          buffers: part(mapping, at + rings, share - rings),
        });
        this.#queues.push(queue);
        await this.#startQueue(queue);
      }
    } catch (error) {
      this.#release(error as Error);
      throw error;
    }
    return this.#queues;
  }

  /** Stop the queues; what the back end has taken is answered first, what it has not is rejected. */
  async stop(): Promise<void> {
    const stopped = new VhostUserError('ERR_VDUSE_VHOST_USER_CLOSED', undefined, 'queue stopped');
    try {
      for (const queue of this.#queues) await this.#stopQueue(queue);
    } finally {
      this.#release(stopped);
    }
  }

  /** Reset the device; its queues are stopped. */
  async reset(): Promise<void> {
    await this.stop();
    const known = (this.protocolFeatures & ProtocolFeature.ResetDevice) !== 0n;
    await this.#tell(known ? Request.ResetDevice : Request.ResetOwner, NO_PAYLOAD);
  }

  /** Stop the queues and end the connection. Always succeeds; a second call does nothing. */
  async close(): Promise<void> {
    await this.stop().catch(() => undefined);
    this.#channel.close(
      new VhostUserError('ERR_VDUSE_VHOST_USER_CLOSED', undefined, 'closed at this end'),
    );
  }

  #checkStart(queues: number, queueSize: number, packed: boolean): void {
    if (!Number.isInteger(queues) || queues < 1 || queues > this.maxQueues) {
      throw new RangeError(`${queues} queues: the device has ${this.maxQueues}`);
    }
    const powerOfTwo = (queueSize & (queueSize - 1)) === 0;
    if (!Number.isInteger(queueSize) || queueSize < 1 || queueSize > 1024) {
      throw new RangeError(`queues of ${queueSize} entries: not 1 … 1024`);
    }
    if (!packed && !powerOfTwo) {
      throw new RangeError(`split queues of ${queueSize} entries: no power of two`);
    }
    if (packed && (this.offeredFeatures & Feature.RingPacked) === 0n) {
      throw new VhostUserError(
        'ERR_VDUSE_VHOST_USER_REFUSED',
        Request.GetFeatures,
        'the back end has no packed rings (use split ones)',
      );
    }
  }

  /** Tell the features accepted, and share so much memory. */
  async #share(bytes: number): Promise<{ fd: OwnedFd; mapping: Mapping }> {
    if (bytes > MAX_MEMORY) {
      throw new RangeError(
        `${bytes} bytes of shared memory, at most ${MAX_MEMORY} (less bufferBytes)`,
      );
    }
    const fd = this.#addon.memfd('vhost-user-frontend', bytes);
    try {
      this.#memory = { fd, mapping: this.#addon.mmap(fd.fd, bytes, 0, true) };
    } catch (error) {
      fd.close();
      throw error;
    }
    const protocol = this.#protocol ? PROTOCOL_FEATURES : 0n;
    await this.#tell(Request.SetFeatures, buildU64(this.#features | protocol));
    const region = {
      guestAddress: BigInt(GUEST_BASE),
      size: BigInt(bytes),
      userAddress: BigInt(this.#memory.mapping.address),
      mmapOffset: 0n,
    };
    await this.#tell(Request.SetMemTable, buildMemTable([region]), [fd.fd]);
    return this.#memory;
  }

  #createQueue(
    index: number,
    size: number,
    packed: boolean,
    polled: boolean,
    memory: { rings: DriverMemory; buffers: DriverMemory },
  ): FrontendQueue {
    const indirect = (this.#features & Feature.IndirectDesc) !== 0n;
    const eventIndex = (this.#features & Feature.EventIndex) !== 0n;
    const Driver = packed ? PackedDriver : SplitDriver;
    return new FrontendQueue(this.#addon, {
      index,
      driver: new Driver(memory.rings, { size, indirect, eventIndex }),
      indirect,
      buffers: memory.buffers,
      kick: polled ? undefined : this.#addon.eventfd(0),
      call: polled ? undefined : this.#addon.eventfd(0),
      timeoutMs: this.#timeoutMs,
    });
  }

  /** In the order of other front ends: the kick, which starts the ring, last. */
  async #startQueue(queue: FrontendQueue): Promise<void> {
    const { index, driver, kick, call } = queue;
    const { size, desc, driver: available, device: used, packed, position } = driver.layout;
    const toUser = (address: number) =>
      BigInt(this.#memory!.mapping.address) + BigInt(address - GUEST_BASE);
    const base = packed ? (position.avail | (position.used << 16)) >>> 0 : position.avail;
    await this.#tell(Request.SetVringNum, buildVringState({ index, num: size }));
    await this.#tell(Request.SetVringBase, buildVringState({ index, num: base }));
    const addresses = {
      index,
      flags: 0,
      descriptor: toUser(desc),
      used: toUser(used),
      available: toUser(available),
    };
    await this.#tell(Request.SetVringAddr, buildVringAddresses(addresses));
    await this.#tellFd(Request.SetVringCall, index, call);
    await this.#tellFd(Request.SetVringKick, index, kick);
    if (this.#protocol) await this.#enable(index, 1);
    queue.begin();
  }

  async #stopQueue(queue: FrontendQueue): Promise<void> {
    const { index } = queue;
    if (this.#protocol) await this.#enable(index, 0);
    const payload = buildVringState({ index, num: 0 });
    const reply = await this.#channel.request(Request.GetVringBase, payload, [], 'reply');
    const base = parseVringState(Request.GetVringBase, reply);
    if (base.index !== index) throw violation(Request.GetVringBase, 'answers for another queue');
    queue.drain();
  }

  #enable(index: number, num: 0 | 1): Promise<void> {
    return this.#tell(Request.SetVringEnable, buildVringState({ index, num }));
  }

  #tellFd(request: Request, index: number, fd: OwnedFd | undefined): Promise<void> {
    const payload = buildVringFd({ index, hasFd: fd !== undefined });
    return this.#tell(request, payload, fd === undefined ? [] : [fd.fd]);
  }

  /** A request without a reply of its own: acknowledged where that was negotiated. */
  async #tell(request: Request, payload: Uint8Array, fds: readonly number[] = []): Promise<void> {
    const acks = (this.protocolFeatures & ProtocolFeature.ReplyAck) !== 0n;
    await this.#channel.request(request, payload, fds, acks ? 'ack' : 'nothing');
  }

  #needs(feature: bigint, request: Request): void {
    if ((this.protocolFeatures & feature) !== 0n) return;
    throw new VhostUserError(
      'ERR_VDUSE_VHOST_USER_REFUSED',
      request,
      'the back end does not offer it',
    );
  }

  #release(reason: Error): void {
    for (const queue of this.#queues) {
      queue.fail(reason);
      queue.close();
    }
    this.#queues = [];
    this.#memory?.mapping.unmap();
    this.#memory?.fd.close();
    this.#memory = undefined;
  }
}

/** The back end may be busy with another front end, its backlog full: try until the time is up. */
async function connectTo(path: string, timeoutMs: number): Promise<OwnedFd> {
  const deadline = performance.now() + timeoutMs;
  for (;;) {
    try {
      return native.unixConnect(path);
    } catch (error) {
      const busy = (error as { code?: string }).code === 'EAGAIN';
      if (!busy || performance.now() > deadline) throw error;
    }
    await delay(CONNECT_RETRY_MS);
  }
}

function roundToPage(bytes: number): number {
  return Math.ceil(bytes / PAGE) * PAGE;
}

function part(mapping: Mapping, offset: number, length: number): DriverMemory {
  const { buffer } = mapping;
  return {
    start: GUEST_BASE + offset,
    length,
    u8: new Uint8Array(buffer, offset, length),
    u16: new Uint16Array(buffer, offset, length / 2),
    u32: new Uint32Array(buffer, offset, length / 4),
  };
}
