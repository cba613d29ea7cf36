// What bad input gets: one line with the remedy, status 1 or 64, and nothing left behind.
import { mkdirSync, writeFileSync } from 'node:fs';
import {
  AS_MEMBER,
  checkFailure,
  deviceNodes,
  fails,
  MEMBER,
  ourProcesses,
  startUdev,
  together,
  vduse,
} from './command.mjs';
import { AS_NOBODY, check, equal, run, SCRATCH, Server, sh, until } from './harness.mjs';

const FOLDER = `${SCRATCH}/bad`;
const at = (name) => `${FOLDER}/${name}`;
const nobody = { as: AS_NOBODY };
const member = { as: AS_MEMBER };
const IMAGE = at('d.img');

const serve = (image, ...more) => ['serve', image, '--state-dir', at('state'), ...more];
/** For others than root. */
const serveAs = (user, image, ...more) => [
  'serve',
  image,
  '--state-dir',
  at(`state-${user}`),
  ...more,
];

/** Every file of the folder with its size, mode and owner. */
const files = () => sh(`find ${FOLDER} -printf '%p %s %m %U\\n' | sort`).stdout;

/** Cases that must not change a thing, a few at a time. */
async function inVain(cases) {
  const before = { files: files(), nodes: deviceNodes(), processes: ourProcesses() };
  await together(cases.map((one) => () => fails(...one)));
  const after = { files: files(), nodes: deviceNodes(), processes: ourProcesses() };
  equal(after, before, 'nothing is left: no image, no state, no device, no process');
}

await run(async () => {
  sh('modprobe -r vduse');
  mkdirSync(FOLDER);
  mkdirSync(at('state'), { mode: 0o700 });
  sh(
    `truncate -s 16M ${IMAGE}; truncate -s 16M ${at('private.img')}; chmod 600 ${at('private.img')}`,
  );
  sh(
    `truncate -s 0 ${at('empty.img')}; truncate -s 500 ${at('tiny.img')}; truncate -s 1048676 ${at('odd.img')}`,
  );
  sh(`mkfifo ${at('pipe')}; ln -s ${at('nowhere')} ${at('dangling')}`);
  for (const [user, owner] of [['nobody', 'nobody']]) {
    sh(`install -d -o ${owner} -m 700 ${at(`state-${user}`)}`);
  }
  await withoutModule();
  await startUdev();
  sh(
    `install -d -o ${MEMBER} -m 700 ${at('state-member')}; install -o ${MEMBER} -m 600 ${IMAGE} ${at('member.img')}`,
  );
  await images();
  await otherDevices();
  await whileServed();
  await permissions();
  await withoutDriver();
  await oddSize();
});

async function withoutModule() {
  await inVain([
    [serve(IMAGE), 1, ['/dev/vduse/control', 'modprobe vduse']],
    [['destroy', 'any'], 1, 'modprobe vduse'],
    [['attach', 'any'], 1, 'any'],
  ]);
}

async function images() {
  await inVain([
    [serve(at('missing.img')), 1, ['no such file', '--size']],
    [serve(at('missing.img'), '--size', '1000'), 1, ['1000', '--size 1024']],
    [serve(at('missing.img'), '--size', '8E'), 64, "'8E'"],
    [serve(at('missing.img'), '--size', '1M', '--read-only'), 1, 'drop --read-only'],
    [serve(at('none/missing.img'), '--size', '1M'), 1, 'folder does not exist'],
    [serve(at('d.img/below')), 1, 'no folder'],
    [serve(at('dangling'), '--size', '1M'), 1, 'link'],
    [serve(FOLDER), 1, 'a directory'],
    [serve(at('pipe')), 1, 'a named pipe'],
    [serve('/dev/null'), 1, 'a character device'],
    [serve(at('empty.img')), 1, 'is empty'],
    [serve(at('tiny.img')), 1, 'less than one block of 512'],
    [serve(IMAGE, '--size', '32M'), 1, ['16777216', 'never resized']],
    [serve(IMAGE, '--queues', '70000'), 64, '1 to 256'],
    [serve(IMAGE, '--queue-size', '2048'), 64, '1024'],
    [serve(IMAGE, '--name', 'control'), 64, '--name'],
    [['serve', IMAGE, '--state-dir', at('empty.img')], 1, '--state-dir'],
    [['serve', IMAGE, '--state-dir', at('state-nobody')], 1, ['others could write', '--state-dir']],
  ]);
}

/** A stock kernel has no VDUSE device but disks and network cards: the ways that work are named. */
async function otherDevices() {
  const made = await vduse(['rpmb', 'create', at('s.rpmb'), '--size', '128K']);
  equal(made.status, 0, 'a state for an RPMB');
  await inVain([
    [
      serve(at('s.rpmb'), '--type', 'rpmb', '--name', 'x'),
      1,
      ['virtio id 28', '--socket-path', 'a kernel that allows'],
    ],
    [serve(at('s.rpmb'), '--type', 'rpmb', '--serial', 's'), 64, 'serial'],
  ]);
}

async function whileServed() {
  const server = await Server.start(serve(IMAGE).slice(1));
  await inVain([
    [serve(IMAGE), 1, ['another process serves or uses it']],
    [serve(IMAGE, '--name', 'second'), 1, ['another process serves or uses it']],
    [serve(at('new.img'), '--size', '1M', '--name', 'd.img'), 1, ['a running daemon', '--name']],
  ]);
  equal(await server.stop(), 0, 'the daemon was not disturbed');
  const again = await Server.start(serve(IMAGE, '--name', 'second').slice(1));
  equal(await again.stop(), 0, 'and no lock is left');
}

async function permissions() {
  sh(`chmod 644 ${IMAGE}`);
  await inVain([
    [serveAs('nobody', IMAGE, '--read-only'), 1, ['/dev/vduse/control', '60-vduse.rules'], nobody],
    [serveAs('member', at('private.img')), 1, 'no permission to read it', member],
    [serveAs('member', IMAGE), 1, ['no permission to write', '--read-only'], member],
    [serveAs('member', at('new.img'), '--size', '1M'), 1, 'no permission to create it', member],
    [serveAs('member', at('member.img'), '--attach'), 1, ['CAP_NET_ADMIN', 'vdpa dev add'], member],
  ]);
  sh('chown nobody /dev/vduse/control');
  const start = Date.now();
  const args = serveAs('nobody', IMAGE, '--read-only', '--name', 'mine');
  await inVain([[args, 1, ['/dev/vduse/mine', 'permission denied', '60-vduse.rules'], nobody]]);
  const seconds = (Date.now() - start) / 1000;
  check(
    seconds >= 5 && seconds < 60,
    `the node's mode is waited for, 5 s at most (${seconds} s in all)`,
  );
  sh('chown root /dev/vduse/control');
}

/** Attached, but no disk comes: after 30 s an error that names the driver, or says there is none. */
async function withoutDriver() {
  const autoprobe = (bus, value) => writeFileSync(`/sys/bus/${bus}/drivers_autoprobe`, value);
  const before = { files: files(), nodes: deviceNodes() };
  const start = Date.now();
  const begin = (name) =>
    vduse(serve(at(`${name}.img`), '--size', '1M', '--attach', '--name', name));
  const attached = (name) =>
    until(
      () =>
        deviceNodes().includes(name) && sh(`test -e /sys/bus/vdpa/devices/${name}`).status === 0,
      60,
    );
  autoprobe('vdpa', '0');
  const unbound = begin('unbound');
  check(await attached('unbound'), 'attached, with no driver to bind');
  autoprobe('vdpa', '1');
  autoprobe('virtio', '0');
  const bound = begin('bound');
  check(await attached('bound'), 'attached, with no driver for the virtio device');
  const seconds = (Date.now() - start) / 1000;
  checkFailure('--attach, nothing bound', await unbound, 1, [
    '30 s',
    'no driver is bound',
    'modprobe',
  ]);
  checkFailure('--attach, no disk', await bound, 1, [
    '30 s',
    'driver bound: virtio_vdpa',
    'virtio_blk',
  ]);
  check(seconds < 30, 'both waited at once');
  equal({ files: files(), nodes: deviceNodes() }, before, 'nothing is left');
  autoprobe('virtio', '1');
}

/** No error: rounded down, with a word. */
async function oddSize() {
  const server = await Server.start(serve(at('odd.img'), '--block-size', '4096').slice(1));
  equal(
    server.event('ready').size,
    1 << 20,
    'a size that is no multiple of the block size: rounded',
  );
  check(
    /^vduse: [^\n]+ last 100 bytes [^\n]+ \([^\n]+\)\n$/.test(server.stderr),
    'with a word',
    server.stderr,
  );
  equal(await server.stop(), 0, 'and served');
}
