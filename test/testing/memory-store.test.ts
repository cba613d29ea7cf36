import t from 'tap';
import { MemoryStore, type MemoryStoreOptions } from '../../lib/testing/index.ts';

function rig(options: MemoryStoreOptions = {}) {
  const bytes = Uint8Array.from({ length: 64 }, (_, i) => i);
  const done: number[][] = [];
  const store = new MemoryStore(
    bytes,
    { completed: (token, result) => done.push([token, result]) },
    options,
  );
  const memory = { u8: new Uint8Array(32), address: 0x7000 };
  return { bytes, done, store, memory };
}

t.test('operations wait for run(), and are recorded', async (t) => {
  const { bytes, done, store, memory } = rig({ name: 'disk', readOnly: true });
  t.match(store.info, { name: 'disk', readOnly: true, capacity: 64 });
  store.read(5, { offset: 8, length: 6 });
  store.addMemory(memory, 2, 4);
  store.addMemory(memory, 20, 2);
  store.flush(6);
  store.writeZeroes(7, 0, 4, true);
  store.discard(8, 60, 4);
  t.equal(store.pending, 4);
  t.throws(() => store.close(), 'not while something is pending');
  store.run(1);
  t.same(done, [[5, 6]]);
  t.same(memory.u8.subarray(2, 6), Uint8Array.of(8, 9, 10, 11));
  t.same(memory.u8.subarray(20, 22), Uint8Array.of(12, 13));
  store.run();
  t.same(done.slice(1), [
    [6, 0],
    [7, 0],
    [8, 0],
  ]);
  t.same(bytes.subarray(0, 5), Uint8Array.of(0, 0, 0, 0, 4));
  t.same(bytes.subarray(59), Uint8Array.of(59, 0, 0, 0, 0));
  t.match(store.operations, [
    { kind: 'read', token: 5, offset: 8, length: 6 },
    { kind: 'flush' },
    { kind: 'writeZeroes', mayUnmap: true },
    { kind: 'discard', offset: 60 },
  ]);
  store.close();
  t.throws(() => store.flush(1), 'closed');
});

t.test('an immediate store completes with the last piece of memory', async (t) => {
  const { bytes, done, store, memory } = rig({ immediate: true });
  memory.u8.set([1, 2, 3, 4]);
  store.write(1, { offset: 10, length: 4 });
  store.addMemory(memory, 0, 3);
  t.same(done, []);
  store.addMemory(memory, 3, 1);
  t.same(done, [[1, 4]]);
  t.same(bytes.subarray(10, 14), Uint8Array.of(1, 2, 3, 4));
  store.read(2, { offset: 0, length: 0 });
  store.flush(3);
  t.same(done.slice(1), [
    [2, 0],
    [3, 0],
  ]);
});

t.test('operations fail or fall short on demand', async (t) => {
  const { bytes, done, store, memory } = rig({ immediate: true });
  store.failNth(0, 5);
  store.shortenNth(1, 3);
  store.failNth(2, 28);
  store.write(1, { offset: 0, length: 4 });
  store.addMemory(memory, 0, 4);
  store.write(2, { offset: 4, length: 8 });
  store.addMemory(memory, 0, 2);
  store.addMemory(memory, 8, 6);
  store.flush(3);
  t.same(done, [
    [1, -5],
    [2, 3],
    [3, -28],
  ]);
  t.same(bytes.subarray(0, 8), Uint8Array.of(0, 1, 2, 3, 0, 0, 0, 7));
});

t.test('misuse is an error', async (t) => {
  const { store, memory } = rig();
  t.throws(() => store.addMemory(memory, 0, 1), 'memory for nothing');
  t.throws(() => store.read(1, { offset: 60, length: 5 }), RangeError, 'outside');
  store.read(1, { offset: 0, length: 4 });
  t.throws(() => store.flush(2), 'in the middle of another');
  t.throws(() => store.addMemory(memory, 0, 5), 'too much memory');
});
