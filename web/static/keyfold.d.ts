/** Where a key stands. Positions are compared by equality: versions of two epochs have no order. */
export interface Position {
  readonly epoch: string;
  readonly version: number;
}

/** "refused": the server said no (the message says why); it is not tried again without a ticket. */
export type Status = "connecting" | "live" | "reconnecting" | "refused";

export interface WatchOptions<State = unknown, Delta = unknown> {
  /** The whole state: after each snapshot, and with `reduce` after each delta. Null: the key has no row. */
  onState?(state: State | null, position: Position): void;
  /** One change, once, in order. */
  onDelta?(delta: Delta, position: Position): void;
  onStatus?(status: Status, message?: string): void;
  /** Returns the state after a delta. The object may be changed in place. */
  reduce?(state: State | null, delta: Delta): State;
  /** Fetches a fresh ticket for this key, for pages that have no session. */
  ticket?(): Promise<string>;
  /** Where Keyfold's routes begin, with a slash at the end. By default where this module came from. */
  url?: string;
}

export interface Watch<State = unknown> {
  readonly state: State | null;
  readonly position: Position | null;
  readonly status: Status;
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

/** Milliseconds to wait before the next attempt: uniform below a bound that doubles up to 30 s. */
export function backoff(attempt: number, random?: () => number): number;
