import t from 'tap';
import {
  DelayStore,
  type FaultRule,
  FaultStore,
  parseSize,
  ReadOnlyStore,
  SizeError,
  type Store,
} from '../../lib/store/index.ts';
import { MemoryStore } from '../../lib/testing/index.ts';
import { guestMemory, Results, TestPort } from './harness.ts';

const memory = guestMemory(8192);

function transfer(store: Store, kind: 'read' | 'write', token: number, lengths: number[]): void {
  store[kind](token, { offset: 0, length: lengths.reduce((a, b) => a + b) });
  let at = 0;
  for (const length of lengths) {
    store.addMemory(memory, at, length);
    at += length;
  }
}

/** A filter over a store in memory; `immediate` completes within the call. */
function faulty(rules: FaultRule[], options: { seed?: number; immediate?: boolean } = {}) {
  const results = new Results();
  let inner!: MemoryStore;
  const store = new FaultStore(
    (sink) => {
      inner = new MemoryStore(new Uint8Array(8192).fill(7), sink, {
        immediate: options.immediate ?? true,
        blockSize: 512,
      });
      return inner;
    },
    results,
    rules,
    options.seed,
  );
  return { results, store, inner };
}

t.test('read-only: whatever changes the store is refused before it gets there', async (t) => {
  const results = new Results();
  let inner!: MemoryStore;
  const store = new ReadOnlyStore((sink) => {
    inner = new MemoryStore(new Uint8Array(8192), sink, { immediate: true });
    return inner;
  }, results);
  t.match(store.info, { readOnly: true, discard: false, capacity: 8192 });
  transfer(store, 'write', 1, [512, 100, 412]);
  transfer(store, 'read', 2, [512, 512]);
  store.discard(3);
  store.writeZeroes(4);
  store.flush(5);
  t.strictSame(results.take(), [
    [1, -30],
    [2, 1024],
    [3, -30],
    [4, -30],
    [5, 0],
  ]);
  t.strictSame(
    inner.operations.map((o) => o.kind),
    ['read', 'flush'],
  );
  store.close();
  t.ok(inner.closed);
});

t.test('faults: the nth of a kind, with its errno, and nothing reaches the store', async (t) => {
  const { results, store, inner } = faulty([
    { kind: 'write', nth: 2 },
    { kind: 'flush', errno: 28 },
    { kind: 'discard' },
    { kind: 'writeZeroes', nth: 1 },
  ]);
  for (const token of [1, 2, 3]) transfer(store, 'write', token, [500, 524]);
  transfer(store, 'read', 4, [512]);
  store.flush(5);
  store.discard(6, 0, 512);
  store.writeZeroes(7, 0, 512, true);
  store.writeZeroes(8, 0, 512, true);
  t.strictSame(results.take(), [
    [1, 1024],
    [2, -5],
    [3, 1024],
    [4, 512],
    [5, -28],
    [6, -5],
    [7, -5],
    [8, 0],
  ]);
  t.strictSame(
    inner.operations.map((o) => o.kind),
    ['write', 'write', 'read', 'writeZeroes'],
  );
});

t.test('faults: short transfers move whole blocks of the beginning', async (t) => {
  for (const immediate of [true, false]) {
    const { results, store, inner } = faulty(
      [
        { kind: 'read', nth: 1, short: 600 },
        { kind: 'read', nth: 2, short: 511 },
        { kind: 'read', nth: 3, short: 9999 },
      ],
      { immediate },
    );
    memory.u8.fill(0);
    transfer(store, 'read', 1, [300, 300, 424]);
    inner.run();
    t.strictSame(results.take(), [[1, 512]]);
    t.ok(memory.u8.subarray(0, 512).every((byte) => byte === 7));
    t.ok(memory.u8.subarray(512).every((byte) => byte === 0));
    transfer(store, 'read', 2, [1024]);
    inner.run();
    t.strictSame(results.take(), [[2, 0]]);
    transfer(store, 'read', 3, [1024]);
    inner.run();
    t.strictSame(results.take(), [[3, 1024]]);
    store.close();
  }
});

t.test('faults: word of a shortened transfer waits for its last piece', async (t) => {
  const { results, store } = faulty([{ kind: 'write', short: 512 }]);
  store.write(1, { offset: 0, length: 1024 });
  store.addMemory(memory, 0, 512);
  t.strictSame(results.list, [], 'the store below is done, the description is not');
  store.addMemory(memory, 512, 512);
  t.strictSame(results.take(), [[1, 512]]);
});

t.test('faults: a share of operations, the same ones for the same seed', async (t) => {
  const failed = (seed: number) => {
    const { results, store } = faulty([{ kind: 'flush', share: 0.25 }], { seed });
    for (let token = 0; token < 1000; token++) store.flush(token);
    return results.take().flatMap(([token, result]) => (result === 0 ? [] : [token]));
  };
  t.strictSame(failed(1), failed(1));
  t.notSame(failed(1), failed(2));
  t.ok(Math.abs(failed(3).length - 250) < 60, `${failed(3).length} of 1000`);
});

t.test('delay: the work is done at once, the word of it comes later', async (t) => {
  const port = new TestPort();
  const results = new Results();
  let inner!: MemoryStore;
  const store = new DelayStore(
    (sink) => {
      inner = new MemoryStore(new Uint8Array(8192), sink, { immediate: true });
      return inner;
    },
    results,
    port,
    250,
  );
  t.equal(store.info, inner.info);
  memory.u8.fill(3);
  transfer(store, 'write', 1, [512]);
  inner.failNth(1, 5);
  store.flush(2);
  store.discard(3, 512, 512);
  store.writeZeroes(4, 512, 512, false);
  transfer(store, 'read', 5, [100, 412]);
  t.equal(inner.bytes[0], 3);
  t.strictSame(results.take(), []);
  t.strictSame(
    port.delayed.map(({ token, microseconds }) => [token, microseconds]),
    [
      [1, 250],
      [2, 250],
      [3, 250],
      [4, 250],
      [5, 250],
    ],
  );
  port.elapse();
  t.strictSame(results.take(), [
    [1, 512],
    [2, -5],
    [3, 0],
    [4, 0],
    [5, 512],
  ]);
  store.close();
  t.equal(port.owners, 0);
  t.ok(inner.closed);
});

t.test('sizes: whole numbers with units of 1024', async (t) => {
  const good: [string, number][] = [
    ['1', 1],
    ['512', 512],
    ['512B', 512],
    ['4K', 4096],
    ['4k', 4096],
    ['4KiB', 4096],
    ['512M', 2 ** 29],
    ['1G', 2 ** 30],
    ['10GiB', 10 * 2 ** 30],
    ['2T', 2 ** 41],
    ['7P', 7 * 2 ** 50],
    ['9007199254740991', Number.MAX_SAFE_INTEGER],
  ];
  for (const [text, bytes] of good) t.equal(parseSize(text), bytes, text);
  const bad = [
    '',
    ' ',
    'G',
    '1.5G',
    '-1',
    '1e9',
    '0x10',
    '1 G',
    '1GB',
    '1KB',
    '1E',
    '1Gi',
    '٣',
    '1\n',
  ];
  for (const text of bad) {
    t.throws(() => parseSize(text), { code: 'ERR_VDUSE_SIZE', message: /whole number/ }, text);
  }
  t.throws(() => parseSize('0'), /disk of nothing/);
  t.throws(() => parseSize('0G'), SizeError);
  for (const text of ['8P', '9007199254740992', '9007199254740993', '9'.repeat(400)]) {
    t.throws(() => parseSize(text), /too large/, text);
  }
});
