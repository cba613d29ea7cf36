import t from 'tap';
import {
  BlockCounter,
  BlockStatus,
  BlockType,
  MAX_DISCARD_SECTORS,
  MAX_RANGES,
  MAX_ZERO_SECTORS,
  VIRTIO_BLK_F_CONFIG_WCE,
  VIRTIO_BLK_F_FLUSH,
} from '../../lib/block/index.ts';
import { Bench, CAPACITY, header, ranges, request, TestRequest, UNWRITTEN } from './harness.ts';

const { Ok, IoError, Unsupported } = BlockStatus;
const SECTORS = CAPACITY / 512;
const EIO = 5;

t.test('IN reads, OUT writes, used length counts data and status', async (t) => {
  const bench = new Bench();
  const read = bench.run(request(BlockType.In, 3, 1024));
  t.match(read, { status: Ok, used: 1025 });
  t.strictSame([...read.data], [...bench.bytes.subarray(1536, 1536 + 1024)]);

  const payload = new Uint8Array(512).fill(0x77);
  t.match(bench.run(request(BlockType.Out, 5, payload)), { status: Ok, used: 1 });
  t.strictSame([...bench.bytes.subarray(2560, 3072)], [...payload]);
  t.not(bench.bytes[3072], 0x77);

  t.match(bench.run(request(BlockType.In, SECTORS - 1, 512)), { status: Ok }, 'the last sector');
  t.match(bench.run(request(BlockType.Flush, 0)), { status: Ok, used: 1 });
  t.strictSame([...bench.counters], [4, 1024 + 512 + 512, 0]);
});

t.test('no data at all is answered OK inside the disk', async (t) => {
  const bench = new Bench();
  t.match(bench.run(request(BlockType.In, SECTORS)), { status: Ok, used: 1 });
  t.match(bench.run(request(BlockType.Out, 0)), { status: Ok, used: 1 });
  t.match(bench.run(request(BlockType.In, SECTORS + 1)), { status: IoError, used: 1 });
  t.equal(bench.store.operations.length, 0);
});

t.test('ranges outside the disk: IOERR, without wrap-around, nothing touched', async (t) => {
  const outside: [number | bigint, number][] = [
    [SECTORS, 512],
    [SECTORS - 1, 1024],
    [2n ** 32n, 512],
    [2n ** 55n - 1n, 512],
    [2n ** 63n, 512],
    [2n ** 64n - 1n, 512],
    [2n ** 64n - 1n, 1024],
    [2n ** 64n - 2n, 1024],
  ];
  for (const [sector, bytes] of outside) {
    const bench = new Bench();
    const read = bench.run(request(BlockType.In, sector, bytes));
    t.match(read, { status: IoError, used: 0 }, `read at ${sector}`);
    t.ok(
      read.data.every((byte) => byte === UNWRITTEN),
      'no data handed out',
    );
    const write = bench.run(request(BlockType.Out, sector, new Uint8Array(bytes)));
    t.match(write, { status: IoError, used: 1 }, `write at ${sector}`);
    for (const type of [BlockType.Discard, BlockType.WriteZeroes]) {
      const range = ranges({ sector, sectors: bytes / 512 });
      t.match(bench.run(request(type, 0, range)), { status: IoError, used: 1 });
    }
    t.equal(bench.store.operations.length, 0);
    t.strictSame([...bench.counters], [4, 0, 4]);
  }
});

t.test('what is no whole number of blocks: IOERR', async (t) => {
  for (const bytes of [1, 511, 513, 1023]) {
    const bench = new Bench();
    t.match(bench.run(request(BlockType.In, 0, bytes)), { status: IoError, used: 0 });
    t.match(bench.run(request(BlockType.Out, 0, new Uint8Array(bytes))), { status: IoError });
  }
  const large = () => new Bench({ blockSize: 4096 });
  t.match(large().run(request(BlockType.In, 8, 4096)), { status: Ok, used: 4097 });
  t.match(large().run(request(BlockType.In, 1, 4096)), { status: IoError }, 'sector');
  t.match(large().run(request(BlockType.In, 8, 512)), { status: IoError }, 'length');
  t.match(large().run(request(BlockType.Out, 8, new Uint8Array(2048))), { status: IoError });
  const half = ranges({ sector: 8, sectors: 4 });
  t.match(large().run(request(BlockType.Discard, 0, half)), { status: IoError });
  t.match(large().run(request(BlockType.WriteZeroes, 0, half)), { status: IoError });
  t.match(large().run(request(BlockType.Discard, 0, ranges({ sector: 8, sectors: 8 }))), {
    status: Ok,
  });
});

t.test('a header that is short, a status that has no place', async (t) => {
  for (const bytes of [0, 1, 15]) {
    const bench = new Bench();
    const short = new TestRequest({
      readable: new Uint8Array(bytes),
      writable: 513,
      readableCut: { lengths: bytes ? [bytes] : [], offsets: [0] },
    });
    t.match(bench.run(short), { status: IoError, used: 0 });
  }
  const bench = new Bench();
  bench.begin(
    new TestRequest({
      head: 7,
      readable: header(BlockType.Out, 0),
      writable: 0,
      writableCut: { lengths: [], offsets: [] },
    }),
  );
  t.strictSame(bench.port.failures, [{ reason: 'no-status-byte', head: 7, detail: 16 }]);
  t.equal(bench.port.answers.length, 0);
  t.equal(bench.counters[BlockCounter.Errors], 1);
});

t.test('more than the kernel moves at once is refused before anything happens', async (t) => {
  const bench = new Bench({ capacity: 2 ** 50 });
  const { chain } = request(BlockType.In, 0, 512);
  const [first, memory] = chain.regions;
  chain.reset(3);
  chain.add(first!, 0, 16, false);
  // A hostile driver lets all descriptors of a chain name the same memory.
  for (let i = 0; i < 1022; i++) chain.add(memory!, 0, 2 ** 32 - 512, true);
  chain.add(memory!, 0, 1, true);
  bench.device.begin(chain);
  t.strictSame(bench.port.answers, [{ head: 3, written: 0 }]);
  t.equal(memory!.u8[0], IoError);
  t.equal(bench.store.operations.length, 0);
});

t.test('GET_ID: 20 bytes, NUL only where the serial is shorter', async (t) => {
  const id = (serial: string, space: number) => {
    const { status, used, data } = new Bench({ serial }).run(request(BlockType.GetId, 0, space));
    return { status, used, text: Buffer.from(data).toString('latin1') };
  };
  t.strictSame(id('S1', 20), { status: Ok, used: 21, text: `S1${'\0'.repeat(18)}` });
  t.strictSame(id('12345678901234567890', 20), {
    status: Ok,
    used: 21,
    text: '12345678901234567890',
  });
  t.strictSame(id('ABC', 2), { status: Ok, used: 3, text: 'AB' }, 'shorter: the beginning');
  t.strictSame(
    id('ABC', 24),
    { status: Ok, used: 20, text: `ABC${'\0'.repeat(17)}${'\xee'.repeat(4)}` },
    'longer: 20 bytes of it, and the used length says so',
  );
  t.strictSame(id('', 0), { status: Ok, used: 1, text: '' });
});

t.test(
  'FLUSH reaches the store, whatever else the request holds; unknown types are UNSUPP',
  async (t) => {
    const bench = new Bench();
    t.match(bench.run(request(BlockType.Flush, 0)), { status: Ok, used: 1 });
    t.match(bench.run(request(BlockType.Flush, 2n ** 60n, new Uint8Array(512))), { status: Ok });
    t.strictSame(
      bench.store.operations.map((operation) => operation.kind),
      ['flush', 'flush'],
    );
    bench.store.failNth(2, EIO);
    t.match(bench.run(request(BlockType.Flush, 0)), { status: IoError, used: 1 });

    for (const type of [2, 3, 5, 10, 14, 15, 24, 0x80000000, 0xffffffff]) {
      t.match(bench.run(request(type, 0, 512)), { status: Unsupported, used: 0 }, `type ${type}`);
      t.match(bench.run(request(type, 0)), { status: Unsupported, used: 1 }, `type ${type}`);
    }
  },
);

t.test('DISCARD and WRITE_ZEROES: several segments, flags, limits', async (t) => {
  const two = ranges(
    { sector: 2, sectors: 2 },
    { sector: 0, sectors: 0 },
    { sector: 9, sectors: 1 },
  );
  const bench = new Bench();
  t.match(bench.run(request(BlockType.Discard, 0, two)), { status: Ok, used: 1 });
  t.match(bench.run(request(BlockType.WriteZeroes, 0, two)), { status: Ok, used: 1 });
  const unmap = ranges({ sector: 1, sectors: 1, flags: 1 }, { sector: 3, sectors: 1 });
  t.match(bench.run(request(BlockType.WriteZeroes, 0, unmap)), { status: Ok, used: 1 });
  t.strictSame(
    bench.store.operations.map((o) => [o.kind, o.offset, o.length, o.mayUnmap]),
    [
      ['discard', 1024, 1024, false],
      ['discard', 4608, 512, false],
      ['writeZeroes', 1024, 1024, false],
      ['writeZeroes', 4608, 512, false],
      ['writeZeroes', 512, 512, true],
      ['writeZeroes', 1536, 512, false],
    ],
    'in order, empty ones left out',
  );

  const before = bench.store.operations.length;
  const refused: [string, number, Uint8Array, number][] = [
    ['discard with unmap', BlockType.Discard, unmap, Unsupported],
    ['unknown flag', BlockType.Discard, ranges({ sector: 0, sectors: 1, flags: 2 }), Unsupported],
    [
      'unknown flag',
      BlockType.WriteZeroes,
      ranges({ sector: 0, sectors: 1, flags: 3 }),
      Unsupported,
    ],
    ['no segment', BlockType.Discard, new Uint8Array(0), IoError],
    ['half a segment', BlockType.Discard, new Uint8Array(8), IoError],
    ['one and a half', BlockType.WriteZeroes, new Uint8Array(24), IoError],
    [
      'a good and a bad one',
      BlockType.Discard,
      ranges({ sector: 0, sectors: 1 }, { sector: SECTORS, sectors: 1 }),
      IoError,
    ],
    ['too many', BlockType.Discard, new Uint8Array(16 * (MAX_RANGES + 1)), IoError],
    [
      'too long',
      BlockType.Discard,
      ranges({ sector: 0, sectors: MAX_DISCARD_SECTORS + 1 }),
      IoError,
    ],
    ['empty but outside', BlockType.Discard, ranges({ sector: SECTORS + 1, sectors: 0 }), IoError],
    ['longest', BlockType.WriteZeroes, ranges({ sector: 0, sectors: 0xffffffff }), IoError],
  ];
  for (const [what, type, payload, status] of refused) {
    t.match(bench.run(request(type, 0, payload)), { status, used: 1 }, what);
  }
  t.equal(bench.store.operations.length, before, 'nothing is executed of a request with a fault');

  const most = Array.from({ length: MAX_RANGES }, (_, i) => ({ sector: i, sectors: 1 }));
  t.match(bench.run(request(BlockType.Discard, 0, ranges(...most))), { status: Ok });
  t.equal(bench.store.operations.length, before + MAX_RANGES);

  t.match(bench.run(request(BlockType.Discard, 0, ranges())), { status: IoError });
  const large = new Bench({ capacity: 2 ** 40 });
  const long = (sectors: number) => ranges({ sector: 0, sectors });
  for (const [type, most] of [
    [BlockType.Discard, MAX_DISCARD_SECTORS],
    [BlockType.WriteZeroes, MAX_ZERO_SECTORS],
  ] as const) {
    t.match(large.run(request(type, 0, long(most + 1))), { status: IoError }, 'over the maximum');
  }
  t.equal(large.store.operations.length, 0);

  const empty = ranges({ sector: SECTORS, sectors: 0 });
  t.match(bench.run(request(BlockType.Discard, 0, empty)), { status: Ok, used: 1 });
});

t.test('one range that fails ends the request', async (t) => {
  const bench = new Bench();
  bench.store.failNth(1, EIO);
  const three = ranges(...[0, 2, 4].map((sector) => ({ sector, sectors: 1 })));
  t.match(bench.run(request(BlockType.WriteZeroes, 0, three)), { status: IoError, used: 1 });
  t.equal(bench.store.operations.length, 2);
});

t.test('not negotiated: DISCARD and WRITE_ZEROES are UNSUPP', async (t) => {
  const bench = new Bench({ driverFeatures: VIRTIO_BLK_F_FLUSH });
  const range = ranges({ sector: 0, sectors: 1 });
  t.match(bench.run(request(BlockType.Discard, 0, range)), { status: Unsupported });
  t.match(bench.run(request(BlockType.WriteZeroes, 0, range)), { status: Unsupported });
});

t.test('a read-only disk answers IOERR to whatever would change it', async (t) => {
  const bench = new Bench({ readOnly: true });
  const range = ranges({ sector: 0, sectors: 1 });
  t.match(bench.run(request(BlockType.Out, 0, new Uint8Array(512))), { status: IoError, used: 1 });
  t.match(bench.run(request(BlockType.Out, 0)), { status: IoError });
  t.match(bench.run(request(BlockType.Discard, 0, range)), { status: IoError });
  t.match(bench.run(request(BlockType.WriteZeroes, 0, range)), { status: IoError });
  t.match(bench.run(request(BlockType.In, 0, 512)), { status: Ok });
  t.match(bench.run(request(BlockType.Flush, 0)), { status: Ok });
  t.strictSame(
    bench.store.operations.map((o) => o.kind),
    ['read', 'flush'],
  );
});

t.test('virtio 1.3 §2.7.8.2: a failed read reports only bytes that are valid', async (t) => {
  const bench = new Bench();
  bench.store.failNth(0, EIO);
  const failed = bench.run(request(BlockType.In, 0, 1024));
  t.match(failed, { status: IoError, used: 0 });
  bench.store.shortenNth(1, 700);
  const short = bench.run(request(BlockType.In, 0, 1024));
  t.match(short, { status: IoError, used: 700 });
  t.strictSame([...short.data.subarray(0, 700)], [...bench.bytes.subarray(0, 700)]);
  bench.store.shortenNth(2, 0);
  t.match(bench.run(request(BlockType.In, 0, 1024)), { status: IoError, used: 0 });
  bench.store.shortenNth(3, 512);
  t.match(bench.run(request(BlockType.Out, 0, new Uint8Array(1024))), { status: IoError, used: 1 });
  bench.store.failNth(4, EIO);
  t.match(bench.run(request(BlockType.Out, 0, new Uint8Array(1024))), { status: IoError, used: 1 });
  t.strictSame([...bench.counters], [5, 0, 5]);

  const roomy = new TestRequest({ readable: header(BlockType.Flush, 0), writable: 9 });
  t.match(bench.run(roomy), { status: Ok, used: 0 }, 'bytes before the status were not written');
});

t.test('virtio 1.3 §5.2.6.2: without FLUSH a write is durable when it completes', async (t) => {
  const kinds = (bench: Bench) => bench.store.operations.map((o) => o.kind);
  const bench = new Bench({ driverFeatures: 0n }, { immediate: false });
  bench.begin(request(BlockType.Out, 0, new Uint8Array(512)));
  t.equal(bench.port.answers.length, 0);
  bench.store.run(1);
  t.equal(bench.port.answers.length, 0, 'written, not yet durable');
  bench.store.run(1);
  t.equal(bench.port.answers.length, 1);
  t.strictSame(kinds(bench), ['write', 'flush']);
  t.strictSame([...bench.counters], [1, 512, 0]);

  const failing = new Bench({ driverFeatures: 0n });
  failing.store.failNth(1, EIO);
  const unsynced = failing.run(request(BlockType.Out, 0, new Uint8Array(512)));
  t.match(unsynced, { status: IoError, used: 1 });
  t.strictSame([...failing.counters], [1, 0, 1]);

  const zeroing = new Bench();
  zeroing.device.writeThrough = true;
  const range = ranges({ sector: 0, sectors: 1 }, { sector: 4, sectors: 1 });
  t.match(zeroing.run(request(BlockType.WriteZeroes, 0, range)), { status: Ok, used: 1 });
  t.match(zeroing.run(request(BlockType.In, 0, 512)), { status: Ok });
  t.strictSame(kinds(zeroing), ['writeZeroes', 'writeZeroes', 'flush', 'read']);

  t.equal(new Bench({ driverFeatures: VIRTIO_BLK_F_FLUSH }).device.writeThrough, false);
  t.equal(new Bench({ driverFeatures: VIRTIO_BLK_F_CONFIG_WCE }).device.writeThrough, true);
});

t.test('a thousand heads in flight, completed in any order, once each', async (t) => {
  const bench = new Bench({ queueSize: 1024 }, { immediate: false });
  const requests = Array.from({ length: 1024 }, (_, head) =>
    head % 3 === 2
      ? request(BlockType.Flush, 0, 0, head)
      : request(BlockType.In, head % SECTORS, 512, head),
  );
  for (const one of requests) bench.begin(one);
  t.equal(bench.port.answers.length, 0);
  bench.store.run();
  const heads = bench.port.answers.map((answer) => answer.head);
  t.equal(new Set(heads).size, 1024);
  t.equal(heads.length, 1024);
  for (const { chain, data, status } of requests) {
    if (status !== Ok) t.fail(`head ${chain.head}`);
    if (chain.head % 3 === 2) continue;
    const at = (chain.head % SECTORS) * 512;
    if (Buffer.compare(data, bench.bytes.subarray(at, at + 512)) !== 0) t.fail('data');
  }
  t.throws(() => bench.device.completed(5, 512), /waits for nothing/, 'a store that errs is loud');
});

t.test('reset forgets what was begun, close releases the store', async (t) => {
  const bench = new Bench();
  t.match(bench.run(request(BlockType.In, 0, 512)), { status: Ok });
  bench.device.reset();
  t.match(bench.run(request(BlockType.In, 0, 512)), { status: Ok }, 'and serves on');
  const slow = new Bench({}, { immediate: false });
  slow.begin(request(BlockType.In, 0, 512));
  slow.device.reset();
  t.throws(() => slow.device.completed(0, 512), /waits for nothing/);
  bench.device.close();
  t.ok(bench.store.closed);
});
