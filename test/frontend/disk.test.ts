import { closeSync, openSync, readSync, truncateSync, writeFileSync } from 'node:fs';
import t from 'tap';
import { serve } from '../../lib/daemon/index.ts';
import { BlockClient, runBlockLoad } from '../../lib/frontend/index.ts';
import { Feature } from '../../lib/virtio/index.ts';
import { socketFolder } from '../transport/vhost-user/harness.ts';

const SIZE = 32 << 20;
/** Two disks served by one engine, as the command line does it. */
const { path, remove } = socketFolder();
const complaints: string[] = [];
for (const image of [`${path}.img`, `${path}.ro`]) {
  writeFileSync(image, '');
  truncateSync(image, SIZE);
}
const server = await serve(
  [
    { image: `${path}.img`, queues: 2, serial: 'S-1', socket: { path } },
    { image: `${path}.ro`, readOnly: true, socket: { path: `${path}r` } },
  ],
  { threads: 1, pollUs: 0, log: (text) => complaints.push(text) },
);
t.teardown(async () => {
  await server.stop();
  remove();
});

/** Quicker than `t.same`, which is made for showing differences. */
function same(a: Uint8Array, b: Uint8Array): boolean {
  return Buffer.compare(a, b) === 0;
}

function pattern(length: number, seed: number): Uint8Array {
  return Uint8Array.from({ length }, (_, i) => (i * 31 + (i >> 9) * seed) & 0xff);
}

t.test(
  'a disk: all requests, both ring kinds, the next front end sees what the last wrote',
  async (t) => {
    let last: Uint8Array | undefined;
    for (const packed of [false, true]) {
      const client = await BlockClient.connect({ path, queues: 2, packed });
      t.equal(client.capacity, SIZE);
      t.equal(client.blockSize, 512);
      t.equal(client.readOnly, false);
      t.equal(await client.getId(), 'S-1');
      if (last !== undefined) t.ok(same(await client.read(0, last.length), last));
      last = pattern(3 << 20, packed ? 3 : 5);
      await client.write(0, last);
      t.ok(same(await client.read(0, last.length), last));
      await client.flush();
      const file = openSync(`${path}.img`, 'r');
      const there = new Uint8Array(4096);
      readSync(file, there, 0, 4096, 1 << 20);
      closeSync(file);
      t.ok(same(there, last.subarray(1 << 20, (1 << 20) + 4096)), 'it is in the image');
      await client.write(8 << 20, pattern(1 << 20, 7));
      await client.writeZeroes(8 << 20, 4096);
      await client.writeZeroes((8 << 20) + 8192, 4096, { unmap: true });
      const zeroed = pattern(1 << 20, 7);
      zeroed.fill(0, 0, 4096).fill(0, 8192, 12288);
      t.ok(same(await client.read(8 << 20, 1 << 20), zeroed));
      t.equal(client.canWriteZeroes, true);
      if (client.canDiscard) await client.discard(8 << 20, 1 << 20);
      // Many small ones at once, more than the rings hold.
      const blocks = Array.from({ length: 1000 }, (_, i) => pattern(512, i));
      await Promise.all(blocks.map((block, i) => client.write((16 << 20) + i * 512, block)));
      const back = await client.read(16 << 20, 1000 * 512);
      t.ok(same(back, Buffer.concat(blocks)));

      await t.rejects(client.read(SIZE, 512), { code: 'ERR_VDUSE_BLOCK_IO' });
      await t.rejects(client.read(100, 512), /not whole sectors/);
      await t.rejects(client.write(0, new Uint8Array(5)), RangeError);
      await client.close();
    }
  },
);

t.test('a read-only disk', async (t) => {
  const client = await BlockClient.connect({ path: `${path}r` });
  t.equal(client.readOnly, true);
  t.same(await client.read(0, 512), new Uint8Array(512));
  await t.rejects(client.write(0, new Uint8Array(512)), { code: 'ERR_VDUSE_BLOCK_IO' });
  await client.close();
});

t.test('the load loop', async (t) => {
  for (const packed of [false, true]) {
    for (const indirect of [true, false]) {
      const without = indirect ? 0n : Feature.IndirectDesc;
      const client = await BlockClient.connect({ path, queueSize: 64, packed, without });
      const queue = client.frontend.queues[0]!;
      for (const [write, depth] of [
        [true, 1],
        [false, 64],
        [true, 20],
      ] as const) {
        const before = server.devices[0]!.counters()[0]!.requests;
        const result = runBlockLoad(queue, {
          write,
          depth,
          range: SIZE,
          seconds: 20,
          requests: 1000,
        });
        t.match(result, { requests: 1000, errors: 0 });
        t.equal(result.latency.count, 1000);
        t.ok(result.latency.quantile(0.5) > 0 && result.kicks > 0);
        t.equal(server.devices[0]!.counters()[0]!.requests - before, 1000);
      }
      // And the queue is still good for promises.
      t.equal((await client.read(0, 4096)).length, 4096);
      await client.close();
    }
  }
  const client = await BlockClient.connect({ path, bufferBytes: 1 << 16 });
  const queue = client.frontend.queues[0]!;
  const load = { write: false, depth: 1, range: SIZE, seconds: 1 };
  t.throws(() => runBlockLoad(queue, { ...load, depth: 0 }), RangeError);
  t.throws(() => runBlockLoad(queue, { ...load, depth: 129 }), RangeError);
  t.throws(() => runBlockLoad(queue, { ...load, depth: 128 }), /see bufferBytes/);
  t.throws(() => runBlockLoad(queue, { ...load, blockSize: 100 }), RangeError);
  t.throws(() => runBlockLoad(queue, { ...load, range: 512 }), RangeError);
  const reading = client.read(0, 512);
  t.throws(() => runBlockLoad(queue, load), /requests in flight/);
  await reading;
  const { requests, seconds } = runBlockLoad(queue, { ...load, seconds: 0.05 });
  t.ok(requests > 0 && seconds >= 0.05, `${requests} in ${seconds} s`);
  await client.close();
  const polled = await BlockClient.connect({ path, polled: true });
  t.throws(() => runBlockLoad(polled.frontend.queues[0]!, load), /no kick and call/);
  t.equal((await polled.read(0, 512)).length, 512);
  await polled.close();
});

t.test('no connection was ended by an error', async (t) => {
  t.same(complaints, []);
});
