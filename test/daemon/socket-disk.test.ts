/** The whole data path without a kernel's help: a disk served over vhost-user, driven by our front end. */
import { createHash, randomBytes } from 'node:crypto';
import {
  closeSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  rmSync,
  truncateSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
// The built package: its engine threads start as a user's do, not through the tests' TypeScript loader.
import { BlockClient, serve } from '../../dist/index.js';
import { native } from '../../lib/native/index.ts';

const MIB = 1 << 20;

// Each server starts engine threads, which load their sources anew.
t.setTimeout(300_000);

const folder = mkdtempSync(join(tmpdir(), 'vduse-socket-disk-'));
t.teardown(() => rmSync(folder, { recursive: true }));

for (const engine of ['auto', 'pool'] as const) {
  for (const packed of [false, true]) {
    t.test(`${engine} engine, ${packed ? 'packed' : 'split'} ring`, async (t) => {
      const image = join(folder, `${engine}-${packed}.img`);
      const path = join(folder, `${engine}-${packed}.sock`);
      const server = await serve(
        { image, size: 64 * MIB, queues: 2, serial: 'S-1', socket: { path } },
        { engine },
      );
      const client = await BlockClient.connect({ path, queues: 2, packed });
      t.equal(client.capacity, 64 * MIB, 'capacity');
      t.equal(await client.getId(), 'S-1', 'serial');
      const written = new Map<number, Buffer>();
      for (let i = 0; i < 100; i++) {
        const offset = Math.floor(Math.random() * 16_000) * 4096;
        const data = randomBytes(4096);
        written.set(offset, data);
        await client.write(offset, data);
      }
      const together = [...written].map(async ([offset, data]) =>
        data.equals(await client.read(offset, data.length)),
      );
      t.ok((await Promise.all(together)).every(Boolean), 'what was written is read, all at once');
      const large = randomBytes(3 * MIB);
      await client.write(8 * MIB, large);
      t.ok(large.equals(await client.read(8 * MIB, large.length)), '3 MiB');
      await client.flush();
      t.ok(large.equals(slice(image, 8 * MIB, large.length)), 'the image holds it');
      await client.writeZeroes(8 * MIB, MIB);
      await client.writeZeroes(9 * MIB, MIB, { unmap: true });
      await client.discard(10 * MIB, MIB);
      t.ok(
        (await client.read(8 * MIB, 2 * MIB)).every((byte) => byte === 0),
        'zeroed',
      );
      await t.rejects(
        client.read(64 * MIB, 4096),
        { code: 'ERR_VDUSE_BLOCK_IO' },
        'beyond the end',
      );
      const counters = server.devices[0]!.counters();
      t.ok(
        counters.every(({ requests }) => requests > 0),
        'both queues were used',
      );
      await client.close();

      const again = await BlockClient.connect({ path, packed: !packed });
      t.ok(
        (await again.read(9 * MIB, MIB)).every((byte) => byte === 0),
        'the next front end',
      );
      await again.close();
      t.same(await server.stop(), [{ device: 'gone' }], 'gone');
    });
  }
}

t.test('the driver turns the write cache off and on (CONFIG_WCE)', async (t) => {
  const path = join(folder, 'wce.sock');
  const server = await serve({ image: join(folder, 'wce.img'), size: MIB, socket: { path } });
  const client = await BlockClient.connect({ path });
  const writeback = async () => (await client.frontend.readConfig(32, 1))[0];
  t.equal(await writeback(), 1, 'on at first');
  await client.frontend.writeConfig(32, Uint8Array.of(0));
  t.equal(await writeback(), 0, 'off');
  await client.write(0, new Uint8Array(512));
  await client.close();
  await server.stop();
});

t.test('a file cut short under the disk: errors, no crash, no hang', async (t) => {
  const image = join(folder, 'short.img');
  const path = join(folder, 'short.sock');
  const server = await serve({ image, size: 8 * MIB, socket: { path } });
  const client = await BlockClient.connect({ path });
  await client.write(4 * MIB, new Uint8Array(4096));
  truncateSync(image, MIB);
  await t.rejects(client.read(4 * MIB, 4096), { code: 'ERR_VDUSE_BLOCK_IO' });
  t.equal((await client.read(0, 4096)).length, 4096, 'what is left is read');
  await client.close();
  await server.stop();
});

t.test('nothing is left open: six servers, each with a front end', async (t) => {
  const image = join(folder, 'many.img');
  const path = join(folder, 'many.sock');
  const round = async () => {
    const server = await serve({ image, size: MIB, socket: { path } });
    const client = await BlockClient.connect({ path });
    await client.write(0, new Uint8Array(512));
    await client.close();
    await server.stop();
  };
  await round();
  const before = descriptors();
  for (let i = 0; i < 5; i++) await round();
  t.ok(descriptors() <= before, `descriptors: ${before} before, ${descriptors()} after`);
});

t.test('one bad device: none is served', async (t) => {
  const path = join(folder, 'good.sock');
  const good = { image: join(folder, 'good.img'), size: MIB, socket: { path } };
  const bad = { image: join(folder, 'missing.img'), socket: { path: join(folder, 'bad.sock') } };
  await t.rejects(serve([good, bad]), { code: 'ERR_VDUSE_IMAGE_MISSING' });
  t.throws(() => native.unixConnect(path), { code: 'ENOENT' }, 'no socket');
  t.throws(() => openSync(good.image, 'r'), { code: 'ENOENT' }, 'the image made for it is gone');
});

t.test('every byte of a random walk is where it belongs', async (t) => {
  const image = join(folder, 'walk.img');
  const path = join(folder, 'walk.sock');
  const server = await serve({ image, size: 4 * MIB, socket: { path } });
  const client = await BlockClient.connect({ path });
  const model = Buffer.alloc(4 * MIB);
  for (let i = 0; i < 300; i++) {
    const offset = Math.floor(Math.random() * 8000) * 512;
    const length = 512 * (1 + Math.floor(Math.random() * 100));
    if (offset + length > model.length) continue;
    if (i % 3 === 0) {
      model.fill(0, offset, offset + length);
      await client.writeZeroes(offset, length, { unmap: i % 2 === 0 });
    } else {
      const data = randomBytes(length);
      data.copy(model, offset);
      await client.write(offset, data);
    }
  }
  const hash = (bytes: Uint8Array) => createHash('sha256').update(bytes).digest('hex');
  t.equal(hash(await client.read(0, model.length)), hash(model), 'over the socket');
  await client.close();
  await server.stop();
  t.equal(hash(readFileSync(image)), hash(model), 'in the image');
});

function slice(path: string, offset: number, length: number): Buffer {
  const bytes = Buffer.alloc(length);
  const fd = openSync(path, 'r');
  readSync(fd, bytes, 0, length, offset);
  closeSync(fd);
  return bytes;
}

function descriptors(): number {
  return readdirSync('/proc/self/fd').length;
}
