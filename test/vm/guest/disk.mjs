// The main job on one kernel: a disk served by nobody, used raw and with a file system.
//   disk.mjs [split|packed] [io_uring|pool] [SECONDS]
// With `pool` the kernel is told to refuse io_uring first. SECONDS is how long fio works on the raw
// disk. With fewer than 15 the further disks are left out, and this one is opened with O_DIRECT: then
// all its requests go through the engine's queue.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, readFileSync, rmSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { vduse } from './command.mjs';
import {
  check,
  equal,
  loadModules,
  note,
  read,
  run,
  SCRATCH,
  serveAsNobody,
  sh,
  succeeds,
  until,
  VDUSE,
} from './harness.mjs';

const IMAGE = `${SCRATCH}/disk/d.img`;
const CPUS = 4;
/** VIRTIO_F_RING_PACKED: its place in sysfs's row of feature bits. */
const RING_PACKED = 34;
const FULL_SECONDS = 15;

const [ring = 'split', engine = 'io_uring', seconds = FULL_SECONDS] = process.argv.slice(2);
const full = Number(seconds) >= FULL_SECONDS;

/** Kilobytes the image takes. */
const used = () => Number(sh(`du -k ${IMAGE}`).stdout.split('\t')[0]);

const FIO = '--direct=1 --ioengine=libaio --verify=crc32c --verify_fatal=1 --output-format=terse';

await run(async () => {
  loadModules('vduse', 'virtio_vdpa', 'virtio_blk', 'ext4');
  succeeds(
    `sysctl -q kernel.io_uring_disabled=${engine === 'pool' ? 2 : 0}`,
    `io_uring is ${engine === 'pool' ? 'refused' : 'allowed'}`,
  );
  // Another run in the same boot may have been here.
  rmSync(`${SCRATCH}/disk`, { recursive: true, force: true });
  mkdirSync(`${SCRATCH}/disk`);
  sh(`chown 65534 ${SCRATCH}/disk; truncate -s 256M ${IMAGE}; chown 65534 ${IMAGE}`);

  const args = [IMAGE, '--name', 'disk0', '--queues', `${CPUS}`, '--serial', 'S1'];
  const server = await serveDisk('disk0', args);
  const ready = server.event('ready');
  equal(ready.engine, engine, 'the ready line names the engine');
  if (engine === 'pool') {
    check(/EPERM|not permitted/.test(ready.engineNote), 'and says why', ready.engineNote);
  }
  const capabilities = /^CapEff:\s*(\S+)/m.exec(
    readFileSync(`/proc/${server.pid}/status`, 'utf8'),
  )[1];
  equal(Number(`0x${capabilities}`), 0, 'the daemon has no capability');
  check(
    /^Uid:\s*65534\s/m.test(readFileSync(`/proc/${server.pid}/status`, 'utf8')),
    'the daemon is uid 65534',
  );

  succeeds('vdpa dev add name disk0 mgmtdev vduse', 'vdpa dev add');
  check(await until(() => existsSync('/dev/vda')), '/dev/vda is there');
  equal(read('/sys/block/vda/size'), `${256 * 2048}`, 'size');
  equal(
    read('/sys/block/vda/device/features')[RING_PACKED],
    ring === 'packed' ? '1' : '0',
    `the ring is ${ring}`,
  );
  equal(read('/sys/block/vda/serial'), 'S1', 'serial');
  equal(read('/sys/block/vda/queue/logical_block_size'), '512', 'block size');

  succeeds(
    `fio --name=raw --filename=/dev/vda ${FIO} --rw=randwrite --bsrange=512-64k --blockalign=512 --iodepth=8 --numjobs=${CPUS} --size=48m --offset_increment=64m --cpus_allowed=0-${CPUS - 1} --cpus_allowed_policy=split --verify_backlog=512 --time_based --runtime=${seconds}`,
    `fio verify on the raw disk: 4 jobs, one on each CPU, 512 to 64k, ${seconds} s`,
  );
  const counters = await server.counters();
  note(`counters ${JSON.stringify(counters)}`);
  equal(counters.length, CPUS, 'one set of counters a queue');
  check(
    counters.every((queue) => queue.requests > 0),
    'all four queues were used',
    JSON.stringify(counters),
  );
  check(
    counters.every((queue) => queue.errors === 0),
    'no request failed',
  );

  sh('dd if=/dev/urandom of=/dev/vda bs=1M count=64 oflag=direct');
  const before = used();
  succeeds('blkdiscard /dev/vda', 'blkdiscard');
  check(used() < before / 4, 'blkdiscard: the image takes less space', `${before} → ${used()} KiB`);
  sh('dd if=/dev/urandom of=/dev/vda bs=1M count=8 oflag=direct');
  succeeds('blkdiscard -z -o 1M -l 2M /dev/vda', 'blkdiscard -z on a range');
  succeeds(
    'dd if=/dev/vda bs=1M skip=1 count=2 iflag=direct 2>/dev/null | cmp - /dev/zero -n 2097152',
    'the zeroed range reads zero',
  );
  check(
    sh('dd if=/dev/vda bs=1M count=1 iflag=direct 2>/dev/null | cmp -s - /dev/zero -n 1048576')
      .status === 1,
    'its neighbour does not',
  );

  succeeds('mkfs.ext4 -q -F /dev/vda && mount /dev/vda /mnt', 'mkfs.ext4 and mount');
  succeeds(
    `fio --name=fs --directory=/mnt --rw=randwrite --bs=4k --size=${full ? 8 : 2}m --numjobs=2 --fsync=16 --verify=crc32c --verify_fatal=1 --ioengine=psync --output-format=terse`,
    'fio verify with fsync on the file system',
  );
  succeeds('echo kept > /mnt/kept && umount /mnt', 'umount');

  succeeds('vdpa dev del disk0', 'vdpa dev del');
  check(await until(() => !existsSync('/dev/vda')), '/dev/vda is gone');
  check(server.status === undefined, 'the daemon is alive');
  succeeds('vdpa dev add name disk0 mgmtdev vduse', 'vdpa dev add again');
  check(await until(() => existsSync('/dev/vda')), '/dev/vda is there again');
  succeeds(
    'mount -o ro /dev/vda /mnt && grep -q kept /mnt/kept && umount /mnt',
    'the data is there',
  );
  succeeds('vdpa dev del disk0', 'vdpa dev del again');
  equal(await server.stop(), 0, 'SIGTERM: exit status 0');
  check(!existsSync('/dev/vduse/disk0'), '/dev/vduse/disk0 is gone');
  const stopped = server.event('stopped');
  equal(server.lines.at(-1), stopped, 'the last line tells the counters');
  check(stopped?.queues.length === CPUS, 'of every queue');
  succeeds(`fsck.ext4 -fn ${IMAGE}`, 'fsck: clean');

  if (full) {
    await readOnly();
    await largeBlocksAndDirect();
  }
  if (engine === 'pool') await poolIsTold();
});

/** Serve as nobody, on the ring in question. */
function serveDisk(name, args) {
  return serveAsNobody(name, [...args, '--ring', ring, '--state-dir', `${SCRATCH}/disk/state`]);
}

/** People are told that the pool is used, and why: by the ready line and by doctor. */
async function poolIsTold() {
  const doctor = await vduse(['doctor']);
  check(
    /^missing io_uring: refused: .*pool of threads.*\(sysctl kernel\.io_uring_disabled=0\)$/m.test(
      doctor.stdout,
    ),
    'doctor says that the pool is used, why, and what to do',
    doctor.stdout,
  );
  const server = spawn(
    process.execPath,
    [VDUSE, 'serve', IMAGE, '--socket-path', `${SCRATCH}/disk/socket`],
    { stdio: ['ignore', 'pipe', 'inherit'] },
  );
  const [line] = await once(createInterface({ input: server.stdout }), 'line');
  server.kill();
  check(
    /ready: .*, pool \(io_uring: .*(EPERM|not permitted).*\)/.test(line),
    'so does serve',
    line,
  );
  await once(server, 'exit');
}

async function readOnly() {
  const server = await serveDisk('ro', [IMAGE, '--name', 'ro', '--read-only']);
  succeeds('vdpa dev add name ro mgmtdev vduse', '--read-only: vdpa dev add');
  await until(() => existsSync('/dev/vda'));
  equal(read('/sys/block/vda/ro'), '1', '--read-only: the disk says so');
  check(
    sh('dd if=/dev/zero of=/dev/vda bs=4k count=1 oflag=direct').status !== 0,
    '--read-only: a write is refused',
  );
  succeeds(
    'mount -o ro,noload /dev/vda /mnt && grep -q kept /mnt/kept && umount /mnt',
    '--read-only: reads',
  );
  succeeds('vdpa dev del ro', '--read-only: vdpa dev del');
  equal(await server.stop(), 0, '--read-only: exit status 0');
}

async function largeBlocksAndDirect() {
  const args = [IMAGE, '--name', 'big', '--block-size', '4096', '--direct'];
  const server = await serveDisk('big', args);
  succeeds('vdpa dev add name big mgmtdev vduse', '--block-size 4096: vdpa dev add');
  await until(() => existsSync('/dev/vda'));
  equal(
    read('/sys/block/vda/queue/logical_block_size'),
    '4096',
    '--block-size 4096 shows in sysfs',
  );
  const direct = sh(
    `for f in /proc/${server.pid}/fd/*; do [ "$(readlink $f)" = ${IMAGE} ] && cat /proc/${server.pid}/fdinfo/\${f##*/}; done`,
  ).stdout;
  const flags = Number.parseInt(/^flags:\s*(\d+)/m.exec(direct)?.[1] ?? '0', 8);
  check((flags & 0o40000) !== 0, '--direct shows in fdinfo', direct);
  succeeds(
    `fio --name=direct --filename=/dev/vda ${FIO} --rw=randwrite --bsrange=4k-64k --blockalign=4k --iodepth=8 --size=8m`,
    '--direct: fio verify',
  );
  succeeds('vdpa dev del big', '--direct: vdpa dev del');
  equal(await server.stop(), 0, '--direct: exit status 0');
}
