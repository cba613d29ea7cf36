// The disk inside a container: no capability, that one device and no other.
import { mkdirSync } from 'node:fs';
import { check, equal, loadModules, ROOT, run, SCRATCH, Server, sh, succeeds } from './harness.mjs';

const FOLDER = `${SCRATCH}/container`;

/** Run a shell script in a container that has the disk as /dev/disk. */
function inContainer(script, prepare = () => {}) {
  const bundle = `${FOLDER}/bundle`;
  sh(`rm -rf ${bundle}; mkdir ${bundle}`);
  const made = sh(
    `node ${ROOT}tools/lib/bundle.mjs ${bundle} /dev/vda --mount ${FOLDER}/shared:/mnt sh -ec '${script}'`,
  );
  if (made.status !== 0) throw new Error(`bundle.mjs: ${made.stderr}`);
  prepare(`${bundle}/rootfs`);
  return sh(`crun --root ${FOLDER}/crun run --bundle ${bundle} disk-test`);
}

await run(async () => {
  loadModules('vduse', 'virtio_vdpa', 'virtio_blk', 'loop');
  mkdirSync(`${FOLDER}/shared`, { recursive: true });
  const server = await Server.start([
    `${FOLDER}/c.img`,
    ...['--name', 'box', '--size', '32M', '--attach', '--state-dir', `${FOLDER}/state`],
  ]);
  sh(`head -c 8M /dev/urandom > ${FOLDER}/shared/in`);

  const inside = inContainer(`
    grep CapEff /proc/self/status
    dd if=/mnt/in of=/dev/disk bs=1M count=4 conv=fsync
    dd if=/dev/disk of=/mnt/out bs=1M count=8
  `);
  check(
    inside.status === 0,
    'a container writes the disk and reads it',
    `${inside.stdout}${inside.stderr}`,
  );
  check(/^CapEff:\s*0+$/m.test(inside.stdout), 'without any capability', inside.stdout);
  succeeds(
    `cmp -n 4194304 ${FOLDER}/shared/in ${FOLDER}/shared/out`,
    'what it read is what it wrote',
  );
  succeeds(
    `dd if=/dev/vda bs=1M count=4 iflag=direct 2>/dev/null | cmp - ${FOLDER}/shared/in -n 4194304`,
    'the host reads the same',
  );
  sh(`dd if=${FOLDER}/shared/in of=/dev/vda bs=1M seek=8 count=8 conv=fsync`);
  inContainer('dd if=/dev/disk of=/mnt/out bs=1M skip=8 count=8');
  succeeds(
    `cmp ${FOLDER}/shared/in ${FOLDER}/shared/out`,
    'the container reads what the host wrote',
  );

  // A node that a careless image brings along: the cgroup refuses the device.
  const other = inContainer('dd if=/other of=/dev/null count=1', (root) => {
    sh(`mknod -m 666 ${root}/other b 7 0`);
  });
  check(
    other.status !== 0 && other.stderr.includes('Operation not permitted'),
    'another block device is refused',
    other.stderr,
  );
  const made = inContainer('busybox mknod /tmp/other b 7 0');
  check(
    made.status !== 0 && made.stderr.includes('Operation not permitted'),
    'so is making a node',
    made.stderr,
  );
  equal(await server.stop(), 0, 'the server ends');
});
