/** Where a key stands. Positions are compared by equality: versions of two epochs have no order. */
export interface Position {
  readonly epoch: string;
  readonly version: number;
}

/**
 * "reconnecting": not live now, and tried again by itself; also when a ticket has had its time. "refused": the server
 * said no, or has no room, or the key can't be one; the message says why. A refused watch is tried again over the next
 * connection, when the key is watched once more, for want of room when another watch closes, and with `ticket` after
 * a pause.
 */
export type Status = "connecting" | "live" | "reconnecting" | "refused";

/** What a callback throws is reported as an uncaught error, and harms no other watch. */
export interface WatchOptions<State = unknown, Delta = unknown> {
  /** The whole state: after each snapshot, and with `reduce` after each delta. Null: the key has no row. */
  onState?(state: State | null, position: Position): void;
  /** One change, once, in order. */
  onDelta?(delta: Delta, position: Position): void;
  onStatus?(status: Status, message?: string): void;
  /**
   * Returns the state after a delta. The object may be changed in place: it belongs to this watch alone. If it throws, the
   * watch asks for a snapshot.
   */
  reduce?(state: State | null, delta: Delta): State;
  /**
   * Fetches a fresh ticket for this key, for pages that have no session: a string, at most 16 KiB. If it fails, takes over 15 s
   * or returns anything else, it is asked again after a pause.
   */
  ticket?(): Promise<string>;
  /** Where Keyfold's routes begin, with a slash at the end. By default where this module came from. */
  url?: string;
}

export interface Watch<State = unknown> {
  readonly state: State | null;
  readonly position: Position | null;
  readonly status: Status;
  /** Nothing of this watch is called afterwards. */
  close(): void;
}

/**
 * Watches a key until `close()`: a snapshot first, then every change after it, once, in order, or a new
 * snapshot. Lost connections come back by themselves and resume. All watches of a page share one socket.
 */
export function watch<State = unknown, Delta = unknown>(
  name: string,
  key: string,
  options?: WatchOptions<State, Delta>,
): Watch<State>;

/** Milliseconds to wait before the next attempt: uniform below a bound that doubles from 2 s to 30 s. */
export function backoff(attempt: number, random?: () => number): number;
