import { type ChildProcess, fork, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import {
  chmodSync,
  constants,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t, { type Test } from 'tap';
import { type ImageOptions, openImage } from '../../lib/store/index.ts';
import { attachLoop, FOLDERS, temporaryFolder, unprivileged } from './harness.ts';

const BUFFERED: ImageOptions = { readOnly: false, direct: false, blockSize: 512, mmap: true };
const READ_ONLY: ImageOptions = { ...BUFFERED, readOnly: true };
const MESSAGE = /^.+: .+ \(.+\)$/;

function openFds(): number {
  return readdirSync('/proc/self/fd').length;
}

/** Opening fails with this code and message, and nothing stays behind. */
function refuses(
  t: Test,
  path: string,
  options: ImageOptions,
  code: string,
  message: RegExp,
): void {
  const fds = openFds();
  t.throws(() => openImage(path, options), { code: `ERR_VDUSE_IMAGE_${code}`, message });
  t.throws(() => openImage(path, options), { message: MESSAGE }, 'what: why (what to do)');
  t.equal(openFds(), fds, 'no descriptor is left');
}

t.test('an image is served as it is', async (t) => {
  const folder = temporaryFolder(t, FOLDERS[0]!);
  const path = join(folder, 'disk.img');
  writeFileSync(path, new Uint8Array(8192));
  const image = openImage(path, BUFFERED);
  t.match(image, { kind: 'file', direct: false, created: false, warnings: [] });
  t.match(image.info, {
    name: path,
    capacity: 8192,
    readOnly: false,
    blockSize: 1,
    memoryAlignment: 1,
    physicalBlockSize: 4096,
    discard: true,
  });
  t.match(image.target, { fd: image.fd.fd, mayBlock: false, allocationUnit: 1 });
  const flags = readFileSync(`/proc/self/fdinfo/${image.fd.fd}`, 'utf8');
  t.notMatch(flags, /^flags:\s+0*[0-7]*4[0-7]{3}$/m, 'not O_NONBLOCK');
  t.same(structuredClone(image.target), image.target, 'the target can be posted to a thread');
  image.close();

  const readOnly = openImage(path, { ...READ_ONLY, size: 8192 });
  t.match(readOnly.info, { readOnly: true, discard: false });
  readOnly.close();
});

t.test('what is no image is named', async (t) => {
  const folder = temporaryFolder(t, FOLDERS[0]!);
  refuses(t, join(folder, 'none'), BUFFERED, 'MISSING', /no such file \(.*--size 1G\)/);
  refuses(t, join(folder, 'none'), { ...READ_ONLY, size: 512 }, 'MISSING', /drop --read-only/);
  refuses(t, join(folder, 'a/b'), { ...BUFFERED, size: 512 }, 'MISSING', /folder does not exist/);
  refuses(t, folder, BUFFERED, 'KIND', /is a directory/);
  refuses(t, '/dev/null', BUFFERED, 'KIND', /is a character device/);
  const fifo = join(folder, 'fifo');
  spawnSync('mkfifo', [fifo]);
  refuses(t, fifo, READ_ONLY, 'KIND', /is a named pipe/);
  const socket = join(folder, 'socket');
  const server = createServer().listen(socket);
  await once(server, 'listening');
  refuses(t, socket, BUFFERED, 'KIND', /is a socket/);
  server.close();
  const link = join(folder, 'link');
  symlinkSync('nowhere', link);
  refuses(t, link, BUFFERED, 'MISSING', /no such file/);
  refuses(t, link, { ...BUFFERED, size: 512 }, 'MISSING', /link to nothing/);
  const file = join(folder, 'file');
  writeFileSync(file, '');
  refuses(t, file, BUFFERED, 'EMPTY', /is empty \(.*--size/);
  refuses(t, join(file, 'x'), BUFFERED, 'MISSING', /no folder/);
  refuses(t, join(folder, 'x'.repeat(300)), BUFFERED, 'SYSTEM', /ENAMETOOLONG/);
});

t.test('permissions: what may be read is offered --read-only', async (t) => {
  const folder = temporaryFolder(t, FOLDERS[0]!);
  const path = join(folder, 'disk.img');
  writeFileSync(path, new Uint8Array(512));
  chmodSync(folder, 0o755);
  chmodSync(path, 0o444);
  unprivileged(() => {
    refuses(t, path, BUFFERED, 'READ_ONLY', /no permission to write.*--read-only/);
    openImage(path, READ_ONLY).close();
    refuses(t, join(folder, 'new'), { ...BUFFERED, size: 512 }, 'PERMISSION', /create it/);
  });
  chmodSync(path, 0);
  unprivileged(() => {
    refuses(t, path, BUFFERED, 'PERMISSION', /no permission to read/);
    refuses(t, path, READ_ONLY, 'PERMISSION', /no permission to read/);
  });
  const closed = join(folder, 'closed');
  mkdirSync(closed, { mode: 0 });
  unprivileged(() => refuses(t, join(closed, 'x'), READ_ONLY, 'PERMISSION', /folders/));
});

t.test('an image is mapped as long as it is open, where it can be', async (t) => {
  const path = join(temporaryFolder(t, FOLDERS[0]!), 'disk.img');
  writeFileSync(path, new Uint8Array(8192));
  const mappings = () =>
    readFileSync('/proc/self/maps', 'utf8')
      .split('\n')
      .filter((line) => line.endsWith(path));
  const image = openImage(path, BUFFERED);
  t.not(image.target.copies, undefined);
  t.match(mappings(), [/ rw-s /]);
  image.close();
  t.equal(mappings().length, 0);
  const readOnly = openImage(path, READ_ONLY);
  t.match(mappings(), [/ r--s /]);
  readOnly.close();
  const unmapped = openImage(path, { ...BUFFERED, mmap: false });
  t.equal(unmapped.target.copies, undefined);
  t.equal(mappings().length, 0);
  unmapped.close();
});

t.test(
  "reads do not move the access time of one's own image; others' images are served too",
  async (t) => {
    const folder = temporaryFolder(t, FOLDERS[0]!);
    const path = join(folder, 'disk.img');
    writeFileSync(path, new Uint8Array(512));
    chmodSync(folder, 0o755);
    chmodSync(path, 0o666);
    const flagsOf = (fd: number) => {
      const [, flags] = /^flags:\s*([0-7]+)$/m.exec(
        readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8'),
      )!;
      return Number.parseInt(flags!, 8);
    };
    const own = openImage(path, BUFFERED);
    t.not(flagsOf(own.target.fd) & constants.O_NOATIME, 0);
    own.close();
    if (process.geteuid!() === 0) {
      const other = unprivileged(() => openImage(path, BUFFERED));
      t.equal(flagsOf(other.target.fd) & constants.O_NOATIME, 0);
      other.close();
    }
  },
);

t.test('--size creates a sparse image of its owner alone, and never resizes one', async (t) => {
  const folder = temporaryFolder(t, FOLDERS[0]!);
  const path = join(folder, 'disk.img');
  const sized = { ...BUFFERED, size: 2 ** 30 };
  const image = openImage(path, sized);
  t.match(image, { created: true, warnings: [] });
  t.equal(image.info.capacity, 2 ** 30);
  image.close();
  const stats = statSync(path);
  t.match(stats, { size: 2 ** 30, mode: 0o100600, blocks: 0 });

  const again = openImage(path, sized);
  t.equal(again.created, false);
  again.close();
  refuses(t, path, { ...sized, size: 2 ** 20 }, 'SIZE', /has 1073741824 bytes, not the 1048576/);
  t.equal(statSync(path).size, 2 ** 30);

  const other = join(folder, 'other.img');
  refuses(t, other, { ...BUFFERED, size: 1000 }, 'SIZE', /multiple of.* 512 \(give --size 1024\)/);
  refuses(t, other, { ...BUFFERED, size: 2 ** 53 }, 'SIZE', /not the size of a disk/);
  refuses(t, other, { ...BUFFERED, size: 2 ** 53 - 512 }, 'SIZE', /refuses.*EFBIG/);
  t.notOk(existsSync(other), 'what could not be made is not left behind');

  openImage(other, { ...BUFFERED, size: 512 }).discard();
  t.notOk(existsSync(other), 'a created image that came to nothing goes');
  openImage(path, BUFFERED).discard();
  t.ok(existsSync(path), 'one that was there stays');
});

t.test('a size of no whole blocks is rounded down with a word, or refused', async (t) => {
  const folder = temporaryFolder(t, FOLDERS[0]!);
  const path = join(folder, 'disk.img');
  writeFileSync(path, new Uint8Array(10000));
  const image = openImage(path, BUFFERED);
  t.equal(image.info.capacity, 19 * 512);
  t.match(image.warnings, [/disk\.img: its last 272 bytes are not served \(.*512\)$/]);
  image.close();
  const large = openImage(path, { ...BUFFERED, blockSize: 4096, size: 10000 });
  t.equal(large.info.capacity, 8192);
  t.match(large.warnings, [/last 1808 bytes.*4096/]);
  large.close();
  truncateSync(path, 511);
  refuses(t, path, BUFFERED, 'SIZE', /less than one block of 512/);
  truncateSync(path, 4095);
  refuses(t, path, { ...BUFFERED, blockSize: 4096 }, 'SIZE', /less than one block of 4096/);
});

/** Another process; `order` makes it open ('read', 'write') or 'close' the image. */
function otherProcess(path: string): {
  child: ChildProcess;
  order: (order: string) => Promise<unknown>;
} {
  const child = fork(fileURLToPath(new URL('hold-image.ts', import.meta.url)), [path]);
  const order = (what: string) => {
    child.send(what);
    return once(child, 'message');
  };
  return { child, order };
}

t.test('one writer, or any number of readers, over all processes', async (t) => {
  const folder = temporaryFolder(t, FOLDERS[0]!);
  const path = join(folder, 'disk.img');
  writeFileSync(path, new Uint8Array(512));
  const { child, order } = otherProcess(path);

  await order('write');
  refuses(t, path, BUFFERED, 'IN_USE', /another process/);
  refuses(t, path, READ_ONLY, 'IN_USE', /another process/);
  await order('close');

  await order('read');
  refuses(t, path, BUFFERED, 'IN_USE', /another process/);
  const shared = openImage(path, READ_ONLY);
  await order('close');
  refuses(t, path, BUFFERED, 'IN_USE', /./);
  shared.close();

  const mine = openImage(path, BUFFERED);
  refuses(t, path, BUFFERED, 'IN_USE', /./);
  mine.close();

  await order('write');
  child.kill('SIGKILL');
  await once(child, 'exit');
  openImage(path, BUFFERED).close();
});

t.test('--direct: alignment told, or refused with the way out', async (t) => {
  for (const parent of FOLDERS) {
    const path = join(temporaryFolder(t, parent), 'disk.img');
    const options: ImageOptions = { ...BUFFERED, direct: true, blockSize: 4096, size: 65536 };
    let image: ReturnType<typeof openImage>;
    try {
      image = openImage(path, options);
    } catch (error) {
      t.match(error, { code: 'ERR_VDUSE_IMAGE_DIRECT', message: /without --direct/ });
      t.notOk(existsSync(path), 'the image made for it is gone');
      continue;
    }
    t.match(
      readFileSync(`/proc/self/fdinfo/${image.fd.fd}`, 'utf8'),
      /^flags:\s+0*[0-7]*[4-7][0-7]{4}$/m,
    );
    t.match(image, { direct: true, created: true });
    t.equal(image.target.mayBlock, true);
    const { blockSize, memoryAlignment } = image.info;
    t.ok([1, 512, 4096].includes(blockSize), `blocks of ${blockSize}`);
    t.equal(memoryAlignment & (memoryAlignment - 1), 0, `memory at ${memoryAlignment}`);
    image.close();
  }
});

t.test(
  '--direct without direct I/O below: refused, and the image made for it is gone',
  async (t) => {
    const folder = temporaryFolder(t, FOLDERS[0]!);
    if (spawnSync('mount', ['-t', 'ramfs', 'none', folder]).status !== 0) {
      t.comment('no right to mount here: run in the test machine');
      return;
    }
    t.teardown(() => spawnSync('umount', [folder]));
    const path = join(folder, 'disk.img');
    const options: ImageOptions = { ...BUFFERED, direct: true, size: 65536 };
    refuses(t, path, options, 'DIRECT', /no direct I\/O \(serve it without --direct\)/);
    t.notOk(existsSync(path));
    writeFileSync(path, new Uint8Array(65536));
    refuses(t, path, options, 'DIRECT', /no direct I\/O/);
    t.ok(existsSync(path));
  },
);

t.test('block devices', async (t) => {
  const folder = temporaryFolder(t, FOLDERS[0]!);
  const file = join(folder, 'backing.img');
  writeFileSync(file, new Uint8Array(1 << 20));
  const device = attachLoop(t, file);
  if (device === undefined) {
    t.comment('no loop devices here: run in the test machine');
    return;
  }
  const image = openImage(device, { ...BUFFERED, size: 1 << 20 });
  t.match(image, { kind: 'block', created: false });
  t.equal(image.info.capacity, 1 << 20);
  t.match(image.target, { mayBlock: true, allocationUnit: 512 });
  refuses(t, device, BUFFERED, 'IN_USE', /mounted or in use|another process/);
  refuses(t, device, READ_ONLY, 'IN_USE', /another process/);
  image.close();
  refuses(t, device, { ...BUFFERED, size: 512 }, 'SIZE', /has 1048576 bytes/);

  const readers = [openImage(device, READ_ONLY), openImage(device, READ_ONLY)];
  for (const reader of readers) reader.close();

  const direct = openImage(device, { ...BUFFERED, direct: true });
  t.match(direct.info, { blockSize: 512 });
  direct.close();

  const locked = join(folder, 'locked.img');
  writeFileSync(locked, new Uint8Array(1 << 20));
  const readOnly = attachLoop(t, locked, '--read-only')!;
  refuses(t, readOnly, BUFFERED, 'READ_ONLY', /read-only.*--read-only/);
  openImage(readOnly, READ_ONLY).close();

  const large = join(folder, 'large.img');
  writeFileSync(large, new Uint8Array(1 << 20));
  const native4k = attachLoop(t, large, '--sector-size', '4096')!;
  refuses(t, native4k, { ...BUFFERED, direct: true }, 'BLOCK_SIZE', /--block-size 4096/);
  const wide = openImage(native4k, { ...BUFFERED, direct: true, blockSize: 4096 });
  t.match(wide.info, { blockSize: 4096, physicalBlockSize: 4096 });
  t.equal(wide.target.allocationUnit, 4096);
  wide.close();
});
