import { readFileSync } from 'node:fs';
import t, { type Test } from 'tap';
import { parseConfig } from '../../lib/daemon/config.ts';

const wrong = (t: Test, content: unknown, message: RegExp) =>
  t.throws(() => parseConfig(content), { code: 'ERR_VDUSE_USAGE', message });

t.test('devices of either transport', async (t) => {
  const devices = parseConfig({
    $schema: 'share/vduse-config.schema.json',
    devices: [
      { image: 'a.img', size: '1G', attach: true },
      { image: 'b.img', name: 'b', socketPath: 'b.sock', socketMode: '0660', queues: 2 },
      { type: 'rpmb', image: 'c.rpmb', socketPath: 'c.sock' },
    ],
  });
  t.same(devices, [
    { image: 'a.img', size: 2 ** 30, attach: true },
    { image: 'b.img', name: 'b', queues: 2, socket: { path: 'b.sock', mode: 0o660 } },
    { type: 'rpmb', image: 'c.rpmb', socket: { path: 'c.sock' } },
  ]);
});

t.test('what is wrong is named: file, device, key', async (t) => {
  wrong(t, [], /the file: not an object/);
  wrong(t, {}, /"devices": not a list/);
  wrong(t, { devices: [] }, /give at least one/);
  wrong(t, { devices: [{ image: 'a' }], device: 1 }, /unknown key "device"/);
  wrong(t, { devices: [{ imgae: 'a' }] }, /devices\[0\]: unknown key "imgae" \(known: .*image/);
  wrong(t, { devices: [{ image: 'a' }, { name: 'b' }] }, /devices\[1\]: no "image"/);
  wrong(t, { devices: [{ image: 'a', queues: '4' }] }, /"queues": not a number/);
  wrong(t, { devices: [{ image: 'a', ring: 'round' }] }, /"ring": neither/);
  wrong(t, { devices: [{ image: 'a', socketMode: '0660' }] }, /need "socketPath"/);
  wrong(t, { devices: [{ image: 'a', socketPath: 's', socketMode: 'rw' }] }, /octal/);
  wrong(t, { devices: [{ image: 'a' }, { image: 'a' }] }, /two devices are named "a"/);
  t.throws(() => parseConfig({ devices: [{ image: 'a', size: '1X' }] }), {
    code: 'ERR_VDUSE_SIZE',
  });
});

/** What parsing these devices is refused with, empty where it is not. */
function messageOf(devices: unknown[]): string {
  try {
    parseConfig({ devices });
    return '';
  } catch (error) {
    return (error as Error).message;
  }
}

t.test('the published schema knows the same keys', async (t) => {
  const schema = JSON.parse(
    readFileSync(new URL('../../share/vduse-config.schema.json', import.meta.url), 'utf8'),
  );
  const known = Object.keys(schema.$defs.device.properties);
  for (const key of known) {
    const device = { image: 'a', [key]: {} };
    t.notMatch(messageOf([device]), /unknown key/, `${key} is known`);
    t.not(messageOf([device]), '', `${key}: an object is no value for it`);
  }
  t.throws(() => parseConfig({ devices: [{ x: 1 }] }), {
    message: new RegExp(`known: ${known.join(', ')}`),
  });
});
