// The commands beside `serve`, and what they and it print.
import { spawn } from 'node:child_process';
import { existsSync, mkdirSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { deviceNodes, fails, startUdev, together, vduse } from './command.mjs';
import {
  AS_NOBODY,
  check,
  equal,
  read,
  run,
  SCRATCH,
  Server,
  sh,
  until,
  VDUSE,
} from './harness.mjs';

const FOLDER = `${SCRATCH}/commands`;
const serve = (name, ...more) => [
  `${FOLDER}/${name}.img`,
  ...['--name', name, '--size', '32M', '--state-dir', `${FOLDER}/state`],
  ...more,
];

/** A test point: the command prints these lines and nothing else, status 0. */
async function prints(args, lines, options) {
  const { status, stdout, stderr } = await vduse(args, options);
  const wanted = { status: 0, lines, stderr: '' };
  equal({ status, lines: stdout.trimEnd().split('\n'), stderr }, wanted, `vduse ${args.join(' ')}`);
}

await run(async () => {
  await startUdev();
  mkdirSync(FOLDER);
  await prints(['list'], ['NAME  ATTACHED  DRIVER  NODE']);
  const [one, two] = await Promise.all([
    serveForPeople(serve('one', '--queues', '2')),
    Server.start(serve('two')),
  ]);
  equal(
    one.lines,
    ['one: ready: 32 MiB, 2 queues, io_uring; next: vdpa dev add name one mgmtdev vduse'],
    'the ready line for people',
  );
  equal(
    two.lines[0],
    {
      event: 'ready',
      name: 'two',
      transport: 'vduse',
      type: 'block',
      size: 32 << 20,
      queues: 1,
      blockSize: 512,
      readOnly: false,
      direct: false,
      engine: 'io_uring',
      resumed: false,
      next: 'vdpa dev add name two mgmtdev vduse',
    },
    'the ready line as JSON',
  );
  await attachAndDetach();
  await counters(one, two);
  await destroyAndLeave(one, two);
  await doctor();
  equal(deviceNodes(), ['control'], 'no device is left');
});

/** `vduse serve` without --json: its stdout, line by line. */
async function serveForPeople(args) {
  const child = spawn(process.execPath, [VDUSE, 'serve', ...args], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const server = { child, lines: [] };
  createInterface({ input: child.stdout }).on('line', (line) => server.lines.push(line));
  server.exited = new Promise((resolve) => child.on('exit', resolve));
  await until(() => server.lines.length > 0, 60);
  return server;
}

async function attachAndDetach() {
  await prints(['attach', 'one'], ['one: attached: /dev/vda']);
  check(existsSync('/dev/vda'), '/dev/vda is there');
  await together([
    () => fails(['attach', 'one'], 1, 'attached already'),
    () => fails(['attach', 'nosuch'], 1, 'no VDUSE device of that name'),
    () => fails(['attach', '../devices/one'], 1, 'no VDUSE device of that name'),
    () => fails(['detach', 'two'], 1, 'not attached'),
    () => fails(['attach', 'two'], 1, 'vdpa dev add name two mgmtdev vduse', { as: AS_NOBODY }),
    () => fails(['detach', 'one'], 1, 'vdpa dev del one', { as: AS_NOBODY }),
    () =>
      prints(
        ['list'],
        [
          'NAME  ATTACHED  DRIVER       NODE',
          'one   yes       virtio_vdpa  /dev/vda',
          'two   no        -            -',
        ],
        { as: AS_NOBODY },
      ),
    () =>
      prints(
        ['list', '--json'],
        [
          JSON.stringify([
            { name: 'one', attached: true, driver: 'virtio_vdpa', node: '/dev/vda' },
            { name: 'two', attached: false },
          ]),
        ],
      ),
  ]);
  sh('mkfs.ext4 -q /dev/vda && mount /dev/vda /mnt');
  await fails(['detach', 'one'], 1, ['mounted on /mnt', '--force']);
  await prints(['detach', 'one', '--force'], ['one: detached']);
  sh('umount /mnt');
  await prints(
    ['attach', 'one', '--json'],
    ['{"event":"attached","name":"one","node":"/dev/vda"}'],
  );
}

async function counters(one, two) {
  sh('dd if=/dev/zero of=/dev/vda bs=64k count=16 oflag=direct');
  one.child.kill('SIGUSR1');
  await until(() => one.lines.length >= 3);
  check(
    one.lines
      .slice(1)
      .every((line, index) =>
        new RegExp(
          `^one: queue ${index}: \\d+ requests, \\d+ bytes, \\d+ interrupts, 0 errors$`,
        ).test(line),
      ),
    'SIGUSR1 prints a line a queue for people',
    one.lines.join('\n'),
  );
  const bytes = one.lines
    .slice(1)
    .reduce((sum, line) => sum + Number(/(\d+) bytes/.exec(line)[1]), 0);
  check(bytes >= 1 << 20, 'that counts what was written', `${bytes} bytes`);
  const none = { requests: 0, bytes: 0, interrupts: 0, errors: 0 };
  equal(await two.counters(), [none], 'SIGUSR1 prints one object as JSON');
}

async function destroyAndLeave(one, two) {
  await together([
    () => fails(['destroy', 'one'], 1, ['still attached or served', 'vduse detach one']),
    () => fails(['destroy', 'two'], 1, 'still attached or served'),
    () => fails(['destroy', 'nosuch'], 1, 'no VDUSE device of that name'),
    () => fails(['destroy', 'two'], 1, 'permission denied', { as: AS_NOBODY }),
  ]);
  await prints(['detach', 'one', '--json'], ['{"event":"detached","name":"one"}']);
  check(!existsSync('/dev/vda'), '/dev/vda is gone');
  one.child.kill('SIGTERM');
  equal(await one.exited, 0, 'its server ends');
  equal(one.lines.length, 3, 'without --json it ends in silence');

  two.child.kill('SIGKILL');
  await two.exited;
  equal(deviceNodes(), ['control', 'two'], 'a killed server leaves its device');
  await fails(['serve', ...serve('two')], 1, ['left behind', 'vduse destroy two']);
  await prints(['destroy', 'two', '--json'], ['{"event":"destroyed","name":"two"}']);
}

async function doctor() {
  const { status, stdout } = await vduse(['doctor', '--json']);
  const { checks, ok } = JSON.parse(stdout);
  equal(status, 0, 'vduse doctor --json');
  equal(
    ok,
    checks.every((one) => one.ok),
    'it sums up its checks',
  );
  const names = checks.filter((one) => one.ok).map((one) => one.name);
  for (const name of [
    'module vduse',
    'module virtio_vdpa',
    'control node',
    'vdpa tool',
    'attaching',
    'io_uring',
    'state directory',
  ]) {
    check(names.includes(name), `${name} is found`, stdout);
  }
  equal(checks[0].found, read('/proc/sys/kernel/osrelease'), 'the kernel is named');
  const lacking = await vduse(['doctor'], { as: AS_NOBODY });
  equal(lacking.status, 0, 'vduse doctor as nobody');
  const lines = lacking.stdout.trimEnd().split('\n');
  for (const name of ['control node', 'attaching']) {
    const line = lines.find((text) => text.startsWith(`missing ${name}`));
    check(/ \([^)]+.*\)$/.test(line ?? ''), `${name}: its remedy`, lacking.stdout);
  }
}
