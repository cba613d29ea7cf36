/** What the RPMB tool says of bad input: one line, what and why and what to do; nothing on stdout. */
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { native } from '../../lib/native/index.ts';
import { createState } from '../../lib/rpmb/state/create.ts';
import { told } from '../cli/told.ts';
import { temporaryFolder } from './harness.ts';
import { Daemon, mustRun, runProgram } from './programs.ts';

t.setTimeout(120_000);

const folder = temporaryFolder();
const put = (name: string, bytes: number, mode = 0o600) =>
  writeFileSync(join(folder, name), new Uint8Array(bytes), { mode });
put('key', 32);
put('short', 31);
put('long', 33);
put('open', 32, 0o644);
put('empty', 0);
put('raw', 128 << 10);
native.unixListen(join(folder, 'dead.sock'), 1).close();
createState(join(folder, 'state'), { size: 128 << 10 }, native);
process.chdir(folder);
const before = readFileSync('state');

const write = (...rest: string[]) => ['write-blocks', 'file:state', ...rest, '--key-file', 'key'];
const program = (file: string) => ['program-key', 'file:state', '--key-file', file];

const WRONG: readonly [readonly string[], number, RegExp][] = [
  [['bogus'], 64, /bogus/],
  [[], 64, /no rpmb command/],
  [['create', 'n', '--size', 'junk'], 64, /'junk'/],
  [['create', 'n', '--size', '100K'], 1, /multiple of 128/],
  [['create', 'n', '--size', '17M'], 1, /16M/],
  [
    ['create', 'n', '--size', '1M', '--initial-counter', 'x'],
    64,
    /initial-counter x: not a number/,
  ],
  [['create', 'n', '--size', '1M', '--initial-counter=-1'], 1, /0 to 4294967295/],
  [['create', 'n', '--size', '1M', '--max-write-blocks', '256'], 1, /0 to 255/],
  [['create', 'state', '--size', '1M'], 1, /state/],
  [['create', 'n', '--size', '1M', '--key-file', 'short'], 1, /has 31 bytes, not 32/],
  [['get-info', 'state'], 1, /names no RPMB/],
  [['get-info', 'file:none'], 1, /no such file/],
  [['get-info', 'file:raw'], 1, /create.*--from/],
  [['get-info', 'unix:none'], 1, /cannot be reached: ENOENT/],
  [['get-info', 'unix:dead.sock'], 1, /cannot be reached: ECONNREFUSED/],
  [['get-info', `unix:${'x'.repeat(200)}`], 1, /1 to 107 bytes/],
  [program('short'), 1, /has 31 bytes, not 32/],
  [program('long'), 1, /has 33 bytes, not 32/],
  [program('none'), 1, /no such file/],
  [program('open'), 1, /0644 \(chmod 600 it, or give --allow-readable-key/],
  [['program-key', 'file:state'], 64, /no key/],
  [['program-key', 'file:state', '--key-fd', '99'], 1, /EBADF/],
  [['program-key', 'file:state', '--key-fd', 'x'], 64, /key-fd x: not a number/],
  [['program-key', 'file:state', '--key-id', '0'], 64, /not a key's serial/],
  [['program-key', 'file:state', '--key-file', 'key', '--key-fd', '0'], 64, /only one/],
  [write('x', '1', 'key'), 64, /address x/],
  [write('0', '1e3', 'key'), 64, /count 1e3/],
  [write('0', '0', 'key'), 64, /count 0/],
  [write('0', '1', 'key'), 64, /has 32 bytes, not the 256/],
  [write('0', '1', 'none'), 1, /none: cannot be read: ENOENT/],
  [write('0', '512', 'raw', '--save-frames', 'none/f'), 1, /none\/f: cannot be written: ENOENT/],
  [['write-blocks', 'file:state', '0', '512', 'raw'], 64, /no key/],
  [['read-blocks', 'file:state', '511', '2', '-'], 1, /0 to 511/],
  [['read-blocks', 'file:state', '0'], 64, /arguments/],
  [['raw', 'file:state', '--in', 'none', '--out', 'o'], 1, /none: cannot be read/],
  [['raw', 'file:state', '--in', 'empty', '--out', 'o'], 64, /is empty/],
  [['raw', 'file:state', '--in', 'raw', '--out', 'o', '--responses', '2000'], 64, /0 to 1024/],
  [['conform', 'file:state', '--earlier', 'raw'], 64, /--earlier raw/],
];

for (const [args, status, words] of WRONG) {
  t.test(`rpmb ${args.join(' ').slice(0, 80)}`, async (t) => {
    const ended = await told(t, ['rpmb', ...args]);
    t.equal(ended.status, status, `status ${status}`, { stderr: ended.stderr });
    t.match(ended.stderr, /^vduse: [^\n]+ \([^\n]+\)\n$/, ended.stderr.trim());
    t.match(ended.stderr, words);
    t.equal(ended.stdout, '', 'nothing on stdout');
    t.ok(before.equals(readFileSync('state')), 'the state is as it was');
  });
}

t.test('a state that is served cannot be opened by another, nor served twice', async (t) => {
  const daemon = await Daemon.start(folder, 'vduse', [
    ...['serve', 'state', '--type', 'rpmb', '--socket-path', 'r.sock'],
  ]);
  for (const [program, args] of [
    ['vduse', ['rpmb', 'write-counter', 'file:state']],
    ['vduse', ['serve', 'state', '--type', 'rpmb', '--socket-path', 'other.sock']],
    ['vhost-user-rpmb', ['--flash-path', 'state', '--socket-path', 'other.sock']],
  ] as const) {
    const { status, stderr } = runProgram(folder, program, args);
    t.equal(status, 1);
    t.match(stderr, /^vduse: [^\n]*state: [^\n]*(in use|use)[^\n]* \([^\n]+\)\n$/, stderr.trim());
  }
  mustRun(folder, 'vduse', ['rpmb', 'get-info', 'unix:r.sock']);
  t.equal(await daemon.stop(), 0);
});
