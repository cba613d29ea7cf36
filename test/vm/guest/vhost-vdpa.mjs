// The disk as a virtual machine's vhost-vdpa client sees it, by clients that share no code with us.
//   vhost-vdpa.mjs [TURNS]
// With TURNS it does nothing but remap the memory under load, that many times.
import { spawn } from 'node:child_process';
import { closeSync, existsSync, mkdirSync, openSync, readFileSync, readSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import {
  AS_NOBODY,
  check,
  delay,
  equal,
  loadModules,
  note,
  openNodes,
  ROOT,
  run,
  SCRATCH,
  Server,
  sh,
  succeeds,
  until,
} from './harness.mjs';

const NAME = 'vm0';
const NODE = '/dev/vhost-vdpa-0';
const IMAGE = `${SCRATCH}/vdpa/d.img`;
const REMAP = fileURLToPath(new URL('./remap.py', import.meta.url));
const PYTHON = '/usr/bin/python3';
const MIB = 1 << 20;
/** For remap.py. */
const HUGE_PAGES = '4';

// A client of a daemon that does not answer ends only when the kernel gives the daemon up, after
// 30 s: this leaves room for that.
const PATIENCE = 90;

const [turns] = process.argv.slice(2);

const driver = () => sh(`basename $(readlink /sys/bus/vdpa/devices/${NAME}/driver)`).stdout.trim();

/** Kilobytes the image takes. */
const used = () => Number(sh(`du -k ${IMAGE}`).stdout.split('\t')[0]);

/** Bytes of the image, behind the daemon's back. */
function imageBytes(offset, length) {
  const fd = openSync(IMAGE, 'r');
  const bytes = Buffer.alloc(length);
  readSync(fd, bytes, 0, length, offset);
  closeSync(fd);
  return bytes;
}

const all = (bytes, value) => bytes.every((byte) => byte === value);

/** One qemu-io, which comes and goes; its shell result. */
function qemuIo(...commands) {
  const words = commands.map((command) => `-c '${command}'`).join(' ');
  return sh(
    `timeout -k 40 ${PATIENCE} ${ROOT}tools/qemu-blkio qemu-io --image-opts driver=virtio-blk-vhost-vdpa,path=${NODE},cache.direct=on ${words}`,
    { timeout: PATIENCE + 60 },
  );
}

function qemuIoSucceeds(name, ...commands) {
  const done = qemuIo(...commands);
  check(done.status === 0, name, `status ${done.status}\n${done.stdout}${done.stderr}`);
}

/** Run one mode of remap.py to its end; each of its proofs is a test point. */
async function remap(mode, { patience = PATIENCE, args = [] } = {}) {
  const command = [PYTHON, REMAP, mode, NODE, IMAGE, ...args];
  const child = spawn('timeout', ['-k', '40', `${patience}`, ...command], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const lines = createInterface({ input: child.stdout });
  lines.on('line', (line) => {
    const proof = /^(ok|not ok) - (.*)$/.exec(line);
    if (proof === null) console.log(line);
    else check(proof[1] === 'ok', `${mode}: ${proof[2]}`);
  });
  const status = await new Promise((resolve) => child.once('close', (code) => resolve(code)));
  equal(status, 0, `${mode}: exit status`);
}

/** A client that keeps requests in flight and says how many it has compared. */
async function hammer(mode = 'hammer') {
  const child = spawn(PYTHON, [REMAP, mode, NODE, IMAGE], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const client = { child, done: 0, trouble: [], status: undefined };
  client.exited = new Promise((resolve) => {
    child.once('exit', (code, signal) => {
      client.status = code ?? signal;
      resolve();
    });
  });
  createInterface({ input: child.stdout }).on('line', (line) => {
    if (/^\d+$/.test(line)) client.done = Number(line);
    else client.trouble.push(line);
  });
  await until(() => client.done > 0 || client.status !== undefined, PATIENCE);
  return client;
}

/** Give the device to another driver of the vdpa bus, as an operator does. */
function rebind(to) {
  const device = `/sys/bus/vdpa/devices/${NAME}`;
  succeeds(
    `echo ${NAME} > ${device}/driver/unbind && echo ${to} > ${device}/driver_override && echo ${NAME} > /sys/bus/vdpa/drivers/${to}/bind`,
    `swap to ${to}`,
    { timeout: PATIENCE },
  );
  equal(driver(), to, `${to} is bound`);
}

/** /dev/vda is there, holds `byte` at 1 MiB, and keeps what is written at `place` MiB. */
async function diskWorks(byte, place, name) {
  check(await until(() => existsSync('/dev/vda'), PATIENCE), `${name}: /dev/vda is there`);
  const begin = sh(
    `dd if=/dev/vda bs=64k skip=16 count=1 iflag=direct status=none | tr -d '\\${byte.toString(8)}' | wc -c`,
  );
  equal(begin.stdout.trim(), '0', `${name}: what the machine wrote is there`);
  succeeds(
    `dd if=/dev/urandom of=${SCRATCH}/data bs=64k count=16 status=none && dd if=${SCRATCH}/data of=/dev/vda bs=64k seek=${place * 16} oflag=direct status=none && dd if=/dev/vda bs=64k skip=${place * 16} count=16 iflag=direct status=none | cmp - ${SCRATCH}/data`,
    `${name}: a mebibyte written and read back`,
    { timeout: PATIENCE },
  );
  check(
    readFileSync(`${SCRATCH}/data`).equals(imageBytes(place * MIB, MIB)),
    `${name}: it is in the image`,
  );
}

/** Serve the image as nobody. */
async function serve() {
  await openNodes();
  const args = [IMAGE, '--name', NAME, '--state-dir', `${SCRATCH}/vdpa/state`];
  const server = Server.spawn(args, { as: AS_NOBODY });
  // On a busy machine the first start of node alone takes half a minute.
  await until(() => existsSync(`/dev/vduse/${NAME}`), PATIENCE);
  await openNodes(NAME);
  if (!(await server.ready(PATIENCE))) throw new Error('serve: not ready');
  return server;
}

await run(async () => {
  loadModules('vduse', 'vhost_vdpa');
  mkdirSync(`${SCRATCH}/vdpa`);
  sh(`chown 65534 ${SCRATCH}/vdpa; truncate -s 64M ${IMAGE}; chown 65534 ${IMAGE}`);
  const server = await serve();
  succeeds(`vdpa dev add name ${NAME} mgmtdev vduse`, 'vdpa dev add');
  check(await until(() => existsSync(NODE), PATIENCE), `${NODE} appears by itself`);
  equal(driver(), 'vhost_vdpa', 'vhost_vdpa is bound');

  if (turns === undefined) await behaviours(server);
  else await remap('load', { patience: Number(turns), args: [turns] });
  succeeds(`vdpa dev del ${NAME}`, 'vdpa dev del', { timeout: PATIENCE });
  equal(await server.stop(), 0, 'SIGTERM: exit status 0');
  check(!existsSync(`/dev/vduse/${NAME}`), `/dev/vduse/${NAME} is gone`);
});

async function behaviours(server) {
  patterns();
  sh(`echo ${HUGE_PAGES} > /proc/sys/vm/nr_hugepages`);
  await remap('remap');
  const huge = sh('grep -E "^HugePages_(Total|Free)" /proc/meminfo').stdout.match(/\d+/g);
  equal(huge, [HUGE_PAGES, HUGE_PAGES], 'no mapping of huge pages is left');
  await remap('load', { args: ['50'] });
  await remap('hostile');
  await contested(server);
  await killed(server);
  qemuIoSucceeds(
    'qemu-io again, after all that: the patterns are there',
    'read -P 0xab 1M 64k',
    'read -P 0x77 8M 4M',
  );

  await swapped(server);
}

/** An independent client writes, leaves, and comes again. */
function patterns() {
  qemuIoSucceeds(
    'qemu-io: write, zero, flush, read',
    'write -P 0xab 1M 64k',
    'write -P 0x11 3M 512k',
    'write -z 3M 512k',
    'write -P 0x55 4M 1M',
    // So large that the client exchanges its buffer memory: other pages at the same address.
    'write -P 0x77 8M 4M',
    'flush',
    'read -P 0xab 1M 64k',
    'read -P 0 3M 512k',
    'read -P 0x55 4M 1M',
    'read -P 0x77 8M 4M',
  );
  check(all(imageBytes(MIB, 65536), 0xab), 'the image holds the pattern');
  check(all(imageBytes(3 * MIB, 512 * 1024), 0), 'and the zeroes');
  const before = used();
  qemuIoSucceeds(
    'qemu-io again: read, discard',
    'read -P 0xab 1M 64k',
    'read -P 0x77 8M 4M',
    'read -P 0x55 4M 1M',
    'discard 4M 1M',
    'read -P 0 4M 1M',
  );
  check(used() <= before - 1024, 'the image has shrunk', `${before} → ${used()} KiB`);
  equal(qemuIo('read -P 0xac 1M 64k').status, 1, 'a wrong pattern is noticed');
}

/** While a client has the node, a second one is refused and the first unharmed. */
async function contested(server) {
  const client = await hammer();
  let code;
  try {
    closeSync(openSync(NODE, 'r+'));
  } catch (error) {
    code = error.code;
  }
  equal(code, 'EBUSY', 'a second open is refused');
  const { done } = client;
  check(
    await until(() => client.done > done + 100, PATIENCE),
    'the first client goes on',
    client.trouble,
  );
  check(server.status === undefined, 'the daemon is alive');
  client.child.kill('SIGKILL');
  await client.exited;
  equal(client.trouble, [], 'every request of the first was right');
}

/** Killed with requests in flight, several times. */
async function killed(server) {
  for (const [turn, later] of [0, 7, 31].entries()) {
    const client = await hammer();
    await delay(later);
    const begin = Date.now();
    client.child.kill('SIGKILL');
    await client.exited;
    const took = Date.now() - begin;
    check(
      client.done > 0 && client.status === 'SIGKILL' && took < 20_000,
      `client killed in mid I/O, ${turn + 1}: it ends at once`,
      `${client.done} done, ${client.status}, ${took} ms, ${client.trouble}`,
    );
    check(server.status === undefined, `client killed, ${turn + 1}: the daemon lives`);
  }
}

/** Bind vhost_vdpa, and kill a client in mid I/O. */
async function killHolding(mode) {
  rebind('vhost_vdpa');
  check(await until(() => existsSync(NODE), PATIENCE), `${NODE} is there again`);
  const client = await hammer(mode);
  check(client.done > 0, `${mode}: has done I/O`, client.trouble);
  client.child.kill('SIGKILL');
  await client.exited;
}

/** From one driver of the bus to the other and back, with what each left behind. */
async function swapped(server) {
  succeeds(`vdpa dev del ${NAME} && modprobe -r vhost_vdpa`, 'vdpa dev del');
  loadModules('virtio_vdpa', 'virtio_blk');
  succeeds(`vdpa dev add name ${NAME} mgmtdev vduse`, 'vdpa dev add, with virtio_vdpa');
  equal(driver(), 'virtio_vdpa', 'virtio_vdpa is bound');
  await diskWorks(0xab, 40, 'virtio_vdpa first');

  loadModules('vhost_vdpa');
  rebind('vhost_vdpa');
  check(await until(() => existsSync(NODE), PATIENCE), `${NODE} is there`);
  check(!existsSync('/dev/vda'), '/dev/vda is gone');
  qemuIoSucceeds(
    'after the swap: the patterns are there',
    'read -P 0xab 1M 64k',
    'write -P 0x33 6M 64k',
    'flush',
  );
  rebind('virtio_vdpa');
  await diskWorks(0xab, 42, 'swapped back');

  await killHolding('hammer');
  rebind('virtio_vdpa');
  await diskWorks(0xab, 44, 'swapped back after a client was killed');

  // What a killed machine had mapped stays in the kernel until the next client comes. It covers the
  // addresses of virtio_vdpa's rings, and the kernel frees the wrong pages if they are put there.
  await killHolding('machine');
  rebind('virtio_vdpa');
  const line = 'memory of the virtual machine that used it last is in the way';
  check(
    await until(() => server.stderr.includes(line)),
    'swapped back after a machine was killed: refused, with a line',
    server.stderr,
  );
  check(!existsSync('/dev/vda'), 'there is no /dev/vda');
  await killHolding('hammer');
  rebind('virtio_vdpa');
  await diskWorks(0xab, 46, 'after a smaller client it works again');
  check(server.status === undefined, 'the daemon is alive');
  note(`counters ${JSON.stringify(await server.counters())}`);
}
