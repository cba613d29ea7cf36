// Who holds a disk is found wherever it can be: `vduse detach` and SIGTERM refuse, and say by whom.
import { spawn } from 'node:child_process';
import { mkdirSync, readdirSync, readFileSync, readlinkSync, writeFileSync } from 'node:fs';
import { deviceNodes, startUdev } from './command.mjs';
import {
  check,
  equal,
  loadModules,
  run,
  SCRATCH,
  Server,
  sh,
  succeeds,
  until,
} from './harness.mjs';
import { PACKAGE } from './package.mjs';

const { detach, listDevices } = await import(`${PACKAGE}dist/index.js`);

const FOLDER = `${SCRATCH}/holders`;
const VDPA = '/sys/bus/vdpa';

/** A test point: detaching is refused with these words. */
async function refused(name, ...words) {
  try {
    await detach('held');
    check(false, `${name}: refused`, 'it was detached');
  } catch (error) {
    const told =
      error.code === 'ERR_VDUSE_HELD' && words.every((word) => error.message.includes(word));
    check(
      told && /\([^)]+\)$/.test(error.message),
      `${name}: refused, said by whom`,
      error.message,
    );
  }
}

/** Run `body` beside a process that has `path` open. */
async function holding(path, line, body) {
  const child = spawn('sh', ['-c', `exec ${line}`], { stdio: 'ignore' });
  const opened = await until(() => {
    const folder = `/proc/${child.pid}`;
    // The shell opens it before it becomes the program.
    if (readFileSync(`${folder}/comm`, 'utf8').trim() === 'sh') return false;
    return readdirSync(`${folder}/fd`).some((fd) => readlinkSync(`${folder}/fd/${fd}`) === path);
  });
  check(opened, `${path} is opened`);
  await body(child.pid);
  child.kill('SIGKILL');
  await new Promise((resolve) => child.once('exit', resolve));
}

/** Mounts end a little after the namespace that had them. */
function free() {
  return until(() => sh('mount -o ro /dev/vda /mnt && umount /mnt').status === 0);
}

await run(async () => {
  await startUdev();
  loadModules('ext4', 'dm_mod', 'loop', 'vhost_vdpa');
  mkdirSync(FOLDER, { recursive: true });
  const args = [`${FOLDER}/h.img`, '--name', 'held', '--size', '64M', '--attach'];
  const server = await Server.start([...args, '--state-dir', `${FOLDER}/state`]);
  equal(server.event('ready').node, '/dev/vda', 'the disk is /dev/vda');
  await bySystem();
  await byProcesses();
  await byMachines();
  await detach('held');
  equal(listDevices(), [{ name: 'held', attached: false }], 'free again: detached');
  equal(await server.stop(), 0, 'the server ends');
  equal(deviceNodes(), ['control'], 'no device is left');
});

async function bySystem() {
  const mnt = `${FOLDER}/with blank`;
  mkdirSync(mnt);
  sh(`mkfs.ext4 -q /dev/vda && mount /dev/vda '${mnt}'`);
  await refused('mounted', `mounted on ${mnt}`);
  sh(`umount '${mnt}'`);

  sh('dmsetup create over --table "0 8192 linear /dev/vda 0"');
  await refused('device mapper', 'used by /dev/dm-');
  sh('dmsetup remove over');

  sh('losetup /dev/loop7 /dev/vda');
  await refused('loop device', 'used by /dev/loop7');
  sh('losetup -d /dev/loop7');

  // A namespace kept by a bind mount alone: no process shows its mounts.
  sh(`mount --bind ${FOLDER} ${FOLDER} && mount --make-private ${FOLDER} && touch ${FOLDER}/ns`);
  sh(`unshare --mount=${FOLDER}/ns mount /dev/vda /mnt`);
  await refused('mounted where nobody can look', 'claimed by the kernel');
  sh(`umount ${FOLDER}/ns; umount -l ${FOLDER}`);
  await free();

  sh('mkswap /dev/vda && swapon /dev/vda');
  await refused('swap', 'used as swap');
  sh('swapoff /dev/vda');
}

async function byProcesses() {
  await holding('/dev/vda', 'sleep 600 </dev/vda', async (pid) => {
    await refused('open', `open by sleep (${pid})`);
  });
  sh('mkfs.ext4 -q -F /dev/vda');
  const child = spawn('unshare', ['--mount', 'sh', '-c', 'mount /dev/vda /mnt && exec sleep 600']);
  const mounted = await until(() =>
    readFileSync(`/proc/${child.pid}/mounts`, 'utf8').includes('/dev/vda '),
  );
  check(mounted, 'mounted in a namespace of its own');
  await refused('mounted in another mount namespace', 'mounted on /mnt');
  child.kill('SIGKILL');
  await new Promise((resolve) => child.once('exit', resolve));
  await free();
}

/** Bound to vhost_vdpa, the node of virtual machines. */
async function byMachines() {
  writeFileSync(`${VDPA}/drivers/virtio_vdpa/unbind`, 'held');
  writeFileSync(`${VDPA}/devices/held/driver_override`, 'vhost_vdpa');
  writeFileSync(`${VDPA}/drivers/vhost_vdpa/bind`, 'held');
  const [device] = listDevices();
  equal(device.driver, 'vhost_vdpa', 'vhost_vdpa is bound');
  await holding(device.node, `sleep 600 <>${device.node}`, async (pid) => {
    await refused('open by a virtual machine', device.node, `open by sleep (${pid})`);
  });
  succeeds(`test -e ${device.node}`, 'the node stays');
}
