import { readlinkSync } from 'node:fs';
import type { Addon, OwnedFd } from '../../native/index.ts';
import { Feature } from '../../virtio/index.ts';
import type { Message } from '../../virtio/vhost-user-assembler.ts';
import {
  buildConfig,
  buildVringState,
  PROTOCOL_FEATURES,
  ProtocolFeature,
  parseConfig,
  parseMemRegion,
  parseMemTable,
  parseU64,
  parseVringAddresses,
  parseVringFd,
  parseVringState,
  violation,
} from '../../virtio/vhost-user-messages.ts';
import type { VhostBackend } from './backend.ts';
import { MemoryTable } from './memory-table.ts';
import { MAX_RING_SIZE, sameRing, Vring } from './vring.ts';

export const OFFERED_PROTOCOL_FEATURES =
  ProtocolFeature.Mq |
  ProtocolFeature.ReplyAck |
  ProtocolFeature.Config |
  ProtocolFeature.ResetDevice |
  ProtocolFeature.ConfigureMemSlots;

/** Some front ends count configuration space from where virtio-mmio has it (virtio 1.3 §4.2.2). */
const MMIO_CONFIG_OFFSET = 0x100;

export const DONE = 0n;
const REFUSED = 1n;

/** What a request leaves behind: a reply's payload, or the value of an acknowledgement. */
export type Answer = Uint8Array | bigint;

type Received = Message<OwnedFd>;

/**
 * What one front end has set up. Its requests come here one after the other, their descriptors
 * counted (see requests.ts). One that makes no sense is thrown as a VhostUserError: the connection is
 * at its end.
 */
export class Session {
  readonly #addon: Addon;
  readonly #backend: VhostBackend;
  readonly #rings: readonly Vring[];
  readonly #offered: bigint;
  #features = 0n;
  #protocolFeatures = 0n;
  #table = MemoryTable.empty;

  constructor(addon: Addon, backend: VhostBackend) {
    this.#addon = addon;
    this.#backend = backend;
    this.#rings = Array.from({ length: backend.queueCount }, (_, index) => new Vring(index));
    this.#offered = backend.offeredFeatures() | PROTOCOL_FEATURES;
    backend.onQueueBroken = (index) => this.#tellBroken(index);
  }

  get offered(): bigint {
    return this.#offered;
  }

  get queueCount(): number {
    return this.#rings.length;
  }

  accepted(protocolFeature: bigint): boolean {
    return (this.#protocolFeatures & protocolFeature) !== 0n;
  }

  /**
   * The front end is gone: drain and stop all, let go of its memory. Throws what failed, after all.
   * The device is not reset: a front end that comes back for the same driver does not say again what
   * that one chose (CONFIG_WCE), and a new driver reads it.
   */
  async close(): Promise<void> {
    this.#backend.onQueueBroken = undefined;
    const results = await Promise.allSettled(this.#rings.map((ring) => this.#stop(ring)));
    results.push(...(await Promise.allSettled([this.#replaceTable(MemoryTable.empty)])));
    closeRegions(this.#table, MemoryTable.empty);
    for (const ring of this.#rings) ring.close();
    const failed = results.find((result) => result.status === 'rejected');
    if (failed !== undefined) throw failed.reason;
  }

  // --- features

  async setFeatures({ header, payload }: Received): Promise<Answer> {
    const features = parseU64(header.request, payload);
    const unknown = features & ~this.#offered;
    if (unknown !== 0n) {
      throw violation(header.request, `bits 0x${unknown.toString(16)} were not offered`);
    }
    if (features === this.#features) return DONE;
    await this.#stopAll();
    this.#features = features;
    await this.#settle(header.request);
    return DONE;
  }

  setProtocolFeatures({ header, payload }: Received): Answer {
    const features = parseU64(header.request, payload);
    const unknown = features & ~OFFERED_PROTOCOL_FEATURES;
    if (unknown !== 0n) {
      throw violation(header.request, `bits 0x${unknown.toString(16)} were not offered`);
    }
    this.#protocolFeatures = features;
    return DONE;
  }

  // --- memory

  async setMemTable({ header, payload, fds }: Received): Promise<Answer> {
    const { request } = header;
    const regions = parseMemTable(request, payload);
    if (fds.length !== regions.length) {
      throw violation(request, `${fds.length} file descriptors for ${regions.length} regions`);
    }
    const table = MemoryTable.of(request, regions, fds);
    fds.length = 0;
    await this.#changeMemory(request, table);
    return DONE;
  }

  async addMemReg({ header, payload, fds }: Received): Promise<Answer> {
    const region = parseMemRegion(header.request, payload);
    const table = this.#table.with(header.request, region, fds[0]!);
    fds.length = 0;
    await this.#changeMemory(header.request, table);
    return DONE;
  }

  async remMemReg({ header, payload }: Received): Promise<Answer> {
    const region = parseMemRegion(header.request, payload);
    await this.#changeMemory(header.request, this.#table.without(header.request, region));
    return DONE;
  }

  // --- rings

  setVringNum({ header, payload }: Received): Answer {
    const { index, num } = parseVringState(header.request, payload);
    const ring = this.#stoppedRing(header.request, index);
    if (num === 0 || num > MAX_RING_SIZE) {
      throw violation(header.request, `queue ${index}: ${num} entries, not 1 … ${MAX_RING_SIZE}`);
    }
    ring.size = num;
    return DONE;
  }

  async setVringAddr({ header, payload }: Received): Promise<Answer> {
    const { request } = header;
    const addresses = parseVringAddresses(request, payload);
    const ring = this.#ring(request, addresses.index);
    // The only flag asks for a dirty log, which was not offered.
    if (addresses.flags !== 0) {
      throw violation(request, `flags 0x${addresses.flags.toString(16)} were not offered`);
    }
    ring.addresses = addresses;
    ring.checkAddresses(request, this.#table, this.#features);
    await this.#settleRing(request, ring);
    return DONE;
  }

  setVringBase({ header, payload }: Received): Answer {
    const { index, num } = parseVringState(header.request, payload);
    const ring = this.#stoppedRing(header.request, index);
    if (!this.#packed && num > 0xffff) {
      throw violation(header.request, `queue ${index}: base ${num}, more than 65535`);
    }
    ring.base = num;
    return DONE;
  }

  /** Stops the ring; it is drained before the reply. */
  async getVringBase({ header, payload }: Received): Promise<Answer> {
    const { index } = parseVringState(header.request, payload);
    const ring = this.#ring(header.request, index);
    await this.#stop(ring);
    ring.stop();
    return buildVringState({ index, num: ring.baseWord(this.#packed) });
  }

  /** Starts the ring: front ends send it last (vhost-user, "Ring states"). */
  async setVringKick({ header, payload, fds }: Received): Promise<Answer> {
    const { request } = header;
    const ring = this.#ringOfFd(request, payload, fds);
    if (ring.size === 0 || ring.addresses === undefined) {
      throw violation(request, `queue ${ring.index}: its size and addresses are not known yet`);
    }
    await this.#stop(ring);
    ring.stop();
    ring.kick = fds.pop();
    ring.started = true;
    await this.#settleRing(request, ring);
    return DONE;
  }

  /** May come before anything else of its ring, and again at any time. */
  async setVringCall({ header, payload, fds }: Received): Promise<Answer> {
    const ring = this.#ringOfFd(header.request, payload, fds);
    const old = ring.call;
    ring.call = fds.pop();
    try {
      if (ring.running) await this.#backend.setCall(ring.index, ring.call?.fd ?? -1);
    } finally {
      old?.close();
    }
    return DONE;
  }

  setVringErr({ header, payload, fds }: Received): Answer {
    const ring = this.#ringOfFd(header.request, payload, fds);
    ring.error?.close();
    ring.error = fds.pop();
    return DONE;
  }

  async setVringEnable({ header, payload }: Received): Promise<Answer> {
    const { index, num } = parseVringState(header.request, payload);
    const ring = this.#ring(header.request, index);
    if (num > 1) throw violation(header.request, `queue ${index}: ${num} is neither 0 nor 1`);
    ring.enabled = num === 1;
    await this.#settleRing(header.request, ring);
    return DONE;
  }

  // --- device

  getConfig({ header, payload }: Received): Answer {
    const { offset, size, flags } = parseConfig(header.request, payload);
    const bytes = this.#backend.readConfig(configOffset(offset), size);
    // "Payload size MUST match the front-end's request", also beyond what the device has.
    return buildConfig(offset, flags, bytes);
  }

  async setConfig({ header, payload }: Received): Promise<Answer> {
    const { offset, bytes } = parseConfig(header.request, payload);
    try {
      await this.#backend.writeConfig(configOffset(offset), bytes);
    } catch {
      // A guest may write what it likes; its front end is not to blame.
      return REFUSED;
    }
    return DONE;
  }

  /** Disables all rings, nothing more: memory and features stay as they are. */
  async resetRings(): Promise<Answer> {
    await this.#stopAll();
    for (const ring of this.#rings) ring.reset();
    return DONE;
  }

  async resetDevice(): Promise<Answer> {
    await this.resetRings();
    await this.#backend.reset();
    return DONE;
  }

  // --- what the requests share

  get #packed(): boolean {
    return (this.#features & Feature.RingPacked) !== 0n;
  }

  #ring(request: number, index: number): Vring {
    const ring = this.#rings[index];
    if (ring === undefined) {
      throw violation(request, `queue ${index}: the device has ${this.#rings.length}`);
    }
    return ring;
  }

  #stoppedRing(request: number, index: number): Vring {
    const ring = this.#ring(request, index);
    if (ring.started) throw violation(request, `queue ${index}: the ring is started`);
    return ring;
  }

  /** The ring of a KICK, CALL or ERR, whose descriptor, if any, is an eventfd. */
  #ringOfFd(request: number, payload: Uint8Array, fds: readonly OwnedFd[]): Vring {
    const { index, hasFd } = parseVringFd(request, payload);
    const ring = this.#ring(request, index);
    if (hasFd !== (fds.length === 1)) {
      throw violation(request, `queue ${index}: ${fds.length} file descriptors, against its flag`);
    }
    // Others could make a thread that waits for them spin, or one that writes to them hang.
    if (hasFd && readlinkSync(`/proc/self/fd/${fds[0]!.fd}`) !== 'anon_inode:[eventfd]') {
      throw violation(request, `queue ${index}: its file descriptor is no eventfd`);
    }
    return ring;
  }

  /** Enabled from the start unless protocol features were negotiated (vhost-user, "Ring states"). */
  #enabled(ring: Vring): boolean {
    return ring.enabled ?? (this.#features & PROTOCOL_FEATURES) === 0n;
  }

  async #settle(request: number): Promise<void> {
    for (const ring of this.#rings) await this.#settleRing(request, ring);
  }

  /** Start or stop a ring, or start it anew, as what is known of it demands. */
  async #settleRing(request: number, ring: Vring): Promise<void> {
    const wanted = this.#wanted(request, ring, this.#table);
    if (ring.running !== undefined && wanted !== undefined && sameRing(ring.running, wanted)) {
      return;
    }
    await this.#stop(ring);
    // Where it stands is known only now.
    const layout = this.#wanted(request, ring, this.#table);
    if (layout === undefined) return;
    await this.#backend.startQueue({
      index: ring.index,
      layout,
      features: this.#features & ~PROTOCOL_FEATURES,
      kickFd: ring.kick?.fd ?? -1,
      callFd: ring.call?.fd ?? -1,
    });
    ring.running = layout;
  }

  #wanted(request: number, ring: Vring, table: MemoryTable) {
    if (!ring.started || !this.#enabled(ring)) return undefined;
    return ring.layout(request, table, this.#features);
  }

  async #stopAll(): Promise<void> {
    await Promise.all(this.#rings.map((ring) => this.#stop(ring)));
  }

  async #stop(ring: Vring): Promise<void> {
    const { running } = ring;
    if (running === undefined) return;
    ring.running = undefined;
    ring.stoppedAt(await this.#backend.stopQueue(ring.index), running.packed);
  }

  /**
   * Memory changes under running rings: those that stay where they are go on, those that move or
   * vanish (a region may be taken out and come back larger) are stopped until they are found again.
   */
  async #changeMemory(request: number, table: MemoryTable): Promise<void> {
    try {
      for (const ring of this.#rings) {
        if (ring.running === undefined) continue;
        const moved = this.#wanted(request, ring, table);
        if (moved === undefined || !sameRing(ring.running, moved)) await this.#stop(ring);
      }
    } catch (error) {
      closeRegions(table, this.#table);
      throw error;
    }
    await this.#replaceTable(table);
    await this.#settle(request);
  }

  /** The descriptors of the regions that are in one of the tables only are closed. */
  async #replaceTable(table: MemoryTable): Promise<void> {
    const old = this.#table;
    try {
      await this.#backend.setMemory(table.pieces);
    } catch (error) {
      closeRegions(table, old);
      throw error;
    }
    this.#table = table;
    closeRegions(old, table);
  }

  #tellBroken(index: number): void {
    const fd = this.#rings[index]?.error?.fd;
    if (fd === undefined) return;
    try {
      this.#addon.eventfdSignal(fd);
    } catch {
      // Filled and made blocking by the front end: it does not want to know.
    }
  }
}

function configOffset(offset: number): number {
  return offset >= MMIO_CONFIG_OFFSET ? offset - MMIO_CONFIG_OFFSET : offset;
}

/** Close the descriptors of regions that `other` does not have. */
function closeRegions(table: MemoryTable, other: MemoryTable): void {
  for (const region of table.regions) if (!other.regions.includes(region)) region.fd.close();
}
