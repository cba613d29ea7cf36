import { join } from 'node:path';
import { MessageChannel, receiveMessageOnPort } from 'node:worker_threads';
import t from 'tap';
import {
  type IoPort,
  IoTable,
  native,
  ROW,
  ROW_WORDS,
  type RowOwner,
} from '../../lib/native/index.ts';
import { deviceMemoryBytes, RpmbDevice } from '../../lib/rpmb/device.ts';
import { RpmbQueueDevice } from '../../lib/rpmb/queue-device.ts';
import type { StateModel } from '../../lib/rpmb/state/commit.ts';
import { createState } from '../../lib/rpmb/state/create.ts';
import { openState } from '../../lib/rpmb/state/open.ts';
import { allocatePrivate } from '../../lib/rpmb/system.ts';
import { FileStore, type FileTarget } from '../../lib/store/file-store.ts';
import { MockMemory, SplitDriver } from '../../lib/testing/index.ts';
import { Chain, createQueue, Popped } from '../../lib/virtio/index.ts';
import {
  concat,
  dataRead,
  dataWrite,
  getCounter,
  KEY,
  pattern,
  read,
  resultRead,
  SMALL,
  temporaryFolder,
} from './harness.ts';

/** An engine in small: the rows pushed are run when asked. */
class Engine implements IoPort {
  readonly table = new IoTable(native);
  #owner: RowOwner | undefined;

  register(owner: RowOwner): number {
    this.#owner = owner;
    return 0;
  }

  unregister(): void {
    this.#owner = undefined;
  }

  after(): void {}

  /** Run all rows, and those that their completions push. */
  run(): void {
    for (let row = 0; row < this.table.count; row++) {
      native.ioRun(this.table.rowBuffer, this.table.vectorBuffer, row, 1);
      const at = row * ROW_WORDS;
      this.#owner!.rowCompleted(
        this.table.rows[at + ROW.token]!,
        this.table.rows[at + ROW.result]!,
      );
    }
    this.table.clear();
  }
}

t.test('served from another thread: rows of an engine, the keys in one place', async (t) => {
  const path = join(temporaryFolder(), 'state');
  createState(path, { size: SMALL, key: KEY }, native);
  const state = openState(path, {}, native);

  // What a worker gets.
  const { port1, port2 } = new MessageChannel();
  port1.postMessage({ model: state.model, target: state.target });
  const { model, target } = receiveMessageOnPort(port2)!.message as {
    model: StateModel;
    target: FileTarget;
  };
  port1.close();
  const engine = new Engine();
  const { memory, release } = allocatePrivate(native, deviceMemoryBytes(model.layout));
  const device = new RpmbDevice({
    model,
    store: (sink) => new FileStore(engine, target, sink),
    memory,
    getRandom: (into) => native.getRandom(into),
  });
  t.equal(Buffer.from(state.model.live).indexOf(KEY), -1, 'the key has moved');
  t.ok(Buffer.from(memory.u8).includes(Buffer.from(KEY)));

  const guest = new MockMemory();
  const driver = new SplitDriver(guest.add(0x4000, 1 << 18), { size: 16 });
  const ring = createQueue(guest.memory, driver.layout);
  const queue = new RpmbQueueDevice(device, ring);
  const chain = new Chain();
  const places: { address: number; room: number }[] = [];
  const add = (request: Uint8Array, room: number) => {
    const address = driver.allocate(request.length);
    guest.write(address, request);
    const into = driver.allocate(room);
    driver.add([{ address, length: request.length }], [{ address: into, length: room }]);
    places.push({ address: into, room });
  };
  add(concat(dataWrite({ data: pattern(5, 1), address: 9 }), resultRead()), 512);
  add(dataRead(8, 6), 6 * 512);
  add(concat(dataWrite({ counter: 1, data: pattern(32, 2) }), resultRead()), 512);
  add(getCounter(), 512);
  while (ring.pop(chain) === Popped.One) queue.begin(chain);
  t.ok(device.busy, 'nothing has run yet');
  t.equal(ring.inFlight, 4);
  engine.run();
  ring.publish();
  const answers = driver
    .poll()
    .map(({ length }, i) => read(guest.read(places[i]!.address, length)));
  t.match(answers, [
    { type: 0x0300, result: 0, counter: 1, mac: true },
    { type: 0x0400, result: 0, frames: 6, mac: true },
    { type: 0x0300, result: 0, counter: 2, mac: true },
    { type: 0x0200, result: 0, counter: 2, mac: true },
  ]);
  t.same(answers[1]!.data, concat(new Uint8Array(256), pattern(5, 1)));
  t.equal(state.counter, 2, 'the main thread sees the counter');
  t.notOk(state.failed);

  queue.reset();
  device.close();
  t.ok(
    memory.u8.every((byte) => byte === 0),
    'wiped',
  );
  release();
  engine.table.close();
  state.close();
  const again = openState(path, {}, native);
  t.equal(again.counter, 2);
  again.close();
});
