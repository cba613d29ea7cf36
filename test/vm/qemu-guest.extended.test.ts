/** A virtual machine of stock QEMU whose disk is served over vhost-user: it reboots, it is killed. */
import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import t, { type Test } from 'tap';

const ROOT = fileURLToPath(new URL('../../', import.meta.url));
const MIB = 1 << 20;
/** Where qemu-guest.sh keeps the data that must last, and their checksum. */
const [DATA, DATA_END, SUM] = [128 * MIB, 144 * MIB, 160 * MIB];

t.setTimeout(900_000);

/** Run a machine to its end, at which tools/vm kills QEMU; its lines become test points. */
async function machine(t: Test, socket: string, phase: 'begin' | 'again', points: number) {
  const qemu = [
    ...['-object', 'memory-backend-memfd,id=memory,size=1G,share=on'],
    ...['-machine', 'memory-backend=memory', '-chardev', `socket,id=disk,path=${socket}`],
    ...['-device', 'vhost-user-blk-pci,chardev=disk,num-queues=2'],
    // tools/vm says -no-reboot.
    ...['-action', 'reboot=reset'],
  ];
  const vm = spawn(
    join(ROOT, 'tools/vm'),
    [
      ...['--mem', '1G', '--timeout', '400', ...qemu.map((argument) => `--qemu=${argument}`)],
      ...['--', 'test/vm/guest/qemu-guest.sh', phase],
    ],
    { cwd: ROOT, stdio: ['ignore', 'pipe', 'inherit'] },
  );
  const lines: string[] = [];
  createInterface({ input: vm.stdout }).on('line', (line) => lines.push(line));
  const [status] = await once(vm, 'close');
  t.equal(status, 0, `${phase}: the machine has come to its end`, { lines });
  const found = lines.flatMap((line) => {
    const [, not, what] = /^(not )?ok - (.*)/.exec(line) ?? [];
    return what === undefined ? [] : [{ ok: not === undefined, what }];
  });
  for (const { ok, what } of found) t.ok(ok, `${phase}: ${what}`, { lines });
  t.equal(found.length, points, `${phase}: all was examined`, { lines });
}

t.test('fio, a reboot, QEMU killed in mid I/O, another QEMU', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'vduse-qemu-guest-'));
  const image = join(folder, 'd.img');
  const socket = join(folder, 'd.sock');
  const server = spawn(
    process.execPath,
    [
      ...[join(ROOT, 'dist/cli/main.js'), 'serve', image, '--size', '256M', '--serial', 'S1'],
      ...['--queues', '2', '--socket-path', socket, '--json'],
    ],
    { stdio: ['ignore', 'pipe', 'inherit'] },
  );
  const exited = once(server, 'exit');
  t.teardown(() => {
    server.kill('SIGKILL');
    rmSync(folder, { recursive: true });
  });
  const told: { event: string; queues: { requests: number; errors: number }[] }[] = [];
  const output = createInterface({ input: server.stdout });
  output.on('line', (line) => told.push(JSON.parse(line)));
  await Promise.race([once(output, 'line'), exited]);
  t.equal(told[0]?.event, 'ready', 'the server is ready');

  await machine(t, socket, 'begin', 7);
  t.equal(server.exitCode, null, 'QEMU was killed: the server lives');
  await machine(t, socket, 'again', 3);

  server.kill('SIGTERM');
  t.equal((await exited)[0], 0, 'SIGTERM: exit status 0');
  const { event, queues } = told.at(-1)!;
  t.equal(event, 'stopped', 'the last line tells the counters');
  t.ok(
    queues.length === 2 && queues.every(({ requests, errors }) => requests > 0 && errors === 0),
    'both queues were used, no request failed',
    { queues },
  );
  const bytes = readFileSync(image);
  t.equal(
    createHash('sha256').update(bytes.subarray(DATA, DATA_END)).digest('hex'),
    bytes.toString('latin1', SUM, SUM + 64),
    'the image holds the data',
  );
});
