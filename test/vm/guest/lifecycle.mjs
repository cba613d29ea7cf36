// A daemon's life with a real udev: it opens its node as an unprivileged user, and ends as it should
// in each state of its device.
import { existsSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import {
  AS_ATTACHING_MEMBER,
  AS_MEMBER,
  checkFailure,
  deviceNodes,
  MEMBER,
  ourProcesses,
  startUdev,
  vduse,
} from './command.mjs';
import { check, delay, equal, run, SCRATCH, Server, sh, succeeds, until } from './harness.mjs';

const FOLDER = `${SCRATCH}/lifecycle`;
/** Of the member's daemons, and of root's. */
const STATES = `${FOLDER}/state`;
const ROOT_STATES = `${FOLDER}/root-state`;
const VDPA = '/sys/bus/vdpa';

const options = (name, states, ...more) => [
  `${FOLDER}/${name}.img`,
  ...['--name', name, '--size', '32M', '--state-dir', states],
  ...more,
];
const modeOf = (path) => (statSync(path).mode & 0o7777).toString(8);

await run(async () => {
  check(await startUdev(), 'udev gives the control node to the group');
  sh(`mkdir -p ${FOLDER} && chown ${MEMBER} ${FOLDER}`);

  await attachedByNobody();
  await attachedByItself();
  await mountedAndForced();
  await whileStarting();
  await whileAttaching();
  await detachedByOthers();
  await givenUpByTheKernel();
  equal(ourProcesses(), [], 'no process is left');
  equal(deviceNodes(), ['control'], 'no device is left');
});

async function attachedByNobody() {
  const server = await Server.start(options('alone', STATES), { as: AS_MEMBER });
  const status = readFileSync(`/proc/${server.pid}/status`, 'utf8');
  equal(/^CapEff:\s*(\S+)/m.exec(status)[1], '0000000000000000', 'a member serves: no capability');
  equal(modeOf('/dev/vduse/alone'), '660', 'its node has the mode of the rule');
  equal(sh('stat -c %U:%G /dev/vduse/alone').stdout.trim(), 'root:vduse', 'and its group');
  equal(modeOf(STATES), '700', 'the state directory is private');
  equal(modeOf(`${FOLDER}/alone.img`), '600', 'so is an image it made');
  equal(await server.stop('SIGINT'), 0, 'SIGINT, attached by nobody: status 0');
  equal(server.stderr, '', 'with nothing to complain of');
  equal(deviceNodes(), ['control'], 'the device is gone');
  equal(sh(`ls -A ${STATES}`).stdout, '', 'no state is left');
}

async function attachedByItself() {
  const server = await Server.start(options('own', STATES, '--attach'), {
    as: AS_ATTACHING_MEMBER,
  });
  const ready = server.event('ready');
  equal(ready.node, '/dev/vda', '--attach with CAP_NET_ADMIN alone: ready names the node');
  equal(ready.size, 32 << 20, 'and the size');
  succeeds('dd if=/dev/vda of=/dev/null bs=4k count=1 iflag=direct', 'the disk can be read then');
  const pattern = Buffer.alloc(1 << 20, 'detach');
  writeFileSync('/dev/vda', pattern);
  equal(await server.stop(), 0, 'SIGTERM, attached by itself and unused: status 0');
  check(!existsSync('/dev/vda'), '/dev/vda is gone');
  equal(deviceNodes(), ['control'], 'so is the device');
  check(
    readFileSync(`${FOLDER}/own.img`).subarray(0, pattern.length).equals(pattern),
    'what was written is in the image',
  );
  equal(server.lines.at(-1)?.event, 'stopped', 'its last line tells the counters');
}

async function mountedAndForced() {
  const server = await Server.start(options('busy', ROOT_STATES, '--attach'));
  sh(`mkdir -p ${FOLDER}/mnt`);
  succeeds(`mkfs.ext4 -q /dev/vda && mount /dev/vda ${FOLDER}/mnt`, 'a file system on it');
  server.child.kill('SIGTERM');
  check(await until(() => server.stderr.includes('\n')), 'SIGTERM while mounted: a word');
  check(
    server.stderr.includes(`mounted on ${FOLDER}/mnt`) && /\([^)]+\)\n$/.test(server.stderr),
    'that names the mount point and a remedy',
    server.stderr,
  );
  succeeds(`echo served > ${FOLDER}/mnt/file && sync -f ${FOLDER}/mnt`, 'the disk is still served');
  check(existsSync('/dev/vda') && server.status === undefined, 'and attached');
  equal(await server.stop('SIGTERM'), 0, 'a second SIGTERM: status 0');
  check(!existsSync('/dev/vda'), '/dev/vda is gone');
  equal(deviceNodes(), ['control'], 'so is the device');
  sh(`umount ${FOLDER}/mnt`);
  succeeds(`fsck.ext4 -fy ${FOLDER}/busy.img >/dev/null; fsck.ext4 -fn ${FOLDER}/busy.img`, 'fsck');
  const file = sh(`debugfs -R 'cat /file' ${FOLDER}/busy.img 2>/dev/null`).stdout;
  equal(file, 'served\n', 'what was synced before is in the image');
}

/** A signal that comes before the device answers is not lost, and leaves nothing. */
async function whileStarting() {
  const server = Server.spawn(options('early', STATES), { as: AS_MEMBER });
  check(await until(() => existsSync('/dev/vduse/early'), 60), 'a daemon about to be ready');
  const status = await server.stop('SIGTERM');
  equal(status, 0, 'SIGTERM while it starts: status 0');
  equal(deviceNodes(), ['control'], 'SIGTERM while it starts: the device is gone');
}

async function whileAttaching() {
  writeFileSync(`${VDPA}/drivers_autoprobe`, '0');
  const server = Server.spawn(options('waiting', ROOT_STATES, '--attach'));
  await until(() => existsSync(`${VDPA}/devices/waiting`), 60);
  await delay(200);
  check(server.event('ready') === undefined, 'no driver bound: not ready');
  const start = Date.now();
  const status = await server.stop('SIGTERM', 20);
  checkFailure(
    'SIGTERM while attaching',
    { status, stdout: '', stderr: server.stderr },
    1,
    'signal',
  );
  check(Date.now() - start < 10_000, 'and soon');
  equal(deviceNodes(), ['control'], 'SIGTERM while attaching: the device is gone');
  check(!existsSync(`${FOLDER}/waiting.img`), 'so is the image it made');
  writeFileSync(`${VDPA}/drivers_autoprobe`, '1');
}

async function detachedByOthers() {
  const server = await Server.start(options('taken', ROOT_STATES, '--attach'));
  succeeds('vdpa dev del taken', 'others detach what it attached');
  check(await until(() => !existsSync('/dev/vda')), '/dev/vda is gone');
  check(server.status === undefined, 'it serves on');
  equal(await server.stop(), 0, 'SIGTERM then: status 0');
  equal(deviceNodes(), ['control'], 'and the device is gone');
}

/** A message answered too late: from then on the kernel refuses every call. */
async function givenUpByTheKernel() {
  const server = await Server.start(options('broken', ROOT_STATES));
  writeFileSync('/sys/class/vduse/broken/msg_timeout', '1');
  server.child.kill('SIGSTOP');
  sh('vdpa dev add name broken mgmtdev vduse', { timeout: 60 });
  server.child.kill('SIGCONT');
  await Promise.race([server.exited, delay(20_000)]);
  equal(server.status, 1, 'a device the kernel gave up: status 1, without being asked');
  check(
    /^vduse: broken: [^\n]+ \([^\n]*vduse destroy broken[^\n]*\)$/m.test(server.stderr),
    'with the remedy',
    server.stderr,
  );
  const again = await vduse(['serve', ...options('broken', ROOT_STATES)]);
  checkFailure('serving it again', again, 1, 'vduse destroy broken');
  sh('vdpa dev del broken');
  equal((await vduse(['destroy', 'broken'])).status, 0, 'that remedy helps');
}
