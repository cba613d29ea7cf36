/** The program with the reference's options, over real sockets. */
import { randomBytes } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { VhostUserFrontend } from '../../lib/frontend/index.ts';
import { native } from '../../lib/native/index.ts';
import { RpmbClient } from '../../lib/rpmb/client.ts';
import { parseConfig } from '../../lib/rpmb/config.ts';
import { createState } from '../../lib/rpmb/state/create.ts';
import { inspectState } from '../../lib/rpmb/state/inspect.ts';
import { KEY, OTHER_KEY, pattern, temporaryFolder } from './harness.ts';
import { Daemon, runProgram } from './programs.ts';

t.setTimeout(120_000);

const PROGRAM = 'vhost-user-rpmb';
const folder = temporaryFolder();
const put = (name: string, bytes: Uint8Array, mode = 0o600) =>
  writeFileSync(join(folder, name), bytes, { mode });
put('key', KEY);
put('other', OTHER_KEY);
put('short', KEY.subarray(1));
put('open', KEY, 0o644);
put('raw', randomBytes(128 << 10));

const make = (name: string) => createState(join(folder, name), { size: 128 << 10 }, native);
const inspect = (name: string) => inspectState(join(folder, name), native);
const start = (args: readonly string[], fds: readonly number[] = []) =>
  Daemon.start(folder, PROGRAM, args, fds);

/** Use the device behind a socket as a virtual machine would. */
async function use<T>(
  target: { path: string } | { fd: number },
  work: (client: RpmbClient) => Promise<T>,
): Promise<T> {
  const frontend = await VhostUserFrontend.connect(target);
  try {
    const limits = parseConfig(await frontend.readConfig(0, 3), PROGRAM);
    const [queue] = await frontend.start({});
    return await work(
      new RpmbClient({
        name: PROGRAM,
        limits,
        exchange: async (request, frames) => {
          const { written, data } = await queue!.submit([request], [frames * 512]);
          return data[0]!.subarray(0, written);
        },
        getRandom: (into) => native.getRandom(into),
      }),
    );
  } finally {
    await frontend.close();
  }
}

t.test('--print-capabilities says what it is, whatever else is given', async (t) => {
  for (const args of [
    ['--print-capabilities'],
    ['--bogus', '--print-capabilities', '--fd=1', '--socket-path=x', 'word'],
  ]) {
    const { status, stdout, stderr } = runProgram(folder, PROGRAM, args);
    t.equal(status, 0);
    t.match(JSON.parse(stdout), { type: 'block' });
    t.equal(stderr, '');
  }
});

t.test('--help names every option, --version is that of the package', async (t) => {
  const help = runProgram(folder, PROGRAM, ['--help']);
  t.equal(help.status, 0);
  for (const option of [
    ...['socket-path', 'fd', 'flash-path', 'key-path', 'key-set', 'initial-counter'],
    ...['print-capabilities', 'verbose', 'debug', 'version', 'help', 'allow-readable-key'],
  ]) {
    t.ok(help.stdout.includes(`--${option}`), option);
  }
  t.match(help.stdout, / -v[, ]/);
  const version = runProgram(folder, PROGRAM, ['--version']);
  t.match(version.stdout, /^\d+\.\d+\.\d+\n$/);
});

t.test(
  '--key-set programs the key of --key-path once, --initial-counter counts once',
  async (t) => {
    make('keyed');
    const path = join(folder, 'keyed.sock');
    const args = [
      ...['--socket-path=keyed.sock', '--flash-path=keyed', '--key-path=key', '--key-set'],
      '--initial-counter=41',
    ];
    const data = pattern(2, 5);
    const first = await start([...args, '-v']);
    await use({ path }, async (client) => {
      t.equal(await client.readCounter(KEY), 41);
      t.equal(await client.writeBlocks(KEY, 3, data), 42);
      await t.rejects(client.programKey(OTHER_KEY), /WRITE_FAILURE|write failure/i, 'a second key');
    });
    t.equal(await first.stop(), 0);
    t.match(first.lines.join('\n'), /queue 0: \d+ requests/, '-v tells what was served');

    const again = await start([...args, '--debug']);
    t.match(JSON.parse(again.ready), { event: 'ready', type: 'rpmb', keyProgrammed: true });
    await use({ path }, async (client) => {
      t.equal(await client.readCounter(KEY), 42, 'the counter is that of the state');
      t.same(await client.readBlocks(3, 2, KEY), data);
    });
    t.equal(await again.stop(), 0);
    t.match(JSON.parse(again.lines.at(-1)!), { event: 'stopped', queues: [{ requests: Number }] });

    const other = runProgram(folder, PROGRAM, args.with(2, '--key-path=other'));
    t.equal(other.status, 1);
    t.match(other.stderr, /^vduse: [^\n]*keyed: has another key \([^\n]+\)\n$/);
  },
);

t.test('without --key-set the guest programs its key, and it is kept', async (t) => {
  make('blank');
  const path = join(folder, 'blank.sock');
  // The reference keeps the key there; ours does not read what it has no use for.
  const args = ['--socket-path', 'blank.sock', '--flash-path', 'blank', '--key-path', 'none'];
  const first = await start(args);
  t.match(first.ready, /ready/);
  await use({ path }, async (client) => {
    await t.rejects(client.readCounter(), /NO_AUTH_KEY|no.*key/i);
    await client.programKey(OTHER_KEY);
  });
  t.equal(await first.stop(), 0);
  t.same(first.lines, [], 'without -v nothing more');
  t.ok(inspect('blank').keyProgrammed);
});

t.test('--fd: a socket that listens, and one that is connected', async (t) => {
  make('passed');
  const path = join(folder, 'listen.sock');
  const listener = native.unixListen(path, 4);
  const listening = await start(['--fd=3', '--flash-path=passed'], [listener.fd]);
  listener.close();
  await use({ path }, (client) => client.programKey(KEY));
  await use({ path }, async (client) =>
    t.equal(await client.writeBlocks(KEY, 0, pattern(1, 1)), 1),
  );
  t.equal(await listening.stop(), 0);

  const [ours, theirs] = native.unixPair();
  const connected = await start(['--fd', '3', '--flash-path', 'passed'], [theirs.fd]);
  theirs.close();
  const { fd } = ours;
  await use({ fd }, async (client) => t.equal(await client.readCounter(KEY), 1));
  t.equal(await connected.ended, 0, 'it ends with its connection');
});

t.test('what cannot be served is refused with a remedy', async (t) => {
  make('idle');
  const socket = ['--socket-path', 'x.sock'];
  const state = ['--flash-path', 'idle'];
  const cases: [string[], number, RegExp][] = [
    [[], 64, /no socket/],
    [[...socket, ...state, '--fd', '3'], 64, /--fd/],
    [[...state, '--fd', '99'], 1, /99/],
    [[...socket, ...state, '--key-set'], 64, /--key-path/],
    [[...socket, ...state, '--initial-counter', 'x'], 64, /not a number/],
    [[...socket, ...state, '--key-set', '--key-path', 'short'], 1, /has 31 bytes, not 32/],
    [[...socket, ...state, '--key-set', '--key-path', 'open'], 1, /--allow-readable-key/],
    [[...socket, ...state, '--key-set', '--key-path', 'none'], 1, /none: no such file/],
    [[...socket, '--flash-path', 'raw'], 1, /rpmb create.*--from/],
  ];
  for (const [args, status, words] of cases) {
    const ended = runProgram(folder, PROGRAM, args);
    t.equal(ended.status, status, args.join(' '));
    t.match(ended.stderr, /^vduse: [^\n]+ \([^\n]+\)\n$/, ended.stderr.trim());
    t.match(ended.stderr, words);
    t.equal(ended.stdout, '');
  }
  t.notOk(inspect('idle').keyProgrammed);
  t.equal(inspect('idle').writeCounter, 0);
});
