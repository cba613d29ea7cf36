import fc from 'fast-check';
import t from 'tap';
import { BufferPool, roundUp } from '../../lib/frontend/buffer-pool.ts';
import { LatencyHistogram } from '../../lib/frontend/index.ts';

t.test('runs never overlap, and all comes back together', async (t) => {
  fc.assert(
    fc.property(
      fc.array(fc.record({ take: fc.boolean(), length: fc.integer({ min: 1, max: 4000 }) })),
      (steps) => {
        const pool = new BufferPool(0x1000, 16384 + 100);
        t.equal(pool.size, 16384);
        const taken: { start: number; length: number }[] = [];
        for (const { take, length } of steps) {
          if (!take) {
            const run = taken.splice(length % (taken.length || 1), 1)[0];
            if (run !== undefined) pool.give(run.start, run.length);
            continue;
          }
          const start = pool.take(length);
          if (start < 0) continue;
          t.ok(start >= 0x1000 && start + length <= 0x1000 + 16384);
          for (const other of taken) {
            const apart =
              start + roundUp(length) <= other.start ||
              other.start + roundUp(other.length) <= start;
            t.ok(apart);
          }
          taken.push({ start, length });
        }
        for (const run of taken) pool.give(run.start, run.length);
        t.equal(pool.take(16384), 0x1000, 'whole again');
        t.equal(pool.take(1), -1);
      },
    ),
    { numRuns: 100 },
  );
});

t.test('quantiles', async (t) => {
  const histogram = new LatencyHistogram();
  t.equal(histogram.quantile(0.5), 0);
  for (let i = 1; i <= 1000; i++) histogram.add(i);
  const near = (actual: number, expected: number) =>
    t.ok(Math.abs(actual / expected - 1) < 1 / 30, `${actual} is about ${expected}`);
  near(histogram.quantile(0.5), 500);
  near(histogram.quantile(0.99), 990);
  t.equal(histogram.quantile(1), 1000);
  t.equal(histogram.max, 1000);
  const other = new LatencyHistogram();
  other.add(1e9);
  other.add(0);
  other.merge(histogram);
  t.equal(other.count, 1002);
  near(other.quantile(0.5), 500);
  t.equal(other.max, 1e9);
});
