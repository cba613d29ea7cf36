import { join } from 'node:path';
import t, { type Test } from 'tap';
import { told } from './told.ts';

/** Wrong usage: one line that has `words`, a remedy in parentheses, status 64, nothing on stdout. */
async function wrong(t: Test, args: readonly string[], words: string): Promise<void> {
  const name = `vduse ${args.join(' ')}`;
  const { status, stdout, stderr } = await told(t, args);
  t.equal(status, 64, `${name}: status 64`);
  t.match(stderr, /^vduse: [^\n]+ \([^\n]+\)\n$/, `${name}: ${stderr.trim()}`);
  t.ok(stderr.includes(words), `${name}: says "${words}"`, { stderr });
  t.equal(stdout, '', `${name}: nothing on stdout`);
}

const IMAGE = '/nowhere/disk.img';
const serve = (...options: string[]) => ['serve', IMAGE, ...options];

t.test('commands and arguments', async (t) => {
  await wrong(t, [], 'no command');
  await wrong(t, ['bogus'], 'bogus');
  await wrong(t, ['serv', IMAGE], 'serve');
  await wrong(t, ['serve'], 'no image');
  await wrong(t, ['serve', ''], 'no image');
  await wrong(t, ['serve', IMAGE, 'another'], 'another');
  await wrong(t, ['attach'], 'vduse --help');
  await wrong(t, ['attach', 'a', 'b'], 'b');
  await wrong(t, ['detach'], 'vduse --help');
  await wrong(t, ['destroy'], 'vduse --help');
  await wrong(t, ['list', 'extra'], 'extra');
  await wrong(t, serve('--bogus'), 'bogus');
  await wrong(t, serve('--queue', '3'), 'queue');
  await wrong(t, ['list', '--attach'], 'attach');
});

t.test('numbers, with their limits', async (t) => {
  for (const queues of ['0', '-1', '257', '70000', '1.5']) {
    await wrong(t, serve(`--queues=${queues}`), '1 to 256');
  }
  for (const size of ['0', '2', '3', '2048', '-4', '256.5']) {
    await wrong(t, serve(`--queue-size=${size}`), 'power of two from 4 to 1024');
  }
  for (const size of ['0', '1000', '1024']) {
    await wrong(t, serve(`--block-size=${size}`), '512 or 4096');
  }
  for (const threads of ['0', '65', '1.5']) {
    await wrong(t, serve(`--threads=${threads}`), '1 to 64');
  }
  for (const micros of ['-1', '1.5']) await wrong(t, serve(`--poll-us=${micros}`), '0 to 1000000');
  for (const option of ['queues', 'queue-size', 'block-size', 'threads', 'poll-us', 'fd']) {
    await wrong(t, serve(`--${option}`), option);
    for (const text of ['abc', '', ' ', '1x', 'Infinity', 'NaN']) {
      await wrong(t, serve(`--${option}=${text}`), 'not a number');
    }
  }
  // The last one counts, a 1 too.
  await wrong(t, serve('--queues', '4', '--queues', '1', '--queue-size', '3'), '--queue-size 3');
  await wrong(t, serve('--queues', '256', '--queues', '257'), '--queues 257');
});

t.test('sizes', async (t) => {
  for (const size of ['0', '0G', '-1', 'junk', '', '1.5G', '10KB', '1 G', '99999999T']) {
    await wrong(t, serve(`--size=${size}`), `'${size}'`);
  }
});

t.test('device names', async (t) => {
  const long = 'x'.repeat(64);
  for (const name of [
    '',
    long,
    'control',
    '../x',
    'a/b',
    '.',
    '..',
    '.x',
    '_x',
    '-x',
    'a b',
    'ü',
    'a\n',
    'a\0',
  ]) {
    await wrong(t, serve(`--name=${name}`), '--name');
  }
  await wrong(t, serve('--name', '-x'), 'name');
  await wrong(t, ['serve', '/nowhere/my disk.img'], '--name');
  await wrong(t, ['serve', '/nowhere/'], '--name');
});

t.test('words', async (t) => {
  await wrong(t, serve('--serial', 's'.repeat(21)), '20 bytes');
  await wrong(t, serve('--serial', 'ü'.repeat(11)), '20 bytes');
  await wrong(t, serve('--engine', 'bogus'), 'engine');
  await wrong(t, serve('--ring', 'bogus'), 'ring');
});

t.test('what does not go together', async (t) => {
  const socket = join(t.testdir(), 's.sock');
  await wrong(t, serve('--attach', '--socket-path', socket), '--attach');
  await wrong(t, serve('--fd', '3', '--socket-path', socket), '--fd');
  await wrong(t, serve('--config', '/nowhere/c.json'), 'an image');
  await wrong(t, ['serve', '--config', '/nowhere/c.json', '--name', 'a'], '--name');
});

t.test('help and version are no errors', async (t) => {
  for (const args of [['--help'], ['serve', '--help'], ['--version']]) {
    const { status, stdout, stderr } = await told(t, args);
    t.equal(status, 0, args.join(' '));
    t.not(stdout, '');
    t.equal(stderr, '');
  }
  const { stdout } = await told(t, ['--help']);
  for (const command of ['serve', 'attach', 'detach', 'destroy', 'list', 'doctor']) {
    t.match(stdout, command);
  }
});
