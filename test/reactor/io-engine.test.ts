import { closeSync, openSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { type Addon, IoFlag, IoKind, native } from '../../lib/native/index.ts';
import { PoolEngine } from '../../lib/reactor/pool-engine.ts';
import { UringEngine } from '../../lib/reactor/uring-engine.ts';
import { fillEventfd } from '../native/helpers.ts';

const NOTHING = { offset: 0, length: 0 };

const ENGINES = {
  io_uring: () => new UringEngine(native, 'auto'),
  pool: () => new PoolEngine(native, 'auto'),
};

for (const [name, open] of Object.entries(ENGINES)) {
  t.test(`${name}: a sync keeps the thread waiting only where its submitter allows it`, (t) => {
    const fd = openSync(join(t.testdir(), 'file'), 'w+');
    const engine = open();
    t.teardown(() => {
      engine.close();
      closeSync(fd);
    });
    const ended: [number, number][] = [];
    const owner = engine.register({
      rowCompleted: (token, result) => ended.push([token, result]),
    });

    engine.table.push(owner, 1, IoKind.Sync, fd, NOTHING, 0, 0);
    engine.submit();
    t.same(ended, [[1, 0]], 'done when submitted');
    t.equal(engine.inFlight, 0);

    engine.table.push(owner, 2, IoKind.Sync, fd, NOTHING, 0, IoFlag.MayBlock);
    engine.submit();
    t.equal(engine.inFlight, 1, 'handed out');
    while (engine.inFlight > 0) engine.wait(-1, () => {});
    t.same(ended.at(-1), [2, 0]);
    t.end();
  });
}

const EINTR = 4;

for (const [name, open] of Object.entries(ENGINES)) {
  t.test(`${name}: a driver that makes its eventfd full and blocking is given up`, (t) => {
    const engine = open();
    const full = native.eventfd(0);
    t.teardown(() => {
      engine.close();
      full.close();
    });
    fillEventfd(full.fd);
    const refused: number[][] = [];
    engine.onSignalRefused = (...all) => refused.push(all);
    engine.signal(full.fd, -1);
    engine.wait(0, () => {});
    t.same(refused, [[full.fd, -1, EINTR]]);
    t.end();
  });
}

/** The addon, with the flags word of the last ring it made, and how often the kernel was entered. */
function watchedAddon(): { addon: Addon; flags(): Uint32Array; enters: number } {
  let flagsAt = 0;
  let memory = new ArrayBuffer(0);
  const watched = { addon: native, flags: () => new Uint32Array(memory, flagsAt, 1), enters: 0 };
  watched.addon = Object.assign(Object.create(native), {
    ioUringSetup(...args: Parameters<Addon['ioUringSetup']>) {
      const ring = native.ioUringSetup(...args);
      flagsAt = ring.sqOff[4]!;
      return ring;
    },
    mmap(...args: Parameters<Addon['mmap']>) {
      const mapping = native.mmap(...args);
      if (memory.byteLength === 0) memory = mapping.buffer;
      return mapping;
    },
    ioUringEnter(...args: Parameters<Addon['ioUringEnter']>) {
      watched.enters++;
      return native.ioUringEnter(...args);
    },
  });
  return watched;
}

t.test('io_uring: sleeps though the ring says that completions wait in the kernel', (t) => {
  // The kernel sets IORING_SQ_TASKRUN behind the work it tells of: it may have been done by then.
  const IORING_SQ_TASKRUN = 1 << 2;
  const watched = watchedAddon();
  const engine = new UringEngine(watched.addon, 'auto');
  t.teardown(() => engine.close());
  engine.wait(0, () => {});
  Atomics.or(watched.flags(), 0, IORING_SQ_TASKRUN);
  watched.enters = 0;
  const began = performance.now();
  t.notOk(
    engine.wait(50_000, () => {}),
    'nothing happened',
  );
  t.ok(performance.now() - began > 45, 'it slept all the time');
  t.equal(watched.enters, 1);
  t.end();
});
