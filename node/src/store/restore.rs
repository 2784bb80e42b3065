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
use tokio::sync::mpsc;

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
const PIECE_BYTES: usize = 4 * 1_048_576;
/// Pieces that wait while another one is written: the source need not wait, and memory holds three at most.
const PIECES_WAITING: usize = 1;
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

/// What one transaction stores of a stream.
struct Piece {
    /// Where the stream was cut.
    cut: SlotPosition,
    dedup: Vec<Bytes>,
    rows: Vec<Rows>,
    bytes: usize,
}

impl Piece {
    fn of(cut: SlotPosition) -> Self {
        Self {
            cut,
            dedup: Vec::new(),
            rows: Vec::new(),
            bytes: 0,
        }
    }
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

/// The source is read while what came before is written: each takes about as long as the other.
async fn take_from(
    store: &PostgresStore,
    slot: SlotId,
    least: Offset,
    begun: &mut Option<Begun>,
    stream: BoxStream<'_, Result<Bytes, String>>,
) -> Result<(), RestoreError> {
    let least = missing(begun.as_ref(), least).least;
    let (sender, receiver) = mpsc::channel(PIECES_WAITING);
    // Not `try_join`: a transaction that has begun is seen to its end, so that `begun` says what is there.
    let (read, kept) = tokio::join!(
        read(least, stream, sender),
        keep_all(store, slot, begun, receiver)
    );
    kept?;
    read?;
    let begun = begun.take().expect("kept at the end at the latest");
    Ok(end(store, slot, begun.position).await?)
}

/// Takes the stream apart into pieces. Ends early when nobody takes them.
async fn read(
    least: Offset,
    mut stream: BoxStream<'_, Result<Bytes, String>>,
    pieces: mpsc::Sender<Piece>,
) -> Result<(), RestoreError> {
    let mut decoder = Decoder::default();
    let mut piece = Piece::of(SlotPosition::start());
    while !decoder.has_ended() {
        let bytes = tokio::time::timeout(Duration::from_secs(SOURCE_SECONDS), stream.next()).await;
        let bytes = bytes.map_err(|_| RestoreError::Source("it fell silent".to_owned()))?;
        let bytes = bytes.ok_or(SnapshotError::BrokenOff)?;
        decoder.push(&bytes.map_err(RestoreError::Source)?);
        while let Some(block) = decoder.next_block()? {
            match block {
                Block::Head(Head { position, .. }) if position.next_offset < least => {
                    let at = position.next_offset;
                    let reason = format!("it stands at {at}, and {least} is needed");
                    return Err(RestoreError::Source(reason));
                }
                Block::Head(Head { position, .. }) => piece.cut = position,
                Block::Rows(rows) => {
                    piece.bytes += rows.tuples.len();
                    piece.rows.push(rows);
                }
                Block::Dedup(tuples) => piece.dedup.push(tuples),
                Block::End { .. } => {}
            }
        }
        if piece.bytes >= PIECE_BYTES || decoder.has_ended() {
            let cut = piece.cut.clone();
            let whole = std::mem::replace(&mut piece, Piece::of(cut));
            if pieces.send(whole).await.is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}

async fn keep_all(
    store: &PostgresStore,
    slot: SlotId,
    begun: &mut Option<Begun>,
    mut pieces: mpsc::Receiver<Piece>,
) -> Result<(), StoreError> {
    while let Some(piece) = pieces.recv().await {
        keep(store, slot, begun, piece).await?;
    }
    Ok(())
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
    piece: Piece,
) -> Result<(), StoreError> {
    let is_first = begun.is_none();
    let mut next = begun.clone().unwrap_or_else(|| Begun {
        position: piece.cut.clone(),
        after: Bytes::new(),
    });
    next.position.join_cut(&piece.cut);
    if let Some(last) = piece.rows.last() {
        next.after = last.last_key.clone();
    }
    let shared = &store.shared;
    if shared.has(slot) {
        // Behind the flush that may be under way: one of a replica that has stored nothing yet expects offset 0, as the mark of a
        // partly restored slot has it, and would put its own position in the place of the mark.
        shared.release(slot).await;
    }
    let work = async |connection: &mut PgConnection| {
        let mut tx = write::begin(connection, shared, false).await?;
        if is_first {
            empty(&mut tx, slot).await?;
        }
        let tuples = piece.rows.iter().map(|rows| &rows.tuples);
        copy_in(&mut tx, sql::COPY_DEDUP_IN, piece.dedup.iter()).await?;
        copy_in(&mut tx, &sql::copy_in(slot.0), tuples).await?;
        note(&mut tx, slot, &next).await?;
        tx.commit().await.map_err(unavailable)
    };
    store.with_connection(PIECE_SECONDS, work).await?;
    let count = piece.rows.iter().map(|rows| u64::from(rows.count)).sum();
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
