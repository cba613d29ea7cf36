/**
 * The socket served to a client that shares no code with us: qemu-io over libblkio's vhost-user driver.
 * It needs no kernel of its own, but what tools/test fetches for the test machine.
 */
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import t, { type Test } from 'tap';

const ROOT = fileURLToPath(new URL('../../', import.meta.url));
const KIB = 1024;
const MIB = KIB * KIB;

t.setTimeout(300_000);

const folder = mkdtempSync(join(tmpdir(), 'vduse-qemu-io-'));
t.teardown(() => rmSync(folder, { recursive: true }));

/** Serve a new image of 64 MiB; ends with the test. */
async function serveImage(t: Test, name: string, ...options: string[]) {
  const image = join(folder, `${name}.img`);
  const socket = join(folder, `${name}.sock`);
  const args = ['serve', image, '--size', '64M', '--socket-path', socket, '--json', ...options];
  const child = spawn(process.execPath, [join(ROOT, 'dist/cli/main.js'), ...args], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const exited = once(child, 'exit');
  t.teardown(() => child.kill('SIGKILL'));
  const lines: { event: string; [fact: string]: unknown }[] = [];
  const output = createInterface({ input: child.stdout });
  output.on('line', (line) => lines.push(JSON.parse(line)));
  await Promise.race([once(output, 'line'), exited]);
  t.equal(lines[0]?.event, 'ready', 'the server is ready');
  return {
    image,
    socket,
    lines,
    async stop() {
      child.kill('SIGTERM');
      return (await exited)[0];
    },
  };
}

/** One qemu-io, which connects, does as told, and leaves. */
function qemuIo(socket: string, ...commands: string[]) {
  return spawnSync(
    join(ROOT, 'tools/qemu-blkio'),
    [
      ...['qemu-io', '--image-opts'],
      `driver=virtio-blk-vhost-user,path=${socket},cache.direct=on`,
      ...commands.flatMap((command) => ['-c', command]),
    ],
    { encoding: 'utf8', timeout: 60_000 },
  );
}

function succeeds(t: Test, socket: string, name: string, ...commands: string[]) {
  const { status, stdout, stderr } = qemuIo(socket, ...commands);
  t.equal(status, 0, name, { stdout, stderr });
}

const holds = (bytes: Buffer, offset: number, length: number, byte: number) =>
  bytes.subarray(offset, offset + length).every((found) => found === byte);

/** Bytes of the disk that the image takes. */
const used = (image: string) => statSync(image).blocks * 512;

for (const options of [[], ['--engine', 'pool'], ['--direct'], ['--queues', '4']]) {
  t.test(`serve ${options.join(' ')}`, async (t) => {
    const { image, socket, lines, stop } = await serveImage(
      t,
      options.join('') || 'plain',
      ...options,
    );
    succeeds(
      t,
      socket,
      'write, zero, flush, read',
      ...['write -P 0xab 1M 64k', 'write -P 0x11 3M 512k', 'write -z 3M 512k'],
      ...['write -P 0x55 4M 1M', 'write -P 0x66 6M 1M', 'write -z -u 6M 1M'],
      // So large that the client exchanges its buffer memory.
      'write -P 0x77 8M 4M',
      'flush',
      ...['read -P 0xab 1M 64k', 'read -P 0 3M 512k', 'read -P 0x55 4M 1M'],
      ...['read -P 0 6M 1M', 'read -P 0x77 8M 4M', 'read -P 0 60M 4M'],
    );
    const bytes = readFileSync(image);
    t.equal(bytes.length, 64 * MIB, 'the image has kept its size');
    t.ok(holds(bytes, MIB, 64 * KIB, 0xab), 'it holds what was written');
    t.ok(holds(bytes, 3 * MIB, 512 * KIB, 0), 'what was zeroed');
    t.ok(holds(bytes, 4 * MIB, MIB, 0x55), 'and what is beside it');
    t.ok(holds(bytes, 8 * MIB, 4 * MIB, 0x77), 'a large request too');

    const before = used(image);
    succeeds(
      t,
      socket,
      'the client comes again: the data is there, and can be discarded',
      ...['read -P 0xab 1M 64k', 'read -P 0x77 8M 4M', 'read -P 0x55 4M 1M'],
      ...['discard 4M 1M', 'read -P 0 4M 1M', 'flush'],
    );
    t.ok(used(image) <= before - MIB, `the image has shrunk: ${before} → ${used(image)} bytes`);

    const many = Array.from({ length: 64 }, (_, i) => i);
    succeeds(
      t,
      socket,
      'many requests in flight at once',
      ...many.map((i) => `aio_write -q -P ${i + 1} ${16 * MIB + i * 96 * KIB} 96k`),
      'aio_flush',
      ...many.map((i) => `aio_read -q -P ${i + 1} ${16 * MIB + i * 96 * KIB} 96k`),
      'aio_flush',
      ...many.map((i) => `read -q -P ${i + 1} ${16 * MIB + i * 96 * KIB} 96k`),
    );
    t.equal(qemuIo(socket, 'read -P 0xac 1M 64k').status, 1, 'a wrong pattern is noticed');
    t.equal(await stop(), 0, 'SIGTERM: exit status 0');
    const { event, queues } = lines.at(-1) as unknown as {
      event: string;
      queues: { requests: number; errors: number }[];
    };
    t.equal(event, 'stopped', 'the last line tells the counters');
    t.ok(queues[0]!.requests > 200, 'which have counted', { queues });
    t.ok(
      queues.every(({ errors }) => errors === 0),
      'no error',
    );
  });
}

t.test('read-only', async (t) => {
  const writable = await serveImage(t, 'read-only');
  succeeds(t, writable.socket, 'write', 'write -P 0x5a 0 64k', 'flush');
  t.equal(await writable.stop(), 0);
  const { image, socket, stop } = await serveImage(t, 'read-only', '--read-only');
  t.not(qemuIo(socket, 'write -P 0x33 0 64k').status, 0, 'a client that wants to write is refused');
  const reading = spawnSync(
    join(ROOT, 'tools/qemu-blkio'),
    [
      ...['qemu-io', '-r', '--image-opts'],
      `driver=virtio-blk-vhost-user,path=${socket},cache.direct=on`,
      ...['-c', 'read -P 0x5a 0 64k'],
    ],
    { encoding: 'utf8', timeout: 60_000 },
  );
  t.equal(reading.status, 0, 'it can be read', { reading });
  t.ok(holds(readFileSync(image), 0, 64 * KIB, 0x5a), 'the image is as it was');
  t.equal(await stop(), 0, 'SIGTERM: exit status 0');
});
