import fc from 'fast-check';
import t from 'tap';
import { FRAME_BYTES, MAX_COUNTER, putFrame } from '../../lib/rpmb/frame.ts';
import { signFrames } from '../../lib/rpmb/mac.ts';
import { Bench, KEY, makeState, OTHER_KEY, SMALL_BLOCKS } from './harness.ts';
import { Model } from './model.ts';

const MAX_WRITE = 3;
const MAX_READ = 4;

/** One frame of a request; `counter` is relative to the device's, `address` mostly near an end. */
interface Shape {
  readonly type: number;
  readonly blockCount: number;
  readonly address: number;
  readonly counter: number;
  readonly fill: number;
  readonly key: number;
}

const shape: fc.Arbitrary<Shape> = fc.record({
  type: fc.oneof(
    { weight: 8, arbitrary: fc.integer({ min: 1, max: 5 }) },
    { weight: 1, arbitrary: fc.constantFrom(0, 6, 0x0300, 0xffff) },
  ),
  blockCount: fc.oneof(
    { weight: 4, arbitrary: fc.integer({ min: 1, max: 3 }) },
    { weight: 1, arbitrary: fc.constantFrom(0, 4, 5, 0xffff) },
  ),
  address: fc.constantFrom(0, 1, 2, SMALL_BLOCKS - 2, SMALL_BLOCKS - 1, SMALL_BLOCKS, 0xffff),
  counter: fc.constantFrom(0, 0, 0, 0, 1, -1),
  fill: fc.integer({ min: 0, max: 255 }),
  key: fc.constantFrom(0, 0, 0, 0, 1),
});

/** Any frames one after another, or a request as it should be. */
const request: fc.Arbitrary<{ shapes: Shape[]; resultRead: boolean; room: number }> = fc.record({
  shapes: fc.oneof(
    { weight: 1, arbitrary: fc.array(shape, { minLength: 1, maxLength: 6 }) },
    {
      weight: 4,
      arbitrary: shape.map((first) =>
        first.type === 3 && first.blockCount >= 1 && first.blockCount <= 5
          ? Array.from({ length: first.blockCount }, () => first)
          : [first],
      ),
    },
  ),
  resultRead: fc.boolean(),
  room: fc.constantFrom(0, 1, 1, 2, 4, 6),
});

function build(shapes: readonly Shape[], resultRead: boolean, counter: number): Uint8Array {
  const bytes = new Uint8Array((shapes.length + (resultRead ? 1 : 0)) * FRAME_BYTES);
  shapes.forEach((parts, i) => {
    putFrame(bytes, i * FRAME_BYTES, {
      type: parts.type,
      blockCount: parts.blockCount,
      address: parts.address,
      writeCounter: (counter + parts.counter) >>> 0,
      nonce: new Uint8Array(16).fill(parts.fill),
      data: new Uint8Array(256).fill(parts.fill),
      ...(parts.type === 1 ? { keyMac: parts.key === 0 ? KEY : OTHER_KEY } : {}),
    });
  });
  const [first] = shapes;
  if (first!.type === 3) signFrames(first!.key === 0 ? KEY : OTHER_KEY, bytes, 0, shapes.length);
  if (resultRead) putFrame(bytes, shapes.length * FRAME_BYTES, { type: 5, blockCount: 1 });
  return bytes;
}

const NOTHING: Shape = { type: 0, blockCount: 1, address: 0, counter: 0, fill: 0, key: 0 };

const START = new Map<number, Uint8Array>();
for (const counter of [0, MAX_COUNTER - 2]) {
  START.set(
    counter,
    makeState({ maxWriteBlocks: MAX_WRITE, maxReadBlocks: MAX_READ, initialCounter: counter }),
  );
}

t.test('the device answers as a second one, written from the specification alone', async (t) => {
  let answers = 0;
  fc.assert(
    fc.property(
      fc.constantFrom(...START.keys()),
      fc.boolean(),
      fc.array(request, { minLength: 1, maxLength: 25 }),
      (counter, keyed, requests) => {
        const bench = new Bench(START.get(counter)!.slice());
        const model = new Model({ counter, maxWrite: MAX_WRITE, maxRead: MAX_READ });
        const both = (bytes: Uint8Array, room: number) => {
          const ours = bench.send(bytes, room);
          const theirs = model.answer(bytes, room);
          if (typeof theirs === 'string') throw new Error(theirs);
          answers++;
          const same = Buffer.compare(ours, theirs) === 0;
          if (!same) throw new Error(`\n${describe(ours)}\n${describe(theirs)}`);
        };
        if (keyed) both(build([{ ...NOTHING, type: 1 }], true, 0), 1);
        for (const { shapes, resultRead, room } of requests) {
          both(build(shapes, resultRead, model.state.counter), room);
          if (bench.device.counter !== model.state.counter) throw new Error('counter');
          if (Buffer.compare(bench.data, model.state.data) !== 0) throw new Error('data');
        }
      },
    ),
    { numRuns: 250 },
  );
  t.ok(answers > 1000, `${answers} answers compared`);
});

function describe(reply: Uint8Array): string {
  return `${reply.length} bytes: ${Buffer.from(reply.subarray(196, 228)).toString('hex')} … ${Buffer.from(reply.subarray(484, 512)).toString('hex')}`;
}
