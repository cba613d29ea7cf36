import fc from 'fast-check';
import t from 'tap';
import { ageKnowledge, CachedPages, Copy, createKnowledge } from '../../lib/store/cached-pages.ts';

const MIB = 2 ** 20;
const CAPACITY = 8 * MIB;
const PAGE = 4096;
const SECOND = 1_000_000;

const copies = (copy: Copy) => copy === Copy.Yes || copy === Copy.Watched;

/** What the addon would say. */
class Clock {
  us = 5 * SECOND;
  slow = 0;

  clockUs(): number {
    return this.us | 0;
  }

  slowCopies(): number {
    return this.slow;
  }
}

function fresh(capacity = CAPACITY, writtenBack = true) {
  const clock = new Clock();
  const knowledge = createKnowledge(capacity)!;
  const pages = new CachedPages({ knowledge, writtenBack }, capacity, clock);
  const at = (offset: number, length = PAGE) => ({ offset, length });
  const reads = (offset: number, length = PAGE) => pages.canCopy(at(offset, length), false);
  const writes = (offset: number) => pages.canCopy(at(offset), true);
  /** Ask so often that the clock is looked at. */
  const look = () => {
    for (let i = 0; i < 64; i++) reads(capacity - PAGE);
  };
  return { clock, knowledge, pages, reads, writes, look };
}

t.test('pages are known for 8 to 17 seconds, and longer while they are asked for', async (t) => {
  const { clock, pages, reads, look } = fresh();
  t.equal(copies(reads(0)), false);
  pages.learn(0, PAGE);
  pages.learn(4 * MIB, PAGE);
  t.equal(copies(reads(0)), true);
  for (let second = 0; second < 40; second += 4) {
    clock.us += 4 * SECOND;
    look();
    t.equal(copies(reads(0)), true, `asked for after ${second} s`);
  }
  t.equal(copies(reads(4 * MIB)), false, 'nobody asked for it');
});

t.test(
  'a page that is learnt anew in a forgotten chunk does not bring the others back',
  async (t) => {
    const { knowledge, pages, reads, look } = fresh();
    pages.learn(0, 2 * MIB);
    t.equal(copies(reads(MIB)), true);
    ageKnowledge(knowledge, 2);
    look();
    t.equal(copies(reads(MIB)), false);
    pages.learn(0, PAGE);
    t.equal(copies(reads(0)), true);
    t.equal(copies(reads(MIB)), false);
  },
);

t.test('a watched copy that waited makes it forget all and pause, longer each time', async (t) => {
  const { clock, pages, reads, look } = fresh();
  const pauses: number[] = [];
  for (let round = 0; round < 12; round++) {
    pages.learn(0, PAGE);
    look();
    t.equal(copies(reads(0)), true);
    clock.slow++;
    look();
    const from = clock.us;
    while (!copies(reads(0))) {
      pages.learn(0, PAGE);
      clock.us += SECOND / 10;
      look();
      if (clock.us - from > 1000 * SECOND) break;
    }
    pauses.push(Math.round((clock.us - from) / SECOND));
  }
  t.same(pauses, [1, 1, 2, 4, 8, 16, 32, 64, 128, 128, 128, 128]);
  clock.us += 1000 * SECOND;
  look();
  clock.slow++;
  look();
  clock.us += 0.7 * SECOND;
  look();
  pages.learn(0, PAGE);
  t.equal(copies(reads(0)), true, 'after a long time in peace it begins anew');
});

t.test('one copy in 32 transfers is watched', async (t) => {
  const { pages, reads } = fresh();
  pages.learn(0, PAGE);
  reads(0);
  const how = Array.from({ length: 320 }, () => reads(0));
  t.equal(how.filter((copy) => copy === Copy.Watched).length, 10);
  t.equal(how.filter((copy) => copy === Copy.Yes).length, 310);
});

t.test('long transfers are calls', async (t) => {
  const { pages, reads } = fresh();
  pages.learn(0, MIB);
  t.equal(copies(reads(0, 32 * PAGE)), true);
  t.equal(copies(reads(0, 33 * PAGE)), false);
});

t.test('writes are copied where there are many between two write-backs', async (t) => {
  const { clock, pages, writes, look } = fresh();
  pages.learn(0, CAPACITY);
  const heat = () => {
    let count = 0;
    while (!copies(writes(0)) && count < 10_000) count++;
    return count;
  };
  t.equal(heat(), 512);
  t.equal(writes(4 * MIB), Copy.No, 'elsewhere; nothing need be learnt there');
  pages.writtenBack();
  t.equal(heat(), 512, 'after a flush');
  clock.us += 60 * SECOND;
  look();
  pages.learn(0, CAPACITY);
  t.equal(heat(), 512, 'after the kernel has had time to do it');
});

t.test('writes of a file that is never written back are copied at once', async (t) => {
  const { pages, writes } = fresh(CAPACITY, false);
  t.equal(writes(0), Copy.Later);
  pages.learn(0, PAGE);
  t.equal(copies(writes(0)), true);
  pages.writtenBack();
  t.equal(copies(writes(0)), true);
});

t.test('the clock may wrap', async (t) => {
  const { clock, pages, reads, look } = fresh();
  clock.us = 2 ** 32 - SECOND;
  look();
  pages.learn(0, PAGE);
  clock.us += 2 * SECOND;
  look();
  // What is known may be lost then, nothing else.
  reads(0);
  pages.learn(0, PAGE);
  t.equal(copies(reads(0)), true);
});

t.test('there is no knowledge of more than 16 TiB', async (t) => {
  t.equal(createKnowledge(2 ** 44 + 1), undefined);
});

const steps = fc.array(
  fc.record({
    what: fc.constantFrom('learn', 'learn', 'ask', 'forget', 'age'),
    page: fc.integer({ min: 0, max: 2047 }),
    pages: fc.integer({ min: 1, max: 600 }),
  }),
  { minLength: 1, maxLength: 60 },
);

t.test('what it says is known was learnt and not forgotten since', async (t) => {
  t.doesNotThrow(() =>
    fc.assert(
      fc.property(steps, (list) => {
        const { knowledge, pages, reads, look } = fresh();
        const known = new Set<number>();
        for (const step of list) {
          const end = Math.min(2048, step.page + step.pages);
          const count = end - step.page;
          if (step.what === 'learn') {
            pages.learn(step.page * PAGE, count * PAGE);
            for (let page = step.page; page < end; page++) known.add(page);
            // Right after, it is known.
            if (!copies(reads(step.page * PAGE))) return false;
          } else if (step.what === 'forget') {
            pages.forget(step.page * PAGE, count * PAGE);
            for (let page = step.page; page < end; page++) known.delete(page);
          } else if (step.what === 'age') {
            ageKnowledge(knowledge, 2);
            look();
            known.clear();
          } else if (copies(reads(step.page * PAGE, Math.min(count, 32) * PAGE))) {
            for (let page = step.page; page < step.page + Math.min(count, 32); page++) {
              if (!known.has(page)) return false;
            }
          }
        }
        return true;
      }),
      { numRuns: 300 },
    ),
  );
});
