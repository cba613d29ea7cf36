import { execFileSync, spawnSync } from 'node:child_process';
import { chmodSync, closeSync, openSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { type KeyFileOptions, readKeyFile } from '../../lib/rpmb/key-file.ts';
import { storeInfo } from '../../lib/rpmb/state/file.ts';
import { BlockingStore, SyncFileStore } from '../../lib/store/sync-store.ts';
import { MemoryStore } from '../../lib/testing/memory-store.ts';
import { KEY, pattern, temporaryFolder } from './harness.ts';

const folder = temporaryFolder();

function fileOf(name: string, bytes: Uint8Array, mode = 0o600): string {
  const path = join(folder, name);
  writeFileSync(path, bytes);
  chmodSync(path, mode);
  return path;
}

function refusal(source: string | number, options?: KeyFileOptions): string {
  try {
    readKeyFile(source, options);
  } catch (error) {
    const { code, message } = error as Error & { code: string };
    if (code !== 'ERR_VDUSE_RPMB_KEY_FILE') throw error;
    if (!/^[^\n]+: [^\n]+ \([^\n]+\)$/.test(message)) throw new Error(message);
    return message;
  }
  throw new Error('it was read');
}

t.test('a key file is exactly 32 bytes that only its owner can read', async (t) => {
  const path = fileOf('key', KEY);
  t.same(readKeyFile(path), KEY);
  const link = join(folder, 'link');
  symlinkSync(path, link);
  t.same(readKeyFile(link), KEY, 'mounted secrets are links');
  for (const [length, said] of [
    [0, '0'],
    [31, '31'],
    [33, '33'],
    [65, '65'],
    [100_000, '100000'],
  ] as const) {
    const bytes = pattern(400, 3).subarray(0, length);
    t.match(refusal(fileOf('wrong', bytes)), `has ${said} bytes, not 32`);
  }
  t.match(refusal(join(folder, 'none')), /no such file \(.*head -c 32/);
  t.match(refusal(folder), /not a regular file/);
  const pipe = join(folder, 'pipe');
  execFileSync('mkfifo', ['-m', '600', pipe]);
  t.match(refusal(pipe), /not a regular file \(pass a pipe by --key-fd/);
});

t.test('a key others can read is refused, unless that is meant', async (t) => {
  for (const mode of [0o640, 0o604, 0o660, 0o602]) {
    const path = fileOf('open', KEY, mode);
    t.match(
      refusal(path),
      new RegExp(`0${mode.toString(8)} \\(chmod 600 it, or give --allow-read`),
    );
    t.same(readKeyFile(path, { allowReadable: true }), KEY);
  }
  const said = refusal(fileOf('open', KEY, 0o644), { allowOption: '--allow-readable-wrap-key' });
  t.match(said, /give --allow-readable-wrap-key/);
});

t.test('a key from a descriptor', async (t) => {
  const fd = openSync(fileOf('key', KEY), 'r');
  t.same(readKeyFile(fd), KEY);
  t.match(refusal(fd), /key descriptor \d+: has 0 bytes/, 'it is at its end now');
  closeSync(fd);
  t.match(refusal(fd), /EBADF/);
  const writable = openSync(join(folder, 'out'), 'w', 0o600);
  t.match(refusal(writable), /cannot be read/);
  closeSync(writable);
  const code = `
    const { readKeyFile } = await import(${JSON.stringify(new URL('../../lib/rpmb/key-file.ts', import.meta.url).href)});
    process.stdout.write(readKeyFile(0));`;
  const loader = process.execArgv.filter((arg) => arg.startsWith('--import='));
  const child = spawnSync(process.execPath, [...loader, '--input-type=module', '-e', code], {
    input: KEY,
  });
  t.same(new Uint8Array(child.stdout), KEY, 'through a pipe');
});

t.test('a refused key is in no message', async (t) => {
  const long = Buffer.concat([KEY, KEY]);
  const message = refusal(fileOf('long', long));
  t.notOk(message.includes(Buffer.from(KEY).toString('hex')));
  t.notOk(message.includes(Buffer.from(KEY).toString('latin1')));
});

t.test('a file as a store that completes at once', async (t) => {
  const path = fileOf('store', new Uint8Array(4096));
  const fd = openSync(path, 'r+');
  const store = new BlockingStore(
    (sink) => new SyncFileStore(fd, storeInfo(path, 4096, false), sink),
  );
  t.equal(store.write(100, pattern(1, 4)), 256);
  const back = new Uint8Array(256);
  t.equal(store.read(100, back), 256);
  t.same(back, pattern(1, 4));
  t.equal(store.read(4000, back), 96, 'cut short at the end');
  t.equal(store.sync(), 0);
  const ended: [number, number][] = [];
  const pieces = new SyncFileStore(fd, storeInfo(path, 4096, false), {
    completed: (token, result) => ended.push([token, result]),
  });
  const memory = { u8: pattern(2, 9), address: 0 };
  pieces.write(5, { offset: 0, length: 300 });
  pieces.addMemory(memory, 10, 100);
  t.same(ended, []);
  pieces.addMemory(memory, 200, 200);
  pieces.writeZeroes(6, 50, 10);
  pieces.discard(7);
  t.same(ended, [
    [5, 300],
    [6, 0],
    [7, 0],
  ]);
  const all = new Uint8Array(300);
  store.read(0, all);
  const expected = Buffer.concat([memory.u8.subarray(10, 110), memory.u8.subarray(200, 400)]);
  t.same(Buffer.from(all), expected.fill(0, 50, 60));
  closeSync(fd);
  t.equal(store.read(0, back), -9, 'errors are -errno');
  t.equal(store.sync(), -9);
  t.equal(store.sync(), -9, 'a sync that failed stays failed');
  const slow = new BlockingStore((sink) => new MemoryStore(new Uint8Array(512), sink));
  t.throws(() => slow.read(0, back), /does not complete at once/);
});
