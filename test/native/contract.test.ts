import { existsSync } from 'node:fs';
import t from 'tap';
import { type Addon, CALL, callWords, IoTable, native } from '../../lib/native/index.ts';
import { openFds, thrownBy } from './helpers.ts';

/** Each argument: a good value, and what must be refused in its place. */
interface Argument {
  good: unknown;
  bad: unknown[];
}

const NOT_NUMBERS = [undefined, null, '3', 3n, {}, [], Symbol('x'), () => 3, true];
const NO_INTEGERS = [
  Number.NaN,
  Number.POSITIVE_INFINITY,
  Number.NEGATIVE_INFINITY,
  1.5,
  -2,
  2 ** 53,
];

function integer(good: number, ...bad: number[]): Argument {
  return { good, bad: [...NOT_NUMBERS, ...NO_INTEGERS, ...bad] };
}

// Good in kind, but never open: a call whose other arguments are good fails with EBADF.
const closed = 0x7ffffff0;
const fd = integer(closed, -1, 2 ** 31);
const u32 = integer(1, -1, 2 ** 32);
const size = integer(1, -1);
const bigint: Argument = { good: 1n, bad: [undefined, null, 1, '1', {}, -1n, 2n ** 64n] };
const flag: Argument = { good: false, bad: [undefined, null, 0, 'true', {}] };
const detached = new Uint8Array(8);
structuredClone(detached, { transfer: [detached.buffer] });
const bytes: Argument = {
  good: new Uint8Array(8),
  bad: [
    undefined,
    null,
    'text',
    [1],
    {},
    new ArrayBuffer(8),
    new Uint16Array(4),
    new DataView(new ArrayBuffer(8)),
    detached,
  ],
};
const words: Argument = {
  good: new Int32Array(8),
  bad: [undefined, null, [1], {}, new Uint32Array(8), new ArrayBuffer(32), new Int32Array(0)],
};
const buffer = (good: ArrayBuffer): Argument => ({
  good,
  bad: [undefined, null, {}, new Uint8Array(64), new SharedArrayBuffer(64)],
});
const text = (good: string, ...bad: unknown[]): Argument => ({
  good,
  bad: [undefined, null, 3, {}, Symbol('x'), 'nul\0', 'x'.repeat(5000), ...bad],
});
const anObject = (good: object): Argument => ({
  good,
  bad: [undefined, null, 3, {}, [], native.eventfd(0)],
});
const callback: Argument = { good: () => {}, bad: [undefined, null, {}, 'f'] };

const table = new IoTable(native);
const rows = buffer(table.rowBuffer);
const vectors = buffer(table.vectorBuffer);
const DEVICE = {
  name: 'x',
  vendorId: 0,
  deviceId: 2,
  features: 0n,
  vqNum: 1,
  vqAlign: 4096,
  config: new Uint8Array(4),
};

const noRing = new Int32Array(callWords(1));
noRing[CALL.ring] = closed;
const noRoom = noRing.slice();
noRoom[CALL.signalCount] = 2;
const ringCall: Argument = {
  good: noRing.buffer,
  bad: [undefined, null, {}, noRing, new SharedArrayBuffer(64), new ArrayBuffer(28), noRoom.buffer],
};

/** Every function of the addon; the type makes sure that none is missing. */
const FUNCTIONS: Record<keyof Addon, Argument[]> = {
  eventfd: [u32],
  eventfdSignal: [fd],
  eventfdRead: [fd],
  memfd: [text('x', 'y'.repeat(250)), size],
  duplicate: [fd],
  adopt: [fd],
  setNonblocking: [fd, flag],
  mmap: [fd, integer(1, 0, 2 ** 32 + 1), integer(0, 1, -4096), flag],
  allocate: [integer(1, 0, -1, 2 ** 32 + 1)],
  sigbusCounter: [],
  pageSize: [],
  watch: [fd, callback],
  vduseGetApiVersion: [fd],
  vduseSetApiVersion: [fd, bigint],
  vduseCreateDevice: [fd, { good: DEVICE, bad: [undefined, null, 3, {}, []] }],
  vduseDestroyDevice: [fd, text('x', '', 'y'.repeat(256))],
  vduseIotlbGetFd: [fd, bigint, bigint],
  vduseGetFeatures: [fd],
  vduseSetConfig: [fd, u32, { ...bytes, bad: [...bytes.bad, new Uint8Array(65537)] }],
  vduseInjectConfigIrq: [fd],
  vduseVqSetup: [fd, u32, integer(1, -1, 65536)],
  vduseVqGetInfo: [fd, u32],
  vduseVqSetKickFd: [fd, u32, integer(-1, 2 ** 31)],
  vduseVqInjectIrq: [fd, u32],
  vdpaDeviceAdd: [text('x', '', 'y'.repeat(256)), text('vduse', '', 'y'.repeat(256))],
  vdpaDeviceDelete: [text('x', '', 'y'.repeat(256))],
  vdpaDeviceList: [],
  vdpaManagementDevices: [],
  fallocate: [fd, integer(0, 2 ** 31), size, size],
  lockFile: [fd, flag],
  blockDeviceInfo: [fd],
  directIoAlignment: [fd],
  mapFile: [fd, integer(1, 0, 2 ** 53), flag],
  slowCopies: [],
  ioRun: [rows, vectors, integer(0, 1e6), integer(0, 1e6)],
  ioPool: [integer(1, 0, 65)],
  ioUringSetup: [integer(0, 2 ** 32), u32],
  ioUringProbe: [fd],
  ioUringEnter: [ringCall],
  clockUs: [],
  sendSignals: [words, integer(1, 3)],
  signalAndPoll: [words, integer(1, 5), integer(0), words, integer(1, 3)],
  unixListen: [text('/nonexistent/socket', '', 'y'.repeat(108)), integer(0, 2 ** 31)],
  unixConnect: [text('/nonexistent/socket', '', 'y'.repeat(108))],
  unixAccept: [fd],
  unixPair: [],
  receiveMessage: [fd, { ...bytes, bad: [...bytes.bad, new Uint8Array(0)] }, integer(1, 254)],
  sendMessage: [
    fd,
    { ...bytes, bad: [...bytes.bad, new Uint8Array(0)] },
    { good: [], bad: [undefined, null, 3, {}, [-1], ['x'], new Array(254).fill(0)] },
    integer(0, 2 ** 31),
  ],
  getRandom: [bytes],
  addUserKey: [text('vduse-contract', ''), bytes],
  readKey: [integer(0x7ffffff0, 0, -1, 2 ** 31)],
  protectSecret: [anObject(native.allocate(1))],
};

type Function = (...args: unknown[]) => unknown;
const call = (name: string, args: unknown[]) =>
  (native as unknown as Record<string, Function>)[name]!(...args);

t.test('every function is there, and no other', async (t) => {
  t.strictSame(Object.keys(native).sort(), Object.keys(FUNCTIONS).sort());
});

t.test('wrong arguments are TypeErrors and RangeErrors', async (t) => {
  const before = openFds();
  for (const [name, args] of Object.entries(FUNCTIONS)) {
    const good = args.map((argument) => argument.good);
    for (const [index, { bad }] of args.entries()) {
      for (const value of bad) {
        const given = [...good.slice(0, index), value, ...good.slice(index + 1)];
        const error = await thrownBy(() => call(name, given));
        if (!(error instanceof TypeError || error instanceof RangeError)) {
          t.fail(`${name}, argument ${index}: ${String(value)}: ${error}`);
        }
      }
      const error = await thrownBy(() => call(name, good.slice(0, index)));
      if (!(error instanceof TypeError || error instanceof RangeError)) {
        t.fail(`${name} with ${index} arguments: ${error}`);
      }
    }
  }
  for (const key of Object.keys(DEVICE)) {
    const error = await thrownBy(() =>
      call('vduseCreateDevice', [closed, { ...DEVICE, [key]: undefined }]),
    );
    t.ok(error instanceof TypeError && error.message.startsWith(key), `${error}`);
  }
  t.throws(() => native.eventfd(Number.NaN), {
    code: 'ERR_OUT_OF_RANGE',
    message: 'initial must be an integer from 0 to 4294967295, not nan',
  });
  t.throws(() => native.getRandom([] as never), {
    code: 'ERR_INVALID_ARG_TYPE',
    message: 'into must be a Uint8Array',
  });
  t.equal(openFds(), before, 'no descriptor leaks');
});

t.test('errors of the kernel: code, errno, syscall', async (t) => {
  for (const [name, args] of Object.entries(FUNCTIONS)) {
    if (args[0] !== fd || name === 'ioUringEnter') continue;
    const error = (await thrownBy(() =>
      call(
        name,
        args.map(({ good }) => good),
      ),
    )) as Record<string, unknown>;
    t.match(error, { code: 'EBADF', errno: -9 }, name);
    t.equal(error['message'], `EBADF: bad file descriptor, ${error['syscall']}`);
  }
  const getter = await thrownBy(() =>
    native.vduseCreateDevice(closed, {
      ...DEVICE,
      get name(): string {
        throw new Error('from the getter');
      },
    }),
  );
  t.match(getter, { message: 'from the getter' });
});

t.test('VDUSE calls on something else', async (t) => {
  const event = native.eventfd(0);
  const device = {
    vduseGetApiVersion: 'GET_API_VERSION',
    vduseSetApiVersion: 'SET_API_VERSION',
    vduseCreateDevice: 'CREATE_DEV',
    vduseDestroyDevice: 'DESTROY_DEV',
    vduseIotlbGetFd: 'IOTLB_GET_FD',
    vduseGetFeatures: 'DEV_GET_FEATURES',
    vduseSetConfig: 'DEV_SET_CONFIG',
    vduseInjectConfigIrq: 'DEV_INJECT_CONFIG_IRQ',
    vduseVqSetup: 'VQ_SETUP',
    vduseVqGetInfo: 'VQ_GET_INFO',
    vduseVqSetKickFd: 'VQ_SETUP_KICKFD',
    vduseVqInjectIrq: 'VQ_INJECT_IRQ',
  };
  for (const [name, request] of Object.entries(device)) {
    const good = FUNCTIONS[name as keyof Addon].slice(1).map((argument) => argument.good);
    t.throws(() => call(name, [event.fd, ...good]), {
      name: 'Error',
      code: 'ENOTTY',
      errno: -25,
      syscall: `ioctl VDUSE_${request}`,
      message: `ENOTTY: inappropriate ioctl for device, ioctl VDUSE_${request}`,
    });
  }
  event.close();
});

t.test('vDPA netlink without a vDPA bus', async (t) => {
  if (existsSync('/sys/bus/vdpa')) {
    t.ok(Array.isArray(await native.vdpaDeviceList()));
    t.ok(Array.isArray(await native.vdpaManagementDevices()));
    await t.rejects(native.vdpaDeviceDelete('no-such-device'), {
      code: 'ENODEV',
      syscall: 'netlink VDPA_CMD_DEV_DEL',
    });
    return;
  }
  const before = openFds();
  const wanted = {
    code: 'ENOENT',
    errno: -2,
    syscall: 'netlink family vdpa',
    message: /^ENOENT: no such file or directory, netlink family vdpa/,
  };
  await t.rejects(native.vdpaDeviceList(), wanted);
  await t.rejects(native.vdpaManagementDevices(), wanted);
  await t.rejects(native.vdpaDeviceAdd('x', 'vduse'), wanted);
  await t.rejects(native.vdpaDeviceDelete('x'), wanted);
  await Promise.allSettled(Array.from({ length: 20 }, () => native.vdpaDeviceList()));
  t.equal(openFds(), before);
});

t.test('handles: only the addon makes them, only theirs are accepted', async (t) => {
  const event = native.eventfd(0);
  const handles = [event, native.allocate(1), native.watch(event.fd, () => {}), native.ioPool(1)];
  for (const handle of handles) {
    const Class = handle.constructor as new () => unknown;
    t.throws(() => new Class(), { name: 'TypeError', message: 'Illegal constructor' });
    t.throws(() => Reflect.construct(Class, [], Object), TypeError);
    t.throws(() => (Class as unknown as () => void)(), TypeError);
    const prototype = Object.getPrototypeOf(handle) as object;
    for (const [name, { get, value }] of Object.entries(
      Object.getOwnPropertyDescriptors(prototype),
    )) {
      const method = (get ?? value) as Function;
      if (name === 'constructor') continue;
      const others = [undefined, null, 3, {}, prototype, Object.create(handle), ...handles];
      for (const receiver of others.filter((other) => other !== handle)) {
        t.throws(() => method.call(receiver), TypeError, name);
      }
    }
  }
  (handles[2] as { close(): void }).close();
  (handles[3] as { close(): void }).close();
  event.close();
});
