//! Gives a slot away as a snapshot: position and rows of one REPEATABLE READ transaction, so of one cut, as a stream of blocks
//! (`store/snapshot.rs`).

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt, stream};
use kvcluster_crds::{Offset, SlotId};
use sqlx::PgConnection;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use crate::effect::SlotPosition;
use crate::store::postgres::{Lent, limited, unavailable};
use crate::store::rows::{position, slot_number};
use crate::store::snapshot::{BLOCK_BYTES, Block, Head, Rows, Tuples};
use crate::store::{ExportError, StoreError, sql};

/// Blocks between PostgreSQL and the reader: enough to keep both busy.
const BLOCKS_IN_FLIGHT: usize = 4;
/// Longest wait for the reader to take a block, seconds: an open cut keeps PostgreSQL from cleaning old rows away.
const READER_SECONDS: u64 = 30;
/// Longest begin, seconds.
const BEGIN_SECONDS: u64 = 5;
/// Longest export of one slot, seconds; `sql::ALLOW_LONG_SCAN` says the same to PostgreSQL.
const EXPORT_SECONDS: u64 = 600;
/// The key among the columns of `kv` that are copied.
const KEY_FIELD: usize = 1;

/// An empty piece says that the stream is whole.
type Piece = Result<Bytes, StoreError>;

/// Takes the cut and starts the stream of the rows behind the key `after`. `permit` is held until it is over.
pub(super) async fn start(
    slot: SlotId,
    after: Bytes,
    least: Offset,
    mut connection: Lent,
    permit: OwnedSemaphorePermit,
) -> Result<BoxStream<'static, Piece>, ExportError> {
    let cut = limited(BEGIN_SECONDS, begin(connection.get(), slot)).await?;
    let cut = cut.ok_or(ExportError::NotHere { slot })?;
    if cut.whole_at.is_some() {
        return Err(ExportError::NotWhole { slot });
    }
    if cut.next_offset < least {
        let at = cut.next_offset;
        return Err(ExportError::TooOld { slot, at, least });
    }
    let (sender, receiver) = mpsc::channel::<Piece>(BLOCKS_IN_FLIGHT);
    tokio::spawn(async move {
        let copied = copy(connection.get(), slot, &after, cut, &sender);
        let end = limited(EXPORT_SECONDS, copied).await.map(|()| {
            connection.give_back();
            Bytes::new()
        });
        // A reader that has gone does not need to know.
        let _ = sender
            .send_timeout(end, Duration::from_secs(READER_SECONDS))
            .await;
        drop(permit);
    });
    let pieces = stream::try_unfold(receiver, |mut receiver| async move {
        match receiver.recv().await {
            Some(Ok(piece)) if piece.is_empty() => Ok(None),
            Some(Ok(piece)) => Ok(Some((piece, receiver))),
            Some(Err(error)) => Err(error),
            None => Err(StoreError::Unavailable("the export broke off".to_owned())),
        }
    });
    Ok(pieces.boxed())
}

/// Opens the transaction and answers where the slot stands in it.
async fn begin(
    connection: &mut PgConnection,
    slot: SlotId,
) -> Result<Option<SlotPosition>, StoreError> {
    for statement in [sql::BEGIN_SCAN, sql::ALLOW_LONG_SCAN] {
        sqlx::raw_sql(statement)
            .execute(&mut *connection)
            .await
            .map_err(unavailable)?;
    }
    let row = sqlx::query(sql::SELECT_STATE)
        .bind(slot_number(slot))
        .fetch_optional(connection)
        .await
        .map_err(unavailable)?;
    Ok(row.as_ref().map(position).transpose()?.map(|(_, at)| at))
}

async fn copy(
    connection: &mut PgConnection,
    slot: SlotId,
    after: &[u8],
    cut: SlotPosition,
    sender: &mpsc::Sender<Piece>,
) -> Result<(), StoreError> {
    send(sender, &Block::Head(Head::new(cut.of_snapshot()))).await?;
    if after.is_empty() {
        let statement = sql::copy_dedup_out(slot.0);
        let dedup = |gathered: Gathered| Block::Dedup(gathered.tuples.freeze());
        copy_table(connection, &statement, dedup, sender).await?;
    }
    let statement = sql::copy_out(slot.0, after);
    let rows = copy_table(connection, &statement, Gathered::rows, sender).await?;
    sqlx::raw_sql(sql::END_SCAN)
        .execute(connection)
        .await
        .map_err(unavailable)?;
    send(sender, &Block::End { rows }).await
}

/// Sends the rows of one statement; how many they were.
async fn copy_table(
    connection: &mut PgConnection,
    statement: &str,
    block: fn(Gathered) -> Block,
    sender: &mpsc::Sender<Piece>,
) -> Result<u64, StoreError> {
    let mut copied = connection
        .copy_out_raw(statement)
        .await
        .map_err(unavailable)?;
    let mut tuples = Tuples::default();
    let mut gathered = Gathered::default();
    let mut rows = 0;
    while let Some(piece) = copied.try_next().await.map_err(unavailable)? {
        tuples.push(&piece);
        while let Some((row, key)) = tuples.next_row(KEY_FIELD).map_err(malformed)? {
            rows += 1;
            gathered.add(&row, key);
            if gathered.tuples.len() >= BLOCK_BYTES {
                send(sender, &block(std::mem::take(&mut gathered))).await?;
            }
        }
    }
    if !tuples.has_ended() {
        return Err(StoreError::Unavailable("the copy broke off".to_owned()));
    }
    if gathered.count > 0 {
        send(sender, &block(gathered)).await?;
    }
    Ok(rows)
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn malformed(error: crate::store::snapshot::SnapshotError) -> StoreError {
    StoreError::Unavailable(error.to_string())
}

/// Rows of the next block.
#[derive(Default)]
struct Gathered {
    count: u32,
    last_key: Bytes,
    tuples: BytesMut,
}

impl Gathered {
    fn add(&mut self, row: &[u8], key: Bytes) {
        self.count += 1;
        self.last_key = key;
        self.tuples.extend_from_slice(row);
    }

    fn rows(self) -> Block {
        Block::Rows(Rows {
            count: self.count,
            last_key: self.last_key,
            tuples: self.tuples.freeze(),
        })
    }
}

async fn send(sender: &mpsc::Sender<Piece>, block: &Block) -> Result<(), StoreError> {
    sender
        .send_timeout(Ok(block.encode()), Duration::from_secs(READER_SECONDS))
        .await
        .map_err(|_| StoreError::Unavailable("nobody takes the snapshot".to_owned()))
}
