import { MessageChannel } from 'node:worker_threads';
import { VIRTIO_BLK_F_FLUSH } from '../block/index.ts';
import type { Addon } from '../native/index.ts';
import {
  COUNTERS,
  chooseEngine,
  type MemorySource,
  type Order,
  ReactorLoop,
  type ReactorOptions,
  type SignalTarget,
  type WorkerTables,
} from '../reactor/index.ts';
import { ageKnowledge, type FileCopies, mapFile } from '../store/index.ts';
import { VhostUserMemory } from '../transport/vhost-user/index.ts';
import { GuestMemory } from '../virtio/index.ts';
import { BLOCK_MODEL, type BlockModelOptions } from './block-model.ts';
import { DISK_BYTES, RehearsalRing } from './rehearsal-ring.ts';

/** What a rehearsal runs with: as the engine thread it runs on. */
export interface RehearsalStage {
  readonly addon: Addon;
  readonly tables: WorkerTables;
  readonly options: ReactorOptions;
}

export interface RehearsalCast {
  /**
   * How guest memory is known: by a table, as over vhost-user, or looked up when it is touched, as over
   * VDUSE; twice, for each device has a function of its own for that.
   */
  readonly memory: 'table' | 'found' | 'searched';
  /** What stands for the disk's file. */
  readonly fd: number;
  /** A file of the disk's size to be mapped, so that there are copies too; undefined: none. */
  readonly mapped: number | undefined;
  /** As FileCopies has it. */
  readonly writtenBack: boolean;
  /** The file can be synced; some requests are flushes. */
  readonly flushes: boolean;
  readonly twoRegions: boolean;
}

const MEMORY = 'rehearsal';
const DEVICE = 1;
const QUEUE = 0;
const EINVAL = 22;
/** So many turns without an answer to a request: something is wrong, and it will never come. */
const PATIENCE = 100_000;

/** One disk from its start to its end, on a loop and an engine of its own. */
export class RehearsalLife {
  readonly #addon: Addon;
  readonly #loop: ReactorLoop;
  readonly #order: (order: Order) => void;
  readonly #refuse: (signal: SignalTarget) => void;
  readonly #ring: RehearsalRing;
  readonly #kick: number;
  readonly #call: number;
  readonly #memory: MemorySource;
  readonly #knowledge: SharedArrayBuffer | undefined;
  readonly #undo: (() => void)[] = [];

  /** Throws the system's errors; nothing is left open then. */
  constructor(
    { addon, tables, options }: RehearsalStage,
    { memory, fd, mapped, writtenBack, flushes, twoRegions }: RehearsalCast,
  ) {
    const eventfd = () => {
      const owned = addon.eventfd(0);
      this.#undo.push(() => owned.close());
      return owned.fd;
    };
    try {
      this.#addon = addon;
      const ring = new RehearsalRing(addon, { flushes, twoRegions });
      this.#ring = ring;
      this.#undo.push(() => ring.close());
      this.#kick = eventfd();
      this.#call = eventfd();
      const orders = eventfd();
      const { engine } = chooseEngine(addon, options);
      this.#undo.push(() => engine.close());
      this.#refuse = ({ fd, index }) => engine.onSignalRefused?.(fd, index, EINVAL);
      const { port1, port2 } = new MessageChannel();
      this.#undo.push(() => port1.close());
      const table = new VhostUserMemory(addon, ring.pieces);
      this.#undo.push(() => table.release());
      this.#memory = memorySource(table, memory);
      const ours = { ...tables.memories, [MEMORY]: () => this.#memory };
      this.#loop = new ReactorLoop(addon, engine, { ...tables, memories: ours }, port2, orders, {
        ...options,
        // It spins as the real one does, but not in vain for long.
        pollUs: Math.min(options.pollUs, 1),
      });
      this.#order = (order) => {
        port1.postMessage({ id: 0, order });
        addon.eventfdSignal(orders);
        this.#loop.takeOrders();
      };
      const map =
        mapped === undefined ? undefined : mapFile(mapped, DISK_BYTES, false, writtenBack);
      this.#undo.push(() => map?.map.unmap());
      this.#knowledge = map?.copies.knowledge;
      this.#begin(fd, map?.copies);
    } catch (error) {
      this.close();
      throw error;
    }
  }

  /** What the compiled code was made for; it must live as long as the code shall. */
  readonly shapes: unknown[] = [];

  /** Send `count` requests, `depth` at a time, and serve them. A sleep and a kick before each batch. */
  serve(count: number, depth: number): void {
    // Some pages are as good as new, the next time some are old, and most are known.
    if (this.#knowledge !== undefined) ageKnowledge(this.#knowledge, depth === 1 ? 1 : 2);
    for (let sent = 0; sent < count; sent += depth) {
      this.#ring.send(depth);
      let turns = 0;
      do {
        this.#step();
        if (++turns > PATIENCE) throw new Error('rehearsal: a request is not answered');
      } while (!this.#ring.idle);
    }
  }

  /** What happens to a device in trouble, and at its end. */
  end(): void {
    // VDUSE refuses interrupts at first: they are tried again, after a sleep that nothing else ends.
    const interrupt = { fd: this.#call, index: QUEUE };
    this.#order({ type: 'set-signal', device: DEVICE, index: QUEUE, signal: interrupt });
    this.#refuse(interrupt);
    this.#loop.step();
    // This descriptor knows no interrupts, so its driver could not be signalled any more.
    this.serve(2, 1);
    this.#order({ type: 'set-memory', device: DEVICE, memoryOptions: this.#ring.pieces });
    this.#step();
    this.serve(2, 1);
    this.#order({ type: 'stop-queues', device: DEVICE, indexes: [QUEUE] });
    this.#step();
    this.#order({ type: 'remove-device', device: DEVICE });
    this.#order({ type: 'exit' });
  }

  /** Give back memory and descriptors, in the middle of it too: nothing of it runs any more. */
  close(): void {
    while (this.#undo.length > 0) this.#undo.pop()!();
  }

  #begin(fd: number, copies: FileCopies | undefined): void {
    this.#order({
      type: 'add-device',
      device: {
        id: DEVICE,
        model: BLOCK_MODEL,
        modelOptions: disk(fd, copies),
        memory: MEMORY,
        memoryOptions: undefined,
        queues: 1,
        counters: new SharedArrayBuffer(COUNTERS * Float64Array.BYTES_PER_ELEMENT),
      },
    });
    this.#order({
      type: 'start-queue',
      device: DEVICE,
      queue: {
        index: QUEUE,
        layout: this.#ring.layout,
        kickFd: this.#kick,
        signal: { fd: this.#call, index: -1 },
        features: VIRTIO_BLK_F_FLUSH,
        signalOnce: true,
      },
    });
    this.shapes.push(this.#loop, this.#memory, this.#memory.memory.regions);
  }

  /** One turn of the loop, which ends in a sleep: the kick is there before it falls asleep. */
  #step(): void {
    this.#addon.eventfdSignal(this.#kick);
    this.#loop.step();
  }
}

function memorySource(table: VhostUserMemory, how: RehearsalCast['memory']): MemorySource {
  if (how === 'table') return table;
  const { memory } = table;
  const holds = (address: number) => (region: { start: number; length: number }) =>
    address >= region.start && address - region.start < region.length;
  const found =
    how === 'found'
      ? new GuestMemory((address) => memory.find(address))
      : new GuestMemory((address) => memory.regions.find(holds(address)));
  return {
    memory: found,
    poisoned: () => table.poisoned(),
    replace: () => found.clear(),
    release: () => {
      found.clear();
      table.release();
    },
  };
}

function disk(fd: number, copies: FileCopies | undefined): BlockModelOptions {
  return {
    block: {
      capacity: DISK_BYTES,
      blockSize: 512,
      physicalBlockSize: 4096,
      readOnly: false,
      queues: 1,
      queueSize: 256,
      serial: '',
      discard: false,
      switchableCache: false,
    },
    target: {
      fd,
      info: {
        name: 'rehearsal',
        capacity: DISK_BYTES,
        readOnly: false,
        blockSize: 1,
        physicalBlockSize: 4096,
        memoryAlignment: 1,
        discard: false,
      },
      direct: false,
      mayBlock: false,
      // Through io_uring it would leave a thread of the kernel's that wakes every five seconds.
      syncsInPlace: true,
      allocationUnit: 1,
      syncFailure: new Int32Array(1),
      copies,
    },
  };
}
