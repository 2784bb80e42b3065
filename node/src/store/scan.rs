//! A scan of one slot: one cut of PostgreSQL's rows and the overlay, merged by key, streamed.
//!
//! The overlay is cut first, up to offset A, and then a REPEATABLE READ transaction reads the rows as of PostgreSQL's offset
//! F. F ≤ A: the overlay's newest effects go over the rows. F > A: the rows alone are the newer cut.

use std::collections::BTreeMap;
use std::iter::Peekable;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt, stream};
use kvcluster_crds::SlotId;
use sqlx::{PgConnection, Row as _};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use crate::store::overlay::{Entry, merge};
use crate::store::postgres::{Lent, limited, not_loaded, unavailable};
use crate::store::rows::{slot_number, versioned};
use crate::store::shared::Shared;
use crate::store::{Row, StoreError, sql};

/// Chunks between PostgreSQL and the reader: enough to keep both busy.
const CHUNKS_IN_FLIGHT: usize = 4;
/// A chunk ends at the row that reaches this many bytes, so that a scan takes a few megabytes at most.
const CHUNK_BYTES: usize = 65_536;
/// Rows of a chunk, for small ones.
const CHUNK_ROWS: usize = 512;
/// Longest wait for the reader to take a chunk, seconds: an open cut keeps PostgreSQL from cleaning old rows away.
const READER_SECONDS: u64 = 30;
/// Longest begin of a scan, seconds.
const BEGIN_SECONDS: u64 = 5;
/// Longest scan of one slot, seconds; `sql::ALLOW_LONG_SCAN` says the same to PostgreSQL.
const SCAN_SECONDS: u64 = 600;

/// What travels to the reader; an empty chunk says that the scan is whole.
type Chunk = Result<Vec<Row>, StoreError>;

/// Takes the cut and starts the stream. `permit` is held until the scan is over.
pub(super) async fn start(
    shared: &Shared,
    slot: SlotId,
    mut connection: Lent,
    permit: OwnedSemaphorePermit,
) -> Result<BoxStream<'static, Result<Row, StoreError>>, StoreError> {
    let cut = shared.with(slot, crate::store::overlay::SlotOverlay::cut);
    let (applied, segments) = cut.ok_or_else(|| not_loaded(slot))?;
    let flushed = limited(BEGIN_SECONDS, begin(connection.get(), slot)).await?;
    let over = if flushed <= applied.0 {
        merge(&segments)
    } else {
        BTreeMap::new()
    };
    drop(segments);
    let (sender, receiver) = mpsc::channel::<Chunk>(CHUNKS_IN_FLIGHT);
    tokio::spawn(async move {
        let copied = limited(SCAN_SECONDS, copy(connection.get(), slot, over, &sender)).await;
        let last = copied.map(|()| {
            connection.give_back();
            Vec::new()
        });
        // A reader that has gone does not need to know.
        let _ = sender
            .send_timeout(last, Duration::from_secs(READER_SECONDS))
            .await;
        drop(permit);
    });
    let chunks = stream::try_unfold(receiver, |mut receiver| async move {
        match receiver.recv().await {
            Some(Ok(rows)) if rows.is_empty() => Ok(None),
            Some(Ok(rows)) => Ok(Some((stream::iter(rows.into_iter().map(Ok)), receiver))),
            Some(Err(error)) => Err(error),
            None => Err(StoreError::Unavailable("the scan broke off".to_owned())),
        }
    });
    Ok(chunks.try_flatten().boxed())
}

/// Opens the transaction and answers PostgreSQL's offset in it.
async fn begin(connection: &mut PgConnection, slot: SlotId) -> Result<i64, StoreError> {
    sqlx::raw_sql(sql::BEGIN_SCAN)
        .execute(&mut *connection)
        .await
        .map_err(unavailable)?;
    sqlx::raw_sql(sql::ALLOW_LONG_SCAN)
        .execute(&mut *connection)
        .await
        .map_err(unavailable)?;
    sqlx::query_scalar(sql::SELECT_OFFSET)
        .bind(slot_number(slot))
        .fetch_one(connection)
        .await
        .map_err(unavailable)
}

async fn copy(
    connection: &mut PgConnection,
    slot: SlotId,
    over: BTreeMap<Bytes, Entry>,
    sender: &mpsc::Sender<Chunk>,
) -> Result<(), StoreError> {
    let mut rows = sqlx::query(sql::SCAN)
        .bind(slot_number(slot))
        .fetch(&mut *connection);
    let mut over = Overlaid {
        entries: over.into_iter().peekable(),
    };
    let mut chunk = Vec::new();
    let mut bytes = 0;
    loop {
        let row = rows.try_next().await.map_err(unavailable)?;
        let row = row.map(|row| {
            let key: &[u8] = row.try_get(0).map_err(unavailable)?;
            Ok((Bytes::copy_from_slice(key), versioned(&row, 1, 2)?))
        });
        let row = row.transpose()?;
        let last = row.is_none();
        for (key, value) in over.next(row) {
            bytes += key.len() + value.value.len();
            chunk.push((key, value));
            if bytes >= CHUNK_BYTES || chunk.len() >= CHUNK_ROWS {
                bytes = 0;
                send(sender, std::mem::take(&mut chunk)).await?;
            }
        }
        if last {
            break;
        }
    }
    drop(rows);
    sqlx::raw_sql(sql::END_SCAN)
        .execute(connection)
        .await
        .map_err(unavailable)?;
    if chunk.is_empty() {
        Ok(())
    } else {
        send(sender, chunk).await
    }
}

async fn send(sender: &mpsc::Sender<Chunk>, chunk: Vec<Row>) -> Result<(), StoreError> {
    let sent = sender
        .send_timeout(Ok(chunk), Duration::from_secs(READER_SECONDS))
        .await;
    sent.map_err(|_| {
        StoreError::Unavailable("the reader of the scan is gone or too slow".to_owned())
    })
}

/// The overlay's entries on their way into the rows; both in order of keys.
struct Overlaid<I: Iterator<Item = (Bytes, Entry)>> {
    entries: Peekable<I>,
}

impl<I: Iterator<Item = (Bytes, Entry)>> Overlaid<I> {
    /// What comes out at the next row: the overlay's keys before it, then the row, or what the overlay has in its place.
    /// None: after the last row.
    fn next(&mut self, row: Option<Row>) -> Vec<Row> {
        let mut out = Vec::new();
        while let Some((key, _)) = self.entries.peek()
            && row.as_ref().is_none_or(|(at, _)| key < at)
        {
            let (key, entry) = self.entries.next().expect("just seen");
            out.extend(entry.versioned().map(|value| (key, value)));
        }
        if let Some((key, value)) = row {
            let same = self.entries.next_if(|(over, _)| *over == key);
            match same {
                Some((_, entry)) if entry.version >= value.version => {
                    out.extend(entry.versioned().map(|value| (key, value)));
                }
                _ => out.push((key, value)),
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use kvcluster_crds::Offset;

    use super::*;
    use crate::effect::Versioned;

    fn row(key: &str, version: i64) -> Row {
        let value = Bytes::from("row");
        (
            Bytes::copy_from_slice(key.as_bytes()),
            Versioned {
                value,
                version: Offset(version),
            },
        )
    }

    #[test]
    fn overlay_goes_over_the_rows_in_order_of_keys() {
        let entry = |key: &str, version: i64, value: Option<&str>| {
            let value = value.map(|text| Bytes::copy_from_slice(text.as_bytes()));
            (
                Bytes::copy_from_slice(key.as_bytes()),
                Entry {
                    version: Offset(version),
                    value,
                },
            )
        };
        let entries = [
            entry("a", 9, Some("new")),
            entry("b", 9, None),
            entry("c", 9, Some("over")),
            entry("e", 3, Some("older than the row")),
            entry("z", 9, Some("last")),
            entry("zz", 9, None),
        ];
        let mut over = Overlaid {
            entries: entries.into_iter().peekable(),
        };
        let mut out = Vec::new();
        for row in [row("b", 1), row("c", 1), row("d", 1), row("e", 4)] {
            out.extend(over.next(Some(row)));
        }
        out.extend(over.next(None));
        let text: Vec<_> = out
            .iter()
            .map(|(key, value)| format!("{}={}", key.escape_ascii(), value.value.escape_ascii()))
            .collect();
        assert_eq!(text, ["a=new", "c=over", "d=row", "e=row", "z=last"]);
    }
}
