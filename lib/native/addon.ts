/**
 * What the C++ addon offers: system calls one to one, no policy.
 *
 * Every function checks its arguments (TypeError, RangeError) and throws an `Error` with `code`,
 * `errno` and `syscall` when the kernel refuses, as Node's own `fs` does.
 */

/** An error of the operating system. `extack` is the kernel's own explanation, where it gave one. */
export interface SystemError extends Error {
  readonly code: string;
  /** Negative, as in Node. */
  readonly errno: number;
  /** Such as `ioctl VDUSE_CREATE_DEV`, `netlink VDPA_CMD_DEV_NEW` or `netlink family vdpa`. */
  readonly syscall: string;
  readonly path?: string;
  readonly extack?: string;
}

/**
 * A file descriptor owned by JavaScript: closed by `close()`, or when it is garbage collected. Keep
 * the object as long as its number is used.
 */
export interface OwnedFd {
  /** The descriptor, -1 once closed or released. */
  readonly fd: number;
  /** Close it; a second call does nothing. */
  close(): void;
  /** Give it up without closing: the caller owns the number from here on. */
  release(): number;
}

/**
 * A shared mapping of a file, at most 4 GiB (Node-API's limit on external buffers).
 * A page whose file was cut short does not kill the process: the SIGBUS handler puts zeroes over
 * the whole mapping and sets `poisoned`. The memory goes with `unmap()`, or when both the Mapping
 * and its buffer are garbage collected. Writing to a mapping that is not writable kills the process.
 */
export interface Mapping {
  /** Detached (length 0) after `unmap()`. */
  readonly buffer: ArrayBuffer;
  /** The address of its first byte in this process; 0 after `unmap()`. */
  readonly address: number;
  /** As asked for, also after `unmap()`. */
  readonly length: number;
  readonly poisoned: boolean;
  /** Detach every view, then unmap; a second call does nothing. */
  unmap(): void;
}

/**
 * A whole file, mapped for the copies of `ioRun` and for nothing else. It goes with `unmap()`, or when
 * the object is garbage collected.
 */
export interface FileMap {
  /** The address of its first byte in this process; 0 after `unmap()`. */
  readonly address: number;
  /** No row that names it may be waiting; a second call does nothing. */
  unmap(): void;
}

export interface VduseDeviceConfig {
  readonly name: string;
  readonly vendorId: number;
  readonly deviceId: number;
  readonly features: bigint;
  readonly vqNum: number;
  readonly vqAlign: number;
  readonly config: Uint8Array;
}

export interface VduseVqInfo {
  readonly num: number;
  readonly desc: bigint;
  readonly driver: bigint;
  readonly device: bigint;
  /** The state union: `u16[0]` is avail_index (split); all four are the packed state. */
  readonly state: readonly [number, number, number, number];
  readonly ready: boolean;
}

export interface IotlbEntry {
  readonly fd: OwnedFd;
  readonly offset: bigint;
  readonly start: bigint;
  readonly last: bigint;
  /** 1 read-only, 2 write-only, 3 read-write (the driver's promise of what we may do). */
  readonly perm: number;
}

export interface VdpaDevice {
  readonly name: string;
  readonly mgmtdev: string;
  readonly deviceId: number;
  readonly vendorId: number;
  readonly maxVqs: number;
  readonly maxVqSize: number;
}

export interface VdpaManagementDevice {
  readonly name: string;
  readonly supportedClasses: bigint;
}

/**
 * Calls `onReady` each time the descriptor is readable or hung up, after `rearm()`; keeps no libuv
 * thread. While it waits for an event it is not garbage collected. Close it before the descriptor.
 */
export interface FdWatcher {
  /** Ask for the next event (one shot: none comes before this call). */
  rearm(): void;
  /** Stop: no call comes after this one. The descriptor itself stays open. */
  close(): void;
  /** Don't keep the process alive for this watcher alone. */
  unref(): void;
}

export interface IoUring {
  readonly ring: OwnedFd;
  readonly sqEntries: number;
  readonly cqEntries: number;
  readonly features: number;
  /** Offsets of struct io_sqring_offsets: head, tail, ring_mask, ring_entries, flags, dropped, array. */
  readonly sqOff: readonly number[];
  /** Offsets of struct io_cqring_offsets: head, tail, ring_mask, ring_entries, overflow, cqes, flags. */
  readonly cqOff: readonly number[];
}

/** A pool of native threads that runs rows of an `IoTable` (see io-table.ts). */
export interface IoPool {
  /** An eventfd that is readable while completions wait; -1 once closed. */
  readonly eventFd: number;
  /**
   * Copies `count` rows from `first` on, with their vectors, and queues them. They run in any order.
   * A row that is refused (see `ioRun`) completes with -EINVAL.
   */
  submit(rows: ArrayBuffer, vectors: ArrayBuffer, first: number, count: number): void;
  /** Fills pairs (row user word, result) and returns how many pairs; clears the eventfd when drained. */
  reap(pairs: Int32Array): number;
  /** Waits for what is running, drops what has not begun, ends the threads. */
  close(): void;
}

export interface BlockDeviceInfo {
  readonly size: number;
  readonly logicalBlockSize: number;
  readonly physicalBlockSize: number;
  readonly readOnly: boolean;
}

export interface ReceivedMessage {
  /** 0 at the end of the stream. */
  readonly bytes: number;
  readonly fds: readonly OwnedFd[];
  /** The kernel cut the ancillary data (more descriptors than allowed came). */
  readonly truncated: boolean;
}

export interface Addon {
  // --- descriptors and memory
  /** `initial` 0 … 2^32-1; always EFD_CLOEXEC | EFD_NONBLOCK. */
  eventfd(initial: number): OwnedFd;
  /**
   * Adds 1. EAGAIN (counter full) counts as done. EINTR: full, and made blocking by the peer that
   * shares it; found after two seconds at most.
   */
  eventfdSignal(fd: number): void;
  /** Returns the count; 0 when it would block, even where a peer has cleared O_NONBLOCK. */
  eventfdRead(fd: number): number;
  /** memfd_create(MFD_CLOEXEC) and ftruncate. */
  memfd(name: string, length: number): OwnedFd;
  /** dup with FD_CLOEXEC. */
  duplicate(fd: number): OwnedFd;
  /** Takes ownership of a number. */
  adopt(fd: number): OwnedFd;
  setNonblocking(fd: number, on: boolean): void;
  /** MAP_SHARED. `offset` must be a multiple of the page size; `length` is rounded up to pages by the kernel. */
  mmap(fd: number, length: number, offset: number, writable: boolean): Mapping;
  /** Private anonymous zeroed pages, page aligned. */
  allocate(length: number): Mapping;
  /** One u32: how many SIGBUS the handler has absorbed in this process. */
  sigbusCounter(): ArrayBuffer;
  pageSize(): number;

  // --- polling
  /** One epoll thread for a whole environment. EEXIST: `fd` is being watched; EPERM: it can't be. */
  watch(fd: number, onReady: () => void): FdWatcher;

  // --- VDUSE (linux/vduse.h)
  vduseGetApiVersion(control: number): bigint;
  vduseSetApiVersion(control: number, version: bigint): void;
  vduseCreateDevice(control: number, config: VduseDeviceConfig): void;
  vduseDestroyDevice(control: number, name: string): void;
  vduseIotlbGetFd(device: number, start: bigint, last: bigint): IotlbEntry;
  vduseGetFeatures(device: number): bigint;
  vduseSetConfig(device: number, offset: number, bytes: Uint8Array): void;
  vduseInjectConfigIrq(device: number): void;
  vduseVqSetup(device: number, index: number, maxSize: number): void;
  vduseVqGetInfo(device: number, index: number): VduseVqInfo;
  /** `eventFd` -1 takes it away. */
  vduseVqSetKickFd(device: number, index: number, eventFd: number): void;
  vduseVqInjectIrq(device: number, index: number): void;

  // --- vDPA generic netlink; each runs on threads of its own, never on libuv's pool, with a file
  // table of its own: should the process die meanwhile, the sleeping call holds no device open.
  // `mgmtdev` is a name, or bus/name as iproute2 has it.
  vdpaDeviceAdd(name: string, mgmtdev: string): Promise<void>;
  vdpaDeviceDelete(name: string): Promise<void>;
  vdpaDeviceList(): Promise<VdpaDevice[]>;
  vdpaManagementDevices(): Promise<VdpaManagementDevice[]>;

  // --- files
  /** fallocate(2): mode bits as in linux/falloc.h. */
  fallocate(fd: number, mode: number, offset: number, length: number): void;
  /** F_OFD_SETLK over the whole file; false when another open file holds it. */
  lockFile(fd: number, exclusive: boolean): boolean;
  blockDeviceInfo(fd: number): BlockDeviceInfo;
  /**
   * statx STATX_DIOALIGN: [memory, offset], [0, 0] for a file that can't be opened for direct I/O,
   * or undefined where the file system does not say.
   */
  directIoAlignment(fd: number): readonly [number, number] | undefined;

  // --- the engine
  /** MAP_SHARED, of a file of any size. ENODEV: its file system can't. */
  mapFile(fd: number, length: number, writable: boolean): FileMap;
  /** How many of the watched copies of this thread waited for a page to be read (getrusage: ru_majflt). */
  slowCopies(): number;
  /**
   * Runs rows at once, in order, on this thread; results go to the rows. Stops early never. A short
   * transfer is continued until its end, the end of the file or an error (which is then the result),
   * but not under rwFlags. A read or write with a `map`, all of whose extent lies in the mapping, is copied
   * from there, or to there; what can't be had there (the file was cut short, its disk fails or is full) is
   * left to the system call. -EINVAL: an unknown kind, vectors outside the table, more than 1024 vectors or
   * 2^31-1 bytes.
   */
  ioRun(rows: ArrayBuffer, vectors: ArrayBuffer, first: number, count: number): void;
  ioPool(threads: number): IoPool;
  ioUringSetup(entries: number, flags: number): IoUring;
  /** Opcode numbers the kernel supports (IORING_REGISTER_PROBE). */
  ioUringProbe(ring: number): number[];
  /**
   * Send the signals of `call` (triples: fd, index or -1, errno out: 0 when sent, else positive), then
   * io_uring_enter as its words say (see ring-call.ts). index -1 writes an eventfd, else
   * VDUSE_VQ_INJECT_IRQ. The time limit is IORING_ENTER_EXT_ARG's. Its result word becomes what
   * io_uring_enter returned: submitted entries, or -errno (EINTR, ETIME, EBUSY … are the caller's to
   * handle). RangeError: `call` is too short for its signals.
   */
  ioUringEnter(call: ArrayBuffer): void;
  /**
   * The lower 32 bits of the monotonic clock in µs, signed: it wraps, and a difference `| 0` is right
   * for half an hour. Unlike `performance.now()` it allocates nothing, whoever calls it.
   */
  clockUs(): number;
  /** Send `signals` as above, and nothing else. */
  sendSignals(signals: Int32Array, signalCount: number): void;
  /**
   * Send `signals` as above, then ppoll `fds` (pairs: fd, revents out) for POLLIN.
   * Returns the number ready, 0 at the time limit, -errno on failure. A negative fd is passed over.
   */
  signalAndPoll(
    fds: Int32Array,
    fdCount: number,
    timeoutUs: number,
    signals: Int32Array,
    signalCount: number,
  ): number;

  // --- unix sockets with descriptors
  /** Paths are at most 107 bytes long (RangeError); every socket is non-blocking. */
  unixListen(path: string, backlog: number): OwnedFd;
  /** EAGAIN when the backlog is full. */
  unixConnect(path: string): OwnedFd;
  /** undefined when nobody waits (the listening socket is non-blocking). */
  unixAccept(fd: number): OwnedFd | undefined;
  /** socketpair(AF_UNIX, SOCK_STREAM). */
  unixPair(): readonly [OwnedFd, OwnedFd];
  /** recvmsg; undefined when it would block. At most 253 descriptors are taken, close-on-exec. */
  receiveMessage(fd: number, into: Uint8Array, maxFds: number): ReceivedMessage | undefined;
  /**
   * sendmsg of all bytes, descriptors with the first. Waits while the socket is full, at most
   * `timeoutMs`, then fails with ETIMEDOUT: part of it may have gone.
   */
  sendMessage(fd: number, bytes: Uint8Array, fds: readonly number[], timeoutMs: number): void;

  // --- keys and randomness
  /** getrandom(2), straight from the kernel each time. */
  getRandom(into: Uint8Array): void;
  /** add_key("user", description, payload, KEY_SPEC_USER_KEYRING), then KEYCTL_SETPERM so that the same uid reads it by serial. */
  addUserKey(description: string, payload: Uint8Array): number;
  /** KEYCTL_READ. */
  readKey(serial: number): Uint8Array;
  /** madvise(MADV_DONTDUMP) and mlock as far as allowed, for secrets in a `Mapping`. */
  protectSecret(mapping: Mapping): void;
}
