import fc from 'fast-check';
import t from 'tap';
import { BlockStatus, BlockType } from '../../lib/block/index.ts';
import {
  Bench,
  CAPACITY,
  type Cut,
  concat,
  header,
  ranges,
  TestRequest,
  UNWRITTEN,
} from './harness.ts';

/** Any way to cut `length` bytes into descriptors, at any alignment. */
function cuts(length: number): fc.Arbitrary<Cut> {
  // Where header and status usually end and begin, as often as anywhere else.
  const usual = fc.constantFrom(16, length - 1);
  const border = fc.oneof(usual, fc.integer({ min: 1, max: Math.max(1, length - 1) }));
  return fc.array(border, { maxLength: 12 }).chain((points) => {
    const borders = [...new Set([0, ...points.filter((p) => p > 0 && p < length), length])];
    borders.sort((a, b) => a - b);
    const lengths = borders.slice(1).map((border, i) => border - borders[i]!);
    const offset = fc.integer({ min: 0, max: 7 });
    return fc.record({
      lengths: fc.constant(lengths),
      offsets: fc.array(offset, { minLength: lengths.length, maxLength: lengths.length }),
    });
  });
}

const types = fc.constantFrom(...Object.values(BlockType), 10, 14, 2, 0xffffffff);
const sectors = fc.oneof(
  fc.integer({ min: 0, max: CAPACITY / 512 + 2 }),
  fc.constantFrom(2n ** 32n, 2n ** 55n, 2n ** 63n, 2n ** 64n - 1n),
);
const dataBytes = fc.oneof(
  fc.integer({ min: 0, max: 6 }).map((blocks) => blocks * 512),
  fc.integer({ min: 0, max: 1600 }),
);

/** Bytes behind the header: data of a write, or something like ranges. */
const payloads = fc.oneof(
  dataBytes.chain((length) => fc.uint8Array({ minLength: length, maxLength: length })),
  fc
    .array(
      fc.record({
        sector: sectors,
        sectors: fc.integer({ min: 0, max: 20 }),
        flags: fc.constantFrom(0, 0, 1, 2),
      }),
      { minLength: 1, maxLength: 17 },
    )
    .map((list) => ranges(...list)),
);

t.test('any cut of header, data and status gives the same result', async (t) => {
  const shapes = fc
    .record({ type: types, sector: sectors, payload: payloads, space: dataBytes })
    .chain(({ type, sector, payload, space }) => {
      const readable = concat(header(type, sector), payload);
      return fc.record({
        readable: fc.constant(readable),
        writable: fc.constant(space + 1),
        readableCut: cuts(readable.length),
        writableCut: cuts(space + 1),
        immediate: fc.boolean(),
      });
    });
  fc.assert(
    fc.property(shapes, ({ readable, writable, readableCut, writableCut, immediate }) => {
      const plain = new Bench();
      const plainRequest = new TestRequest({ readable, writable });
      plain.run(plainRequest);

      const cut = new Bench({}, { immediate });
      const cutRequest = new TestRequest({ readable, writable, readableCut, writableCut });
      cut.begin(cutRequest);
      cut.store.run();

      const pieces = cut.store.operations.flatMap((operation) => operation.pieces);
      return (
        cutRequest.intact &&
        pieces.every((piece) => piece.length > 0) &&
        Buffer.compare(cutRequest.written, plainRequest.written) === 0 &&
        Buffer.compare(cut.bytes, plain.bytes) === 0 &&
        JSON.stringify(cut.port) === JSON.stringify(plain.port) &&
        String(cut.counters) === String(plain.counters)
      );
    }),
    { numRuns: 2000 },
  );
  t.pass('2000 layouts');
});

t.test('whatever comes is answered once, and every byte reported was written', async (t) => {
  const anything = fc
    .record({
      readable: fc.oneof(
        fc.uint8Array({ maxLength: 100 }),
        fc
          .record({ type: types, sector: sectors, payload: payloads })
          .map((r) => concat(header(r.type, r.sector), r.payload)),
      ),
      writable: fc.integer({ min: 0, max: 3000 }),
      blockSize: fc.constantFrom(512 as const, 4096 as const),
      readOnly: fc.boolean(),
      features: fc.bigInt({ min: 0n, max: 2n ** 20n }),
    })
    .chain((shape) =>
      fc.record({
        shape: fc.constant(shape),
        readableCut: shape.readable.length ? cuts(shape.readable.length) : fc.constant(undefined),
        writableCut: shape.writable ? cuts(shape.writable) : fc.constant(undefined),
      }),
    );
  fc.assert(
    fc.property(anything, ({ shape, readableCut, writableCut }) => {
      const { readable, writable, blockSize, readOnly, features } = shape;
      const bench = new Bench({ blockSize, readOnly, driverFeatures: features });
      const before = bench.bytes.slice();
      const empty = { lengths: [], offsets: [] };
      const request = new TestRequest({
        readable,
        writable,
        readableCut: readableCut ?? empty,
        writableCut: writableCut ?? empty,
      });
      bench.begin(request);
      const { answers, failures } = bench.port;
      if (!request.intact || answers.length + failures.length !== 1) return false;
      if (readOnly && Buffer.compare(before, bench.bytes) !== 0) return false;
      if (writable === 0) return failures[0]!.reason === 'no-status-byte';
      const used = answers[0]!.written;
      const known: number[] = Object.values(BlockStatus);
      return (
        known.includes(request.status) &&
        used <= writable &&
        !request.written.subarray(0, used).includes(UNWRITTEN)
      );
    }),
    { numRuns: 3000 },
  );
  t.pass('3000 requests');
});
