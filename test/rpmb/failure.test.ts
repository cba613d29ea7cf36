import t from 'tap';
import { Result } from '../../lib/rpmb/frame.ts';
import { Failed } from '../../lib/rpmb/state/live.ts';
import { type FaultRule, FaultStore } from '../../lib/store/filters/fault.ts';
import { MemoryStore } from '../../lib/testing/memory-store.ts';
import {
  Bench,
  concat,
  dataRead,
  dataWrite,
  getCounter,
  KEY,
  makeState,
  pattern,
  programKey,
  read,
  resultRead,
} from './harness.ts';

const FRESH = makeState();
const KEYED = makeState({ key: KEY });

/** A device whose store fails by these rules. */
function failing(state: Uint8Array, ...rules: FaultRule[]): Bench {
  const bytes = state.slice();
  return new Bench(bytes, {
    store: (sink) =>
      new FaultStore((inner) => new MemoryStore(bytes, inner, { immediate: true }), sink, rules),
  });
}

const write = (counter: number, seed = 1) =>
  concat(dataWrite({ counter, address: 3, data: pattern(2, seed) }), resultRead());

/** One authenticated write is: write the slot, sync, write the data area. */
const FAILURES: Record<string, { rule: FaultRule; readable: boolean }> = {
  'the slot is not written': { rule: { kind: 'write', nth: 3 }, readable: true },
  'half of the slot is written': { rule: { kind: 'write', nth: 3, short: 512 }, readable: true },
  'the disk is full': { rule: { kind: 'write', nth: 3, errno: 28 }, readable: true },
  'the sync fails': { rule: { kind: 'flush', nth: 2 }, readable: true },
  'the data area is not written': { rule: { kind: 'write', nth: 4 }, readable: false },
  'half of it is written': { rule: { kind: 'write', nth: 4, short: 256 }, readable: false },
};

for (const [name, { rule, readable }] of Object.entries(FAILURES)) {
  t.test(`WRITE_FAILURE until reopened: ${name}`, async (t) => {
    const bench = failing(KEYED, rule);
    t.match(read(bench.send(write(0, 1))), { result: Result.Ok, counter: 1 });
    const failed = read(bench.send(write(1, 2)));
    t.match(failed, { type: 0x0300, result: Result.WriteFailure, counter: 1, mac: true });
    t.match(read(bench.send(resultRead())), { result: Result.WriteFailure });

    // The store would work again; the device knows better.
    const before = bench.bytes.slice();
    t.match(read(bench.send(write(1, 2))), { result: Result.WriteFailure });
    t.match(read(bench.send(write(7, 2))), { result: Result.CountFailure }, 'checks go first');
    t.equal(Buffer.compare(bench.bytes, before), 0, 'nothing is written any more');
    t.match(read(bench.send(getCounter())), { result: Result.Ok, counter: 1 }, 'the old state');
    const shown = read(bench.send(dataRead(3, 2), 2));
    if (readable) {
      t.same(shown.data, pattern(2, 1));
    } else {
      t.match(shown, { result: Result.ReadFailure, mac: true }, 'never half of a write');
      t.equal(bench.live.failed, Failed.Data);
    }

    const reopened = new Bench(bench.bytes.slice());
    const { counter } = read(reopened.send(getCounter()));
    t.ok(counter === 1 || counter === 2, `old or new: ${counter}`);
    t.same(read(reopened.send(dataRead(3, 2), 2)).data, pattern(2, counter!), 'and whole');
    t.match(read(reopened.send(write(counter!, 5))), { result: Result.Ok });
  });
}

t.test('a key whose commit fails is not programmed, or is after reopening', async (t) => {
  for (const rule of [
    { kind: 'write', nth: 1 },
    { kind: 'write', nth: 1, short: 100 },
    { kind: 'flush', nth: 1 },
  ] as const) {
    const bench = failing(FRESH, rule);
    const reply = read(bench.send(concat(programKey(KEY), resultRead())));
    t.match(reply, { type: 0x0100, result: Result.WriteFailure, mac: false });
    t.match(read(bench.send(getCounter())), { result: Result.NoAuthKey });
    const again = read(bench.send(concat(programKey(KEY), resultRead())));
    t.match(again, { result: Result.WriteFailure });
    const reopened = new Bench(bench.bytes.slice());
    const counter = read(reopened.send(getCounter()));
    const result = reopened.device.programmed ? Result.Ok : Result.NoAuthKey;
    t.match(counter, { result });
  }
});
