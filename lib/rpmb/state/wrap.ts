import { createCipheriv, createDecipheriv } from 'node:crypto';
import { KEY_BYTES } from '../frame.ts';
import { BLOB_BYTES, WRAP_CHECK_BYTES, WRAP_NONCE_BYTES, WRAP_TAG_BYTES } from './layout.ts';

/**
 * The authentication key at rest under a wrap key: AES-256-GCM with a random nonce, bound to the
 * file by its id. A file sees a handful of nonces in its life, so 96 random bits don't repeat.
 */
const CIPHER = 'aes-256-gcm';

/** Fills its argument from getrandom(2): a generator in the process would repeat after a snapshot. */
export type GetRandom = (into: Uint8Array) => void;

/** The two uses of a wrap key, kept apart by the additional data. */
const PURPOSE = { key: 'vduse rpmb key', check: 'vduse rpmb wrap key' } as const;

export function wrapKey(
  wrapper: Uint8Array,
  id: Uint8Array,
  key: Uint8Array,
  getRandom: GetRandom,
): Uint8Array {
  return seal(wrapper, id, PURPOSE.key, key, getRandom);
}

/** The key, which the caller wipes; undefined when the blob is not one of this wrap key. */
export function unwrapKey(
  wrapper: Uint8Array,
  id: Uint8Array,
  blob: Uint8Array,
): Uint8Array | undefined {
  return blob.length === BLOB_BYTES ? open(wrapper, id, PURPOSE.key, blob) : undefined;
}

/** What the header keeps to tell the right wrap key, also before there is a key to unwrap. */
export function makeWrapCheck(
  wrapper: Uint8Array,
  id: Uint8Array,
  getRandom: GetRandom,
): Uint8Array {
  return seal(wrapper, id, PURPOSE.check, new Uint8Array(0), getRandom);
}

export function isWrapKey(wrapper: Uint8Array, id: Uint8Array, check: Uint8Array): boolean {
  return check.length === WRAP_CHECK_BYTES && open(wrapper, id, PURPOSE.check, check) !== undefined;
}

function seal(
  wrapper: Uint8Array,
  id: Uint8Array,
  purpose: string,
  secret: Uint8Array,
  getRandom: GetRandom,
): Uint8Array {
  const sealed = new Uint8Array(WRAP_NONCE_BYTES + secret.length + WRAP_TAG_BYTES);
  const nonce = sealed.subarray(0, WRAP_NONCE_BYTES);
  getRandom(nonce);
  const cipher = createCipheriv(CIPHER, wrapper, nonce);
  cipher.setAAD(Buffer.concat([Buffer.from(purpose), id]));
  sealed.set(cipher.update(secret), WRAP_NONCE_BYTES);
  cipher.final();
  sealed.set(cipher.getAuthTag(), WRAP_NONCE_BYTES + secret.length);
  return sealed;
}

function open(
  wrapper: Uint8Array,
  id: Uint8Array,
  purpose: string,
  sealed: Uint8Array,
): Uint8Array | undefined {
  if (wrapper.length !== KEY_BYTES) return undefined;
  const end = sealed.length - WRAP_TAG_BYTES;
  const decipher = createDecipheriv(CIPHER, wrapper, sealed.subarray(0, WRAP_NONCE_BYTES), {
    authTagLength: WRAP_TAG_BYTES,
  });
  decipher.setAAD(Buffer.concat([Buffer.from(purpose), id]));
  decipher.setAuthTag(sealed.subarray(end));
  const secret = decipher.update(sealed.subarray(WRAP_NONCE_BYTES, end));
  try {
    decipher.final();
    return Uint8Array.from(secret);
  } catch {
    return undefined;
  } finally {
    secret.fill(0);
  }
}
