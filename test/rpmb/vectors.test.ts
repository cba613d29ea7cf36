import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { inflateSync } from 'node:zlib';
import t from 'tap';
import { Bench, makeState } from './harness.ts';

const FOLDER = new URL('../vectors/rpmb/', import.meta.url);
const TEXT = readFileSync(new URL('vectors.json', FOLDER), 'utf8');

interface Vectors {
  readonly sessions: readonly {
    readonly name: string;
    readonly counter: number;
    readonly maxWrite: number;
    readonly maxRead: number;
    readonly steps: readonly { what: string; room: number; request: string; reply: string }[];
  }[];
}

const unpack = (text: string) => new Uint8Array(inflateSync(Buffer.from(text, 'base64')));

for (const session of (JSON.parse(TEXT) as Vectors).sessions) {
  t.test(`frames of an independent program get its answers: ${session.name}`, async (t) => {
    const bench = new Bench(
      makeState({
        initialCounter: session.counter,
        maxWriteBlocks: session.maxWrite,
        maxReadBlocks: session.maxRead,
      }),
    );
    for (const { what, room, request, reply } of session.steps) {
      const answer = bench.send(unpack(request), room);
      t.same(Buffer.from(answer).toString('hex'), Buffer.from(unpack(reply)).toString('hex'), what);
    }
  });
}

t.test('the vectors are what their script makes', async (t) => {
  const script = new URL('make_vectors.py', FOLDER).pathname;
  const { error, stdout } = spawnSync('python3', [script], { encoding: 'utf8' });
  // Where there is no Python the checked-in vectors are what counts.
  t.ok(error !== undefined || stdout === TEXT);
});
