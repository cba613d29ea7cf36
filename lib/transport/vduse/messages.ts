/** Struct vduse_dev_request and vduse_dev_response of linux/vduse.h, little-endian. */

export const REQUEST_BYTES = 152;
export const RESPONSE_BYTES = 152;

export const MessageType = {
  GetVqState: 0,
  SetStatus: 1,
  UpdateIotlb: 2,
  SetVqGroupAsid: 3,
} as const;

export type VduseMessage =
  | { readonly id: number; readonly type: 'get-vq-state'; readonly index: number }
  | { readonly id: number; readonly type: 'set-status'; readonly status: number }
  | {
      readonly id: number;
      readonly type: 'update-iotlb';
      readonly start: bigint;
      readonly last: bigint;
    }
  | { readonly id: number; readonly type: 'unknown'; readonly number: number };

/** The state of a virtqueue as GET_VQ_STATE wants it: u16 words of the union. */
export type VqStateWords = readonly [number, number, number, number];

/** Where the union of either struct begins. */
const REQUEST_UNION = 24;
const RESPONSE_UNION = 24;

/** Read a request; throws a RangeError when it is not whole. */
export function parseMessage(bytes: Uint8Array): VduseMessage {
  if (bytes.length !== REQUEST_BYTES) {
    throw new RangeError(`VDUSE message of ${bytes.length} bytes, not ${REQUEST_BYTES}`);
  }
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const type = view.getUint32(0, true);
  const id = view.getUint32(4, true);
  switch (type) {
    case MessageType.GetVqState:
      return { id, type: 'get-vq-state', index: view.getUint32(REQUEST_UNION, true) };
    case MessageType.SetStatus:
      return { id, type: 'set-status', status: view.getUint8(REQUEST_UNION) };
    case MessageType.UpdateIotlb:
      return {
        id,
        type: 'update-iotlb',
        start: view.getBigUint64(REQUEST_UNION, true),
        last: view.getBigUint64(REQUEST_UNION + 8, true),
      };
    default:
      return { id, type: 'unknown', number: type };
  }
}

/** Build the answer to request `id`. `state` goes with a successful GET_VQ_STATE for queue `index`. */
export function buildResponse(
  id: number,
  ok: boolean,
  state?: { readonly index: number; readonly words: VqStateWords },
): Uint8Array {
  const bytes = new Uint8Array(RESPONSE_BYTES);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, id, true);
  view.setUint32(4, ok ? 0 : 1, true);
  if (state !== undefined) {
    view.setUint32(RESPONSE_UNION, state.index, true);
    // struct vduse_vq_state: u32 index, then the union of split and packed state.
    state.words.forEach((word, i) => {
      view.setUint16(RESPONSE_UNION + 4 + i * 2, word, true);
    });
  }
  return bytes;
}
