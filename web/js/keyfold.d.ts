/** The position of a key. Compare positions by equality only: versions of two epochs have no order. */
export interface Position {
  readonly epoch: string;
  readonly version: number;
}

/**
 * "reconnecting": not live now, and retried automatically; also when the time of a ticket is over. "refused": the
 * server refuses the key or has no room, or the key is malformed; the message says which. A refused watch is retried
 * over the next connection, when the key is watched once more, when another watch closes (if there was no room), and
 * with `ticket` after a pause.
 */
export type Status = "connecting" | "live" | "reconnecting" | "refused";

/** An error that a callback throws is reported as an uncaught error, and does not affect other watches. */
export interface WatchOptions<State = unknown, Delta = unknown> {
  /** The whole state: after each snapshot, and with `reduce` after each delta. Null: the key has no row. */
  onState?(state: State | null, position: Position): void;
  /** Called for each delta, once, in order. */
  onDelta?(delta: Delta, position: Position): void;
  onStatus?(status: Status, message?: string): void;
  /**
   * Returns the state after a delta. It may change the given state in place: the object belongs to this watch alone. If
   * it throws, the watch asks for a snapshot.
   */
  reduce?(state: State | null, delta: Delta): State;
  /**
   * Fetches a new ticket for this key, for pages that have no session: a string of at most 16 KiB. If it fails, takes
   * over 15 s or returns anything else, it is called again after a pause.
   */
  ticket?(): Promise<string>;
  /** The URL under which Keyfold's routes are, with a slash at the end. Default: the URL that served this module. */
  url?: string;
}

export interface Watch<State = unknown> {
  readonly state: State | null;
  readonly position: Position | null;
  readonly status: Status;
  /** Ends the watch. None of its callbacks is called afterwards. */
  close(): void;
}

/**
 * Watches a key until `close()`: a snapshot first, then every change after it, once, in order, or a new
 * snapshot. Lost connections are replaced automatically, and the watch resumes. All watches of a page share one socket.
 */
export function watch<State = unknown, Delta = unknown>(
  name: string,
  key: string,
  options?: WatchOptions<State, Delta>,
): Watch<State>;

/** Returns the milliseconds to wait before the next attempt: uniform below a bound that doubles from 2 s to 30 s. */
export function backoff(attempt: number, random?: () => number): number;
