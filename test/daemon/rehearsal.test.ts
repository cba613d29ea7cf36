import { readdirSync, readFileSync } from 'node:fs';
import t from 'tap';
import { openBlockModel } from '../../lib/daemon/block-model.ts';
import { Rehearsal } from '../../lib/daemon/rehearsal.ts';
import { type Addon, native } from '../../lib/native/index.ts';

const TABLES = { models: { block: openBlockModel }, memories: {} };
const options = (engine: 'auto' | 'pool', pollUs = 0) => ({
  pollUs,
  policy: 'auto' as const,
  engine,
  rehearse: true,
});

/** What a process can leave behind: descriptors, threads, mappings of the rehearsal's files. */
function held() {
  return {
    descriptors: readdirSync('/proc/self/fd').length,
    mappings: readFileSync('/proc/self/maps', 'utf8').split('vduse-rehearsal').length - 1,
  };
}

/** The kernel's own for io_uring too: one that is kept wakes every five seconds. */
const threads = () => readdirSync('/proc/self/task').length;

// What opens once in a process, whoever comes first.
for (const _ of new Rehearsal(native).run(TABLES, options('pool')));
const before = held();

for (const engine of ['auto', 'pool'] as const) {
  t.test(`a rehearsal on the ${engine} engine gives all back`, async (t) => {
    const count = threads();
    let steps = 0;
    for (const _ of new Rehearsal(native).run(TABLES, options(engine, 100))) steps++;
    t.ok(steps > 50, 'orders are looked at in between');
    t.same(held(), before);
    t.equal(threads(), count, 'no thread is left');
  });

  t.test(`ended at any step on the ${engine} engine it gives all back`, async (t) => {
    for (let steps = 1; steps < 14; steps++) {
      const rehearsal = new Rehearsal(native).run(TABLES, options(engine));
      for (let i = 0; i < steps; i++) rehearsal.next();
      rehearsal.return();
      t.same(held(), before, `after ${steps} steps`);
    }
  });
}

t.test('what the system refuses is thrown, and nothing is left open', async (t) => {
  for (const name of ['memfd', 'eventfd', 'mmap', 'allocate'] as const) {
    for (let allowed = 0; allowed < 4; allowed++) {
      let calls = 0;
      const poor = Object.create(native, {
        [name]: {
          value: (...args: never[]) => {
            if (calls++ === allowed) throw new Error('EMFILE: a test');
            return (native[name] as (...args: never[]) => unknown)(...args);
          },
        },
      }) as Addon;
      t.throws(() => {
        for (const _ of new Rehearsal(poor).run(TABLES, options('pool')));
      }, /EMFILE/);
      t.same(held(), before, `${name} call ${allowed + 1}`);
    }
  }
});

t.test('what was compiled keeps the objects it was made for', async (t) => {
  const rehearsal = new Rehearsal(native);
  const run = rehearsal.run(TABLES, options('auto'));
  while (run.next().done !== true);
  t.equal(rehearsal.kept.length, 1, 'those of the last life');
});
