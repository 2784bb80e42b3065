//! Slots as snapshots: given away as of one moment, in the product's blocks, and taken block by block, each in a transaction of
//! its own; what a broken stream leaves is gone on from.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt, stream};
use kvcluster_crds::{Offset, SlotId};
use kvcluster_node::effect::{DedupEntry, SlotPosition, Versioned};
use kvcluster_node::store::snapshot::{Block, Decoder, Head, Rows, SnapshotError};
use kvcluster_node::store::{ExportError, Missing, RestoreError, Snapshots, StoreError};

use super::server::{Begun, Connection, Cut};
use super::{Inner, SimStore, lock};

/// Rows and requests of one transaction.
#[derive(Default)]
pub(super) struct Piece {
    pub(super) rows: Vec<(Bytes, Versioned)>,
    pub(super) dedup: Vec<DedupEntry>,
}

impl Snapshots for SimStore {
    fn export(
        &self,
        slot: SlotId,
        after: Bytes,
        least: Offset,
    ) -> BoxFuture<'_, Result<BoxStream<'static, Result<Bytes, StoreError>>, ExportError>> {
        async move {
            let connection = self.inner.reader().await?;
            let cut = connection.snapshot(slot).await?;
            let cut = cut.ok_or(ExportError::NotHere { slot })?;
            if cut.position.whole_at.is_some() {
                return Err(ExportError::NotWhole { slot });
            }
            let at = cut.position.next_offset;
            if at < least {
                return Err(ExportError::TooOld { slot, at, least });
            }
            Ok(blocks(connection, &cut, &after))
        }
        .boxed()
    }

    fn missing(&self, slot: SlotId, least: Offset) -> BoxFuture<'_, Result<Missing, StoreError>> {
        async move {
            let begun = self.inner.begun(slot, least).await?;
            Ok(missing(begun.as_ref(), least))
        }
        .boxed()
    }

    fn restore<'a>(
        &'a self,
        slot: SlotId,
        least: Offset,
        stream: BoxStream<'a, Result<Bytes, String>>,
    ) -> BoxFuture<'a, Result<(), RestoreError>> {
        async move {
            let mut begun = self.inner.begun(slot, least).await?;
            let taken = self.inner.take(slot, least, &mut begun, stream).await;
            match taken {
                Err(RestoreError::Source(reason)) if begun.is_some() => {
                    let schema = &self.inner.schema;
                    schema.count_restore(|restores| restores.broken += 1);
                    Err(RestoreError::Broken(reason))
                }
                taken => taken,
            }
        }
        .boxed()
    }
}

/// What the next stream must hold.
fn missing(begun: Option<&Begun>, least: Offset) -> Missing {
    Missing {
        after: begun.map_or_else(Bytes::new, |begun| begun.after.clone()),
        least: begun.map_or(least, |begun| least.max(begun.position.next_offset)),
    }
}

/// The stream of a cut behind a key: a row in each block, so that it may break between any two.
fn blocks(
    connection: Connection,
    cut: &Cut,
    after: &Bytes,
) -> BoxStream<'static, Result<Bytes, StoreError>> {
    let mut blocks = vec![Block::Head(Head::new(cut.position.of_snapshot()))];
    if after.is_empty() {
        let entries = cut.dedup.iter();
        blocks.extend(entries.map(|entry| Block::Dedup(encode_entry(entry))));
    }
    let rows = cut.rows.iter().filter(|(key, _)| *key > after);
    let rows: Vec<_> = rows.map(|(key, value)| encode_row(key, value)).collect();
    let end = Block::End {
        rows: rows.len() as u64,
    };
    blocks.extend(rows);
    blocks.push(end);
    let state = (connection, blocks.into_iter());
    let stream = stream::try_unfold(state, async |(connection, mut blocks)| {
        let Some(block) = blocks.next() else {
            return Ok(None);
        };
        connection.statement().await?;
        Ok(Some((block.encode(), (connection, blocks))))
    });
    stream.boxed()
}

impl Inner {
    /// What an interrupted restore has left, if the log goes on from there.
    async fn begun(&self, slot: SlotId, least: Offset) -> Result<Option<Begun>, StoreError> {
        let begun = self.schema.connect().await?.begun(slot).await?;
        Ok(begun.filter(|begun| !begun.after.is_empty() && begun.position.next_offset >= least))
    }

    async fn take(
        &self,
        slot: SlotId,
        least: Offset,
        begun: &mut Option<Begun>,
        mut stream: BoxStream<'_, Result<Bytes, String>>,
    ) -> Result<(), RestoreError> {
        let least = missing(begun.as_ref(), least).least;
        let mut decoder = Decoder::default();
        let mut piece = Piece::default();
        let mut cut = SlotPosition::start();
        while !decoder.has_ended() {
            let bytes = stream.next().await.ok_or(SnapshotError::BrokenOff)?;
            decoder.push(&bytes.map_err(RestoreError::Source)?);
            while let Some(block) = decoder.next_block()? {
                match block {
                    Block::Head(Head { position, .. }) if position.next_offset < least => {
                        let at = position.next_offset;
                        let reason = format!("it stands at {at}, and {least} is needed");
                        return Err(RestoreError::Source(reason));
                    }
                    Block::Head(Head { position, .. }) => cut = position,
                    Block::Dedup(entry) => piece.dedup.push(decode_entry(entry)),
                    Block::Rows(row) => {
                        piece.rows.push(decode_row(row.tuples));
                        self.keep(slot, begun, &cut, std::mem::take(&mut piece))
                            .await?;
                    }
                    // Also without a row: another cut joins, and the old state goes.
                    Block::End { .. } => {
                        self.keep(slot, begun, &cut, std::mem::take(&mut piece))
                            .await?;
                    }
                }
            }
        }
        let connection = self.schema.connect().await?;
        connection.end_restore(self.incarnation, slot).await?;
        let is_joined = begun
            .take()
            .is_some_and(|begun| begun.position.whole_at.is_some());
        self.schema.count_restore(|restores| {
            restores.whole += 1;
            restores.joined += u64::from(is_joined);
        });
        Ok(())
    }

    /// From here on the old state is not used any more, whatever becomes of the transaction.
    async fn keep(
        &self,
        slot: SlotId,
        begun: &mut Option<Begun>,
        cut: &SlotPosition,
        piece: Piece,
    ) -> Result<(), StoreError> {
        let is_first = begun.is_none();
        let mut next = begun.clone().unwrap_or_else(|| Begun {
            position: cut.clone(),
            after: Bytes::new(),
        });
        next.position.join_cut(cut);
        if let Some((key, _)) = piece.rows.last() {
            next.after = key.clone();
        }
        {
            let _no_flush = self.flushing.lock().await;
            lock(&self.overlays).remove(&slot);
        }
        let connection = self.schema.connect().await?;
        let kept = connection.keep(self.incarnation, slot, is_first, piece, next.clone());
        kept.await?;
        *begun = Some(next);
        Ok(())
    }
}

fn encode_row(key: &Bytes, value: &Versioned) -> Block {
    let mut tuples = BytesMut::new();
    put_bytes(&mut tuples, key);
    put_bytes(&mut tuples, &value.value);
    tuples.put_i64(value.version.0);
    Block::Rows(Rows {
        count: 1,
        last_key: key.clone(),
        tuples: tuples.freeze(),
    })
}

fn decode_row(mut tuples: Bytes) -> (Bytes, Versioned) {
    let key = take_bytes(&mut tuples);
    let value = take_bytes(&mut tuples);
    let version = Offset(tuples.get_i64());
    (key, Versioned { value, version })
}

fn encode_entry(entry: &DedupEntry) -> Bytes {
    let mut tuples = BytesMut::new();
    put_bytes(&mut tuples, &entry.key);
    tuples.put_u64(entry.fingerprint);
    tuples.put_i64(entry.version.0);
    tuples.put_u64(entry.time_ms);
    tuples.freeze()
}

fn decode_entry(mut tuples: Bytes) -> DedupEntry {
    DedupEntry {
        key: take_bytes(&mut tuples).as_ref().into(),
        fingerprint: tuples.get_u64(),
        version: Offset(tuples.get_i64()),
        time_ms: tuples.get_u64(),
    }
}

fn put_bytes(to: &mut BytesMut, bytes: &[u8]) {
    to.put_u32(u32::try_from(bytes.len()).expect("keys and values have limits"));
    to.put_slice(bytes);
}

/// The checksum of its block says that it is what was put in.
fn take_bytes(from: &mut Bytes) -> Bytes {
    let length = from.get_u32();
    from.split_to(length as usize)
}
