// Runs in the test machine: fio on a disk of ours, of qemu-storage-daemon's and of the loop driver's,
// all in one boot. Prints one JSON object.
import { spawnSync } from 'node:child_process';
import {
  closeSync,
  existsSync,
  openSync,
  readdirSync,
  readFileSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { loadModules, SCRATCH, Server, until } from '../../test/vm/guest/harness.mjs';

const [, , mode] = process.argv;
const SECONDS = mode === 'quick' ? 0.5 : 2;
const IMAGE = `${SCRATCH}/bench.img`;
const MIB = 96;
const RUNS = [
  ['randread', 1],
  ['randwrite', 1],
  ['randread', 32],
  ['randwrite', 32],
];

/**
 * Time limits are of no use here: while the machine waits for the host its clock leaps from timer to
 * timer. tools/vm has one, in time of the host.
 */
const FOR_EVER = 1e6;

function must(line) {
  const done = spawnSync('sh', ['-c', line], { encoding: 'utf8' });
  if (done.status !== 0) throw new Error(`${line}: ${done.error ?? done.stderr}`);
  return done.stdout.trim();
}

/** One fio run; IOPS. */
function fio(disk, op, depth, seconds) {
  const out = must(
    `fio --name=b --filename=/dev/${disk} --ioengine=libaio --direct=1 --rw=${op} --bs=4k --iodepth=${depth} --time_based --runtime=${seconds} --size=${MIB}M --norandommap --randrepeat=1 --output-format=json`,
  );
  const [job] = JSON.parse(out.slice(out.indexOf('{'))).jobs;
  return op === 'randread' ? job.read.iops : job.write.iops;
}

/** Every block of it in memory, so that all contestants find the same. */
function createImage() {
  const fd = openSync(IMAGE, 'w');
  const piece = Buffer.alloc(1 << 20, 0x5a);
  for (let i = 0; i < MIB; i++) writeSync(fd, piece);
  closeSync(fd);
}

const blockDevices = () => readdirSync('/sys/block');

/** Attach by `vdpa`; the name of the disk that appears. */
async function attach(name) {
  const before = blockDevices();
  must(`vdpa dev add name ${name} mgmtdev vduse`);
  const found = () => blockDevices().find((disk) => !before.includes(disk));
  await until(() => found() !== undefined && existsSync(`/dev/${found()}`), FOR_EVER);
  return found();
}

const REFERENCE =
  `qemu-storage-daemon --daemonize --pidfile ${SCRATCH}/pid --object iothread,id=io,poll-max-ns=0` +
  ` --blockdev driver=file,node-name=f,filename=${IMAGE},aio=io_uring` +
  ' --export vduse-blk,id=e,node-name=f,name=reference,writable=on,num-queues=1,queue-size=256,iothread=io';

const CONTESTANTS = {
  ours: {
    command: `vduse serve ${IMAGE} --name ours`,
    async start() {
      this.server = Server.spawn([IMAGE, '--name', 'ours']);
      await this.server.ready(FOR_EVER);
      return attach('ours');
    },
    async counters() {
      const [queue] = await this.server.counters();
      return queue;
    },
    async stop() {
      must('vdpa dev del ours');
      await this.server.stop('SIGTERM', FOR_EVER);
    },
  },
  reference: {
    command: REFERENCE,
    async start() {
      must(REFERENCE);
      await until(() => existsSync('/dev/vduse/reference'), FOR_EVER);
      return attach('reference');
    },
    async stop() {
      must('vdpa dev del reference');
      must(`kill $(cat ${SCRATCH}/pid)`);
    },
  },
  loop: {
    command: `losetup --find --show ${IMAGE}`,
    async start() {
      this.path = must(this.command);
      return this.path.slice(5);
    },
    async stop() {
      must(`losetup --detach ${this.path}`);
    },
  },
};

loadModules('vduse', 'virtio_vdpa', 'virtio_blk', 'loop');
const results = {};
for (const [name, contestant] of Object.entries(CONTESTANTS)) {
  createImage();
  const disk = await contestant.start();
  writeFileSync(`/sys/block/${disk}/queue/scheduler`, 'none');
  const rows = [
    { op: 'randread', depth: 1, when: 'first second', iops: fio(disk, 'randread', 1, 1) },
  ];
  // Compiled by now, or after this: every kind of request has been seen.
  for (const [op, depth] of RUNS) fio(disk, op, depth, SECONDS / 2);
  for (const [op, depth] of RUNS) {
    const before = await contestant.counters?.();
    const iops = fio(disk, op, depth, SECONDS);
    const after = await contestant.counters?.();
    rows.push({
      op,
      depth,
      when: 'warm',
      iops,
      interruptsPerRequest: after
        ? (after.interrupts - before.interrupts) / (after.requests - before.requests)
        : undefined,
    });
  }
  await contestant.stop();
  results[name] = { command: contestant.command, rows };
}
console.log(
  JSON.stringify({ kernel: readFileSync('/proc/sys/kernel/osrelease', 'utf8').trim(), results }),
);
process.exit(0);
