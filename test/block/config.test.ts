import t from 'tap';
import {
  type BlockOptions,
  BlockOptionsError,
  blockConfig,
  blockFeatures,
  CONFIG_BYTES,
  CONFIG_WRITEBACK,
  checkBlockOptions,
} from '../../lib/block/index.ts';
import { DISK } from './harness.ts';

function bits(features: bigint): number[] {
  return Array.from({ length: 64 }, (_, bit) => bit).filter(
    (bit) => (features >> BigInt(bit)) & 1n,
  );
}

t.test('virtio 1.3 §5.2.3: features follow from the disk', async (t) => {
  const usual = [2, 6, 9, 10];
  t.strictSame(bits(blockFeatures(DISK)), [...usual, 13, 14]);
  t.strictSame(bits(blockFeatures({ ...DISK, queues: 4 })), [...usual, 12, 13, 14]);
  t.strictSame(bits(blockFeatures({ ...DISK, readOnly: true })), [2, 5, 6, 9, 10]);
  t.strictSame(bits(blockFeatures({ ...DISK, discard: false })), [...usual, 14]);
  t.strictSame(bits(blockFeatures({ ...DISK, switchableCache: true })), [...usual, 11, 13, 14]);
});

t.test('virtio 1.3 §5.2.4: the configuration space, byte by byte', async (t) => {
  const disk: BlockOptions = { ...DISK, capacity: 2 ** 42, queues: 4, blockSize: 512 };
  const config = blockConfig(disk);
  const view = new DataView(config.buffer);
  t.equal(config.length, CONFIG_BYTES);
  t.equal(view.getBigUint64(0, true), 2n ** 33n, 'capacity in sectors of 512');
  t.equal(view.getUint32(8, true), 0, 'size_max is not offered');
  t.equal(view.getUint32(12, true), 126, 'seg_max');
  t.equal(view.getUint32(20, true), 512, 'blk_size');
  t.strictSame([...config.subarray(24, 32)], [3, 0, 8, 0, 0, 0, 0, 0], 'topology');
  t.equal(config[CONFIG_WRITEBACK], 0);
  t.equal(view.getUint16(34, true), 4, 'num_queues');
  t.equal(view.getUint32(36, true), 2 ** 21, 'max_discard_sectors');
  t.equal(view.getUint32(40, true), 16, 'max_discard_seg');
  t.equal(view.getUint32(44, true), 8, 'discard_sector_alignment');
  t.equal(view.getUint32(48, true), 2 ** 17, 'max_write_zeroes_sectors');
  t.equal(view.getUint32(52, true), 16, 'max_write_zeroes_seg');
  t.equal(config[56], 1, 'write_zeroes_may_unmap');
  t.ok(config.subarray(57).every((byte) => byte === 0));

  const readOnly = blockConfig({ ...disk, readOnly: true });
  t.ok(readOnly.subarray(36).every((byte) => byte === 0));
  t.ok(
    blockConfig({ ...disk, discard: false })
      .subarray(36, 48)
      .every((byte) => byte === 0),
  );
  t.equal(blockConfig({ ...disk, switchableCache: true })[CONFIG_WRITEBACK], 1);

  const large = blockConfig({ ...disk, blockSize: 4096 });
  t.strictSame([...large.subarray(20, 32)], [0, 16, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0]);
});

t.test('seg_max leaves room for header and status in the ring', async (t) => {
  for (const [queueSize, segments] of [
    [1024, 126],
    [128, 126],
    [64, 62],
    [4, 2],
    [2, 1],
  ] as const) {
    const view = new DataView(blockConfig({ ...DISK, queueSize }).buffer);
    t.equal(view.getUint32(12, true), segments, `ring of ${queueSize}`);
  }
});

t.test('options that make no disk are named', async (t) => {
  checkBlockOptions(DISK);
  const bad: [Partial<Record<keyof BlockOptions, unknown>>, RegExp][] = [
    [{ blockSize: 1024 }, /block size 1024: .*512 or 4096/],
    [{ capacity: 0 }, /capacity 0/],
    [{ capacity: 513 }, /multiple of 512/],
    [{ capacity: 2 ** 53 }, /capacity/],
    [{ physicalBlockSize: 3000 }, /physical block size 3000/],
    [{ physicalBlockSize: 256 }, /physical block size 256/],
    [{ queues: 0 }, /0 queues/],
    [{ queues: 70000 }, /70000 queues: .*65535/],
    [{ queueSize: 100 }, /queue size 100: .*2 to 1024/],
    [{ queueSize: 2048 }, /queue size 2048/],
    [{ queueSize: 1 }, /queue size 1:/],
    [{ serial: '123456789012345678901' }, /at most 20 bytes/],
    [{ serial: 'ä'.repeat(11) }, /at most 20 bytes/],
    [{ serial: 'a\0b' }, /serial/],
  ];
  for (const [option, message] of bad) {
    const options = { ...DISK, ...option } as BlockOptions;
    t.throws(() => checkBlockOptions(options), { code: 'ERR_VDUSE_BLOCK_OPTIONS', message });
    t.throws(() => checkBlockOptions(options), BlockOptionsError);
  }
});
