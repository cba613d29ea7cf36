import t from 'tap';
import { deviceMemoryBytes, RpmbDevice } from '../../lib/rpmb/device.ts';
import { Result, resultOf } from '../../lib/rpmb/frame.ts';
import {
  dataOffset,
  decodeHeader,
  decodeSlot,
  type StateLayout,
  slotOffset,
} from '../../lib/rpmb/state/layout.ts';
import { loadState } from '../../lib/rpmb/state/open.ts';
import { BlockingStore } from '../../lib/store/sync-store.ts';
import { crashImages, type DiskEvent, RecordingStore, seeded, settle } from './disk.ts';
import {
  concat,
  dataWrite,
  KEY,
  makeState,
  pattern,
  programKey,
  resultRead,
  sendTo,
  system,
} from './harness.ts';

/** What a client sees of a device. */
interface Visible {
  readonly programmed: boolean;
  readonly counter: number;
  readonly data: Uint8Array;
}

type Operation =
  | { readonly kind: 'key' }
  | { readonly kind: 'write'; readonly address: number; readonly blocks: number }
  /** Stop, and serve the file again. */
  | { readonly kind: 'restart' };

const write = (address: number, blocks = 1): Operation => ({ kind: 'write', address, blocks });
const KEYED_LAYOUT = decodeHeader(makeState({ key: KEY, maxWriteBlocks: 4 })) as StateLayout;

/** A state whose every write and sync is noted. */
class Recorder {
  readonly bytes: Uint8Array;
  readonly start: Uint8Array;
  readonly events: DiskEvent[] = [];
  /** What a client may see after 0, 1, … of the operations. */
  readonly states: Visible[];
  #device!: RpmbDevice;
  syncFails = false;

  constructor(start: Uint8Array) {
    this.start = start.slice();
    this.bytes = start.slice();
    this.#serve();
    this.states = [look(this.bytes)];
  }

  run(operations: readonly Operation[]): void {
    for (const operation of operations) {
      const before = this.states.at(-1)!;
      this.events.push({ kind: 'begin' });
      switch (operation.kind) {
        case 'restart':
          this.#device.close();
          this.#serve();
          this.states.push(before);
          break;
        case 'key':
          this.#send(concat(programKey(KEY), resultRead()));
          this.states.push({ ...before, programmed: true });
          break;
        case 'write':
          this.states.push(this.#write(before, operation.address, operation.blocks));
          break;
      }
      this.events.push({ kind: 'ack' });
    }
  }

  #write(before: Visible, address: number, blocks: number): Visible {
    const data = pattern(blocks, before.counter + 1);
    this.#send(concat(dataWrite({ counter: before.counter, address, data }), resultRead()));
    const after = before.data.slice();
    after.set(data, address * 256);
    return { programmed: true, counter: before.counter + 1, data: after };
  }

  #send(request: Uint8Array): void {
    const result = resultOf(sendTo(this.#device, request), 0);
    if ((result === Result.Ok) === this.syncFails) throw new Error(`result ${result}`);
  }

  #serve(): void {
    const store = (sink: ConstructorParameters<typeof RecordingStore>[2]) =>
      new RecordingStore(this.bytes, this.events, sink, () => this.syncFails);
    const { layout, live } = loadState(new BlockingStore(store));
    this.#device = new RpmbDevice({
      model: { layout, live: live.buffer },
      store,
      memory: { u8: new Uint8Array(deviceMemoryBytes(layout)), address: 0 },
      getRandom: system.getRandom,
    });
  }
}

/** Open an image as after a crash, and look. Notes in `events` what opening it wrote. */
function look(image: Uint8Array, events: DiskEvent[] = []): Visible {
  const bytes = image.slice();
  const { layout, live } = loadState(
    new BlockingStore((sink) => new RecordingStore(bytes, events, sink)),
  );
  const data = bytes.subarray(dataOffset(layout));
  return { programmed: live.programmed, counter: live.counter, data };
}

function isOneOf(seen: Visible, allowed: readonly Visible[]): boolean {
  return allowed.some(
    ({ programmed, counter, data }) =>
      seen.programmed === programmed &&
      seen.counter === counter &&
      Buffer.compare(seen.data, data) === 0,
  );
}

interface Tally {
  prefixes: number;
  subsets: number;
  failures: number;
}

interface TrialOptions {
  readonly limit?: number;
  /** Done to an image before it is opened. */
  readonly spoil?: (image: Uint8Array) => void;
  /** Crash again in the middle of every so many'th recovery; 0: never. */
  readonly recoverEvery?: number;
  /** What may be seen after a prefix; unless given, the last state acknowledged or the next. */
  readonly allowed?: (prefix: readonly DiskEvent[]) => readonly Visible[];
}

/** Crash after every prefix of the events, in every way, and open what is left. */
function tryAll(
  start: Uint8Array,
  events: readonly DiskEvent[],
  states: readonly Visible[],
  tally: Tally,
  options: TrialOptions = {},
): void {
  const { limit = 700, spoil, recoverEvery = 7 } = options;
  const random = seeded(20241);
  const allowedAfter = options.allowed ?? ((prefix) => lastOrNext(prefix, states));
  for (let length = 0; length <= events.length; length++) {
    const prefix = events.slice(0, length);
    const allowed = allowedAfter(prefix);
    const { durable, unsettled } = settle(start, prefix);
    tally.prefixes++;
    for (const image of crashImages(durable, unsettled, limit, random)) {
      tally.subsets++;
      spoil?.(image);
      const again: DiskEvent[] = [];
      if (!passes(image, allowed, again)) tally.failures++;
      else if (recoverEvery > 0 && tally.subsets % recoverEvery === 0) {
        const inner: TrialOptions = { limit: 8, recoverEvery: 0, allowed: () => allowed };
        tryAll(image.slice(), again, states, tally, inner);
      }
    }
  }
}

function lastOrNext(prefix: readonly DiskEvent[], states: readonly Visible[]): Visible[] {
  const count = (kind: string) => prefix.filter((event) => event.kind === kind).length;
  return [states[count('ack')]!, states[count('begin')]!];
}

function passes(image: Uint8Array, allowed: readonly Visible[], events: DiskEvent[]): boolean {
  try {
    return isOneOf(look(image, events), allowed);
  } catch {
    return false;
  }
}

const SCENARIOS: Record<string, readonly Operation[]> = {
  'a new device: its key, then writes': [{ kind: 'key' }, write(0), write(1), write(0)],
  'four writes over two addresses': [{ kind: 'key' }, write(3), write(4), write(3), write(4)],
  'writes that overlap': [{ kind: 'key' }, write(2, 3), write(3, 4), write(1, 2), write(4)],
  'a restart between': [
    { kind: 'key' },
    write(5),
    write(6),
    { kind: 'restart' },
    write(5),
    { kind: 'restart' },
    write(5),
  ],
};

/** The same random ones each time. */
for (let n = 1; n <= 4; n++) {
  const random = seeded(n);
  const pick = (most: number) => Math.floor(random() * most);
  SCENARIOS[`random operations ${n}`] = [
    ...Array.from({ length: pick(2) }, (): Operation => ({ kind: 'restart' })),
    { kind: 'key' },
    ...Array.from({ length: 6 }, () =>
      pick(5) === 0 ? ({ kind: 'restart' } as const) : write(pick(5), 1 + pick(2)),
    ),
  ];
}

const total: Tally = { prefixes: 0, subsets: 0, failures: 0 };

function record(operations: readonly Operation[], maxWriteBlocks = 4): Recorder {
  const recorder = new Recorder(makeState({ maxWriteBlocks }));
  recorder.run(operations);
  return recorder;
}

for (const [name, operations] of Object.entries(SCENARIOS)) {
  t.test(`after a crash at any instant: old or new, whole: ${name}`, async (t) => {
    const { start, events, states } = record(operations);
    const tally = { prefixes: 0, subsets: 0, failures: 0 };
    tryAll(start, events, states, tally);
    t.equal(tally.failures, 0);
    t.ok(tally.subsets > 100, `${tally.prefixes} prefixes, ${tally.subsets} subsets`);
    add(tally);
  });
}

t.test('a write of 32 blocks is as atomic as one of a single', async (t) => {
  const { start, events, states } = record([{ kind: 'key' }, write(8, 32), write(20, 32)], 32);
  const tally = { prefixes: 0, subsets: 0, failures: 0 };
  tryAll(start, events, states, tally, { limit: 100, recoverEvery: 40 });
  t.equal(tally.failures, 0);
  add(tally);
});

t.test('after a sync that failed: old or new; and reopened, nothing goes back', async (t) => {
  const tally = { prefixes: 0, subsets: 0, failures: 0 };
  const random = seeded(7);
  const recorder = record([{ kind: 'key' }, write(0), write(1)]);
  const { start, events, states, bytes } = recorder;
  recorder.syncFails = true;
  recorder.run([write(5, 2)]);
  tryAll(start, events.slice(0, -1), states, tally, { recoverEvery: 0 });
  // The kernel calls the pages clean now: the cache has them, the disk any part of them, and no
  // later sync will change that.
  const { durable, unsettled } = settle(start, events);
  const disks = [...crashImages(durable, unsettled, 40, random)].map((disk) => disk.slice());
  const reopened = new Recorder(bytes);
  t.ok(isOneOf(reopened.states[0]!, states.slice(-2)));
  const opening = reopened.events.splice(0);
  reopened.run([write(7), write(0)]);
  const goOn = (recovery: readonly DiskEvent[], into: Tally, some = disks) => {
    for (const disk of some) {
      tryAll(disk, [...recovery, ...reopened.events], reopened.states, into, {
        limit: 30,
        recoverEvery: 0,
        // Until the opening is done, the disk may still show the old state.
        allowed: (prefix) =>
          prefix.length < recovery.length ? states.slice(-2) : lastOrNext(prefix, reopened.states),
      });
    }
  };
  goOn(opening, tally);
  t.equal(tally.failures, 0);
  add(tally);
  const syncs = opening.flatMap(({ kind }, i) => (kind === 'sync' ? [i] : []));
  t.equal(syncs.length, 2);
  for (const [nth, at] of syncs.entries()) {
    const mutant = { prefixes: 0, subsets: 0, failures: 0 };
    goOn(opening.toSpliced(at, 1), mutant, disks.slice(0, 20));
    t.ok(mutant.failures > 0, `recovery without sync ${nth + 1}: ${mutant.failures} wrong`);
  }
});

/** Forget the older slot: what recovery from the newest alone would see. */
function forgetOlder(image: Uint8Array): void {
  const slots = [0, 1].map((index) => {
    const at = slotOffset(KEYED_LAYOUT, index);
    const layout = { ...KEYED_LAYOUT, id: image.slice(16, 32) };
    return decodeSlot(layout, index, image.subarray(at, at + KEYED_LAYOUT.slotBytes));
  });
  const [first, second] = slots;
  if (first === undefined || second === undefined) return;
  const at = slotOffset(KEYED_LAYOUT, first.sequence < second.sequence ? 0 : 1);
  image.fill(0, at, at + 512);
}

/** Data area first, then slot and sync. */
function dataBeforeSlot(events: readonly DiskEvent[]): DiskEvent[] {
  const moved = [...events];
  for (let i = 0; i + 2 < moved.length; i++) {
    const [slot, sync, data] = moved.slice(i, i + 3);
    const isCommit =
      slot!.kind === 'write' &&
      slot!.offset < dataOffset(KEYED_LAYOUT) &&
      sync!.kind === 'sync' &&
      data!.kind === 'write';
    if (isCommit) moved.splice(i, 3, data!, slot!, sync!);
  }
  return moved;
}

t.test('mutants are caught', async (t) => {
  const { start, events, states } = record(SCENARIOS['four writes over two addresses']!);
  const mutants: Record<string, (tally: Tally) => void> = {
    'recovers from the newest slot alone': (tally) =>
      tryAll(start, events, states, tally, { spoil: forgetOlder, recoverEvery: 0 }),
    'skips the fdatasync': (tally) => {
      const lazy = events.filter(({ kind }) => kind !== 'sync');
      tryAll(start, lazy, states, tally, { limit: 40, recoverEvery: 0 });
    },
    'writes data before the slot': (tally) =>
      tryAll(start, dataBeforeSlot(events), states, tally, { recoverEvery: 0 }),
  };
  let caught = 0;
  for (const [name, run] of Object.entries(mutants)) {
    const tally = { prefixes: 0, subsets: 0, failures: 0 };
    run(tally);
    if (tally.failures > 0) caught++;
    t.ok(tally.failures > 0, `${name}: wrong in ${tally.failures} of ${tally.subsets} subsets`);
  }
  t.comment(
    `crash proof: ${total.prefixes} prefixes, ${total.subsets} subsets tried, failures ${total.failures}, mutants caught ${caught} of 3`,
  );
});

function add(tally: Tally): void {
  total.prefixes += tally.prefixes;
  total.subsets += tally.subsets;
  total.failures += tally.failures;
}
