import fc from 'fast-check';
import t from 'tap';
import { MessageAssembler } from '../../../lib/virtio/vhost-user-assembler.ts';
import {
  buildConfig,
  buildMemRegion,
  buildMemTable,
  buildMessage,
  buildU64,
  buildVringAddresses,
  buildVringFd,
  buildVringState,
  FLAG_NEED_REPLY,
  FLAG_REPLY,
  parseConfig,
  parseHeader,
  parseMemRegion,
  parseMemTable,
  parseU64,
  parseVringAddresses,
  parseVringFd,
  parseVringState,
  Request,
  requestName,
  VhostUserError,
} from '../../../lib/virtio/vhost-user-messages.ts';

const u32 = fc.nat(0xffff_ffff);
const u64 = fc.bigInt({ min: 0n, max: 2n ** 64n - 1n });
const someRegion = fc.record({
  guestAddress: u64,
  size: u64,
  userAddress: u64,
  mmapOffset: u64,
});

/** What is built is parsed as it was, and no shorter or longer payload is taken. */
function roundTrip<T>(
  name: string,
  some: fc.Arbitrary<T>,
  build: (value: T) => Uint8Array,
  parse: (request: number, payload: Uint8Array) => T,
): void {
  t.test(name, async (t) => {
    fc.assert(
      fc.property(some, (value) => {
        const payload = build(value);
        t.same(parse(9, payload), value);
        const longer = new Uint8Array(payload.length + 1);
        longer.set(payload);
        for (const wrong of [longer, payload.subarray(0, -1)]) {
          t.throws(() => parse(9, wrong), VhostUserError);
        }
      }),
      { numRuns: 30 },
    );
  });
}

roundTrip('u64', u64, buildU64, parseU64);
roundTrip('vring state', fc.record({ index: u32, num: u32 }), buildVringState, parseVringState);
roundTrip(
  'vring addresses',
  fc.record({ index: u32, flags: u32, descriptor: u64, used: u64, available: u64 }),
  buildVringAddresses,
  parseVringAddresses,
);
roundTrip(
  'vring descriptor',
  fc.record({ index: fc.nat(255), hasFd: fc.boolean() }),
  buildVringFd,
  parseVringFd,
);
roundTrip('memory table', fc.array(someRegion, { maxLength: 8 }), buildMemTable, parseMemTable);
roundTrip('memory region', someRegion, buildMemRegion, parseMemRegion);
roundTrip(
  'configuration',
  fc.record({ offset: u32, flags: u32, bytes: fc.uint8Array({ minLength: 1, maxLength: 99 }) }),
  ({ offset, flags, bytes }) => buildConfig(offset, flags, bytes),
  (request, payload) => {
    const { offset, flags, bytes, size } = parseConfig(request, payload);
    if (size !== bytes.length) throw new Error('size');
    return { offset, flags, bytes: Uint8Array.from(bytes) };
  },
);

t.test('the bytes of the document', async (t) => {
  const addresses = { index: 1, flags: 2, descriptor: 3n, used: 4n, available: 5n };
  const words = new BigUint64Array([2n ** 33n + 1n, 3n, 4n, 5n, 0n]);
  t.same(buildVringAddresses(addresses), new Uint8Array(words.buffer));
  t.same(buildVringFd({ index: 3, hasFd: false }), Uint8Array.of(3, 1, 0, 0, 0, 0, 0, 0));
  const message = buildMessage(Request.GetFeatures, FLAG_NEED_REPLY, new Uint8Array(0));
  t.same(message, Uint8Array.of(1, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0));
  t.same(parseHeader(buildMessage(12, FLAG_REPLY, new Uint8Array(8))), {
    request: 12,
    reply: true,
    needReply: false,
    size: 8,
  });
  t.equal(requestName(Request.SetVringKick), 'SET_VRING_KICK');
  t.equal(requestName(Request.AddMemReg), 'ADD_MEM_REG');
  t.equal(requestName(Request.GetMaxMemSlots), 'GET_MAX_MEM_SLOTS');
  t.equal(requestName(31), 'GET_INFLIGHT_FD');
  t.equal(requestName(77), 'request 77');
});

t.test('messages are put together whatever the stream gives at once', async (t) => {
  const someMessage = fc.record({
    request: u32,
    payload: fc.uint8Array({ maxLength: 300 }),
    fds: fc.nat(3),
  });
  fc.assert(
    fc.property(fc.array(someMessage), fc.infiniteStream(fc.nat(40)), (messages, chunks) => {
      let open = 0;
      const assembler = new MessageAssembler<{ close(): void }>(3);
      for (const { request, payload, fds } of messages) {
        const stream = buildMessage(request, 0, payload);
        let pending = Array.from({ length: fds }, () => ({ close: () => open-- }));
        open += fds;
        let at = 0;
        let whole: ReturnType<typeof assembler.accept>;
        while (at < stream.length) {
          const chunk = chunks.next().value + 1;
          const bytes = Math.min(chunk, assembler.target.length);
          assembler.target.set(stream.subarray(at, at + bytes));
          at += bytes;
          whole = assembler.accept(bytes, pending);
          pending = [];
          t.equal(whole !== undefined, at === stream.length);
        }
        t.equal(whole!.header.request, request);
        t.same(whole!.payload, payload);
        t.equal(whole!.fds.length, fds);
        for (const fd of whole!.fds) fd.close();
        t.notOk(assembler.partial);
      }
      assembler.discard();
      t.equal(open, 0);
    }),
    { numRuns: 20 },
  );
});

t.test('what came with half a message is closed', async (t) => {
  let open = 2;
  const fd = { close: () => open-- };
  const assembler = new MessageAssembler<typeof fd>(8);
  assembler.accept(5, [fd]);
  t.ok(assembler.partial);
  assembler.accept(1, [fd]);
  assembler.discard();
  t.equal(open, 0);
});
