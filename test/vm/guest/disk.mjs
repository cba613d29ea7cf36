// The main job on one kernel: a disk served by nobody, used raw and with a file system.
import { existsSync, mkdirSync, readFileSync } from 'node:fs';
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
} from './harness.mjs';

const IMAGE = `${SCRATCH}/disk/d.img`;
const CPUS = 4;

/** Kilobytes the image takes. */
const used = () => Number(sh(`du -k ${IMAGE}`).stdout.split('\t')[0]);

const FIO = '--direct=1 --ioengine=libaio --verify=crc32c --verify_fatal=1 --output-format=terse';

await run(async () => {
  loadModules('vduse', 'virtio_vdpa', 'virtio_blk', 'ext4');
  mkdirSync(`${SCRATCH}/disk`);
  sh(`chown 65534 ${SCRATCH}/disk; truncate -s 256M ${IMAGE}; chown 65534 ${IMAGE}`);

  const args = [
    IMAGE,
    '--name',
    'disk0',
    '--queues',
    `${CPUS}`,
    '--serial',
    'S1',
    '--state-dir',
    `${SCRATCH}/disk/state`,
  ];
  const server = await serveAsNobody('disk0', args);
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
  equal(read('/sys/block/vda/serial'), 'S1', 'serial');
  equal(read('/sys/block/vda/queue/logical_block_size'), '512', 'block size');

  succeeds(
    `fio --name=raw --filename=/dev/vda ${FIO} --rw=randwrite --bsrange=512-64k --blockalign=512 --iodepth=8 --numjobs=${CPUS} --size=48m --offset_increment=64m --cpus_allowed=0-${CPUS - 1} --cpus_allowed_policy=split --verify_backlog=512 --time_based --runtime=15`,
    'fio verify on the raw disk: 4 jobs, one on each CPU, 512 to 64k, 15 s',
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
    'fio --name=fs --directory=/mnt --rw=randwrite --bs=4k --size=8m --numjobs=2 --fsync=16 --verify=crc32c --verify_fatal=1 --ioengine=psync --output-format=terse',
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

  await readOnly();
  await largeBlocksAndDirect();
});

async function readOnly() {
  const server = await serveAsNobody('ro', [
    IMAGE,
    '--name',
    'ro',
    '--read-only',
    '--state-dir',
    `${SCRATCH}/disk/state`,
  ]);
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
  const args = [
    IMAGE,
    '--name',
    'big',
    '--block-size',
    '4096',
    '--direct',
    '--state-dir',
    `${SCRATCH}/disk/state`,
  ];
  const server = await serveAsNobody('big', args);
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
