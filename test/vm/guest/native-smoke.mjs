// The addon against the real VDUSE and vDPA of one kernel, with the least device that works: one
// split queue, a disk of zeroes. `native-smoke.mjs child NAME` attaches a device it does not serve.
import { spawn } from 'node:child_process';
import {
  closeSync,
  constants,
  existsSync,
  ftruncateSync,
  openSync,
  readdirSync,
  readSync,
  writeSync,
} from 'node:fs';
import { createRequire } from 'node:module';
import {
  check,
  delay,
  equal,
  loadModules,
  note,
  ROOT,
  read,
  run,
  sh,
  succeeds,
  until,
} from './harness.mjs';

const native = createRequire(import.meta.url)(`${ROOT}build/Release/vduse.node`);

const BLOCK = 2;
const VERSION_1 = 1n << 32n;
const ACCESS_PLATFORM = 1n << 33n;
const SECTORS = 2048n;
const DRIVER_OK = 4;
const MESSAGE = 152;
const QUEUE_SIZE = 128;

const openFds = () => readdirSync('/proc/self/fd').length;

/** A front end's memory may lie in huge pages, which the SIGBUS handler must replace whole. */
function truncateHugePages() {
  sh(
    'echo 8 > /proc/sys/vm/nr_hugepages; mkdir /dev/shm/huge; mount -t hugetlbfs none /dev/shm/huge',
  );
  const fd = openSync('/dev/shm/huge/file', constants.O_RDWR | constants.O_CREAT);
  ftruncateSync(fd, 4 << 20);
  const mapping = native.mmap(fd, (2 << 20) + 4096, 0, true);
  const bytes = new Uint8Array(mapping.buffer);
  bytes.fill(7);
  ftruncateSync(fd, 0);
  equal(
    [bytes.at(-1), bytes[0], mapping.poisoned],
    [0, 0, true],
    'huge pages cut short are survived',
  );
  mapping.unmap();
  check(!read('/proc/self/maps').includes('/dev/shm/huge'), 'and unmapped');
  closeSync(fd);
}

/** What a call throws or rejects with. */
async function failure(body) {
  try {
    await body();
  } catch (error) {
    return error;
  }
  return undefined;
}

/** An attached device: answers messages and, unless told not to, requests. */
class ZeroDisk {
  requests = 0;
  kicks = 0;
  statuses = [];
  regions = [];

  constructor(name, serves = true) {
    this.fd = openSync(`/dev/vduse/${name}`, constants.O_RDWR | constants.O_NONBLOCK);
    this.serves = serves;
    this.kick = native.eventfd(0);
    this.messages = native.watch(this.fd, () => this.#answer());
    this.kicked = native.watch(this.kick.fd, () => this.#kicked());
    this.messages.rearm();
    this.kicked.rearm();
  }

  static create(control, name) {
    const config = new Uint8Array(60);
    new DataView(config.buffer).setBigUint64(0, SECTORS, true);
    native.vduseCreateDevice(control, {
      name,
      vendorId: 0,
      deviceId: BLOCK,
      features: VERSION_1 | ACCESS_PLATFORM,
      vqNum: 1,
      vqAlign: 4096,
      config,
    });
  }

  close() {
    this.messages.close();
    this.kicked.close();
    this.kick.close();
    this.#forget();
    closeSync(this.fd);
  }

  /** The region `iova` lies in, and where in it. */
  at(iova) {
    let region = this.regions.find(({ start, last }) => iova >= start && iova <= last);
    if (region === undefined) {
      const { fd, offset, start, last } = native.vduseIotlbGetFd(this.fd, iova, iova);
      const mapping = native.mmap(fd.fd, Number(last - start + 1n), Number(offset), true);
      fd.close();
      region = { start, last, mapping, view: new DataView(mapping.buffer) };
      this.regions.push(region);
    }
    return { view: region.view, offset: Number(iova - region.start), region };
  }

  /** Take over a queue that runs already. */
  start() {
    this.queue = native.vduseVqGetInfo(this.fd, 0);
    native.vduseVqSetKickFd(this.fd, 0, this.kick.fd);
    native.eventfdSignal(this.kick.fd);
  }

  #forget() {
    this.queue = undefined;
    for (const { mapping } of this.regions.splice(0)) mapping.unmap();
  }

  #answer() {
    const request = new DataView(new ArrayBuffer(MESSAGE));
    while (readSync(this.fd, request, 0, MESSAGE, null) === MESSAGE) {
      const [type, id, status] = [
        request.getUint32(0, true),
        request.getUint32(4, true),
        request.getUint8(24),
      ];
      if (type === 1) {
        this.statuses.push(status);
        if (status === 0) this.#forget();
        else if (status & DRIVER_OK) this.start();
      }
      const response = new DataView(new ArrayBuffer(MESSAGE));
      response.setUint32(0, id, true);
      writeSync(this.fd, response);
      if (!this.#waiting()) break;
    }
    this.messages.rearm();
  }

  #waiting() {
    return native.signalAndPoll(new Int32Array([this.fd, 0]), 1, 0, new Int32Array(0), 0) === 1;
  }

  #kicked() {
    this.kicks += native.eventfdRead(this.kick.fd);
    if (this.queue !== undefined && this.serves) this.#drain();
    this.kicked.rearm();
  }

  #drain() {
    const { desc, driver, device } = this.queue;
    const avail = this.at(driver);
    const used = this.at(device);
    let done = used.view.getUint16(used.offset + 2, true);
    const before = done;
    while (done !== avail.view.getUint16(avail.offset + 2, true)) {
      const slot = done % QUEUE_SIZE;
      const head = avail.view.getUint16(avail.offset + 4 + slot * 2, true);
      const written = this.#request(desc, head);
      used.view.setUint32(used.offset + 4 + slot * 8, head, true);
      used.view.setUint32(used.offset + 8 + slot * 8, written, true);
      done = (done + 1) & 0xffff;
      used.view.setUint16(used.offset + 2, done, true);
      this.requests++;
    }
    if (done !== before) this.#interrupt();
  }

  /** Zeroes into all that is writable, which ends with the status byte: 0 is OK. */
  #request(desc, head) {
    const table = this.at(desc);
    let written = 0;
    for (let index = head; ; ) {
      const at = table.offset + index * 16;
      const length = table.view.getUint32(at + 8, true);
      const flags = table.view.getUint16(at + 12, true);
      if (flags & 2) {
        const { region, offset } = this.at(table.view.getBigUint64(at, true));
        new Uint8Array(region.mapping.buffer, offset, length).fill(0);
        written += length;
      }
      if (!(flags & 1)) return written;
      index = table.view.getUint16(at + 14, true);
    }
  }

  #interrupt() {
    const signals = new Int32Array([this.fd, 0, 0]);
    const none = new Int32Array(0);
    do native.signalAndPoll(none, 0, 0, signals, 1);
    while (signals[2] === 22);
    if (signals[2] !== 0) throw new Error(`VQ_INJECT_IRQ: errno ${signals[2]}`);
  }
}

if (process.argv[2] === 'child') {
  const idle = new ZeroDisk(process.argv[3], false);
  native.vdpaDeviceAdd(process.argv[3], 'vduse').catch(() => {});
  await until(() => idle.kicks > 0);
  console.log('kicked');
  await delay(60_000);
}

await run(async () => {
  loadModules();
  const before = openFds();
  const control = openSync('/dev/vduse/control', constants.O_RDWR);
  note(
    `Linux ${read('/proc/sys/kernel/osrelease')}, VDUSE API ${native.vduseGetApiVersion(control)}`,
  );
  native.vduseSetApiVersion(control, 0n);
  const managers = await native.vdpaManagementDevices();
  check(
    managers.some(
      ({ name, supportedClasses }) => name === 'vduse' && supportedClasses & (1n << 2n),
    ),
    'the management device is listed',
  );
  const stranger = await failure(() => native.vdpaDeviceAdd('smoke', 'nobody'));
  check(
    stranger?.code === 'ENODEV' && stranger.extack,
    'an error has the kernel’s words',
    stranger,
  );
  note(stranger?.message);

  ZeroDisk.create(control, 'smoke');
  equal(
    (await failure(() => ZeroDisk.create(control, 'smoke')))?.code,
    'EEXIST',
    'a name is taken once',
  );
  await until(() => existsSync('/dev/vduse/smoke'));
  const disk = new ZeroDisk('smoke');
  const early = await failure(() => native.vdpaDeviceAdd('smoke', 'vduse'));
  equal(
    [early?.code, early?.syscall],
    ['EINVAL', 'netlink VDPA_CMD_DEV_NEW'],
    'no queue set up: refused',
  );
  native.vduseVqSetup(disk.fd, 0, QUEUE_SIZE);
  equal(
    (await failure(() => native.vduseVqInjectIrq(disk.fd, 0)))?.code,
    'EINVAL',
    'no early interrupt',
  );
  await native.vdpaDeviceAdd('smoke', 'vduse');
  check(await until(() => existsSync('/dev/vda')), 'attached: /dev/vda is there');
  equal(disk.statuses, [0, 1, 3, 0xb, 0xf], 'the driver’s steps');
  check((native.vduseGetFeatures(disk.fd) & VERSION_1) !== 0n, 'features');
  const [listed, ...others] = await native.vdpaDeviceList();
  equal(others, [], 'one device');
  equal(
    listed,
    {
      name: 'smoke',
      mgmtdev: 'vduse',
      deviceId: BLOCK,
      vendorId: 0,
      maxVqs: 1,
      maxVqSize: QUEUE_SIZE,
    },
    'as vdpa dev show has it',
  );
  const dd = spawn('dd', ['if=/dev/vda', 'of=/dev/shm/zeroes', 'bs=64k'], { stdio: 'ignore' });
  const status = await new Promise((resolve) => dd.once('exit', resolve));
  equal(status, 0, 'dd reads the disk');
  succeeds('cmp -n 1048576 /dev/shm/zeroes /dev/zero', 'all of it');
  note(`${disk.requests} requests, ${disk.kicks} kicks`);

  const { region } = disk.at(0n);
  const sum = new Uint32Array(region.mapping.buffer).reduce((total, word) => total + word, 0);
  check(Number.isInteger(sum) && region.mapping.poisoned, 'a hole of the bounce map is survived');
  check(new Uint32Array(native.sigbusCounter())[0] > 0, 'and counted');

  await native.vdpaDeviceDelete('smoke');
  equal(await native.vdpaDeviceList(), [], 'deleted');
  equal(
    (await failure(() => native.vduseDestroyDevice(control, 'smoke')))?.code,
    'EBUSY',
    'open: not destroyed',
  );
  disk.close();
  native.vduseDestroyDevice(control, 'smoke');
  check(!existsSync('/sys/class/vduse/smoke'), 'destroyed');

  // A daemon that dies while its own netlink call waits for it: that thread sleeps on in the
  // kernel, and must not keep the device from the next daemon.
  ZeroDisk.create(control, 'stuck');
  await until(() => existsSync('/dev/vduse/stuck'));
  const device = openSync('/dev/vduse/stuck', constants.O_RDWR);
  native.vduseVqSetup(device, 0, QUEUE_SIZE);
  closeSync(device);
  const child = spawn(process.execPath, [import.meta.filename, 'child', 'stuck'], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  await new Promise((resolve) => child.stdout.once('data', resolve));
  child.kill('SIGKILL');
  await delay(500);
  note(
    `killed while it attaches: ${sh(`grep State: /proc/${child.pid}/task/*/status`).stdout.trim()}`,
  );
  let next;
  const opened = await until(async () => {
    const error = await failure(() => (next = new ZeroDisk('stuck')));
    return error === undefined;
  }, 10);
  if (!check(opened, 'the next daemon opens the device')) return;
  next.start();
  check(await until(() => existsSync('/dev/vda')), 'and the attach goes on');
  check(
    await until(() => child.exitCode !== null || child.signalCode !== null),
    'the dead are gone',
  );
  await native.vdpaDeviceDelete('stuck');
  next.close();
  native.vduseDestroyDevice(control, 'stuck');
  closeSync(control);
  truncateHugePages();
  // Epoll and its eventfd stay for the life of the process.
  check(openFds() <= before + 2, 'no descriptor leaks', `${before} before, ${openFds()} after`);
});
