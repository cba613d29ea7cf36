/** A device that is open and ready to be put on a transport, whatever it is. */
export interface HostedDevice {
  readonly type: 'block' | 'rpmb';
  /** VIRTIO_ID_…. */
  readonly virtioId: number;
  /** What it serves: the real path of the image or state file. */
  readonly path: string;
  /** "device:inode" of that file. */
  readonly inode: string;
  /** Bytes. */
  readonly capacity: number;
  readonly readOnly: boolean;
  readonly queues: number;
  readonly queueSize: number;
  /** Device feature bits; those of the ring are the transport's. */
  readonly features: bigint;
  /** The configuration space as it is now. */
  config(): Uint8Array;
  /** The driver writes configuration space. Returns what the model is to be told; throws to refuse it. */
  writeConfig(offset: number, bytes: Uint8Array): unknown;
  /** Forget what the driver chose. Returns what the model is to be told, if anything. */
  reset(): unknown;
  /** The name of its model in the worker's table, and what the model is opened with. */
  readonly model: string;
  readonly modelOptions: unknown;
  /** Properties for the ready line. */
  readonly facts: Readonly<Record<string, string | number | boolean>>;
  /** It may keep the engine thread that serves it waiting, so it gets one for itself. */
  readonly ownThread: boolean;
  /** What a later server must have in common with this one to go on with its device. */
  readonly identity: Readonly<Record<string, string | number>>;
  /** What the operator should be told. */
  readonly warnings: readonly string[];
  /** Make all that was written durable. */
  flush(): Promise<void>;
  /** Release file and lock. */
  close(): void;
  /** Release, and remove what was created for nothing. */
  discard(): void;
}
