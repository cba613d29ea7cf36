// A flush of the disk is a flush of what the image lies on.
import { closeSync, fsyncSync, mkdirSync, openSync, writeSync } from 'node:fs';
import {
  check,
  equal,
  loadModules,
  note,
  read,
  run,
  SCRATCH,
  Server,
  sh,
  succeeds,
} from './harness.mjs';

const FOLDER = `${SCRATCH}/flush`;
const SYNCS = 200;

await run(async () => {
  loadModules('vduse', 'virtio_vdpa', 'virtio_blk', 'ext4', 'loop');
  mkdirSync(`${FOLDER}/disk`, { recursive: true });
  sh(`truncate -s 128M ${FOLDER}/backing`);
  const loop = sh(`losetup --find --show ${FOLDER}/backing`).stdout.trim();
  succeeds(`mkfs.ext4 -q ${loop} && mount ${loop} ${FOLDER}/disk`, 'ext4 on a loop device');
  const server = await Server.start([
    `${FOLDER}/disk/d.img`,
    ...['--name', 'flush', '--size', '32M', '--attach', '--state-dir', `${FOLDER}/state`],
  ]);

  // Field 16 of Documentation/block/stat.rst: flush requests completed.
  const flushes = () =>
    Number(read(`/sys/block/${loop.slice('/dev/'.length)}/stat`).split(/\s+/)[15]);
  const block = Buffer.alloc(4096, 'flush');
  const disk = openSync('/dev/vda', 'r+');
  const before = flushes();
  for (let i = 0; i < SYNCS; i++) {
    writeSync(disk, block, 0, block.length, i * block.length);
    fsyncSync(disk);
  }
  const flushed = flushes() - before;
  closeSync(disk);
  note(`${SYNCS} fsyncs of the disk: ${flushed} flushes of the loop device under the image`);
  check(flushed >= SYNCS, `${SYNCS} fsyncs are at least as many flushes`, `${flushed}`);
  equal(await server.stop(), 0, 'the server ends');
  sh(`umount ${FOLDER}/disk; losetup -d ${loop}`);
});
