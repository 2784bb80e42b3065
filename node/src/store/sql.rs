//! All SQL text of the node. Names without a schema: `search_path` of every connection is the node's schema alone.

use std::fmt::Write;

/// The versions of the schema, oldest first; version n is the n-th. Never change one that was released, add another.
pub(super) const MIGRATIONS: [&str; 3] = [
    // slot_state, owner: rewritten at every flush, so pages keep room for updates in place. Unsigned 64-bit numbers are kept
    // as their bit patterns.
    "CREATE TABLE kv (
         slot integer NOT NULL,
         key bytea NOT NULL,
         value bytea NOT NULL,
         version bigint NOT NULL,
         PRIMARY KEY (slot, key)
     ) PARTITION BY LIST (slot);
     CREATE TABLE slot_state (
         slot integer PRIMARY KEY,
         next_offset bigint NOT NULL,
         checksum_before bigint,
         epoch bigint NOT NULL,
         leader_node bigint,
         leader_incarnation bigint,
         last_leader_offset bigint,
         last_seq bigint NOT NULL,
         released_to bigint,
         lease_ms bigint NOT NULL
     ) WITH (fillfactor = 50);
     CREATE TABLE owner (
         only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
         incarnation bigint NOT NULL,
         since timestamptz NOT NULL
     );",
    // dedup: read only when a slot is loaded, so its one index is the order in which rows come and go.
    "ALTER TABLE slot_state ADD COLUMN time_ms bigint NOT NULL DEFAULT 0;
     CREATE TABLE dedup (
         slot integer NOT NULL,
         time_ms bigint NOT NULL,
         version bigint NOT NULL,
         idempotency_key bytea NOT NULL,
         fingerprint bigint NOT NULL,
         PRIMARY KEY (slot, time_ms, version)
     );",
    // Snapshots. restore: one row per slot whose snapshot is being loaded, with the position that it will have, as JSON.
    "ALTER TABLE slot_state ADD COLUMN whole_at bigint;
     CREATE TABLE restore (
         slot integer PRIMARY KEY,
         position text NOT NULL,
         after_key bytea NOT NULL
     );",
];

pub(super) const CURRENT_SCHEMA: &str = "SELECT current_schema()::text";

/// Whether the schema holds tables, and whether the table of versions is one of them.
pub(super) const WHAT_IS_THERE: &str = "SELECT
         EXISTS (SELECT FROM pg_tables WHERE schemaname = current_schema()),
         EXISTS (SELECT FROM pg_tables WHERE schemaname = current_schema() AND tablename = 'schema_version')";

pub(super) const MIGRATION_LOCK: &str = "SELECT pg_advisory_xact_lock($1)";

pub(super) const CREATE_VERSIONS: &str = "CREATE TABLE schema_version (
         version integer PRIMARY KEY,
         migrated_at timestamptz NOT NULL DEFAULT now()
     )";

pub(super) const SELECT_VERSION: &str = "SELECT coalesce(max(version), 0) FROM schema_version";

pub(super) const INSERT_VERSION: &str = "INSERT INTO schema_version (version) VALUES ($1)";

pub(super) const TAKE_OWNERSHIP: &str = "INSERT INTO owner (incarnation, since) VALUES ($1, now())
     ON CONFLICT (only_row) DO UPDATE SET incarnation = excluded.incarnation, since = excluded.since";

/// Held until the end of the transaction, so that no other process can take the schema over in the middle of it.
pub(super) const CHECK_OWNERSHIP: &str = "SELECT incarnation FROM owner FOR SHARE";

/// The partition of one slot. The number is ours, so it cannot carry SQL. `fillfactor`: room for updates in place, which no
/// index on `version` prevents.
pub(super) fn create_partition(slot: u32) -> String {
    format!(
        "CREATE TABLE IF NOT EXISTS kv_{slot} PARTITION OF kv FOR VALUES IN ({slot}) WITH (fillfactor = 80)"
    )
}

pub(super) const SELECT_PARTITIONS: &str =
    "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'kv'::regclass";

/// A new slot stands before its first record.
pub(super) const INSERT_MISSING_STATE: &str =
    "INSERT INTO slot_state (slot, next_offset, epoch, last_seq, lease_ms)
     SELECT slot, 0, 0, 0, 0 FROM unnest($1::integer[]) AS wanted (slot)
     ON CONFLICT (slot) DO NOTHING";

/// Writes although nothing changes: its commit then makes everything before it durable, whoever wrote that.
pub(super) const TOUCH_STATE: &str = "UPDATE slot_state SET slot = slot WHERE slot = ANY ($1)
     RETURNING slot, next_offset, checksum_before, epoch, leader_node, leader_incarnation,
         last_leader_offset, last_seq, released_to, lease_ms, time_ms, whole_at";

pub(super) const SELECT_STATE: &str = "SELECT slot, next_offset, checksum_before, epoch, leader_node, leader_incarnation,
         last_leader_offset, last_seq, released_to, lease_ms, time_ms, whole_at FROM slot_state WHERE slot = $1";

pub(super) const SELECT_STORED: &str = "SELECT slot, CASE WHEN whole_at = 9223372036854775807 THEN 0 ELSE next_offset END FROM slot_state";

/// By the files of the partitions: quick, also for many rows.
pub(super) const SELECT_SIZES: &str = "SELECT substr(class.relname, 4)::integer, pg_total_relation_size(class.oid)
     FROM pg_inherits JOIN pg_class AS class ON class.oid = inhrelid WHERE inhparent = 'kv'::regclass";

/// All that is kept of a slot outside of its partition.
pub(super) const REMOVE: [&str; 3] = [
    "DELETE FROM slot_state WHERE slot = $1",
    EMPTY_DEDUP,
    END_RESTORE,
];

pub(super) const HAS_PARTITION: &str = "SELECT to_regclass($1) IS NOT NULL";

/// Waits for an own transaction that may still be committing.
pub(super) const LOCK_OFFSETS: &str =
    "SELECT slot, next_offset FROM slot_state WHERE slot = ANY ($1) ORDER BY slot FOR UPDATE";

/// The compare-and-set of every slot's offset.
pub(super) const MOVE_OFFSETS: &str = "UPDATE slot_state AS state SET
         next_offset = step.next_offset,
         checksum_before = step.checksum_before,
         epoch = step.epoch,
         leader_node = step.leader_node,
         leader_incarnation = step.leader_incarnation,
         last_leader_offset = step.last_leader_offset,
         last_seq = step.last_seq,
         released_to = step.released_to,
         lease_ms = step.lease_ms,
         time_ms = step.time_ms,
         whole_at = step.whole_at
     FROM unnest($1::integer[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[],
         $7::bigint[], $8::bigint[], $9::bigint[], $10::bigint[], $11::bigint[], $12::bigint[],
         $13::bigint[])
         AS step (slot, expected, next_offset, checksum_before, epoch, leader_node, leader_incarnation,
             last_leader_offset, last_seq, released_to, lease_ms, time_ms, whole_at)
     WHERE state.slot = step.slot AND state.next_offset = step.expected";

/// `ON CONFLICT` refuses a key twice in one statement: the caller coalesces.
pub(super) const UPSERT: &str = "INSERT INTO kv (slot, key, value, version)
     SELECT * FROM unnest($1::integer[], $2::bytea[], $3::bytea[], $4::bigint[])
     ON CONFLICT (slot, key) DO UPDATE SET value = excluded.value, version = excluded.version";

/// One slot at a time, so that one partition is planned, by its index.
pub(super) const DELETE: &str = "DELETE FROM kv WHERE slot = $1 AND key = ANY ($2)";

/// Remembers requests ($1 to $5), and forgets those of the same slots ($6) that are no younger than a time ($7). No row is there
/// before, unless somebody took the slot's state away by hand: then the log says what is right.
pub(super) const REMEMBER: &str = "WITH forgotten AS (
         DELETE FROM dedup USING unnest($6::integer[], $7::bigint[]) AS old (slot, time_ms)
         WHERE dedup.slot = old.slot AND dedup.time_ms <= old.time_ms
     )
     INSERT INTO dedup (slot, time_ms, version, idempotency_key, fingerprint)
     SELECT * FROM unnest($1::integer[], $2::bigint[], $3::bigint[], $4::bytea[], $5::bigint[])
     ON CONFLICT (slot, time_ms, version) DO UPDATE SET
         idempotency_key = excluded.idempotency_key, fingerprint = excluded.fingerprint";

/// What slots remember of requests as of where they stand, by a window of $2 milliseconds.
pub(super) const SELECT_DEDUP: &str =
    "SELECT slot, dedup.time_ms, version, idempotency_key, fingerprint
     FROM dedup JOIN slot_state AS state USING (slot)
     WHERE slot = ANY ($1) AND version < state.next_offset AND dedup.time_ms > state.time_ms - $2
     ORDER BY slot, version";

pub(super) const COMMIT_WAITS_FOR_DISK: &str = "SET LOCAL synchronous_commit = on";

/// A crash takes the newest such commits back, as a whole suffix; the overlays still have them.
pub(super) const COMMIT_DOES_NOT_WAIT: &str = "SET LOCAL synchronous_commit = off";

pub(super) const GET: &str = "SELECT value, version FROM kv WHERE slot = $1 AND key = $2";

pub(super) const BEGIN_SCAN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";

pub(super) const ALLOW_LONG_SCAN: &str = "SET LOCAL statement_timeout = '600s'";

pub(super) const END_SCAN: &str = "COMMIT";

pub(super) const SELECT_OFFSET: &str = "SELECT next_offset FROM slot_state WHERE slot = $1";

pub(super) const SCAN: &str = "SELECT key, value, version FROM kv WHERE slot = $1 ORDER BY key";

/// The rows of a slot behind a key, which becomes hexadecimal digits here and so cannot carry SQL. COPY takes no parameters.
pub(super) fn copy_out(slot: u32, after: &[u8]) -> String {
    let digits = after.iter().fold(String::new(), |mut digits, byte| {
        let _ = write!(digits, "{byte:02x}");
        digits
    });
    format!(
        "COPY (SELECT slot, key, value, version FROM kv WHERE slot = {slot} AND key > '\\x{digits}'::bytea ORDER BY key)
         TO STDOUT (FORMAT binary)"
    )
}

pub(super) fn copy_dedup_out(slot: u32) -> String {
    format!("COPY (SELECT slot, time_ms, version, idempotency_key, fingerprint FROM dedup WHERE slot = {slot})
         TO STDOUT (FORMAT binary)")
}

pub(super) const COPY_DEDUP_IN: &str =
    "COPY dedup (slot, time_ms, version, idempotency_key, fingerprint) FROM STDIN (FORMAT binary)";

pub(super) const EMPTY_DEDUP: &str = "DELETE FROM dedup WHERE slot = $1";

pub(super) fn copy_in(slot: u32) -> String {
    format!("COPY kv_{slot} (slot, key, value, version) FROM STDIN (FORMAT binary)")
}

pub(super) fn empty_partition(slot: u32) -> String {
    format!("TRUNCATE kv_{slot}")
}

/// The slot has no state while it is restored.
pub(super) const BEGIN_RESTORE: &str =
    "INSERT INTO slot_state (slot, next_offset, epoch, last_seq, lease_ms, whole_at) VALUES ($1, 0, 0, 0, 0, $2)
     ON CONFLICT (slot) DO UPDATE SET next_offset = 0, checksum_before = NULL, epoch = 0, leader_node = NULL,
         leader_incarnation = NULL, last_leader_offset = NULL, last_seq = 0, released_to = NULL, lease_ms = 0,
         time_ms = 0, whole_at = excluded.whole_at";

pub(super) const SELECT_RESTORE: &str = "SELECT position, after_key FROM restore WHERE slot = $1";

pub(super) const NOTE_RESTORE: &str =
    "INSERT INTO restore (slot, position, after_key) VALUES ($1, $2, $3)
     ON CONFLICT (slot) DO UPDATE SET position = excluded.position, after_key = excluded.after_key";

pub(super) const END_RESTORE: &str = "DELETE FROM restore WHERE slot = $1";
