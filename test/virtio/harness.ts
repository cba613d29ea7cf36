import { MockMemory, PackedDriver, SplitDriver } from '../../lib/testing/index.ts';
import {
  Chain,
  createQueue,
  type DriverOptions,
  type GuestBuffer,
  type MemoryRegion,
  Popped,
  type Virtqueue,
} from '../../lib/virtio/index.ts';

export const RING = 0x10000;
export const RING_BYTES = 0x10000;

/** A queue of either kind, with its driver, its memory and a chain record. */
export interface Rig<D> {
  readonly mock: MockMemory;
  readonly region: MemoryRegion;
  readonly driver: D;
  readonly queue: Virtqueue;
  readonly chain: Chain;
}

export function splitRig(options: Partial<DriverOptions> = {}): Rig<SplitDriver> {
  const mock = new MockMemory();
  const region = mock.add(RING, RING_BYTES);
  const driver = new SplitDriver(region, { size: 8, indirect: true, ...options });
  return {
    mock,
    region,
    driver,
    queue: createQueue(mock.memory, driver.layout),
    chain: new Chain(),
  };
}

export function packedRig(options: Partial<DriverOptions> = {}): Rig<PackedDriver> {
  const mock = new MockMemory();
  const region = mock.add(RING, RING_BYTES);
  const driver = new PackedDriver(region, { size: 8, indirect: true, ...options });
  return {
    mock,
    region,
    driver,
    queue: createQueue(mock.memory, driver.layout),
    chain: new Chain(),
  };
}

export const kinds = [
  { name: 'split', rig: splitRig },
  { name: 'packed', rig: packedRig },
] as const;

/** The segments of a chain as guest addresses: [address, length] of the readable, then the writable. */
export function segments(chain: Chain): { readable: number[][]; writable: number[][] } {
  const all = Array.from({ length: chain.count }, (_, i) => [
    chain.regions[i]!.start + chain.offsets[i]!,
    chain.lengths[i]!,
  ]);
  return { readable: all.slice(0, chain.readable), writable: all.slice(chain.readable) };
}

/** Take a chain that must be there; returns its head. */
export function take(rig: { queue: Virtqueue; chain: Chain }): number {
  const popped = rig.queue.pop(rig.chain);
  if (popped !== Popped.One) {
    throw new Error(`popped ${popped}: ${JSON.stringify(rig.queue.fault)}`);
  }
  return rig.chain.head;
}

/** A buffer of the driver's memory. */
export function buffer(
  driver: { allocate(length: number, alignment?: number): number },
  length: number,
): GuestBuffer {
  return { address: driver.allocate(length), length };
}
