//! Takes a slot over from a peer's snapshot (`store/snapshot.rs`), piece by piece.
//!
//! ```text
//!                 first rows: the old state goes, in the same transaction
//!  stored ──────────────────────────────────────────────────▶ partly restored ──end──▶ stored, as of the first cut,
//!                                                              │      ▲                 whole from the newest cut on
//!                                                              └──────┘ further rows; a break: behind the last key
//! ```
//! What is there before stays until a peer has given rows. A slot that is partly restored says so in `slot_state`
//! ([`SlotPosition::NO_SNAPSHOT_YET`]), so that a process that begins with it neither serves nor replays.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use kvcluster_crds::{Offset, SlotId};
use sqlx::{AssertSqlSafe, PgConnection};

use crate::effect::SlotPosition;
use crate::store::batch::SlotStep;
use crate::store::postgres::{PostgresStore, make_partition, schema_error, unavailable};
use crate::store::rows::slot_number;
use crate::store::shared::Shared;
use crate::store::snapshot::{
    Block, COPY_HEADER, COPY_TRAILER, Decoder, Head, Rows, SnapshotError,
};
use crate::store::{Missing, RestoreError, StoreError, sql, write};

/// Bytes of rows that one transaction takes at least, unless they are the last ones.
const PIECE_BYTES: usize = 8 * 1_048_576;
/// Longest transaction of one piece, seconds.
const PIECE_SECONDS: u64 = 60;
/// Longest wait for the next bytes of the source, seconds.
const SOURCE_SECONDS: u64 = 20;

/// The row of the table `restore`.
#[derive(Clone, Debug)]
pub(super) struct Begun {
    /// The position that the slot will have: of the first cut, whole from the newest on.
    position: SlotPosition,
    /// The last key that is there.
    after: Bytes,
}

/// What came of a stream and is not stored yet.
#[derive(Default)]
struct Gathered {
    dedup: Vec<Bytes>,
    rows: Vec<Rows>,
    bytes: usize,
}

/// Takes a whole stream; after an error, what was taken stays for the next one.
pub(super) async fn take(
    store: &PostgresStore,
    slot: SlotId,
    least: Offset,
    stream: BoxStream<'_, Result<Bytes, String>>,
) -> Result<(), RestoreError> {
    let mut begun = begun(store, slot, least).await?;
    let taken = take_from(store, slot, least, &mut begun, stream).await;
    match taken {
        Err(RestoreError::Source(reason)) if begun.is_some() => Err(RestoreError::Broken(reason)),
        taken => taken,
    }
}

async fn take_from(
    store: &PostgresStore,
    slot: SlotId,
    least: Offset,
    begun: &mut Option<Begun>,
    mut stream: BoxStream<'_, Result<Bytes, String>>,
) -> Result<(), RestoreError> {
    let least = missing(begun.as_ref(), least).least;
    let mut decoder = Decoder::default();
    let mut gathered = Gathered::default();
    let mut cut = SlotPosition::start();
    while !decoder.has_ended() {
        let piece = tokio::time::timeout(Duration::from_secs(SOURCE_SECONDS), stream.next()).await;
        let piece = piece.map_err(|_| RestoreError::Source("it fell silent".to_owned()))?;
        let piece = piece.ok_or(SnapshotError::BrokenOff)?;
        decoder.push(&piece.map_err(RestoreError::Source)?);
        while let Some(block) = decoder.next_block()? {
            match block {
                Block::Head(Head { position, .. }) if position.next_offset < least => {
                    let at = position.next_offset;
                    let reason = format!("it stands at {at}, and {least} is needed");
                    return Err(RestoreError::Source(reason));
                }
                Block::Head(Head { position, .. }) => cut = position,
                Block::Rows(rows) => {
                    gathered.bytes += rows.tuples.len();
                    gathered.rows.push(rows);
                }
                Block::Dedup(tuples) => gathered.dedup.push(tuples),
                Block::End { .. } => {}
            }
        }
        if gathered.bytes >= PIECE_BYTES || decoder.has_ended() {
            let gathered = std::mem::take(&mut gathered);
            keep(store, slot, begun, &cut, gathered).await?;
        }
    }
    let begun = begun.take().expect("kept at the end at the latest");
    Ok(end(store, slot, begun.position).await?)
}

impl From<SnapshotError> for RestoreError {
    fn from(error: SnapshotError) -> Self {
        Self::Source(error.to_string())
    }
}

/// What an interrupted restore has left, if the log goes on from there.
pub(super) async fn begun(
    store: &PostgresStore,
    slot: SlotId,
    least: Offset,
) -> Result<Option<Begun>, StoreError> {
    let stored: Option<(String, Vec<u8>)> = store
        .with_connection(PIECE_SECONDS, async |connection| {
            sqlx::query_as(sql::SELECT_RESTORE)
                .bind(slot_number(slot))
                .fetch_optional(connection)
                .await
                .map_err(unavailable)
        })
        .await?;
    let parse = |(position, after): (String, Vec<u8>)| {
        let position = serde_json::from_str(&position)
            .map_err(|error| schema_error(format!("restore.position of slot {slot}: {error}")))?;
        Ok(Begun {
            position,
            after: after.into(),
        })
    };
    let begun: Option<Begun> = stored.map(parse).transpose()?;
    // Without a key it is not known what of the rest came.
    Ok(begun.filter(|begun| !begun.after.is_empty() && begun.position.next_offset >= least))
}

/// What the next stream must hold.
pub(super) fn missing(begun: Option<&Begun>, least: Offset) -> Missing {
    Missing {
        after: begun.map_or_else(Bytes::new, |begun| begun.after.clone()),
        least: begun.map_or(least, |begun| least.max(begun.position.next_offset)),
    }
}

/// Writes some rows, and how far the restore has come, in one transaction. From here on the old state is not used any more,
/// whatever becomes of the transaction.
async fn keep(
    store: &PostgresStore,
    slot: SlotId,
    begun: &mut Option<Begun>,
    cut: &SlotPosition,
    gathered: Gathered,
) -> Result<(), StoreError> {
    let is_first = begun.is_none();
    let mut next = begun.clone().unwrap_or_else(|| Begun {
        position: cut.clone(),
        after: Bytes::new(),
    });
    next.position.join_cut(cut);
    if let Some(last) = gathered.rows.last() {
        next.after = last.last_key.clone();
    }
    let shared = &store.shared;
    shared.forget(slot);
    let work = async |connection: &mut PgConnection| {
        let mut tx = write::begin(connection, shared, false).await?;
        if is_first {
            empty(&mut tx, slot).await?;
        }
        let tuples = gathered.rows.iter().map(|rows| &rows.tuples);
        copy_in(&mut tx, sql::COPY_DEDUP_IN, gathered.dedup.iter()).await?;
        copy_in(&mut tx, &sql::copy_in(slot.0), tuples).await?;
        note(&mut tx, slot, &next).await?;
        tx.commit().await.map_err(unavailable)
    };
    store.with_connection(PIECE_SECONDS, work).await?;
    let count = gathered.rows.iter().map(|rows| u64::from(rows.count)).sum();
    shared.metrics.observe_restored(count);
    *begun = Some(next);
    Ok(())
}

/// Drops what is stored of the slot and marks it.
async fn empty(tx: &mut PgConnection, slot: SlotId) -> Result<(), StoreError> {
    make_partition(tx, slot).await?;
    sqlx::raw_sql(AssertSqlSafe(sql::empty_partition(slot.0)))
        .execute(&mut *tx)
        .await
        .map_err(unavailable)?;
    sqlx::query(sql::EMPTY_DEDUP)
        .bind(slot_number(slot))
        .execute(&mut *tx)
        .await
        .map_err(unavailable)?;
    sqlx::query(sql::BEGIN_RESTORE)
        .bind(slot_number(slot))
        .bind(SlotPosition::NO_SNAPSHOT_YET.0)
        .execute(tx)
        .await
        .map_err(unavailable)?;
    Ok(())
}

async fn copy_in(
    tx: &mut PgConnection,
    statement: &str,
    tuples: impl ExactSizeIterator<Item = &Bytes>,
) -> Result<(), StoreError> {
    if tuples.len() == 0 {
        return Ok(());
    }
    let mut copy = tx.copy_in_raw(statement).await.map_err(unavailable)?;
    copy.send(COPY_HEADER).await.map_err(unavailable)?;
    for tuples in tuples {
        let tuples: &[u8] = tuples;
        copy.send(tuples).await.map_err(unavailable)?;
    }
    copy.send(COPY_TRAILER).await.map_err(unavailable)?;
    copy.finish().await.map_err(unavailable)?;
    Ok(())
}

async fn note(tx: &mut PgConnection, slot: SlotId, begun: &Begun) -> Result<(), StoreError> {
    let position = serde_json::to_string(&begun.position).expect("its keys are text");
    sqlx::query(sql::NOTE_RESTORE)
        .bind(slot_number(slot))
        .bind(position)
        .bind(begun.after.as_ref())
        .execute(tx)
        .await
        .map_err(unavailable)?;
    Ok(())
}

/// The slot stands where the snapshot was cut, durably.
async fn end(
    store: &PostgresStore,
    slot: SlotId,
    position: SlotPosition,
) -> Result<(), StoreError> {
    let shared: &Shared = &store.shared;
    let step = SlotStep {
        slot,
        expected: Offset(0),
        end: position,
        entries: std::collections::BTreeMap::new(),
        dedup: Vec::new(),
    };
    let work = async |connection: &mut PgConnection| {
        let mut tx = write::begin(connection, shared, true).await?;
        let moved = write::move_offsets(std::slice::from_ref(&step))
            .execute(&mut *tx)
            .await
            .map_err(unavailable)?;
        let ended = sqlx::query(sql::END_RESTORE)
            .bind(slot_number(slot))
            .execute(&mut *tx)
            .await
            .map_err(unavailable)?;
        if (moved.rows_affected(), ended.rows_affected()) != (1, 1) {
            return Err(schema_error(format!(
                "slot {slot} was changed while it was restored"
            )));
        }
        tx.commit().await.map_err(unavailable)
    };
    store.with_connection(PIECE_SECONDS, work).await
}
