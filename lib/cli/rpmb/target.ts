import { VhostUserFrontend } from '../../frontend/index.ts';
import { native } from '../../native/index.ts';
import {
  type Endpoint,
  FRAME_BYTES,
  openOffline,
  parseConfig,
  parseTarget,
  RpmbClient,
  RpmbError,
  readKeyFile,
} from '../../rpmb/index.ts';

/** Bytes of the configuration space (virtio 1.3 §5.12.4). */
const CONFIG_BYTES = 3;

/** How long a device may take to answer. */
const TIMEOUT_MS = 30_000;

/** Options with which a state file is opened. */
export interface TargetOptions {
  'wrap-key-file'?: string | undefined;
  'allow-readable-key'?: boolean | undefined;
}

/** Use an RPMB, wherever it is; the connection ends with `use`. */
export async function withTarget<T>(
  text: string,
  options: TargetOptions,
  use: (endpoint: Endpoint) => Promise<T>,
): Promise<T> {
  const target = parseTarget(text);
  const endpoint =
    target.kind === 'unix' ? await connect(target.path) : openFile(target.path, options);
  try {
    return await use(endpoint);
  } finally {
    await endpoint.close();
  }
}

/** A client of that device. */
export function clientOf(endpoint: Endpoint): RpmbClient {
  return new RpmbClient({
    name: endpoint.name,
    limits: parseConfig(endpoint.config, endpoint.name),
    exchange: endpoint.exchange,
    getRandom: (into) => native.getRandom(into),
  });
}

/** Bytes for frames: a request of 512 blocks, its result, and as many frames back. */
const BUFFER_BYTES = 2 << 20;

async function connect(path: string): Promise<Endpoint> {
  const frontend = await reach(path);
  try {
    const config = await frontend.readConfig(0, CONFIG_BYTES);
    const [queue] = await frontend.start({ queues: 1, bufferBytes: BUFFER_BYTES });
    return {
      name: `unix:${path}`,
      config,
      exchange: async (request, responseFrames) => {
        const room = responseFrames === 0 ? [] : [responseFrames * FRAME_BYTES];
        const { written, data } = await queue!.submit([request], room);
        return (data[0] ?? new Uint8Array(0)).subarray(0, written);
      },
      close: () => frontend.close(),
    };
  } catch (error) {
    await frontend.close();
    throw error;
  }
}

async function reach(path: string): Promise<VhostUserFrontend> {
  try {
    return await VhostUserFrontend.connect({ path, timeoutMs: TIMEOUT_MS });
  } catch (error) {
    const { code, syscall, message } = error as NodeJS.ErrnoException;
    if (error instanceof RangeError) {
      throw new RpmbError('TARGET', 'unix:PATH', message, 'give a shorter path, a relative one');
    }
    if (syscall !== 'connect') throw error;
    const remedy = 'check the path, and that somebody serves there: vduse serve --socket-path';
    throw new RpmbError('TARGET', `unix:${path}`, `cannot be reached: ${code}`, remedy, error);
  }
}

function openFile(path: string, options: TargetOptions): Endpoint {
  const { 'wrap-key-file': file, 'allow-readable-key': allowReadable = false } = options;
  const wrapKey = file === undefined ? undefined : readKeyFile(file, { allowReadable });
  try {
    return openOffline(path, wrapKey === undefined ? {} : { wrapKey }, native);
  } finally {
    wrapKey?.fill(0);
  }
}
