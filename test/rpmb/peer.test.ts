/** From an empty folder to a replayed write, by command lines alone; another program speaks to the same device. */
import { execFileSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { temporaryFolder } from './harness.ts';
import { Daemon, mustRun, runProgram } from './programs.ts';

t.setTimeout(120_000);

const folder = temporaryFolder();
const PEER = fileURLToPath(new URL('peer.py', import.meta.url));
const NONCE = '00112233445566778899aabbccddeeff';

const put = (name: string, bytes: Uint8Array) =>
  writeFileSync(join(folder, name), bytes, { mode: 0o600 });
const get = (name: string) => readFileSync(join(folder, name));
const rpmb = (...args: string[]) => mustRun(folder, 'vduse', ['rpmb', ...args]);
const peer = (...args: string[]) => execFileSync('python3', [PEER, ...args], { cwd: folder });
const serve = () =>
  Daemon.start(folder, 'vduse', ['serve', 's.rpmb', '--type', 'rpmb', '--socket-path', 'r.sock']);

interface Reply {
  readonly type: number;
  readonly result: number;
  readonly counter: number;
  readonly data: string;
  readonly mac: boolean;
}

/** Send frames as they are; what came back, in the peer's words. */
function send(frames: Uint8Array, responses = 1): Reply {
  put('in', frames);
  rpmb('raw', 'unix:r.sock', '--in', 'in', '--out', 'out', '--responses', String(responses));
  return JSON.parse(peer('check', 'key', 'out').toString());
}

t.test('the life of a device, kill -9 in between', async (t) => {
  put('key', randomBytes(32));
  put('other', randomBytes(32));
  put('data', randomBytes(16 * 256));
  put('more', randomBytes(3 * 256));
  rpmb('create', 's.rpmb', '--size', '1M');
  const key = ['--key-file', 'key'];

  const first = await serve();
  rpmb('program-key', 'unix:r.sock', ...key);
  rpmb('write-blocks', 'unix:r.sock', '7', '16', 'data', ...key, '--save-frames', 'frames');
  rpmb('read-blocks', 'unix:r.sock', '7', '16', 'copy', ...key);
  t.ok(get('copy').equals(get('data')), 'what was written is read');
  t.equal(rpmb('write-counter', 'unix:r.sock', ...key), '1\n');
  t.ok(get('frames').equals(peer('write', 'key', '0', '7', 'data')), 'both make the same frames');
  const before = [send(peer('counter', NONCE)), send(peer('read', '7', '16', NONCE), 16)];
  t.match(before, [
    { type: 0x0200, result: 0, counter: 1, nonce: NONCE, mac: true },
    { type: 0x0400, result: 0, address: 7, blocks: 16, frames: 16, nonce: NONCE, mac: true },
  ]);
  t.equal(before[1]!.data, get('data').toString('hex'), 'the peer reads what we wrote');
  await first.kill();

  const second = await serve();
  const after = [send(peer('counter', NONCE)), send(peer('read', '7', '16', NONCE), 16)];
  t.same(after, before, 'after kill -9 the same answers: key, counter and data are kept');
  t.equal(rpmb('write-counter', 'unix:r.sock', ...key), '1\n', 'to our client too');

  const count = { type: 0x0300, result: 3, counter: 1, mac: true };
  t.match(send(get('frames')), count, 'our frames, sent again: COUNT_FAILURE');
  const written = peer('write', 'key', '1', '21', 'more');
  t.match(send(written), { type: 0x0300, result: 0, counter: 2, address: 21, mac: true });
  t.match(send(written), { ...count, counter: 2 }, "the peer's, sent again: COUNT_FAILURE");
  rpmb('read-blocks', 'unix:r.sock', '21', '3', 'copy', ...key);
  t.ok(get('copy').equals(get('more')), 'we read what the peer wrote');

  t.match(send(peer('key', 'other')), { type: 0x0100, result: 5 }, 'a second key: WRITE_FAILURE');
  const again = runProgram(folder, 'vduse', [
    ...['rpmb', 'program-key', 'unix:r.sock', '--key-file', 'other'],
  ]);
  t.equal(again.status, 1);
  t.match(again.stderr, /^vduse: [^\n]*WRITE_FAILURE[^\n]* \([^\n]+\)\n$/, again.stderr.trim());
  const wrong = send(peer('write', 'other', '2', '0', 'more'));
  t.match(wrong, { type: 0x0300, result: 2, counter: 2 }, 'another key: AUTH_FAILURE');
  t.equal(await second.stop(), 0);
});
